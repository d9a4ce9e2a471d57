"""The client for publishers and subscribers, against a real broker and a worker."""

import asyncio
import gc
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import asyncpg
import pytest
from aio_pika.abc import AbstractChannel

from sandbox import RabbitMQ
from sandbox.proxy import Proxy
from task_activity_log import wire
from task_activity_log.client import (
    Answer,
    ClientError,
    NoAnswer,
    NotSent,
    PoisonQueue,
    Received,
    RejectedReply,
    StoredTaskActivityLog,
    Subscription,
    TaskActivityLog,
    TaskActivityLogClient,
    UnreadableReply,
    Upsert,
    subscribe,
)
from task_activity_log.client.asks import Asks
from task_activity_log.client.messages import clock_version, received_reply
from task_activity_log.client.news import News
from task_activity_log.message import Delivery, Properties
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.topology import Topology, declare
from tests.commands import World
from tests.users import user_who_may

TOPOLOGY = Topology()


@asynccontextmanager
async def no_worker(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    """The queues, and no worker."""
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, TOPOLOGY)
        yield await connection.channel()


def record(subject: str = "", identifier: UUID | None = None) -> TaskActivityLog:
    return TaskActivityLog(id=identifier or uuid4(), subject=subject)


@pytest.mark.parametrize("how", ["cut", "strand"])
async def test_connections_lost_in_a_bulk_lose_nothing_and_apply_nothing_twice(world: World, how: str) -> None:
    """What is unanswered is sent again with its message_id, and answered through a new reply queue."""
    count = 600
    async with Proxy.to(world.amqp_url) as proxy:
        outages: list[str] = []
        url = f"{proxy.url}?heartbeat=1"
        async with TaskActivityLogClient(_quick(url), window=100, on_outage=outages.append) as client:
            ids = [uuid4() for _ in range(count)]
            bulk = client.upsert_many((record("once", one) for one in ids), timeout=60)
            async for _ in bulk:
                if bulk.summary.answered == 250:
                    getattr(proxy, how)()
        assert outages
    assert set(bulk.summary.outcomes) <= {"inserted", "duplicate"}
    assert bulk.summary.answered == count
    connection = await asyncpg.connect(world.database_url)
    assert await connection.fetchval("SELECT count(*) FROM task_activity_log WHERE id = ANY($1)", ids) == count
    await connection.close()


def _quick(url: str) -> LinkOptions:
    return LinkOptions(url, heartbeat_seconds=1)


WAITS = "(is a worker running|the broker has not confirmed)"
"""What there is to say when the time is over depends on how fast the broker is."""


async def test_a_missing_worker_is_reported_and_what_was_sent_can_be_sent_again(amqp_url: str) -> None:
    """The exception has the request; a bulk has all that are unanswered."""
    async with no_worker(amqp_url) as channel, TaskActivityLogClient(amqp_url) as client:
        # Long enough for a slow machine to send it: what is given up before that is not sent.
        asking = asyncio.create_task(client.upsert(record("late"), timeout=3))
        queue = await channel.get_queue(TOPOLOGY.requests_queue)
        async with queue.iterator(no_ack=True) as messages:
            message = await anext(messages)
        with pytest.raises(NoAnswer, match=r"no answer for 3 s \(1 upsert unanswered\): is a worker running") as nobody:
            await asking
        assert (message.message_id, message.body) == (nobody.value.upsert.message_id, nobody.value.upsert.body)
        bulk = client.upsert_many([record(), record()], timeout=3)
        with pytest.raises(NoAnswer, match=r"\(2 upserts unanswered\): " + WAITS):
            [answer async for answer in bulk]
        assert len(bulk.unanswered) == 2


