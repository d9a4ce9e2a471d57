"""The order in which RabbitMQ redelivers what was requeued: order per record depends on it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
import pytest
from aiormq.abc import AbstractChannel, ChannelFrame

from sandbox.proxy import Proxy
from task_activity_log.aio import Waiting, end
from task_activity_log.rabbitmq.channel import open_channel
from task_activity_log.rabbitmq.consumer import Consumer, RabbitDelivery
from task_activity_log.rabbitmq.frames import Inbound
from task_activity_log.rabbitmq.intake import Intake
from task_activity_log.rabbitmq.link import LinkOptions, connect
from task_activity_log.rabbitmq.topology import Topology, declare
from task_activity_log.rabbitmq.weight import Budget

TOPOLOGY = Topology(single_active_consumer=True)


class Weighing:
    """Somebody else who has something in hand."""

    weight = 0


async def publish(channel: aio_pika.abc.AbstractChannel, *bodies: int) -> None:
    exchange = await channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
    await asyncio.gather(*(exchange.publish(aio_pika.Message(b"%d" % body), "upsert") for body in bodies))


@pytest.mark.parametrize("count", [1, 32, 33, 64, 1000])
async def test_what_is_requeued_comes_again_in_order(amqp_url: str, count: int) -> None:
    """However much it is. On RabbitMQ 3.10 more than 32 messages that one nack requeues would come again in another order."""
    intake = Intake(LinkOptions(amqp_url), TOPOLOGY, prefetch=count, batch_max=count)
    running = asyncio.create_task(intake.run())
    await intake.wait_consuming()
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        for number in range(count):
            await publish(channel, number)
        taken = 0
        while taken < count:
            taken += len(await intake.take(count) or [])
        await intake.pause("test")
        assert await intake.requeue() == count
        queue = await channel.get_queue(TOPOLOGY.requests_queue, ensure=False)
        again: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
        await queue.consume(again.put, no_ack=True)
        assert [int((await again.get()).body) for _ in range(count)] == list(range(count))
    await end(running)


@asynccontextmanager
async def consuming(amqp_url: str) -> AsyncIterator[tuple[Consumer, Waiting[RabbitDelivery], AbstractChannel]]:
    waiting: Waiting[RabbitDelivery] = Waiting()
    async with connect(LinkOptions(amqp_url), "test") as (connection, frame_reader):
        await declare(connection, TOPOLOGY)
        channel = await open_channel(connection)
        consumer = Consumer(channel, TOPOLOGY.requests_queue, waiting, single_active=True)
        frame_reader.channels[channel.number] = Inbound(deliver=consumer.deliver)
        yield consumer, waiting, channel


@pytest.mark.parametrize("how", ["too slow", "cancelled"])
async def test_after_an_answer_that_is_not_waited_for_nothing_is_sent(
    amqp_url: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver has closed the channel. RabbitMQ ends the connection if an acknowledgement comes behind that."""
    async with await aio_pika.connect(amqp_url) as publisher, Proxy.to(amqp_url) as proxy:
        async with connect(LinkOptions(proxy.url), "test") as (connection, frame_reader):
            await declare(connection, TOPOLOGY)
            channel = await open_channel(connection)
            waiting: Waiting[RabbitDelivery] = Waiting()
            consumer = Consumer(channel, TOPOLOGY.requests_queue, waiting, single_active=True)
            frame_reader.channels[channel.number] = Inbound(deliver=consumer.deliver)
            await consumer.register(2)
            await publish(await publisher.channel(), 0, 1)
            deliveries: list[RabbitDelivery] = []
            while len(deliveries) < 2:
                deliveries += await waiting.take(2)
            proxy.hold()
            if how == "too slow":
                monkeypatch.setattr("task_activity_log.rabbitmq.consumer._ANSWER_SECONDS", 0.05)
            asking = asyncio.create_task(consumer.cancel())
            await proxy.held_back()  # it is sent
            if how == "cancelled":
                await end(asking)
            else:
                with pytest.raises(TimeoutError):
                    await asking
            proxy.resume()
            consumer.keep([deliveries[0].tag])
            with monkeypatch.context() as patch:
                patch.setattr(channel.connection, "write_queue", written := asyncio.Queue[ChannelFrame]())
                assert await consumer.close() == 1
            while not written.empty():
                assert written.get_nowait().payload[1:3] != channel.number.to_bytes(2, "big")
            assert channel.is_closed
            await (await open_channel(connection)).close()
            with pytest.raises(ConnectionError, match="the broker did not answer in time"):
                await consumer.wait_ended()


