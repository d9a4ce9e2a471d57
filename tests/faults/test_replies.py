"""Replies that cannot be delivered: the reply_to is full or gone, nobody reads replies, or the broker blocks publishers."""

import asyncio
import json
from contextlib import suppress
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

import aio_pika
import pytest

from sandbox import RabbitMQ
from task_activity_log.rabbitmq import publisher as publisher_module
from task_activity_log.rabbitmq.outgoing import Fate
from task_activity_log.service import Service
from tests.faults.conversation import TOPOLOGY, Conversation, conversing, until
from tests.serving import serving


def given_up(service: Service, why: str) -> float:
    value = service.metrics.registry.get_sample_value("task_activity_log_replies_given_up_total", {"why": why})
    return value or 0.0


async def full_queue(talk: Conversation) -> str:
    """The name of a queue that is full and refuses messages."""
    queue = await talk.channel.declare_queue(
        exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    await talk.channel.default_exchange.publish(aio_pika.Message(b""), queue.name)
    return queue.name


async def test_a_full_reply_to_of_the_first_message_delays_nobody(amqp_url: str, database_url: str) -> None:
    """A new consumer starts with a prefetch of 1, but others do not wait until the first reply is given up."""
    async with (
        conversing(amqp_url) as talk,
        serving(amqp_url, database_url, WORKER_REPLY_GIVE_UP_SECONDS="600") as service,
    ):
        await talk.send(reply_to=await full_queue(talk))
        await until(lambda: service.in_hand == 1)
        for _ in range(20):
            await talk.send()
        assert await talk.outcomes(20) == ["inserted"] * 20
        await until(lambda: service.in_hand == 1)


async def test_a_message_without_a_key_is_acknowledged_with_the_next_one_of_its_record(
    amqp_url: str, database_url: str
) -> None:
    """Delivered again, it would be stored over the next one. Its reply still comes when its queue has room."""
    async with (
        conversing(amqp_url) as talk,
        serving(amqp_url, database_url, WORKER_REPLY_GIVE_UP_SECONDS="600") as service,
    ):
        full, record = await full_queue(talk), str(uuid4())
        body = json.dumps({"id": record}).encode()
        exchange = await talk.channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
        # A message_id that is the id of its record is not a key. The driver sets a random one if there is none.
        await exchange.publish(aio_pika.Message(body, reply_to=full, message_id=record), "upsert")
        await until(lambda: service.in_hand == 1 and bool(service._replies.failing))
        await exchange.publish(aio_pika.Message(body, message_id=record), "upsert")
        assert await talk.outcomes(1) == ["updated"]
        await until(lambda: service.in_hand == 0)
        queue = await talk.channel.get_queue(full, ensure=False)
        replies: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
        await queue.consume(replies.put, no_ack=True)
        await replies.get()  # what filled it
        assert (await replies.get()).headers["x-outcome"] == "inserted"


async def test_a_reply_to_that_does_not_exist_is_given_up_at_once(amqp_url: str, database_url: str) -> None:
    """A returned reply is counted as given up, its message is settled, and other messages do not wait."""
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url) as service:
        await talk.send(reply_to="gone")
        await talk.send()
        assert await talk.outcomes(1) == ["inserted"]
        await until(lambda: given_up(service, "returned") == 1)
        await until(lambda: service.in_hand == 0)


async def test_direct_reply_to_works_and_a_client_that_has_left_delays_nobody(amqp_url: str, database_url: str) -> None:
    """A client of RabbitMQ's direct reply-to gets its reply; after it has left, the broker drops the reply."""
    async with (
        conversing(amqp_url) as talk,
        serving(amqp_url, database_url, WORKER_TOPOLOGY="check") as service,  # a deleted queue is not declared again
    ):
        async with await aio_pika.connect(amqp_url) as client:
            channel = await client.channel()
            answers: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
            pseudo = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
            await pseudo.consume(answers.put, no_ack=True)
            exchange = await channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
            body = b'{"id": "00000000-0000-0000-0000-000000000007"}'
            request = aio_pika.Message(body, message_id="rpc", reply_to="amq.rabbitmq.reply-to")
            await exchange.publish(request, "upsert")
            async with asyncio.timeout(30):
                answer = await answers.get()
            assert answer.headers["x-outcome"] == "inserted"
            await talk.channel.queue_delete(TOPOLOGY.replies_queue)  # the worker holds until the client has left
            await talk.send()
            await until(lambda: any("replies returned" in reason for reason in service.status.not_ready()))
            await exchange.publish(request, "upsert")
        queue = await talk.channel.declare_queue(
            TOPOLOGY.replies_queue, durable=True, arguments=TOPOLOGY.queues()[TOPOLOGY.replies_queue]
        )
        await queue.bind(TOPOLOGY.replies_exchange, "#")
        await until(lambda: service.in_hand == 0)
        assert service.status.not_alive() == []