async def test_many_can_be_sent_without_waiting_for_answers(amqp_url: str) -> None:
    """The broker confirms them in their order, even if the connection is lost in between."""
    async with no_worker(amqp_url) as channel, Proxy.to(amqp_url) as proxy:
        async with TaskActivityLogClient(_quick(proxy.url)) as client:
            sent = 0

            def told(count: int) -> None:
                nonlocal sent
                sent += count
                if sent == 500:
                    proxy.cut()

            bodies = [b'{"n":%d}' % n for n in range(700)]
            assert await client.send_many((Upsert(body) for body in bodies), on_sent=told) == 700
        queue = await channel.get_queue(TOPOLOGY.requests_queue)
        found: list[bytes] = []
        async with queue.iterator(no_ack=True) as messages:
            async for message in messages:
                found.append(message.body)
                if message.body == bodies[-1]:
                    break
        assert found[:500] == bodies[:500]
        assert sorted(set(found)) == sorted(bodies)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: "amqp://guest:secret@127.0.0.1:1/", "no connection to 127.0.0.1:1: connection refused"),
        (lambda url: url.replace("://", "://x", 1), "the broker refuses the user name or password"),
        (lambda url: url + "-not", "does not know this virtual host"),
        (lambda _: "localhost", "should be one such as amqp://"),
        (lambda url: url, "exchange 'task_activity_log' does not exist on this broker: a worker declares it"),
    ],
    ids=["nobody", "password", "vhost", "url", "exchange"],
)
async def test_a_failed_connection_is_one_line(amqp_url: str, change: Callable[[str], str], words: str) -> None:
    """Immediately, and without secrets."""
    with pytest.raises(ClientError, match=words) as refusal:
        async with TaskActivityLogClient(change(amqp_url)):
            pass
    assert "secret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


async def test_an_exchange_without_a_queue_is_reported(amqp_url: str) -> None:
    """An unroutable upsert is an error, not a success."""
    async with no_worker(amqp_url) as channel, TaskActivityLogClient(amqp_url) as client:
        await channel.queue_delete(TOPOLOGY.requests_queue)
        with pytest.raises(ClientError, match="routes upserts to no queue"):
            await client.upsert(record())
        with pytest.raises(ClientError, match="routes upserts to no queue"):
            await client.send_many([record()])


async def test_a_bulk_can_have_another_priority_than_single_upserts(amqp_url: str) -> None:
    """None unless one is given."""
    async with no_worker(amqp_url) as channel, TaskActivityLogClient(amqp_url) as client:
        await client.send_many([record()], priority=2)
        await client.send_many([record(), Upsert.of(record(), priority=7)])
        queue = await channel.get_queue(TOPOLOGY.requests_queue)
        found = [(await queue.get(no_ack=True)).priority for _ in range(3)]
    assert sorted(found, key=str) == [0, 2, 7]  # the driver shows 0 for none


