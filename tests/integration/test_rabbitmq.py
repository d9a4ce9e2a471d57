"""Intake, publisher, replies, dead letters and topology on a real RabbitMQ, compared with what the ordinary driver sees.

How the intake is paced and settles is in `test_intake_contract.py`.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from unittest.mock import AsyncMock
from urllib.parse import urlsplit

import aio_pika
import aiormq
import pytest
import structlog
from aio_pika.abc import AbstractChannel
from yarl import URL

from sandbox import RabbitMQ
from sandbox.proxy import Proxy
from task_activity_log.aio import end
from task_activity_log.message import Delivery, Properties
from task_activity_log.pipeline.ports import Settlement
from task_activity_log.pipeline.reply import Reply
from task_activity_log.problem import Code, Misconfigured, Problem, Unavailable
from task_activity_log.rabbitmq.channel import open_channel
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.dead_letters import DeadLetters
from task_activity_log.rabbitmq.intake import Intake
from task_activity_log.rabbitmq.link import LinkOptions, asking_the_driver, connect
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.replies import Replies, ReplyOptions
from task_activity_log.rabbitmq.topology import Topology, check, declare
from task_activity_log.record import Outcome

TOPOLOGY = Topology()
ARGUMENTS = dict(TOPOLOGY.queues()[TOPOLOGY.requests_queue] or {})
REPLY = Reply(
    outcome=Outcome.INSERTED,
    body=b"{}",
    content_type="application/json",
    correlation_id="c",
    message_id="m",
    type="task_activity_log.stored",
    headers={"x-outcome": "inserted"},
    reply_to=None,
)


async def taken_from(intake: Intake, most: int) -> list[RabbitDelivery]:
    """The next batch of an intake that is not stopping."""
    batch = await intake.take(most)
    assert batch
    return batch


@pytest.mark.parametrize("name", ["%2F", "%2f", "a/../b", "é %25"])
async def test_the_virtual_host_is_the_one_that_the_url_means(rabbitmq: RabbitMQ, name: str) -> None:
    """The driver decodes the path twice: for a virtual host that is called `%2F` it would use another one."""
    url = rabbitmq.create_vhost(f"{name}{secrets.token_hex(4)}")
    try:
        async with connect(LinkOptions(url), "test") as (connection, _):
            await (await open_channel(connection)).queue_declare("here")
        assert rabbitmq.api("GET", f"/queues/{urlsplit(url).path[1:]}/here")["name"] == "here"
    finally:
        rabbitmq.delete_vhost(url)


@asynccontextmanager
async def consuming(amqp_url: str, prefetch: int = 100, **options: Any) -> AsyncIterator[Intake]:
    intake = Intake(LinkOptions(amqp_url), TOPOLOGY, prefetch=prefetch, batch_max=prefetch, **options)
    task = asyncio.create_task(intake.run())
    try:
        await intake.wait_consuming()
        yield intake
    finally:
        await end(task)


@asynccontextmanager
async def publishing(amqp_url: str, **options: Any) -> AsyncIterator[Publisher]:
    publisher = Publisher(LinkOptions(amqp_url), **options)
    task = asyncio.create_task(publisher.run())
    try:
        await publisher.wait_connected()
        yield publisher
    finally:
        await end(task)


@asynccontextmanager
async def answering(
    publisher: Publisher, amqp_url: str, on_given_up: Callable[[str], None] = lambda _: None, **options: Any
) -> AsyncIterator[Replies[Delivery]]:
    link, chosen = LinkOptions(amqp_url), ReplyOptions(**options)
    replies = Replies[Delivery](publisher, publisher, link, TOPOLOGY, chosen, on_given_up=on_given_up)
    task = asyncio.create_task(replies.run())
    try:
        yield replies
    finally:
        await end(task)


def answer(reply_to: str | None = None) -> Settlement[Delivery]:
    """A settlement whose reply is to be sent there."""
    return Settlement(Delivery(b""), replace(REPLY, reply_to=reply_to))


@pytest.fixture
async def driver(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(amqp_url) as connection:
        yield await connection.channel()


async def drain(channel: AbstractChannel, queue: str, count: int) -> list[aio_pika.abc.AbstractIncomingMessage]:
    """The next `count` messages of a queue, in order."""
    messages: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
    tag = await (await channel.get_queue(queue)).consume(messages.put, no_ack=True)
    found = [await messages.get() for _ in range(count)]
    await (await channel.get_queue(queue)).cancel(tag)
    return found


def to_requests(body: bytes, properties: Properties | None = None) -> Outgoing:
    return Outgoing(TOPOLOGY.requests_exchange, "upsert", properties or Properties(), body)


async def test_the_reply_to_a_requeued_delivery_is_not_published_to_its_address(
    amqp_url: str, driver: AbstractChannel
) -> None:
    """It comes again. Earlier replies of its record that waited at the address are forgotten, and must not come behind it."""
    queue = await driver.declare_queue(exclusive=True)
    lost, held = answer(queue.name), answer(queue.name)
    async with publishing(amqp_url) as publisher:
        link, deliveries = LinkOptions(amqp_url), [held.delivery]
        replies = Replies[Delivery](
            publisher, publisher, link, TOPOLOGY, still=lambda each: any(each is one for one in deliveries)
        )
        assert await replies.publish([lost, held]) == [True, True]
    found = await driver.declare_queue(queue.name, passive=True)
    assert found.declaration_result.message_count == 1


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 400_000])
async def test_a_delivery_is_what_the_driver_would_deliver(amqp_url: str, driver: AbstractChannel, size: int) -> None:
    """Every property and every body arrives as the driver sent it, whether the body has no frame, one or several."""
    async with consuming(amqp_url) as intake:
        body = bytes(range(256)) * (size // 256) + bytes(size % 256)
        exchange = await driver.get_exchange(TOPOLOGY.requests_exchange)
        await exchange.publish(
            aio_pika.Message(
                body,
                content_type="application/json",
                content_encoding="utf-8",
                correlation_id="c",
                reply_to="r",
                message_id="m",
                timestamp=1_768_165_114,
                headers={"x-version": 7, "text": "é", "yes": True},
            ),
            "upsert",
        )
        (delivery,) = await taken_from(intake, 10)
        assert delivery.body == body
        assert (delivery.properties.content_type, delivery.properties.content_encoding) == ("application/json", "utf-8")
        assert (delivery.properties.correlation_id, delivery.properties.reply_to, delivery.properties.message_id) == (
            "c",
            "r",
            "m",
        )
        assert delivery.properties.timestamp == 1_768_165_114
        assert delivery.properties.headers == {"x-version": 7, "text": "é", "yes": True}
        assert delivery.properties.unreadable is None


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 400_000])
async def test_a_publish_is_what_the_driver_would_publish(amqp_url: str, driver: AbstractChannel, size: int) -> None:
    """The driver reads what we wrote, however many frames it took."""
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    queue = await driver.declare_queue(exclusive=True)
    async with publishing(amqp_url) as publisher:
        sent = Properties(content_type="a/b", message_id="é", headers={"x-outcome": "inserted"}, delivery_mode=2)
        assert await publisher.publish([Outgoing("", queue.name, sent, body)]) == [Fate.CONFIRMED]
    (message,) = await drain(driver, queue.name, 1)
    assert message.body == body
    assert (message.content_type, message.message_id) == ("a/b", "é")
    assert message.headers == {"x-outcome": "inserted"}


async def test_batches_arrive_in_order_and_are_acknowledged_together(amqp_url: str, driver: AbstractChannel) -> None:
    """A thousand messages, published, taken and settled in batches: no message is left, and none came twice."""
    async with consuming(amqp_url, prefetch=200) as intake, publishing(amqp_url) as publisher:
        for start in range(0, 1000, 250):
            await publisher.publish([to_requests(b"%d" % number) for number in range(start, start + 250)])
        taken: list[bytes] = []
        while len(taken) < 1000:
            batch = await taken_from(intake, 150)
            taken += [delivery.body for delivery in batch]
            await intake.acknowledge(batch)
        assert taken == [b"%d" % number for number in range(1000)]
        assert intake.in_hand == 0
    await until_waiting(driver, TOPOLOGY.requests_queue, 0)


async def until_waiting(channel: AbstractChannel, queue: str, count: int) -> None:
    """Return once that many messages are ready in a queue: a quorum queue counts some milliseconds behind."""
    async with asyncio.timeout(60):
        while (await channel.declare_queue(queue, passive=True)).declaration_result.message_count != count:
            pass


async def test_a_consumer_that_the_broker_cancels_consumes_again(amqp_url: str, driver: AbstractChannel) -> None:
    """Its queue is deleted: the intake declares it and consumes again. What was delivered before cannot be settled."""
    lost, late = asyncio.Event(), list[int]()
    async with (
        consuming(amqp_url, on_lost=lost.set, on_late=late.append) as intake,
        publishing(amqp_url) as publisher,
    ):
        await publisher.publish([to_requests(b"x")])
        taken = await taken_from(intake, 1)
        await driver.queue_delete(TOPOLOGY.requests_queue)
        await lost.wait()
        await intake.acknowledge(taken)
        assert late == [1]
        await intake.wait_consuming()
        await publisher.publish([to_requests(b"again")])
        assert [delivery.body for delivery in await taken_from(intake, 1)] == [b"again"]


async def test_a_returned_message_is_not_confused_with_its_neighbours(amqp_url: str, driver: AbstractChannel) -> None:
    """Of three messages with the same message_id those without a queue are returned, and the other is confirmed."""
    queue = await driver.declare_queue(exclusive=True)
    same = Properties(message_id="m")
    async with publishing(amqp_url) as publisher:
        fates = await publisher.publish(
            [Outgoing("", "nowhere", same, b"1"), Outgoing("", queue.name, same, b"2"), Outgoing("", "no", same, b"3")]
        )
    assert fates == [Fate.RETURNED, Fate.CONFIRMED, Fate.RETURNED]


async def test_a_nacked_message_is_not_confused_with_its_neighbours(amqp_url: str, driver: AbstractChannel) -> None:
    """The broker nacks what a full queue rejects, and confirms the message to the other queue."""
    full = await driver.declare_queue(exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    free = await driver.declare_queue(exclusive=True)
    async with publishing(amqp_url) as publisher:
        assert await publisher.publish([Outgoing("", full.name, Properties(), b"")]) == [Fate.CONFIRMED]
        fates = await publisher.publish([Outgoing("", name, Properties(), b"") for name in (full.name, free.name)])
    assert fates == [Fate.NACKED, Fate.CONFIRMED]


async def test_a_closed_channel_ends_the_wait_and_is_rebuilt(amqp_url: str, driver: AbstractChannel) -> None:
    """An exchange that does not exist closes the channel: the publisher says so, and publishes again later."""
    queue = await driver.declare_queue(exclusive=True)
    async with publishing(amqp_url) as publisher:
        fates = await publisher.publish([Outgoing("no such exchange", "", Properties(), b"")])
        assert fates == [Fate.LOST]
        await publisher.wait_connected()
        assert await publisher.publish([Outgoing("", queue.name, Properties(), b"")]) == [Fate.CONFIRMED]


async def test_what_could_not_be_written_in_time_is_lost_if_late_answers_are_asked_for(amqp_url: str) -> None:
    """Nobody would be told of a late answer: as unconfirmed, it would be waited for in vain."""
    late: list[int] = []
    async with Proxy.to(amqp_url) as proxy:
        publisher = Publisher(LinkOptions(proxy.url))
        task = asyncio.create_task(publisher.run())
        await publisher.wait_connected()
        proxy.hold()
        huge = [Outgoing("", "nowhere", Properties(), bytes(64 * 2**20))]
        fates = await publisher.publish(huge, 0.1, lambda position, _: late.append(position))
        assert (fates, late) == ([Fate.LOST], [])
        task.cancel()


async def test_a_cancelled_publish_does_not_confuse_the_next(amqp_url: str, driver: AbstractChannel) -> None:
    """The sequence numbers of a publish that was interrupted are not known: a new channel counts from one."""
    queue = await driver.declare_queue(exclusive=True)
    async with publishing(amqp_url) as publisher:
        messages = [Outgoing("", queue.name, Properties(), b"x" * 1000)] * 200
        cut_off = asyncio.create_task(publisher.publish(messages))
        await asyncio.sleep(0)
        cut_off.cancel()
        await asyncio.wait({cut_off})
        assert not publisher.connected
        await publisher.wait_connected()
        assert await publisher.publish(messages) == [Fate.CONFIRMED] * 200


async def test_replies_go_to_reply_to_or_the_exchange(amqp_url: str, driver: AbstractChannel) -> None:
    """With a reply_to only there, otherwise to the replies exchange; with every property of the contract."""
    mine = await driver.declare_queue(exclusive=True)
    async with consuming(amqp_url), publishing(amqp_url) as publisher:
        async with answering(publisher, amqp_url) as replies:
            assert await replies.publish([answer(mine.name), answer()]) == [True, True]
    (direct,) = await drain(driver, mine.name, 1)
    (shared,) = await drain(driver, TOPOLOGY.replies_queue, 1)
    for message in (direct, shared):
        assert (message.content_type, message.correlation_id, message.message_id) == (
            "application/json",
            "c",
            "m",
        )
        assert (message.type, message.app_id) == ("task_activity_log.stored", "task-activity-log-worker")
        assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
        assert message.properties.timestamp is not None
        assert message.headers == {"x-outcome": "inserted"}
    assert shared.routing_key == "stored.inserted"


async def test_a_reply_to_that_is_gone_is_given_up(amqp_url: str, driver: AbstractChannel) -> None:
    """It is counted, and the next reply is published all the same."""
    given_up: list[str] = []
    async with consuming(amqp_url), publishing(amqp_url) as publisher:
        async with answering(publisher, amqp_url, on_given_up=given_up.append) as replies:
            assert await replies.publish([answer("gone"), answer()]) == [True, True]
    assert given_up == ["returned"]
    assert len(await drain(driver, TOPOLOGY.replies_queue, 1)) == 1


async def test_replies_that_wait_count_with_what_their_requests_weigh(amqp_url: str, driver: AbstractChannel) -> None:
    """Many headers weigh more than a body. Otherwise requests whose replies wait could leave no room for others."""
    full = await driver.declare_queue(exclusive=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    reasons: list[str] = []
    waiting = [answer(reply_to=full.name) for _ in range(3)]
    for settlement in waiting:
        settlement.delivery.weight = 400_000
    async with (
        publishing(amqp_url) as publisher,
        answering(publisher, amqp_url, reasons.append, waiting_bytes_max=1_000_000) as replies,
    ):
        assert await replies.publish(waiting) == [False] * 3
        async with asyncio.timeout(20):
            assert await replies.settled() == waiting[:1]
    assert reasons == ["too_many"]


@pytest.mark.parametrize("reply_to", [TOPOLOGY.requests_queue, TOPOLOGY.dead_letters_queue, "not-allowed"])
async def test_a_reply_to_that_is_not_allowed_counts_as_absent(
    amqp_url: str, driver: AbstractChannel, reply_to: str
) -> None:
    """One of our own queues would be a loop or a forged reply; the reply goes to the exchange."""
    given_up: list[str] = []
    async with consuming(amqp_url), publishing(amqp_url) as publisher:
        async with answering(
            publisher, amqp_url, reply_to_allowed=("app.*", "task*"), on_given_up=given_up.append
        ) as replies:
            assert await replies.publish([answer(reply_to)]) == [True]
    assert given_up == ["not_allowed"]
    assert len(await drain(driver, TOPOLOGY.replies_queue, 1)) == 1


async def test_direct_reply_to_is_answered(amqp_url: str, driver: AbstractChannel) -> None:
    """RabbitMQ returns mandatory messages to amq.rabbitmq.reply-to although it delivers them: ours arrives once."""
    answers: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
    given_up: list[str] = []
    direct = await driver.get_queue("amq.rabbitmq.reply-to", ensure=False)
    await direct.consume(answers.put, no_ack=True)
    async with consuming(amqp_url) as intake, publishing(amqp_url) as publisher:
        exchange = await driver.get_exchange(TOPOLOGY.requests_exchange)
        await exchange.publish(aio_pika.Message(b"", reply_to="amq.rabbitmq.reply-to"), "upsert")
        (delivery,) = await taken_from(intake, 1)
        async with answering(publisher, amqp_url, on_given_up=given_up.append) as replies:
            settlement = answer(delivery.properties.reply_to)
            [placed] = await replies.publish([settlement])
            assert (await answers.get()).body == b"{}"
            if not placed:  # RabbitMQ 3: the first reply to such an address is tried apart
                assert await replies.settled() == [settlement]
                assert await replies.publish([answer(delivery.properties.reply_to)]) == [True]
                assert (await answers.get()).body == b"{}"
    assert given_up == []


async def test_replies_without_a_queue_are_held(amqp_url: str, driver: AbstractChannel) -> None:
    """The worker's own exchange leads nowhere: nothing is given up."""
    async with consuming(amqp_url), publishing(amqp_url) as publisher:
        await driver.queue_delete(TOPOLOGY.replies_queue)
        async with answering(publisher, amqp_url) as replies:
            with pytest.raises(Unavailable, match="returned"):
                await replies.publish([answer()])


