"""Another number of partitions: what must be so before, and what is so afterwards."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import quote, urlsplit
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from aiormq.exceptions import ChannelInvalidStateError, ChannelNotFoundEntity
from pamqp.commands import Queue

from sandbox.rabbitmq import RabbitMQ
from task_activity_log.cli.partitions import show_or_change
from task_activity_log.client import ClientError, TaskActivityLog, TaskActivityLogClient
from task_activity_log.partitions import PARTITIONS_MAX, partition_of, slots_of
from task_activity_log.problem import Misconfigured
from task_activity_log.rabbitmq import repartition
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.repartition import NotEmpty, change, look_up
from task_activity_log.rabbitmq.topology import Topology, _bind, declare
from task_activity_log.settings import load
from tests.commands import COMMAND, environment
from tests.users import user_who_may

EIGHT = Topology(partitions=8)
TWO = Topology(partitions=2)
ALL_SLOTS = [*slots_of(0, 1)]


@pytest.fixture(autouse=True)
def most(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change looks for 16 partitions instead of 256: for each that does not exist the broker closes a channel."""
    monkeypatch.setattr(repartition, "PARTITIONS_MAX", 16)


async def _ignore(_: AbstractIncomingMessage) -> None:
    pass


async def declared(amqp_url: str, topology: Topology) -> LinkOptions:
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, topology)
    return LinkOptions(amqp_url)


async def routed(amqp_url: str, topology: Topology) -> None:
    """Each slot goes to its queue and to no other."""
    arrived: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    async with await aio_pika.connect(amqp_url) as connection, connection.channel(on_return_raises=True) as channel:
        for queue in topology.partition_queues:

            async def arrive(message: AbstractIncomingMessage, queue: str = queue) -> None:
                await arrived.put((message.body.decode(), queue))

            await (await channel.get_queue(queue)).consume(arrive, no_ack=True)
        exchange = await channel.get_exchange(topology.partitions_exchange, ensure=False)
        for slot in ALL_SLOTS:
            await exchange.publish(aio_pika.Message(slot.encode()), slot)
        async with asyncio.timeout(30):
            got = [await arrived.get() for _ in ALL_SLOTS]
    assert arrived.empty()
    assert dict(got) == {slot: topology.partition_queues[partition_of(slot, topology.partitions)] for slot in ALL_SLOTS}