def test_versions_of_the_clock_grow_within_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the clock is set back, or does not move."""
    first = clock_version()
    assert abs(first / 1e6 - time.time()) < 3600
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert [clock_version() for _ in range(3)] == [first + 1, first + 2, first + 3]


def test_what_amqp_cannot_represent_is_refused_before_it_is_sent() -> None:
    """Otherwise each attempt to send it would close the connection."""
    with pytest.raises(ValueError, match="does not fit"):
        Upsert(b"", message_id="x" * 256)
    with pytest.raises(ValueError, match="does not fit"):
        Upsert(b"", headers={"x-version": 2**64})
    with pytest.raises(ValueError, match="take more than"):
        Upsert(b"", headers={"x": "y" * 120_000})


@pytest.mark.parametrize("bad", ["\ud800", "é" * 200, "x" * 256])
def test_what_is_no_text_of_amqp_is_refused_before_it_is_sent(bad: str) -> None:
    """Half of a surrogate pair, for example. It would end the task that sends for everybody."""
    for fields in ({"message_id": bad}, {"content_type": bad}, {"content_encoding": bad}, {"headers": {bad: 1}}):
        with pytest.raises(ValueError, match="does not fit"):
            Upsert(b"", **fields)
    with pytest.raises(ValueError, match="does not fit"):
        Upsert(b"", headers={"x": "\ud800"})


async def test_an_upsert_that_the_broker_refuses_fails_alone(world: World) -> None:
    """A header that the broker itself reads, of a wrong type: it closes the channel. The others are answered, or sent."""
    bad = Upsert(b"{}", message_id="bad", headers={"CC": "not a list"})
    upserts = [Upsert.of(record()) for _ in range(40)]
    upserts.insert(11, bad)
    async with TaskActivityLogClient(world.amqp_url) as client:
        answers = {answer.upsert.message_id: answer async for answer in client.upsert_many(upserts)}
        problem = answers.pop("bad").problem
        assert (problem.code, len(answers)) == ("invalid_properties", 40)
        assert "The broker refuses this message: PRECONDITION_FAILED" in problem.detail
        assert {answer.outcome for answer in answers.values()} <= {"inserted", "duplicate"}
        sent: list[int] = []
        with pytest.raises(NotSent, match="1 upsert not sent: bad: invalid_properties: "):
            await client.send_many(upserts, on_sent=sent.append)
        assert sum(sent) == 40


async def test_sending_needs_permission_to_write_to_the_exchange_alone(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    """Answers need a queue of one's own, which this user may not have: that is said when the first one is asked for."""
    async with no_worker(amqp_url) as channel:
        with user_who_may(rabbitmq, amqp_url, write="^task_activity_log$") as url:
            async with TaskActivityLogClient(url) as client:
                assert await client.send_many([record(), record()]) == 2
                for _ in range(2):
                    with pytest.raises(ClientError, match=r"^user '\w+' may not \w+ queue 'amq\.gen-…' \(the private"):
                        await client.upsert(record())
                assert await client.send_many([record()]) == 1
        found = await channel.declare_queue(TOPOLOGY.requests_queue, passive=True)
        assert found.declaration_result.message_count == 3


@pytest.mark.parametrize("write", ["^nothing$", "^task_activity_log.replies$"])
async def test_a_user_who_may_not_write_is_told_at_once(rabbitmq: RabbitMQ, amqp_url: str, write: str) -> None:
    """Instead of waiting for a broker that is not away, and in plain words."""
    refused = (
        r"^user '\w+' may not (use|write to) exchange 'task_activity_log': see Permissions in docs/publishing.md\b"
    )
    async with no_worker(amqp_url):
        with user_who_may(rabbitmq, amqp_url, write=write) as url, pytest.raises(ClientError, match=refused):
            async with TaskActivityLogClient(url) as client:
                await client.send_many([record()], timeout=None)


async def test_an_exchange_that_was_deleted_is_reported(amqp_url: str) -> None:
    """At the next publish: the broker closes the channel."""
    async with no_worker(amqp_url) as channel, TaskActivityLogClient(amqp_url) as client:
        assert await client.send_many([record()]) == 1
        await channel.exchange_delete(TOPOLOGY.requests_exchange)
        with pytest.raises(ClientError, match="exchange 'task_activity_log' does not exist on this broker"):
            await client.send_many([record()], timeout=None)
        with pytest.raises(ClientError, match="exchange 'task_activity_log' does not exist on this broker"):
            await client.upsert(record(), timeout=None)


async def test_a_client_can_be_opened_again(world: World) -> None:
    """As a program does that tries again after an error. It is open once at a time."""
    client = TaskActivityLogClient(world.amqp_url)
    for _ in range(2):
        async with client:
            assert (await client.upsert(record())).outcome == "inserted"
            with pytest.raises(ClientError, match="the client is open already"):
                await client.__aenter__()
    with pytest.raises(ClientError, match="the client is not open"):
        await client.upsert(record())