async def test_a_dead_letter_is_the_original_with_the_reason(amqp_url: str, driver: AbstractChannel) -> None:
    """Body, properties and headers are kept; what the broker would act on is moved aside; the reason is added."""
    user = URL(amqp_url).user
    async with consuming(amqp_url) as intake, publishing(amqp_url) as publisher:
        exchange = await driver.get_exchange(TOPOLOGY.requests_exchange)
        await exchange.publish(
            aio_pika.Message(
                b"\xff\0body",
                content_type="text/plain",
                message_id="m",
                reply_to="r",
                user_id=user,
                expiration=60,
                priority=3,
                headers={"mine": 1, "BCC": ["elsewhere"], "x-error-code": "old", "x-first-seen": "earlier"},
            ),
            "upsert",
        )
        (delivery,) = await taken_from(intake, 1)
        problem = Problem(Code.UNSUPPORTED_MEDIA_TYPE, "é" * 600)
        await DeadLetters(publisher, TOPOLOGY.dead_letters_queue).keep([(delivery, problem)])
    (kept,) = await drain(driver, TOPOLOGY.dead_letters_queue, 1)
    assert kept.body == b"\xff\0body"
    assert (kept.content_type, kept.message_id, kept.reply_to, kept.priority) == ("text/plain", "m", "r", 3)
    assert (kept.user_id, kept.expiration) == (None, None)
    assert kept.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert kept.headers == {
        "mine": 1,
        "x-error-code": "unsupported_media_type",
        "x-error-detail": "é" * 500,
        "x-original-user-id": user,
        "x-original-expiration": "60000",
        "x-first-seen": "earlier",
        "x-last-seen": datetime.fromtimestamp(delivery.taken, UTC).isoformat(timespec="milliseconds"),
    }


