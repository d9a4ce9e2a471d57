"""Several hosts in AMQP_URL, and a host name with several addresses: each is tried with a timeout of its own."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import pytest
from aio_pika import connect

from sandbox import RabbitMQ
from sandbox.proxy import Proxy
from sandbox.service import free_port
from task_activity_log.aio import end
from task_activity_log.client import TaskActivityLog, TaskActivityLogClient, asks, subscribe
from task_activity_log.client.connections import publishing
from task_activity_log.message import Properties
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq import cut_off, reading
from task_activity_log.rabbitmq.intake import Intake
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.service import Service
from task_activity_log.settings import SettingsError, load
from tests.acceptance.test_process import fetch
from tests.broker_control import forget_consumers, on_raft, silenced
from tests.commands import World, command
from tests.faults.conversation import TOPOLOGY, conversing, until
from tests.serving import serving

NAME = "broker.test"
"""A name that only these tests resolve."""

QUICK: dict[str, Any] = {"WORKER_AMQP_CONNECT_TIMEOUT_SECONDS": "1", "WORKER_AMQP_HEARTBEAT_SECONDS": "1"}


@contextmanager
def refusing(_host: str, _port: int) -> Iterator[None]:
    """Nobody listens."""
    yield


@contextmanager
def mute(host: str, port: int) -> Iterator[None]:
    """Connections are accepted and nothing is sent, as by a process that is stopped."""
    with socket.create_server((host, port)):
        yield


@contextmanager
def unreachable(host: str, port: int) -> Iterator[None]:
    """Packets are dropped, as if the machine were switched off: the queue of the listening socket is full."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        while True:
            waiting = sockets.enter_context(socket.socket())
            waiting.settimeout(0.3)
            try:
                waiting.connect((host, port))
            except TimeoutError:
                break
        yield


Gone = Callable[[str, int], AbstractContextManager[None]]

gone = pytest.mark.parametrize("gone", [refusing, mute, unreachable])


def at(amqp_url: str, *hosts: str) -> str:
    """The URL with other hosts, each with its port."""
    parts = urlsplit(amqp_url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{','.join(hosts)}"))


def host_of(amqp_url: str) -> str:
    """The host and port of a URL."""
    return urlsplit(amqp_url).netloc.rpartition("@")[2]


@asynccontextmanager
async def soon_serving(amqp_url: str, database_url: str) -> AsyncIterator[Service]:
    """A worker that must consume within seconds."""
    async with serving(amqp_url, database_url, consuming=False, **QUICK) as service:
        async with asyncio.timeout(30):
            await service.wait_consuming()
        yield service


@gone
async def test_a_worker_takes_the_next_host(amqp_url: str, database_url: str, gone: Gone) -> None:
    """The first is away and the second is used; /status names both, without the password."""
    port = free_port()
    several = at(amqp_url, f"127.0.0.1:{port}", host_of(amqp_url))
    with gone("127.0.0.1", port):
        async with conversing(amqp_url) as talk, soon_serving(several, database_url) as service:
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]
            status, text = await asyncio.to_thread(fetch, f"http://127.0.0.1:{service.http_port}/status")
            assert status == 200
            assert f"127.0.0.1:{port},{host_of(amqp_url)}" in text
            assert str(urlsplit(amqp_url).password) not in text


async def test_silent_hosts_do_not_share_one_timeout(amqp_url: str, database_url: str) -> None:
    """Three of four accept connections and never answer; the last one is reached."""
    ports = [free_port() for _ in range(3)]
    several = at(amqp_url, *[f"127.0.0.1:{port}" for port in ports], host_of(amqp_url))
    with ExitStack() as hosts:
        for port in ports:
            hosts.enter_context(mute("127.0.0.1", port))
        async with conversing(amqp_url) as talk, soon_serving(several, database_url):
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]


@pytest.mark.parametrize("how", ["cut", "hold"])
async def test_a_worker_goes_on_at_another_host_when_its_own_dies(amqp_url: str, database_url: str, how: str) -> None:
    """With a reset or silently; and back again when the other one dies."""
    async with Proxy.to(amqp_url) as one, Proxy.to(amqp_url) as other, conversing(amqp_url) as talk:
        several = at(amqp_url, f"127.0.0.1:{one.port}", f"127.0.0.1:{other.port}")
        async with soon_serving(several, database_url):
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]
            one.refuse()
            getattr(one, how)()
            await talk.send()
            assert set(await talk.outcomes(1)) <= {"inserted", "duplicate"}
            one.resume()
            one.accept()
            other.refuse()
            other.cut()
            await talk.send()
            assert set(await talk.outcomes(1)) <= {"inserted", "duplicate"}