@pytest.mark.parametrize("queue", [TOPOLOGY.replies_queue, TOPOLOGY.dead_letters_queue])
async def test_a_queue_that_was_deleted_is_declared_again(amqp_url: str, database_url: str, queue: str) -> None:
    """The worker held until it was started again."""
    async with conversing(amqp_url, answers=False) as talk, serving(amqp_url, database_url) as service:
        await (await talk.channel.get_queue(queue, ensure=False)).delete(if_unused=False, if_empty=False)
        fields: dict[str, Any] = {} if queue == TOPOLOGY.replies_queue else {"is_closed": "invalid"}
        message_id = await talk.send(**fields)
        outcome = "rejected" if fields else "inserted"
        name, value = "task_activity_log_messages_total", service.metrics.registry.get_sample_value
        await until(lambda: value(name, {"outcome": outcome}) == 1)
        found = await (await talk.channel.get_queue(queue)).get(no_ack=True, timeout=30)
        assert message_id in (found.message_id, found.correlation_id)


@pytest.mark.parametrize("deleted", ["queue", "binding"])
async def test_the_replies_queue_is_kept_although_another_one_takes_the_replies(
    amqp_url: str, database_url: str, deleted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker confirms a reply that any queue takes, so the worker declares its own again from time to time."""
    monkeypatch.setattr(publisher_module, "_KEEP_SECONDS", 0.1)
    async with (
        conversing(amqp_url, answers=False) as talk,
        serving(amqp_url, database_url),
        await aio_pika.connect(amqp_url) as looking,
    ):
        other = await talk.channel.declare_queue(exclusive=True)
        await other.bind(TOPOLOGY.replies_exchange, "#")
        await other.consume(talk.answers.put, no_ack=True)
        queue, found = await talk.channel.get_queue(TOPOLOGY.replies_queue, ensure=False), None
        if deleted == "queue":
            await queue.delete(if_unused=False, if_empty=False)
        else:
            await queue.unbind(TOPOLOGY.replies_exchange, "#")
        async with asyncio.timeout(60):
            while found is None:
                await talk.send()
                await talk.answers.get()
                with suppress(aio_pika.exceptions.ChannelNotFoundEntity):
                    channel = await looking.channel()
                    found = await (await channel.get_queue(TOPOLOGY.replies_queue)).get(no_ack=True, fail=False)


@pytest.mark.parametrize("overflow", ["drop-head", "reject-publish"])
async def test_a_policy_can_limit_replies_that_nobody_reads(
    amqp_url: str, database_url: str, rabbitmq: RabbitMQ, overflow: str
) -> None:
    """Depending on the policy, the oldest replies are dropped, or the worker holds until the queue has space."""
    async with conversing(amqp_url, answers=False) as talk, serving(amqp_url, database_url) as service:
        vhost = quote(unquote(urlsplit(amqp_url).path[1:]), safe="")
        policy = {"pattern": "replies$", "definition": {"max-length": 5, "overflow": overflow}, "apply-to": "queues"}
        await asyncio.to_thread(rabbitmq.api, "PUT", f"/policies/{vhost}/bounded", policy)
        if overflow == "drop-head":
            for _ in range(30):
                await talk.send()
            await until(lambda: service.in_hand == 0)
        else:

            def refused() -> bool:
                return any("replies refused" in reason for reason in service.status.not_ready())

            while not refused():  # the queue takes some more until its channels know that it is full
                await talk.send()
                await until(lambda: service.in_hand == 0 or refused())
            replies = await talk.channel.get_queue(TOPOLOGY.replies_queue)
            await replies.consume(talk.answers.put, no_ack=True)
            await until(lambda: service.in_hand == 0)


@pytest.mark.parametrize("queue", ["replies", "dead-letters", "reply_to"])
async def test_a_limit_that_is_removed_is_noticed(
    amqp_url: str, database_url: str, rabbitmq: RabbitMQ, queue: str
) -> None:
    """A quorum queue does not tell the channels that it has refused: they publish over new ones."""
    async with (
        conversing(amqp_url, answers=False) as talk,
        serving(amqp_url, database_url, WORKER_REPLY_GIVE_UP_SECONDS="600") as service,
    ):
        vhost = quote(unquote(urlsplit(amqp_url).path[1:]), safe="")
        policy = {
            "pattern": f"{queue}$",
            "definition": {"max-length": 1, "overflow": "reject-publish"},
            "apply-to": "queues",
        }
        await asyncio.to_thread(rabbitmq.api, "PUT", f"/policies/{vhost}/bounded", policy)
        await talk.channel.declare_queue("reply_to", durable=True, arguments={"x-queue-type": "quorum"})
        fields: dict[str, Any] = {"is_closed": "invalid"} if queue == "dead-letters" else {}
        apart: list[Fate] = []  # what became of replies that were tried again
        answered = service._replies._retries._answered
        service._replies._retries._answered = lambda one, fate: (apart.append(fate), answered(one, fate))  # type: ignore[method-assign, func-returns-value, assignment]

        def refused() -> bool:
            reasons = [*service.status.not_ready(), *(one.fate.value for one in service._replies.failing if one.fate)]
            return any("refused" in reason for reason in reasons)

        while not refused():  # the queue takes some more until its channels know that it is full
            await talk.send(reply_to="reply_to" if queue == "reply_to" else None, **fields)
            await until(lambda: service.in_hand == 0 or refused())
        await until(lambda: queue != "reply_to" or Fate.NACKED in apart)
        await asyncio.to_thread(rabbitmq.api, "DELETE", f"/policies/{vhost}/bounded")
        await until(lambda: service.in_hand == 0 and not refused())
        assert given_up(service, "refused") == 0


async def test_an_address_whose_limit_is_removed_is_used_like_others(
    amqp_url: str, database_url: str, rabbitmq: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused at most once more: then its replies go over a new connection, and are no longer tried apart."""
    async with (
        conversing(amqp_url, answers=False) as talk,
        serving(amqp_url, database_url, WORKER_REPLY_GIVE_UP_SECONDS="600") as service,
    ):
        vhost = quote(unquote(urlsplit(amqp_url).path[1:]), safe="")
        definition = {"max-length": 1, "overflow": "reject-publish"}
        policy = {"pattern": "reply_to$", "definition": definition, "apply-to": "queues"}
        await asyncio.to_thread(rabbitmq.api, "PUT", f"/policies/{vhost}/bounded", policy)
        await talk.channel.declare_queue("reply_to", durable=True, arguments={"x-queue-type": "quorum"})
        replies, together = service._replies, list[Fate]()  # what became of replies that were not tried apart
        publish = replies._addressed.publish

        async def published(*arguments: Any) -> list[Fate]:
            fates = await publish(*arguments)
            together.extend(fates)
            return fates

        monkeypatch.setattr(replies._addressed, "publish", published)

        async def send() -> list[Fate]:
            """Of one more reply, which is settled when this returns, also if it was tried apart."""
            together.clear()
            await talk.send(reply_to="reply_to")
            await until(lambda: bool(together) and service.in_hand == 0 and not replies.failing)
            return list(together)

        while Fate.NACKED not in together:  # the queue takes some more until its channels know that it is full
            expected = len(together) + 1
            await talk.send(reply_to="reply_to")
            await until(lambda count=expected: len(together) == count)  # type: ignore[misc]
        await asyncio.to_thread(rabbitmq.api, "DELETE", f"/policies/{vhost}/bounded")
        await until(lambda: service.in_hand == 0 and not replies.failing)
        # Nobody reads: otherwise the queue would tell the channel that it has room.
        assert len(await send()) == 1
        assert await send() == [Fate.CONFIRMED]
        assert await send() == [Fate.CONFIRMED]


async def test_an_alarm_of_the_broker_is_an_outage_like_others(amqp_url: str, database_url: str) -> None:
    """While publishers are blocked the worker says so, requeues after the hold limit, and answers all afterwards."""
    limits: dict[str, Any] = {"WORKER_HOLD_LIMIT_SECONDS": "0.5", "WORKER_CONFIRM_TIMEOUT_SECONDS": "1"}
    async with conversing(amqp_url) as talk, serving(amqp_url, database_url, **limits) as service:
        frame_reader = service._publisher._frame_reader
        assert frame_reader is not None
        frame_reader.data_received(_frame(b"\0\x0a\0\x3c" + b"\x04disk"))
        for _ in range(3):
            await talk.send()
        await until(lambda: any("the broker blocks publishers" in reason for reason in service.status.not_ready()))
        await until(lambda: service._intake._paused_by == {"reply"} and service.in_hand == 0)
        assert service.status.not_alive() == []
        frame_reader.data_received(_frame(b"\0\x0a\0\x3d"))
        # what was stored before is answered by the reply that was held, and as a duplicate when it comes again
        outcomes: list[str] = []
        while outcomes.count("inserted") < 3:
            outcomes += await talk.outcomes(1)
        assert set(outcomes) <= {"inserted", "duplicate"}
        await until(lambda: not service.status.not_ready())


def _frame(method: bytes) -> bytes:
    """A method frame as the broker sends it on channel 0."""
    return b"\1\0\0" + len(method).to_bytes(4, "big") + method + b"\xce"