async def test_the_bindings_of_all_slots_are_one_round_trip(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker answers one of them. At a start 256 answers, one after the other, would take a minute on a slow link."""
    answers = 0
    unmarshal = Queue.BindOk.unmarshal

    def counted(frame: Queue.BindOk, data: bytes) -> None:
        nonlocal answers
        answers += 1
        unmarshal(frame, data)

    monkeypatch.setattr(Queue.BindOk, "unmarshal", counted)
    await declared(amqp_url, EIGHT)
    assert answers == 1
    await routed(amqp_url, EIGHT)


async def test_a_binding_that_the_broker_refuses_is_an_error(amqp_url: str) -> None:
    """It answers the last one alone."""
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, TWO)
        good = TWO.bindings()
        with pytest.raises(ChannelNotFoundEntity, match="no queue 'missing'"):
            await _bind(connection, [good[0], ("missing", TWO.partitions_exchange, "00"), *good[1:]])


@pytest.mark.parametrize("to", [4, 16, 1])
async def test_the_slots_move(amqp_url: str, to: int) -> None:
    options = await declared(amqp_url, EIGHT)
    said: list[str] = []
    await change(options, replace(EIGHT, partitions=to), said.append)
    assert (await look_up(options, EIGHT)).count == to
    assert said[-1] == f"declaring {to} queues"
    await routed(amqp_url, replace(EIGHT, partitions=to))


async def test_a_queue_that_was_left_alone_is_found_before_a_change(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in it must not be forgotten."""
    monkeypatch.setattr(repartition, "PARTITIONS_MAX", PARTITIONS_MAX)
    options = await declared(amqp_url, TWO)
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        alone = f"{TWO.requests_queue}.{PARTITIONS_MAX - 1}"
        await channel.declare_queue(alone, durable=True)
        await channel.default_exchange.publish(aio_pika.Message(b""), alone)
    with pytest.raises(NotEmpty, match="1 messages wait"):
        await change(options, EIGHT, lambda _: None)


class Interrupted(Exception):
    """Stands for the end of the command, for example by Ctrl-C."""


@pytest.mark.parametrize(
    ("step", "left"),
    [
        ("deleting exchange task_activity_log.by-record: publishers are refused until it exists again", "2 partitions"),
        ("deleting queue task_activity_log.upsert.0", "an unfinished change"),
        ("deleting queue task_activity_log.upsert.1", "an unfinished change"),
        ("declaring 4 queues", "0 partitions"),
    ],
)
async def test_what_was_interrupted_goes_on(
    amqp_url: str, step: str, left: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever step it was. The dry run says where it is, and changes nothing."""
    options = await declared(amqp_url, TWO)

    def interrupt(at: str) -> None:
        if at == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        await change(options, replace(TWO, partitions=4), interrupt)
    before = await look_up(options, TWO)
    settings = load({"AMQP_URL": amqp_url, "DATABASE_URL": "postgresql://nobody.invalid/none"})
    assert await asyncio.to_thread(show_or_change, settings, 4, yes=False) == 0
    assert f"Now: {left}" in capsys.readouterr().out
    assert await look_up(options, TWO) == before
    assert await asyncio.to_thread(show_or_change, settings, 4, yes=True) == 0
    await routed(amqp_url, replace(TWO, partitions=4))


async def test_a_change_that_was_interrupted_before_the_exchange_is_back_is_not_taken_for_finished(
    amqp_url: str,
) -> None:
    """All queues are there, so their number says nothing. Without the exchange no request that is sent by record arrives."""
    options = await declared(amqp_url, TWO)
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await channel.exchange_delete(TWO.partitions_exchange)
    found = await look_up(options, TWO)
    assert (found.count, found.whole) == (2, False)
    settings = load({"AMQP_URL": amqp_url, "DATABASE_URL": "postgresql://nobody.invalid/none"})
    assert await asyncio.to_thread(show_or_change, settings, 2, yes=True) == 0
    assert (await look_up(options, TWO)).whole
    await routed(amqp_url, TWO)


async def test_the_deleted_second_of_two_partitions_is_declared_again_by_the_command(amqp_url: str) -> None:
    """A worker refuses: the queues look like those of a single partition. Its error names the command."""
    await declared(amqp_url, TWO)
    async with await aio_pika.connect(amqp_url) as connection:
        async with connection.channel() as channel:
            await channel.queue_delete(TWO.partition_queues[1])
        with pytest.raises(Misconfigured, match=r"fewer than 2 partitions.*partitions --to 2"):
            await declare(connection, TWO)
        settings = load({"AMQP_URL": amqp_url, "DATABASE_URL": "postgresql://nobody.invalid/none"})
        assert await asyncio.to_thread(show_or_change, settings, 2, yes=True) == 0
        await declare(connection, TWO)
    await routed(amqp_url, TWO)


async def test_only_one_change_is_under_way_at_a_time(amqp_url: str) -> None:
    """Two at once would bind a slot to queues of both, and each request would go to two queues."""
    options, going = await declared(amqp_url, EIGHT), asyncio.Event()
    first = asyncio.create_task(change(options, replace(EIGHT, partitions=4), lambda _: going.set()))
    await going.wait()
    with pytest.raises(NotEmpty, match="another command is changing the partitions"):
        await change(options, TWO, lambda _: None)
    await first
    await change(options, TWO, lambda _: None)
    await routed(amqp_url, TWO)


async def test_publishers_are_refused_during_a_change(amqp_url: str) -> None:
    """Their messages are not lost: the broker closes the channel, and confirms nothing."""
    options = await declared(amqp_url, TWO)
    refused: list[asyncio.Task[None]] = []

    async def publish() -> None:
        async with await aio_pika.connect(amqp_url) as connection:
            channel = await connection.channel(publisher_confirms=True)
            exchange = await channel.get_exchange(TWO.partitions_exchange, ensure=False)
            with pytest.raises((ChannelNotFoundEntity, ChannelInvalidStateError)):
                await exchange.publish(aio_pika.Message(b"refused"), "00", timeout=30)

    def begin(step: str) -> None:
        if step == "deleting queue task_activity_log.upsert.0":
            refused.append(asyncio.create_task(publish()))

    await change(options, replace(TWO, partitions=4), begin)
    if not refused[0].done():
        await refused[0]
    assert refused[0].exception() is None


async def test_nothing_changes_while_messages_wait(amqp_url: str) -> None:
    options = await declared(amqp_url, EIGHT)
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(EIGHT.partitions_exchange, ensure=False)
        await exchange.publish(aio_pika.Message(b"waiting"), "ff")
        with pytest.raises(NotEmpty, match="1 messages wait"):
            await change(options, replace(EIGHT, partitions=16), lambda _: None)
        await (await channel.get_queue("task_activity_log.upsert.7")).purge()
    await routed(amqp_url, EIGHT)


async def test_nothing_changes_while_a_worker_consumes(amqp_url: str) -> None:
    options = await declared(amqp_url, EIGHT)
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await (await channel.get_queue("task_activity_log.upsert.2")).consume(_ignore, no_ack=True)
        with pytest.raises(NotEmpty, match="workers consume 1 of the partitions"):
            await change(options, replace(EIGHT, partitions=16), lambda _: None)
    await routed(amqp_url, EIGHT)


async def test_what_is_published_meanwhile_puts_everything_back(amqp_url: str) -> None:
    """A message that is in a queue when the exchange has been deleted stays there, and the exchange comes back."""
    options = await declared(amqp_url, EIGHT)
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        steps: list[str] = []
        late: list[asyncio.Task[object]] = []

        def publish(step: str) -> None:
            steps.append(step)
            if step.startswith("deleting exchange"):
                message = channel.default_exchange.publish(aio_pika.Message(b"late"), "task_activity_log.upsert.5")
                late.append(asyncio.create_task(message))

        with pytest.raises(NotEmpty, match="1 messages wait"):
            await change(options, replace(EIGHT, partitions=16), publish)
        await asyncio.gather(*late)
        assert steps[-1] == "putting the exchange back"
        await (await channel.get_queue("task_activity_log.upsert.5")).purge()
    await routed(amqp_url, EIGHT)


async def test_a_queue_that_has_messages_again_is_not_deleted(amqp_url: str, rabbitmq: RabbitMQ) -> None:
    """A worker that starts during the change declares the exchange again, and publishers use it."""
    options = await declared(amqp_url, EIGHT)
    vhost = quote(urlsplit(amqp_url).path[1:], safe="")
    message = {
        "properties": {},
        "routing_key": EIGHT.partition_queues[5],
        "payload": "new",
        "payload_encoding": "string",
    }

    def publish(said: str) -> None:
        if said.endswith(f"queue {EIGHT.partition_queues[0]}"):
            rabbitmq.api("POST", f"/exchanges/{vhost}/amq.default/publish", message)

    with pytest.raises(
        NotEmpty, match=r"upsert\.5 is in use again \(messages: 1, consumers: 0\): .*run the same command again"
    ):
        await change(options, TWO, publish)
    found = await look_up(options, EIGHT)
    assert found.found[5].messages == 1


def run_command(amqp_url: str, to: int | None, *, yes: bool) -> int:
    settings = load({"AMQP_URL": amqp_url, "DATABASE_URL": "postgresql://nobody.invalid/none"})
    return show_or_change(settings, to, yes=yes)


@contextmanager
def nothing_new(rabbitmq: RabbitMQ, amqp_url: str) -> Iterator[None]:
    """Nothing is declared or deleted within."""
    vhost = quote(urlsplit(amqp_url).path[1:], safe="")

    def there() -> list[list[str]]:
        found = [rabbitmq.api("GET", f"/{kind}/{vhost}?columns=name") for kind in ("queues", "exchanges")]
        return [sorted(each["name"] for each in kind) for kind in found]

    before = there()
    yield
    assert there() == before


@pytest.mark.parametrize("by_hand", [False, True])
async def test_a_requests_queue_that_would_not_keep_the_order_is_refused_before_anything_changes(
    rabbitmq: RabbitMQ, amqp_url: str, capsys: pytest.CaptureFixture[str], by_hand: bool
) -> None:
    """Also by the dry run, and for a queue that differs in other arguments, too. When it is deleted, the command goes on."""
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        if by_hand:
            await channel.declare_queue(TWO.requests_queue, durable=True)
        else:
            await declare(connection, Topology())
        await channel.default_exchange.publish(aio_pika.Message(b"waits"), TWO.requests_queue)
        with nothing_new(rabbitmq, amqp_url):
            for yes in (False, True):
                assert await asyncio.to_thread(run_command, amqp_url, 2, yes=yes) == 1
                printed = capsys.readouterr()
                refusal = f"task-activity-log: queue {TWO.requests_queue} has no single active consumer"
                assert printed.err.startswith(refusal)
                assert printed.err.count("\n") == 1
                assert (
                    "`task-activity-log partitions --to 2 --yes` and workers with WORKER_PARTITIONS=2 declare"
                    in printed.err
                )
                assert ("Now: 0 partitions, 1 message," in printed.out) == (not yes)
            both = await asyncio.to_thread(
                subprocess.run,
                (COMMAND, "partitions", "--to", "2"),
                env=environment(AMQP_URL=amqp_url),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert both.stdout.startswith("Now: 0 partitions, 1 message,")  # the steps name what is said below them
            assert refusal in both.stdout
        for missing in (False, True):
            if missing:
                await channel.queue_delete(TWO.requests_queue)
            assert await asyncio.to_thread(run_command, amqp_url, None, yes=False) == 0
            there = f"all requests go to queue {TWO.requests_queue}"
            assert (f"{there}, which does not exist" in capsys.readouterr().out) == missing
        assert await asyncio.to_thread(run_command, amqp_url, 2, yes=True) == 0
    await routed(amqp_url, TWO)


@pytest.mark.parametrize("consumed", [False, True])
async def test_a_first_change_waits_for_the_requests_queue(amqp_url: str, rabbitmq: RabbitMQ, consumed: bool) -> None:
    """What waits there would be overtaken by what is sent by record."""
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await declare(connection, Topology(single_active_consumer=True))
        if consumed:
            await (await channel.get_queue(TWO.requests_queue)).consume(_ignore, no_ack=True)
        else:
            await channel.default_exchange.publish(aio_pika.Message(b"waits"), TWO.requests_queue)
        words = f"workers consume queue {TWO.requests_queue}" if consumed else "1 messages wait in queue"
        with nothing_new(rabbitmq, amqp_url), pytest.raises(NotEmpty, match=words):
            await change(LinkOptions(amqp_url), TWO, lambda _: None)


@pytest.mark.parametrize(
    ("there", "lacking", "named"),
    [(2, "configure", "queue"), (2, "read", "exchange"), (0, "write", "queue"), (0, "read", "exchange")],
)
async def test_a_missing_permission_is_found_before_anything_changes(
    rabbitmq: RabbitMQ, amqp_url: str, there: int, lacking: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await declared(amqp_url, Topology(partitions=there, single_active_consumer=True))
    may = {**dict.fromkeys(("configure", "write", "read"), ".*"), lacking: "^task_activity_log.upsert$"}
    with user_who_may(rabbitmq, amqp_url, **may) as url, nothing_new(rabbitmq, amqp_url):
        assert await asyncio.to_thread(run_command, url, 4, yes=True) == 1
    said = capsys.readouterr().err
    assert f"access to {named} 'task_activity_log." in said
    assert said.endswith("(docs/operations.md, Permissions in RabbitMQ)\n")


async def test_an_exchange_without_queues_is_shown_and_removed_while_a_worker_runs(
    amqp_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an earlier release left it. Publishers that find it learn what to do; the requests queue stays as it is."""
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await declare(connection, Topology())
        await (await channel.get_queue(TWO.requests_queue)).consume(_ignore)
        await channel.declare_exchange(TWO.partitions_exchange, "direct", durable=True)
        async with TaskActivityLogClient(amqp_url) as client:
            with pytest.raises(
                ClientError, match=r"to no queue: not all partitions are declared .*how to finish or undo"
            ):
                await client.send_many([TaskActivityLog(id=uuid4())])
        assert await asyncio.to_thread(run_command, amqp_url, None, yes=False) == 0
        assert "by-record exists without queues, so publishers that find it fail" in capsys.readouterr().err
        assert await asyncio.to_thread(run_command, amqp_url, 0, yes=True) == 0
    found = await look_up(LinkOptions(amqp_url), TWO)
    assert (found.exchange, found.count, found.whole) == (False, 0, True)
    assert found.requests is not None


async def test_partitions_are_removed_when_they_are_empty(amqp_url: str) -> None:
    options = await declared(amqp_url, TWO)
    none = replace(TWO, partitions=0)
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await channel.default_exchange.publish(aio_pika.Message(b"waits"), TWO.partition_queues[1])
        with pytest.raises(NotEmpty, match="1 messages wait"):
            await change(options, none, lambda _: None)
        assert (await look_up(options, TWO)).exchange
        await (await channel.get_queue(TWO.partition_queues[1])).purge()
        assert await asyncio.to_thread(run_command, amqp_url, 0, yes=True) == 0
        found = await look_up(options, TWO)
        assert (found.exchange, found.count) == (False, 0)
        await declare(connection, none)


async def test_what_was_interrupted_between_the_bindings_goes_on(amqp_url: str) -> None:
    """All queues and the exchange are there, so only declaring the bindings again helps."""
    await declared(amqp_url, TWO)
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await (await channel.get_queue(TWO.partition_queues[1])).unbind(TWO.partitions_exchange, "ff")
    assert await asyncio.to_thread(run_command, amqp_url, 2, yes=True) == 0
    await routed(amqp_url, TWO)


async def test_the_exchange_comes_after_the_queues(amqp_url: str) -> None:
    """A declaration that ends between them leaves no exchange that publishers find."""
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await channel.declare_queue(TWO.partition_queues[0], durable=True, arguments={"x-queue-type": "quorum"})
        await channel.declare_queue(TWO.partition_queues[1], durable=True, arguments={"x-queue-type": "quorum"})
        with pytest.raises(Misconfigured, match="has no single active consumer"):
            await declare(connection, TWO)
    assert not (await look_up(LinkOptions(amqp_url), TWO)).exchange