async def test_headers_that_would_not_fit_are_left_out(amqp_url: str, driver: AbstractChannel) -> None:
    """A publisher's headers near the frame limit and ours together would not fit one frame."""
    async with consuming(amqp_url) as intake, publishing(amqp_url) as publisher:
        exchange = await driver.get_exchange(TOPOLOGY.requests_exchange)
        await exchange.publish(aio_pika.Message(b"", headers={"large": "x" * 130_500}), "upsert")
        (delivery,) = await taken_from(intake, 1)
        await DeadLetters(publisher, TOPOLOGY.dead_letters_queue).keep([(delivery, Problem(Code.EMPTY_BODY, "d"))])
    (kept,) = await drain(driver, TOPOLOGY.dead_letters_queue, 1)
    assert kept.headers["x-headers-dropped"] is True
    assert "large" not in kept.headers
    assert kept.headers["x-error-code"] == "empty_body"


@pytest.mark.parametrize(
    ("other", "argument", "wanted", "found"),
    [
        ({"x-delivery-limit": 7}, "x-delivery-limit", "'20'", "'7'"),
        ({"x-overflow": None}, "x-overflow", "the value 'reject-publish' of type 'longstr'", "none"),
    ],
)
async def test_a_queue_with_another_argument_is_used_as_it_is(
    amqp_url: str, driver: AbstractChannel, other: dict[str, Any], argument: str, wanted: str, found: str
) -> None:
    """One warning names the queue, the argument and both values, and messages flow."""
    arguments = {name: value for name, value in (ARGUMENTS | other).items() if value is not None}
    await driver.declare_queue(TOPOLOGY.requests_queue, durable=True, arguments=arguments)
    with structlog.testing.capture_logs() as logged:
        async with consuming(amqp_url) as intake, publishing(amqp_url) as publisher:
            await publisher.publish([to_requests(b"x")])
            assert len(await taken_from(intake, 1)) == 1
    [warning] = [event for event in logged if event["event"] == "topology_differs"]
    assert warning["log_level"] == "warning"
    assert (warning["what"], warning["argument"]) == (f"queue {TOPOLOGY.requests_queue}", argument)
    assert (warning["wanted"], warning["found"]) == (wanted, found)
    queue = await driver.declare_queue(TOPOLOGY.requests_queue, durable=True, arguments=arguments)
    assert queue.name == TOPOLOGY.requests_queue  # it has its arguments still, or this would have been refused