@gone
async def test_a_name_with_several_addresses_is_tried_at_each(
    amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch, gone: Gone
) -> None:
    """The first address is away, and the second is the broker's."""
    resolve_to(monkeypatch, "127.0.0.2", "127.0.0.1")
    async with Proxy.to(amqp_url) as proxy, conversing(amqp_url) as talk:
        with gone("127.0.0.2", proxy.port):
            async with soon_serving(at(amqp_url, f"{NAME}:{proxy.port}"), database_url):
                await talk.send()
                assert await talk.outcomes(1) == ["inserted"]


async def test_a_worker_goes_on_at_another_address_when_its_own_dies(
    amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the first address of the name is one that does not answer, as in a round robin with a dead machine."""
    async with Proxy.to(amqp_url) as proxy, conversing(amqp_url) as talk:
        resolve_to(monkeypatch, "127.0.0.1")
        async with soon_serving(at(amqp_url, f"{NAME}:{proxy.port}"), database_url):
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]
            with unreachable("127.0.0.2", proxy.port):
                resolve_to(monkeypatch, "127.0.0.2", "127.0.0.1")
                proxy.cut()
                await talk.send()
                assert set(await talk.outcomes(1)) <= {"inserted", "duplicate"}


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let the name have these addresses, in this order."""
    monkeypatch.undo()
    system = socket.getaddrinfo

    def resolve(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host not in (NAME, NAME.encode()):
            return system(host, port, *arguments, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (one, int(port))) for one in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@gone
@pytest.mark.parametrize("arguments", [("publish",), ("check",), ("dead-letters", "list")])
async def test_a_command_takes_the_next_host(
    world: World, tmp_path: Path, arguments: tuple[str, ...], gone: Gone
) -> None:
    """As the worker does."""
    port = free_port()
    (tmp_path / "record.json").write_text(f'{{"id": "{uuid4()}"}}')
    files = (str(tmp_path / "record.json"),) if arguments == ("publish",) else ()
    with gone("127.0.0.1", port):
        said = await command(
            *arguments,
            *files,
            AMQP_URL=at(world.amqp_url, f"127.0.0.1:{port}", host_of(world.amqp_url)),
            DATABASE_URL=world.database_url,
            **QUICK,
        )
    assert said.code == 0, said
    assert "Traceback" not in said.err


async def test_the_client_takes_the_next_host(world: World) -> None:
    """An upsert is answered, and a subscriber reads replies."""
    several = at(world.amqp_url, f"127.0.0.1:{free_port()}", host_of(world.amqp_url))
    async with asyncio.timeout(30):
        async with TaskActivityLogClient(several) as client:
            assert (await client.upsert(TaskActivityLog(id=uuid4()))).outcome == "inserted"
        async with conversing(world.amqp_url, answers=False) as talk:
            sent = await talk.send()
        async with subscribe(several, everything=True) as replies:
            while (await anext(replies)).correlation_id != sent:
                pass


async def test_a_command_that_reaches_no_host_says_so_in_one_line(tmp_path: Path) -> None:
    """Without the password."""
    (tmp_path / "record.json").write_text(f'{{"id": "{uuid4()}"}}')
    hosts = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    url = f"amqp://user:secret@{','.join(hosts)}/"
    said = await command("publish", str(tmp_path / "record.json"), AMQP_URL=url)
    assert said.code == 1
    assert said.err.count("\n") == 1
    assert all(host in said.err for host in hosts)
    assert "secret" not in said.err


@pytest.mark.parametrize(
    ("hosts", "reason"),
    [("one:5672,two:99999", "has a port"), ("one:5672,two:x", "has a port"), ("one,,two", "should name a host")],
)
def test_a_wrong_host_among_several_is_refused_at_start(hosts: str, reason: str) -> None:
    """In one line without the password."""
    with pytest.raises(SettingsError) as error:
        load({"AMQP_URL": f"amqp://user:secret@{hosts}/", "DATABASE_URL": "postgresql://me@host/app"})
    assert str(error.value).startswith("AMQP_URL: ")
    assert reason in str(error.value)
    assert "secret" not in str(error.value)


@asynccontextmanager
async def two_ways(amqp_url: str) -> AsyncIterator[tuple[Proxy, Proxy, str]]:
    """Two hosts that lead to one broker, and their URL."""
    async with Proxy.to(amqp_url) as one, Proxy.to(amqp_url) as other:
        yield one, other, at(amqp_url, f"127.0.0.1:{one.port}", f"127.0.0.1:{other.port}")


async def declare(amqp_url: str, *queues: str, **arguments: Any) -> None:
    """Declare quorum queues."""
    async with await connect(amqp_url) as connection:
        channel = await connection.channel()
        for queue in queues:
            await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum", **arguments})


@pytest.mark.parametrize(("lingers", "batches"), [(False, 1), (True, 1), (False, 2)])
async def test_a_publisher_that_gets_no_confirm_leaves_its_host(
    own_rabbitmq: RabbitMQ, own_amqp_url: str, lingers: bool, batches: int
) -> None:
    """Together with the connections that are of no use without it.

    Also if it waits for late answers on several channels, and if several batches wait on one.
    """
    await declare(own_amqp_url, "silent")
    message = Outgoing("", "silent", Properties(), b"1")
    async with two_ways(own_amqp_url) as (_, other, several):
        options = LinkOptions(several)
        publisher = Publisher(options, confirm_timeout_seconds=0.3, also_leave=["answers"])
        running, left = asyncio.create_task(publisher.run()), asyncio.Event()
        await publisher.wait_connected()
        with (
            options.hosts.connected(next(iter(options.hosts)), "answers", left.set) as answers,
            options.hosts.connected(next(iter(options.hosts)), "intake", pytest.fail),
        ):
            async with silenced(own_rabbitmq, own_amqp_url, "silent"):
                trying = [
                    asyncio.create_task(keep_publishing(publisher, message, lingers=lingers)) for _ in range(batches)
                ]
                await left.wait()
                await end(*trying)
            await other.connected()
            assert "nothing that is sent is confirmed" in str(answers.why)
        await publisher.wait_connected()
        assert await publisher.publish([message], 30.0) == [Fate.CONFIRMED]
        await end(running)


async def keep_publishing(publisher: Publisher, message: Outgoing, *, lingers: bool) -> None:
    """Until cancelled, and without waiting long if late answers are waited for."""
    while True:
        with suppress(Unavailable):
            await publisher.publish([message], 0.05 if lingers else None, ignored if lingers else None)


def ignored(_: int, __: Fate) -> None:
    """The answer is late, or never comes."""


async def test_a_publisher_stays_where_others_than_a_silent_queue_confirm(
    own_rabbitmq: RabbitMQ, own_amqp_url: str
) -> None:
    """The connection is replaced, because the channel is stuck, by one to the same host: it is not cut off."""
    await declare(own_amqp_url, "silent", "healthy")
    messages = [Outgoing("", queue, Properties(), b"1") for queue in ("healthy", "silent")]
    async with two_ways(own_amqp_url) as (one, other, several):
        publisher = Publisher(LinkOptions(several), confirm_timeout_seconds=2.0)
        running = asyncio.create_task(publisher.run())
        await publisher.wait_connected()
        assert await publisher.publish(messages) == [Fate.CONFIRMED, Fate.CONFIRMED]
        async with silenced(own_rabbitmq, own_amqp_url, "silent"):
            assert await publisher.publish(messages) == [Fate.CONFIRMED, Fate.UNCONFIRMED]
            await one.connected(2)
        assert other.connections == 0
        await end(running)


async def test_a_publisher_stays_if_it_may_be_a_single_queue_that_does_not_answer(
    own_rabbitmq: RabbitMQ, own_amqp_url: str
) -> None:
    """As one partition may, while nothing is sent to the others. What they are sent in between shows that it is."""
    await declare(own_amqp_url, "silent", "healthy")
    healthy, silent = (Outgoing("", queue, Properties(), b"1") for queue in ("healthy", "silent"))
    async with two_ways(own_amqp_url) as (one, other, several):
        publisher = Publisher(LinkOptions(several), confirm_timeout_seconds=1.0)
        running = asyncio.create_task(publisher.run())
        await publisher.wait_connected()
        async with silenced(own_rabbitmq, own_amqp_url, "silent"):
            for connections in (2, 3):
                assert await publisher.publish([silent]) == [Fate.UNCONFIRMED]
                await one.connected(connections)
                await publisher.wait_connected()
                assert await publisher.publish([healthy], 30.0) == [Fate.CONFIRMED]
        assert other.connections == 0
        await end(running)


async def test_a_client_that_gets_no_confirm_goes_on_at_another_host(
    own_rabbitmq: RabbitMQ, own_amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the connection of its answers, too."""
    monkeypatch.setattr(asks, "_CONFIRM_SECONDS", 0.5)
    async with serving(own_amqp_url, database_url), two_ways(own_amqp_url) as (_, other, several):
        async with asyncio.timeout(60), TaskActivityLogClient(several) as client:
            await client.upsert(TaskActivityLog(id=uuid4()))
            async with silenced(own_rabbitmq, own_amqp_url, TOPOLOGY.requests_queue):
                asking = asyncio.create_task(client.upsert(TaskActivityLog(id=uuid4()), timeout=None))
                await other.connected(2)
            assert (await asking).outcome in ("inserted", "duplicate")


MODES = {
    "plain": TOPOLOGY,
    "single active": replace(TOPOLOGY, single_active_consumer=True),
    "partitions": replace(TOPOLOGY, partitions=2),
}


@pytest.mark.parametrize("mode", MODES)
async def test_an_idle_worker_leaves_a_host_where_its_queue_commits_nothing(
    own_rabbitmq: RabbitMQ, own_amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The queue still knows its consumers, as one does whose leader is cut off. While it was healthy, it has answered."""
    monkeypatch.setattr(cut_off, "_QUIET_SECONDS", 0.2)
    monkeypatch.setattr(cut_off, "_COUNT_EVERY_SECONDS", 3600.0)
    proofs: list[None] = []
    command = cut_off.Watch._command

    async def counted(watch: cut_off.Watch) -> None:
        await command(watch)
        proofs.append(None)

    monkeypatch.setattr(cut_off.Watch, "_command", counted)
    settings: dict[str, Any] = {
        "WORKER_PARTITIONS": str(MODES[mode].partitions),
        "WORKER_SINGLE_ACTIVE_CONSUMER": str(MODES[mode].single_active_consumer).lower(),
    }
    async with two_ways(own_amqp_url) as (_, other, several), conversing(own_amqp_url, topology=MODES[mode]) as talk:
        async with serving(several, database_url, **settings) as service:
            await until(lambda: len(proofs) > 1)
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]
            assert service.status.not_ready() == []
            assert other.connections == 0
            # What is acknowledged while the queue is silent is delivered again, and answered as a duplicate.
            await until(lambda: service.in_hand == 0)
            settled = len(proofs)
            await until(lambda: len(proofs) > settled + 1)
            with monkeypatch.context() as impatient:
                impatient.setattr(cut_off, "_ANSWER_SECONDS", 0.5)
                async with silenced(own_rabbitmq, own_amqp_url, MODES[mode].proof_queue):
                    await other.connected()
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]


async def test_an_idle_subscriber_leaves_a_host_where_its_queue_commits_nothing(
    own_rabbitmq: RabbitMQ, own_amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the queue has a single active consumer, which makes it refuse the first kind of command."""
    monkeypatch.setattr(reading, "_WATCH_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(cut_off, "_QUIET_SECONDS", 0.2)
    monkeypatch.setattr(cut_off, "_COUNT_EVERY_SECONDS", 3600.0)
    await declare(own_amqp_url, "plain")
    await declare(own_amqp_url, "single", **{"x-single-active-consumer": True})
    with monkeypatch.context() as impatient:
        async with two_ways(own_amqp_url) as (one, other, several):
            async with subscribe(several, queue="plain") as plain, subscribe(several, queue="single") as single:
                waiting = [asyncio.ensure_future(anext(replies)) for replies in (plain, single)]
                await one.connected(2)
                impatient.setattr(cut_off, "_ANSWER_SECONDS", 0.5)
                async with silenced(own_rabbitmq, own_amqp_url, "plain", "single"):
                    await other.connected(2)
                impatient.undo()
                async with publishing(own_amqp_url, "test") as publisher:
                    await publisher.publish([Outgoing("", queue, Properties(), b"{}") for queue in ("plain", "single")])
                await asyncio.gather(*waiting)


async def test_publishers_come_to_the_host_of_the_intake(amqp_url: str) -> None:
    """A node that is cut off from the others would return replies to queues that are newer. Only the intake finds that out."""
    options = LinkOptions(at(amqp_url, host_of(amqp_url), "127.0.0.1:1"))
    here, elsewhere = options.hosts
    intake, left = Intake(options, TOPOLOGY, prefetch=1, batch_max=1), asyncio.Event()
    with (
        options.hosts.connected(here, "replies", pytest.fail),
        options.hosts.connected(elsewhere, "reply-to", left.set),
    ):
        running = asyncio.create_task(intake.run())
        await left.wait()
        await end(running)


async def test_a_host_that_cannot_reach_the_queue_and_says_so_is_left_by_all(
    own_rabbitmq: RabbitMQ, own_amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is cut off may close the connection at the command. Here the queue has ended."""
    monkeypatch.setattr(cut_off, "_QUIET_SECONDS", 0.2)
    monkeypatch.setattr(cut_off, "_COUNT_EVERY_SECONDS", 3600.0)
    options, left = LinkOptions(own_amqp_url), asyncio.Event()
    intake = Intake(options, MODES["partitions"], prefetch=1, batch_max=1)
    running = asyncio.create_task(intake.run())
    await intake.wait_consuming()
    with options.hosts.connected(next(iter(options.hosts)), "reply-to", left.set) as replies:
        await on_raft(
            own_rabbitmq, own_amqp_url, MODES["partitions"].proof_queue, "ra:stop_server(quorum_queues, Raft)"
        )
        await left.wait()
        assert "this node is cut off" in str(replies.why)
    await end(running)


async def test_a_publisher_gets_a_new_connection_where_all_messages_to_an_address_are_refused(amqp_url: str) -> None:
    """A channel that was opened while a queue had no leader may be refused for ever. This queue refuses everything for real."""
    await declare(amqp_url, "full", **{"x-max-length": 0, "x-overflow": "reject-publish"})
    await declare(amqp_url, "healthy")
    messages = [Outgoing("", queue, Properties(), b"1") for queue in ("full", "healthy")]
    async with two_ways(amqp_url) as (one, other, several):
        publisher = Publisher(LinkOptions(several), refused_seconds=0.1)
        running = asyncio.create_task(publisher.run())
        await publisher.wait_connected()
        while one.connections < 2:
            with suppress(Unavailable):
                await publisher.publish(messages)
        assert other.connections == 0
        await end(running)


async def test_a_host_that_does_not_declare_a_queue_is_left(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is cut off from the others opens channels, and may never answer such a command."""
    monkeypatch.setattr(reading, "_CHOOSE_SECONDS", 0.5)
    options = LinkOptions(f"{amqp_url.replace('@', '@127.0.0.1:1,')}")
    used = list(options.hosts)[1]
    with pytest.raises(TimeoutError):
        async with reading.reading(options, "test", lambda _: asyncio.get_running_loop().create_future()):
            pytest.fail("there is no queue to read")
    assert next(iter(options.hosts)) != used


async def test_a_worker_whose_consumer_the_queue_has_forgotten_leaves(
    own_rabbitmq: RabbitMQ, own_amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the minority side of a partition: connected, ready, and nothing comes. The next proof finds it."""
    monkeypatch.setattr(cut_off, "_COUNT_EVERY_SECONDS", 1.0)
    monkeypatch.setattr(cut_off, "_AGAIN_SECONDS", 0.1)
    async with Proxy.to(own_amqp_url) as one, Proxy.to(own_amqp_url) as other, conversing(own_amqp_url) as talk:
        several = at(own_amqp_url, f"127.0.0.1:{one.port}", f"127.0.0.1:{other.port}")
        async with soon_serving(several, database_url):
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]
            before = one.connections + other.connections
            await forget_consumers(own_rabbitmq, own_amqp_url, TOPOLOGY.requests_queue)
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]
            assert one.connections + other.connections > before