@pytest.mark.parametrize("crashes", ["sending", "listening", "publishing"])
async def test_a_task_of_the_client_that_crashes_fails_what_waits_and_what_comes(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch, crashes: str
) -> None:
    """Nothing waits for ever, although no time limit is given."""
    crash = asyncio.Event()

    async def crashing(*_: object) -> None:
        await crash.wait()
        raise ZeroDivisionError

    async with no_worker(amqp_url) as channel, TaskActivityLogClient(amqp_url) as client:
        waiting = asyncio.create_task(client.upsert(record(), timeout=None))
        queue = await channel.get_queue(TOPOLOGY.requests_queue)
        async with asyncio.timeout(30):
            while await queue.get(no_ack=True, fail=False) is None:
                await asyncio.sleep(0.02)
        asks = client._asks
        assert isinstance(asks, Asks)
        others: list[asyncio.Task[Any]] = []
        if crashes == "sending":
            monkeypatch.setattr(Asks, "_publish", crashing)
            others.append(asyncio.create_task(client.upsert(record(), timeout=None)))
        elif crashes == "listening":
            monkeypatch.setattr(Answer, "of", lambda *_, **__: 1 // 0)
            answer = aio_pika.Message(b"", correlation_id=next(iter(asks._asks)))
            await channel.default_exchange.publish(answer, asks._reply_to or "")
        else:
            monkeypatch.setattr(Publisher, "_keep_open", crashing)
            assert asks._publisher._channel is not None
            asks._publisher._leave(asks._publisher._channel)
            others.append(asyncio.create_task(client.send_many([record()], timeout=None)))
        crash.set()
        async with asyncio.timeout(30):
            for one in (waiting, *others):
                with pytest.raises(ClientError, match="the client failed: ZeroDivisionError"):
                    await one
            with pytest.raises(ClientError, match="the client failed: ZeroDivisionError"):
                await client.upsert(record(), timeout=None)
            with pytest.raises(ClientError, match="the client failed: ZeroDivisionError"):
                await client.send_many([record()], timeout=None)


@pytest.mark.parametrize("error", [OSError, RuntimeError, ZeroDivisionError])
async def test_a_function_of_the_caller_that_raises_ends_the_client_and_is_named(
    amqp_url: str, error: type[Exception]
) -> None:
    """At the first connection and at the next one. Taken for a lost connection, it would be opened without end."""
    calls: list[str] = []

    def fails(good: int) -> Callable[[], None]:
        def connected() -> None:
            calls.append("connected")
            if len(calls) > good:
                raise error

        calls.clear()
        return connected

    words = f"^on_connected has raised {error.__name__}$"
    async with no_worker(amqp_url), Proxy.to(amqp_url) as proxy:
        broker = LinkOptions(proxy.url, connect_timeout_seconds=60)
        for opening in (
            TaskActivityLogClient(broker, on_connected=fails(0)),
            subscribe(broker, on_connected=fails(0)),
        ):
            calls.clear()
            with pytest.raises(ClientError, match=words) as raised:
                await opening.__aenter__()
            assert isinstance(raised.value.__cause__, error)
        async with TaskActivityLogClient(broker, on_connected=fails(1)) as client:
            proxy.cut()
            with pytest.raises(ClientError, match=words):
                await client.send_many([record()], timeout=None)
        assert calls == ["connected"] * 2
        async with subscribe(broker, on_connected=fails(1)) as replies:
            proxy.cut()
            with pytest.raises(ClientError, match=words):
                await anext(replies)
        assert calls == ["connected"] * 2


async def test_an_outage_is_reported_once(world: World) -> None:
    """Both connections of a client are lost, and tried again and again: each reason is told when it begins."""
    told: list[str] = []
    refused = asyncio.Event()

    def on_outage(reason: str) -> None:
        told.append(reason)
        if reason == "connection refused":
            refused.set()

    async with Proxy.to(world.amqp_url) as proxy:
        async with TaskActivityLogClient(
            proxy.url, on_outage=on_outage, on_connected=lambda: told.append("connected")
        ) as client:
            assert (await client.upsert(record())).outcome == "inserted"
            proxy.refuse()
            proxy.cut()
            async with asyncio.timeout(30):
                await refused.wait()
            proxy.accept()
            assert (await client.upsert(record(), timeout=60)).outcome == "inserted"
    assert told[0] == "connected"
    assert "connected" in told[1:]
    assert all(one != other for one, other in pairwise(told))


async def test_an_outage_before_the_first_answer_is_waited_for(world: World) -> None:
    """The connection for answers is opened when the first one is asked for. The time limit has an outage included, as later."""
    refused = asyncio.Event()
    async with Proxy.to(world.amqp_url) as proxy:
        async with TaskActivityLogClient(proxy.url, on_outage=lambda _: refused.set()) as client:
            proxy.refuse()
            upserting = asyncio.create_task(client.upsert(record(), timeout=60))
            async with asyncio.timeout(30):
                await refused.wait()
            assert not upserting.done()
            proxy.accept()
            assert (await upserting).outcome == "inserted"


# ---- subscribers


async def received(replies: Subscription[Any]) -> list[str | None]:
    """The message_ids of all replies, to the end."""
    async with replies:
        return [reply.message_id async for reply in replies]


async def publish_reply(
    channel: AbstractChannel, message_id: str, *, id_: UUID, second: int, key: str = "updated"
) -> None:
    body = {**dict.fromkeys(TaskActivityLog.model_fields), "id": str(id_)}
    body["modified_dateutc"] = f"2026-01-01T00:00:{second:02}+00:00"
    exchange = await channel.get_exchange(TOPOLOGY.replies_exchange, ensure=False)
    message = aio_pika.Message(
        json.dumps(body).encode(), content_type="application/json", message_id=message_id, headers={"x-outcome": key}
    )
    await exchange.publish(message, f"stored.{key}")


async def test_a_subscriber_sees_each_new_reply_once(amqp_url: str) -> None:
    """Repeated replies, and records no newer than the last one seen for their id, are skipped."""
    one, other = uuid4(), uuid4()
    async with no_worker(amqp_url) as channel:
        for message_id, id_, second in [
            ("a", one, 5), ("a", one, 5), ("b", one, 4), ("c", other, 1), ("d", one, 6), ("e", one, 6), ("f", other, 2)
        ]:  # fmt: skip
            await publish_reply(channel, message_id, id_=id_, second=second)
        assert await received(subscribe(amqp_url, most=4)) == ["a", "c", "d", "f"]
        queue = await channel.get_queue(TOPOLOGY.replies_queue)
        assert await queue.get(fail=False) is None


def reply_in(body: bytes, content_type: str, outcome: str, message_id: str) -> Received:
    """What a subscriber receives of such a message."""
    properties = Properties(content_type=content_type, message_id=message_id, headers={"x-outcome": outcome})
    return received_reply(Delivery(body, properties))


@pytest.mark.parametrize(
    ("states", "seen"),
    [
        ("x720100:0 x720200:1 x720300:2", "012"),
        ("j720100:0 x720200:1", "01"),
        ("x720100:0 j720200:1 j720300:2 x720400:3", "0123"),
        ("x720100:0 x720200:1 x720300:0", "010"),
        ("x720100:0 x720100:0", "0"),
        ("j720100:0 j720100:0 j720050:1", "0"),
        ("j720100:0 x719900:1 x720200:2 j720050:3", "02"),
        ("x721100:0 j720999:1 x720999:2", "0"),
        ("j999999:0 x999999:1 j999999:0", "01"),
    ],
)
def test_the_last_state_of_a_record_is_never_skipped(states: str, seen: str) -> None:
    """XML has milliseconds only: where two states may be in either order, both are yielded; what is surely older is not.

    Each state is its format, the microseconds of its time, and its subject.
    """
    identifier, news = uuid4(), News(10)
    found = []
    for number, state in enumerate(states.split()):
        microseconds, subject = state[1:].split(":")
        name = wire.XML if state[0] == "x" else wire.JSON
        modified = datetime(2026, 1, 1, microsecond=int(microseconds), tzinfo=UTC)
        body = wire.encode(StoredTaskActivityLog(id=identifier, subject=subject, modified_dateutc=modified), name).body
        reply = reply_in(body, name, "updated", str(number))
        if news.is_news(reply):
            news.remember(reply)
            found.append(subject)
    assert "".join(found) == seen


async def test_a_subscriber_continues_after_a_lost_connection(amqp_url: str) -> None:
    """An unfinished reply is delivered again; a finished one does not reach the loop again."""
    async with no_worker(amqp_url) as channel, Proxy.to(amqp_url) as proxy:
        for number in range(20):
            await publish_reply(channel, str(number), id_=uuid4(), second=1)
        seen = []
        async with subscribe(proxy.url, most=20) as replies:
            async for reply in replies:
                seen.append(reply.message_id)
                if len(seen) == 10:
                    proxy.cut()
        assert sorted(seen, key=lambda name: int(name or 0)) == [str(number) for number in range(20)]


async def test_a_queue_of_its_own_is_used_as_it_is(amqp_url: str) -> None:
    """Also a classic one, whose arguments a declaration would not match."""
    async with no_worker(amqp_url) as channel:
        await channel.declare_queue("mine", durable=True)
        async with subscribe(amqp_url, queue="mine", routing_keys=["#"], most=1) as replies:
            await publish_reply(channel, "a", id_=uuid4(), second=1)
            assert [reply.message_id async for reply in replies] == ["a"]


async def test_replies_behind_a_poison_reply_are_not_counted_with_it(amqp_url: str) -> None:
    """While it is tried again they are not delivered: a later failure of one of them is its second try at most."""
    async with no_worker(amqp_url) as channel:
        for message_id in "abc":
            await publish_reply(channel, message_id, id_=uuid4(), second=1)
        attempts: list[int] = []
        for failing in "aaab":
            with suppress(ZeroDivisionError):
                async with subscribe(amqp_url, on_poison=PoisonQueue("poison", tries=3)) as replies:
                    async for reply in replies:
                        if reply.message_id == failing:
                            assert replies._under_way is not None
                            attempts.append(replies._under_way.attempts)
                            _ = 1 // 0
        assert attempts[:3] == [0, 1, 2]
        assert attempts[3] <= 1  # the next one is delivered between the acknowledgement and the end of the channel
        queue = await channel.get_queue("poison")
        assert queue.declaration_result.message_count == 1


async def fail_at_once(url: str) -> None:
    """Subscribe, and raise an exception for the first reply, which is moved to the queue `poison`."""
    async with subscribe(url, on_poison=PoisonQueue("poison", tries=1)) as replies:
        async for _ in replies:
            raise ValueError("mine")


async def test_a_poison_reply_stays_if_its_queue_takes_nothing(amqp_url: str) -> None:
    """Then it is delivered again, and the exception has a note that says why."""
    async with no_worker(amqp_url) as channel:
        arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-max-length": 0, "x-overflow": "reject-publish"}
        full = await channel.declare_queue("poison", durable=True, arguments=arguments)
        await channel.default_exchange.publish(aio_pika.Message(b"fills it"), full.name)
        await publish_reply(channel, "a", id_=uuid4(), second=1)

        with pytest.raises(ValueError, match="mine") as raised:
            await fail_at_once(amqp_url)
        assert raised.value.__notes__ == ["Queue poison has not confirmed the reply, which is delivered again: refused"]
        assert await received(subscribe(amqp_url, most=1)) == ["a"]


async def test_a_reply_is_moved_to_the_poison_queue_alone(amqp_url: str) -> None:
    """Its sender may have named further queues in the header CC, to which it would be published with our permissions."""
    async with no_worker(amqp_url) as channel:
        await channel.declare_queue("other", durable=True)
        exchange = await channel.get_exchange(TOPOLOGY.replies_exchange, ensure=False)
        await exchange.publish(aio_pika.Message(b"{}", headers={"CC": ["other"], "mine": "stays"}), "stored.updated")

        with pytest.raises(ValueError, match="mine") as raised:
            await fail_at_once(amqp_url)
        assert raised.value.__notes__ == ["After 1 delivery the reply was moved to queue poison."]
        moved = await (await channel.get_queue("poison")).get(no_ack=True)
        assert (moved.headers["mine"], "CC" in moved.headers) == ("stays", False)
        assert await (await channel.get_queue("other")).get(no_ack=True, fail=False) is None


@pytest.mark.parametrize("leaves", ["raise", "break", "cancel"])
async def test_leaving_a_subscription_leaves_nothing_behind(amqp_url: str, leaves: str) -> None:
    """No task, and nothing that asyncio or the garbage collector reports later. The reply under way comes again."""
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    before = asyncio.all_tasks()

    async def run() -> None:
        async with subscribe(amqp_url) as replies:
            async for _ in replies:
                if leaves == "break":
                    break
                if leaves == "raise":
                    raise ZeroDivisionError
                raise asyncio.CancelledError

    async with no_worker(amqp_url) as channel:
        await publish_reply(channel, "a", id_=uuid4(), second=1)
        before = asyncio.all_tasks()
        with suppress(ZeroDivisionError, asyncio.CancelledError):
            await run()
        async with asyncio.timeout(30):  # the driver closes its socket in a task
            while asyncio.all_tasks() != before:
                await asyncio.sleep(0.01)
        gc.collect()
        await asyncio.sleep(0)
        assert reported == []
        assert await received(subscribe(amqp_url, most=1)) == ["a"]


PROBLEM = '{"code":"missing_id","detail":"Send id.","errors":%s}'
IN_XML = '<problem xmlns="urn:ietf:rfc:7807"><code>missing_id</code>%s<errors>%s</errors></problem>'


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", "[]"),
        ("application/json", "[" * 100_000),
        ("application/json", '{"a":' * 100_000),
        ("application/json", "1" * 5_000),
        ("application/json", '{"id": "9652e68c-7b6d-4598-bbbd-4e933126c994"}'),
        ("application/json", '{"id": "9652e68c-7b6d-4598-bbbd-4e933126c994", "modified_dateutc": null}'),
        ("application/problem+json", PROBLEM % "[" + "[" * 100_000),
        ("application/problem+json", PROBLEM % "null"),
        ("application/problem+json", PROBLEM % "[5]"),
        ("application/problem+json", PROBLEM % '[{"name": {}, "code": "a", "message": "b"}]'),
        ("application/problem+json", '{"code": 5, "detail": null, "errors": []}'),
        ("application/problem+json; charset=utf-8", "<problem/>"),
        ("application/problem+xml", "<"),
        ("application/problem+xml", "<a>" * 1_000),
        ("application/problem+xml", IN_XML % ("", "")),
        ("application/problem+xml", IN_XML % ("<detail/>", "<i/>")),
        ("application/problem+xml", '<!DOCTYPE a [<!ENTITY e "x">]><a>&e;</a>'),
        ("application/problem+xml", '<?xml version="1.0" encoding="nonsense"?><a/>'),
        ("application/problem+xml; charset=rot13", "{}"),
        ("application/xml", "<"),
        ("text/html", "<html/>"),
        ("", ""),
    ],
)
def test_a_reply_that_cannot_be_read_says_so(content_type: str, body: str) -> None:
    """Anybody who may write to the queue can put it there: a subscriber gets an `UnreadableReply`, and a publisher a
    `ClientError` when asking for what is in it.
    """
    stored = reply_in(body.encode(), content_type, "inserted", "a")
    assert isinstance(stored, UnreadableReply)
    assert "reply cannot be read" in str(stored.error)
    assert News(1).is_news(stored)
    rejected = reply_in(body.encode(), content_type, "rejected", "a")
    assert isinstance(rejected, UnreadableReply)
    assert "problem cannot be read" in str(rejected.error)
    for outcome, words, member in (("inserted", "reply", "record"), ("rejected", "problem", "problem")):
        answer = Answer(outcome, body.encode(), content_type, "a", None, upsert=Upsert(b""))
        with pytest.raises(ClientError, match=f"{words} cannot be read"):
            getattr(answer, member)