@pytest.mark.parametrize("other", [{}, {"x-delivery-limit": 7}], ids=["alone", "with another limit"])
async def test_a_queue_without_the_single_active_consumer_that_is_wanted_is_refused(
    amqp_url: str, driver: AbstractChannel, other: dict[str, Any]
) -> None:
    """All workers would consume it, and the order would be lost without a word."""
    await driver.declare_queue(TOPOLOGY.requests_queue, durable=True, arguments=ARGUMENTS | other)
    async with await aio_pika.connect(amqp_url) as connection:
        with pytest.raises(
            Misconfigured, match=r"no single active consumer .*, which WORKER_SINGLE_ACTIVE_CONSUMER=true needs"
        ):
            await declare(connection, replace(TOPOLOGY, single_active_consumer=True))


async def test_a_classic_queue_is_used_as_it_is(amqp_url: str, driver: AbstractChannel) -> None:
    """It has none of the arguments that we declare: the warning names one of them, and messages flow."""
    await driver.declare_queue(TOPOLOGY.requests_queue, durable=True)
    with structlog.testing.capture_logs() as logged:
        async with consuming(amqp_url) as intake, publishing(amqp_url) as publisher:
            await publisher.publish([to_requests(b"x")])
            assert len(await taken_from(intake, 1)) == 1
    [warning] = [event for event in logged if event["event"] == "topology_differs"]
    assert warning["what"] == f"queue {TOPOLOGY.requests_queue}"
    assert warning["argument"] in ARGUMENTS