async def test_closing_acknowledges_what_was_kept_back(amqp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """In one write, after which nothing of it comes again. The driver takes the close for its own."""
    async with await aio_pika.connect(amqp_url) as publisher, consuming(amqp_url) as (first, waiting, channel):
        await first.register(10)
        await publish(await publisher.channel(), *range(30))
        deliveries: list[RabbitDelivery] = []
        while len(deliveries) < 10:
            deliveries += await waiting.take(10)
        first.keep([delivery.tag for delivery in deliveries[:4]])
        first.keep([deliveries[6].tag])
        assert first.in_hand == 5
        with caplog.at_level(logging.INFO):
            assert await first.close() == 5
            await first.wait_ended()
        assert channel.is_closed
        assert caplog.records == []
        assert await waiting_count(publisher) == 25
        async with consuming(amqp_url) as (second, others, _):
            await second.register(25)
            again: list[int] = []
            while len(again) < 25:
                again += [int(delivery.body) for delivery in await others.take(25)]
            assert again == [4, 5, *range(7, 30)]


async def test_an_acknowledgement_ends_although_the_connection_is_lost_before_it_is_written(amqp_url: str) -> None:
    """The driver's writer ends then, with many frames before it: whoever waited for room would wait for ever."""
    async with await aio_pika.connect(amqp_url) as publisher, consuming(amqp_url) as (consumer, waiting, channel):
        await consumer.register(60)
        await publish(await publisher.channel(), *range(60))
        deliveries: list[RabbitDelivery] = []
        while len(deliveries) < 60:
            deliveries += await waiting.take(60)
        acknowledging = asyncio.create_task(consumer.acknowledge([each.tag for each in deliveries[1::2]]))
        await asyncio.sleep(0)  # it has begun to write
        for task in asyncio.all_tasks():
            if "__writer" in str(task.get_coro()):
                task.cancel()  # as the driver does when the broker ends the connection
        async with asyncio.timeout(20):
            await acknowledging
            await asyncio.wait({channel.closing})


async def return_25(amqp_url: str, publisher: aio_pika.abc.AbstractConnection) -> None:
    """Publish 25 messages, deliver them, and return them to the queue in one close."""
    async with consuming(amqp_url) as (consumer, waiting, _):
        await consumer.register(25)
        await publish(await publisher.channel(), *range(25))
        while consumer.in_hand < 25:
            await waiting.take(25)
        assert await consumer.close() == 25
    assert await waiting_count(publisher) == 25


async def test_closing_gets_nothing_in_place_of_what_is_finished(amqp_url: str) -> None:
    """It would be returned behind everything that was returned before, which is not in hand with a prefetch of one."""
    async with await aio_pika.connect(amqp_url) as publisher:
        await return_25(amqp_url, publisher)
        async with consuming(amqp_url) as (second, waiting, _):
            await second.register(1)
            [delivery] = await waiting.take(1)
            second.keep([delivery.tag])
            assert await second.close() == 0
        async with consuming(amqp_url) as (third, waiting, _):
            await third.register(24)
            again: list[int] = []
            while len(again) < 24:
                again += [int(delivery.body) for delivery in await waiting.take(24)]
            assert again == [*range(1, 25)]


async def test_a_worker_that_stops_finishes_what_an_isolated_queue_is_sending(amqp_url: str) -> None:
    """With a prefetch of one it would be returned behind everything that was returned before."""
    async with await aio_pika.connect(amqp_url) as publisher:
        await return_25(amqp_url, publisher)
        intake = Intake(LinkOptions(amqp_url), TOPOLOGY, prefetch=25, batch_max=25)
        intake._queues[0].pace.isolate()
        running = asyncio.create_task(intake.run())
        await intake.acknowledge(await intake.take(25) or [])
        await intake.stop(30)
        finished = 1
        while (taken := await intake.take(25)) is not None:
            await intake.acknowledge(taken)
            finished += len(taken)
        assert await intake.requeue() == 0
        await end(running)
        async with consuming(amqp_url) as (second, waiting, _):
            await second.register(25)
            again: list[int] = []
            while len(again) < 25 - finished:
                again += [int(delivery.body) for delivery in await waiting.take(25)]
            assert again == [*range(finished, 25)]


async def test_an_isolated_queue_with_nothing_in_hand_is_consumed_as_before(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is parked then holds up its own record alone. Later all queues share a connection again."""
    monkeypatch.setattr("task_activity_log.rabbitmq.intake._LOOK_SECONDS", 0.01)
    monkeypatch.setattr("task_activity_log.rabbitmq.queue_intake._ISOLATED_SECONDS", 0.1)
    monkeypatch.setattr("task_activity_log.rabbitmq.queue_intake._APART_SECONDS", 1.0)
    async with await aio_pika.connect(amqp_url) as publisher:
        await declare(publisher, TOPOLOGY)
        intake = Intake(LinkOptions(amqp_url), TOPOLOGY, prefetch=25, batch_max=25)
        intake._isolating = True  # as after two failed deliveries
        [queue] = intake._queues
        running = asyncio.create_task(intake.run())
        await intake.wait_consuming()
        assert queue.pace.isolated
        async with asyncio.timeout(30):
            while queue.consumer is None or queue.consumer.prefetch != 25:
                await asyncio.sleep(0.01)
            while intake._isolating:
                await asyncio.sleep(0.01)
        await intake.wait_consuming()
        assert intake.outage is None
        await publish(await publisher.channel(), *range(25))
        while queue.in_hand < 25:
            await intake.take(25)
        await end(running)


async def test_an_isolated_queue_stays_isolated_while_it_delivers(amqp_url: str) -> None:
    """Nothing is in hand after each acknowledgement. What is on its way then would be returned behind all others."""
    async with await aio_pika.connect(amqp_url) as publisher:
        await return_25(amqp_url, publisher)
        intake = Intake(LinkOptions(amqp_url), TOPOLOGY, prefetch=25, batch_max=25)
        [queue] = intake._queues
        queue.pace.isolate()  # a long time ago
        running = asyncio.create_task(intake.run())
        again: list[int] = []
        while len(again) < 25:
            taken = await intake.take(25) or []
            again += [int(delivery.body) for delivery in taken]
            await intake.acknowledge(taken)
            await queue.leave_isolation()
        assert again == [*range(25)]
        assert (queue.registrations, queue.pace.isolated) == (1, True)
        await end(running)


async def test_the_answers_to_a_consumer_need_no_room(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolated queues have connections of their own. What others have in hand may only be settled after this one."""
    monkeypatch.setattr("task_activity_log.rabbitmq.frames._READ_SOME_SECONDS", 3600.0)
    budget, others, waiting = Budget(10), Weighing(), Waiting[RabbitDelivery]()
    budget.join(others)
    async with connect(LinkOptions(amqp_url), "test") as (connection, frame_reader):
        await declare(connection, TOPOLOGY)
        channel = await open_channel(connection)
        consumer = Consumer(channel, TOPOLOGY.requests_queue, waiting, single_active=True, budget=budget)
        frame_reader.channels[channel.number] = Inbound(deliver=consumer.deliver, full=consumer.full)
        async with asyncio.timeout(30):
            await consumer.register(1)
            others.weight = 100
            budget.take(100)
            assert consumer.full(1)
            await consumer.widen(25, [])
            await consumer.close()
        assert not consumer.full(1)


async def waiting_count(connection: aio_pika.abc.AbstractConnection) -> int:
    """How many messages are in the queue, once the broker has requeued what it was given back."""
    channel = await connection.channel()
    async with asyncio.timeout(30):
        while True:
            queue = await channel.declare_queue(TOPOLOGY.requests_queue, passive=True)
            if (count := queue.declaration_result.message_count or 0) >= 25:
                return count
            await asyncio.sleep(0.01)


async def test_a_consumer_can_be_closed_and_its_channel_number_used_again(amqp_url: str) -> None:
    """The driver frees the number when the broker has answered. A hundred hand-overs need no second connection."""
    numbers = set()
    waiting: Waiting[RabbitDelivery] = Waiting()
    async with connect(LinkOptions(amqp_url), "test") as (connection, _):
        await declare(connection, TOPOLOGY)
        for _ in range(100):
            channel = await open_channel(connection)
            numbers.add(channel.number)
            consumer = Consumer(channel, TOPOLOGY.requests_queue, waiting, single_active=True)
            await consumer.register(1)
            await consumer.close()
    assert len(numbers) == 1


async def test_a_close_that_the_broker_does_not_answer_gives_the_connection_up(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It neither hangs nor leaves a consumer behind that nobody waits for."""
    monkeypatch.setattr("task_activity_log.rabbitmq.consumer._CLOSE_SECONDS", 0.05)
    async with consuming(amqp_url) as (consumer, _, channel):
        await consumer.register(1)
        monkeypatch.setattr(channel.connection, "write_queue", asyncio.Queue())  # nobody sends it
        with pytest.raises(TimeoutError):
            await consumer.close()
        with pytest.raises(ConnectionError, match="did not close"):
            await consumer.wait_ended()