@pytest.mark.parametrize("inserted", ["<!-- a comment -->", "<?a processing instruction?>", "<unknown>a</unknown>"])
def test_a_problem_in_xml_may_have_other_nodes(inserted: str) -> None:
    """They are ignored."""
    bad = f"<i>{inserted}<name>id</name><code>a</code><message>b</message></i>"
    body = IN_XML % (f"{inserted}<detail>Send {inserted}id.</detail>", f"{bad}{inserted}")
    reply = reply_in(body.encode(), "application/problem+xml", "rejected", "a")
    assert isinstance(reply, RejectedReply)
    problem = reply.problem
    assert (problem.code, [(e.name, e.code, e.message) for e in problem.errors]) == ("missing_id", [("id", "a", "b")])


async def test_the_time_limit_holds_from_the_first_call(world: World) -> None:
    """Also where the connection for the answers is opened first, and the broker is frozen."""
    async with Proxy.to(world.amqp_url) as proxy, TaskActivityLogClient(proxy.url) as client:
        proxy.hold()
        async with asyncio.timeout(8):  # the limit of a connection is 10 s
            with pytest.raises(ClientError, match=r"no connection for the answers within 0\.5 s; nothing was sent"):
                await client.upsert(TaskActivityLog(id=uuid4()), timeout=0.5)
        proxy.resume()
        assert (await client.upsert(TaskActivityLog(id=uuid4()))).outcome == "inserted"