NAMES = [("exchange", name) for name in TOPOLOGY.exchanges()] + [("queue", name) for name in TOPOLOGY.queues()]


async def exists(amqp_url: str, kind: str, name: str) -> bool:
    """Whether there is such a queue or exchange, asked for over a connection of its own."""
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        try:
            await (channel.get_queue(name) if kind == "queue" else channel.get_exchange(name))
        except aiormq.exceptions.ChannelNotFoundEntity:
            return False
        return True


@pytest.mark.parametrize(("kind", "name"), NAMES)
async def test_checking_the_topology_reports_what_is_missing_and_declares_nothing(
    amqp_url: str, driver: AbstractChannel, kind: str, name: str
) -> None:
    """Where operators own the queues, a missing queue or exchange stays missing until they declare it."""
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, TOPOLOGY)
        await check(connection, TOPOLOGY)
        await (driver.queue_delete(name) if kind == "queue" else driver.exchange_delete(name))
        with pytest.raises(Unavailable, match=f"^{kind} {re.escape(name)} does not exist"):
            await check(connection, TOPOLOGY)
    assert [there for there in NAMES if not await exists(amqp_url, *there)] == [(kind, name)]


async def test_an_intake_that_only_checks_consumes_once_everything_exists(amqp_url: str) -> None:
    """On an empty broker it declares nothing, and says what it is waiting for; later it consumes."""
    intake = Intake(LinkOptions(amqp_url), TOPOLOGY, prefetch=1, batch_max=1, declare_topology=False)
    with structlog.testing.capture_logs() as logged:
        task = asyncio.create_task(intake.run())
        while not logged:
            await asyncio.sleep(0.01)
        assert logged[0]["event"] == "broker_unavailable"
        assert logged[0]["reason"].startswith(f"exchange {TOPOLOGY.requests_exchange} does not exist")
        assert [there for there in NAMES if await exists(amqp_url, *there)] == []
        async with await aio_pika.connect(amqp_url) as connection:
            await declare(connection, TOPOLOGY)
        await intake.wait_consuming()
    await end(task)