async def test_a_queue_that_does_not_count_tries_is_refused(amqp_url: str) -> None:
    """A classic queue says only that it has delivered a reply before: it would never be moved."""
    async with await aio_pika.connect(amqp_url) as connection:
        await (await connection.channel()).declare_queue("classic", durable=True, arguments={"x-queue-type": "classic"})
    with pytest.raises(ClientError, match=r"on_poison needs a quorum queue, .* queue classic is of type classic"):
        async with subscribe(amqp_url, queue="classic", on_poison=PoisonQueue("poison")):
            pass
    async with subscribe(amqp_url, queue="classic", on_poison=PoisonQueue("poison", tries=1)):
        pass


async def test_what_was_opened_before_a_fork_is_refused_after_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes would write to one connection. The one that has opened it goes on; leaving it in the other does no harm."""
    async with (
        TaskActivityLogClient(world.amqp_url) as client,
        subscribe(world.amqp_url, routing_keys=["#"]) as replies,
    ):
        await client.upsert(TaskActivityLog(id=uuid4()))
        monkeypatch.setattr(os, "getpid", lambda: -1)  # as in the process that a fork makes
        refused = "was opened before os.fork, by another process: open one in this process"
        with pytest.raises(ClientError, match=f"the client {refused}"):
            await client.upsert(TaskActivityLog(id=uuid4()))
        with pytest.raises(ClientError, match=f"the client {refused}"):
            await client.send_many([TaskActivityLog(id=uuid4())])
        with pytest.raises(ClientError, match=f"the subscription {refused}"):
            await anext(replies)
        await client.__aexit__()
        monkeypatch.undo()
        assert (await client.upsert(TaskActivityLog(id=uuid4()))).outcome == "inserted"