async def test_a_driver_that_ends_a_call_with_its_own_cancellation_has_lost_the_connection(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiormq does so when its reader is cancelled. The cancellation is not ours: the intake connects again, and nothing ends."""
    calls = 0
    consume = aiormq.Channel.basic_consume

    async def cancelled_once(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncio.CancelledError
        return await consume(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(aiormq.Channel, "basic_consume", cancelled_once)
    async with publishing(amqp_url) as publisher, consuming(amqp_url) as intake:
        monkeypatch.setattr(aiormq.Channel, "basic_qos", AsyncMock(side_effect=asyncio.CancelledError))
        await publisher.publish([to_requests(b"first")])
        await intake.acknowledge(await taken_from(intake, 1))  # registering the full prefetch meets it, too
    assert calls == 2


async def test_our_own_cancellation_stays_one() -> None:
    """A task that is cancelled while it waits for the driver ends as cancelled."""

    async def ask() -> None:
        with asking_the_driver():
            await asyncio.Event().wait()

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_blocked_publisher_keeps_its_channel(amqp_url: str, driver: AbstractChannel) -> None:
    """During the alarm nothing more is written. What was written when it began is published when it is over."""
    queue = await driver.declare_queue(exclusive=True)
    async with Proxy.to(amqp_url) as proxy:
        publisher = Publisher(LinkOptions(proxy.url), confirm_timeout_seconds=0.2)
        task = asyncio.create_task(publisher.run())
        await publisher.wait_connected()
        proxy.hold()
        assert publisher._frame_reader is not None
        first = asyncio.create_task(publisher.publish([Outgoing("", queue.name, Properties(), b"1")]))
        await asyncio.sleep(0)
        publisher._frame_reader.blocked = "disk"
        with pytest.raises(Unavailable, match="blocks publishers"):
            await first
        with pytest.raises(Unavailable, match="blocks publishers"):
            await publisher.publish([Outgoing("", queue.name, Properties(), b"not sent")])
        proxy.resume()
        publisher._frame_reader.blocked = None
        assert await publisher.publish([Outgoing("", queue.name, Properties(), b"2")], 30.0) == [Fate.CONFIRMED]
    assert [message.body for message in await drain(driver, queue.name, 2)] == [b"1", b"2"]
    await end(task)
