"""A queue that a subscriber reads, or an operator inspects: one connection, which is not rebuilt when lost."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import aio_pika
from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import ConnectionNotImplemented
from pamqp.commands import Basic

from task_activity_log.aio import Waiting
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.channel import open_channel
from task_activity_log.rabbitmq.consumer import Consumer, RabbitDelivery
from task_activity_log.rabbitmq.cut_off import Watch, commit, count_consumers, stand_in_line, write_metadata
from task_activity_log.rabbitmq.frames import FrameReader, Inbound
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, cannot_reach_queue, connect, describe
from task_activity_log.rabbitmq.queues import Choice, Found, stream
from task_activity_log.rabbitmq.topology import queue_type
from task_activity_log.rabbitmq.version import number, version_of

PREFETCH_MAX = 65_535
"""The largest prefetch of AMQP 0-9-1, which has two bytes for it."""

_BACK_SECONDS = 2.0
_ANSWER_SECONDS = 10.0
"""How long a queue may take to answer."""
_CHOOSE_SECONDS = 20.0
"""How long a broker may take to declare a queue: a node that is cut off from the others does not answer."""
_RECENT_SECONDS = 1.0
"""What was acknowledged longer ago has been applied by any queue that is not overloaded."""
_APPLY_SECONDS = 0.3
"""What a queue is given to apply acknowledgements. There is no proof that keeps the order: `basic.get` takes a message out."""
_WATCH_AFTER_SECONDS = 15.0
"""Short commands end before, and are not watched."""
_PRIVATE_QUIET_SECONDS = 60.0
"""A queue that is declared for a proof costs all nodes a little."""
_ELECTION_SECONDS, _AGAIN_SECONDS = 10.0, 0.5
"""For how long a queue is tried again that has no leader, for example because its node is drained, and how often."""
_UNDER_WAY = 24
"""How many commands that settle deliveries are sent before the queue's answer is waited for."""
_NACK_COUNTS_NOT_SINCE = (4, 3)
"""Since this version of RabbitMQ a `basic.nack` does not count as a delivery. Before, every return does."""


class Reader(Consumer):
    """A consumer with a queue of its own in this process, where its deliveries are taken from."""

    def __init__(self, channel: AbstractChannel, found: Found, connection: aio_pika.Connection | None = None) -> None:
        self._connection = connection
        self._acknowledged: deque[float] = deque(maxlen=_UNDER_WAY)
        """When the latest acknowledgements were sent."""
        self.found = found
        """The queue, as it was before this reader consumed it."""
        self._arrived: Waiting[RabbitDelivery] = Waiting()
        super().__init__(channel, found.queue, self._arrived)
        self._ended = asyncio.ensure_future(self.wait_ended())
        self._ended.add_done_callback(self._close)

    def _close(self, ended: asyncio.Future[None]) -> None:
        _ = ended.cancelled() or ended.exception()  # read, or asyncio reports it where nobody takes any more
        self._arrived.close()

    async def take(self, most: int) -> list[RabbitDelivery]:
        """What has been delivered, at least one, at most `most`.

        Raises:
            ConnectionError: the connection is lost, or the queue is gone. What was not acknowledged comes again.
        """
        deliveries = await self._arrived.take(most)
        if not deliveries:
            await self._ended
        return deliveries

    async def acknowledge(self, tags: Iterable[int]) -> None:
        """Acknowledge these. If they are many in a short time, `end` gives the queue time to apply them."""
        self._acknowledged.append(time.monotonic())
        await super().acknowledge(tags)

    async def now(self) -> tuple[int, int]:
        """How many messages the queue has that nobody was given, and how many consumers, this one included."""
        async with asyncio.timeout(_ANSWER_SECONDS):
            ok = await self._channel.queue_declare(self.found.queue, passive=True)
        return ok.message_count or 0, ok.consumer_count or 0

    async def is_stream(self) -> bool:
        """Whether the queue is a stream, from which nothing can be removed, and which delivers only what is new."""
        return await self.type() == "stream"

    async def type(self) -> str | None:
        """The type of the queue, if the broker tells it."""
        return None if self._connection is None else await queue_type(self._connection, self.found.queue)

    async def require_readable(self) -> None:
        """Check a queue that says that it is empty: a stream does so for a while when it has just been filled.

        Raises:
            Unavailable: it is not empty. A queue says that it is while it has no leader.
            Unsuitable: it is a stream.
            One of `LOST`: the queue does not answer.
        """
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                got = await self._channel.basic_get(self.found.queue)  # a message is returned at the end
        except ConnectionNotImplemented:
            raise stream(self.found.queue) from None
        if isinstance(got.delivery, Basic.GetOk) or self.in_hand:
            raise Unavailable(f"queue '{self.found.queue}' has messages, and has said that it has none")

    async def remove(self, deliveries: Iterable[RabbitDelivery]) -> int:
        """Acknowledge these, and return when the queue has removed them; how many were not settled before.

        RabbitMQ keeps commands of a channel back while more than 32 of them wait for a quorum queue, and forgets those
        if the channel closes. So only a few are under way at a time. Neither `basic.qos` nor a passive declare proves
        that a queue has applied them, because the broker answers both without it.

        Raises:
            One of `LOST`: the queue has not answered. What it has not removed comes again.
        """
        tags = [delivery.tag for delivery in deliveries if self.has(delivery.tag)]
        commands = self._settlements(tags)
        waiting = 0
        for start in range(0, len(commands), _UNDER_WAY):
            for tag, multiple in commands[start : start + _UNDER_WAY]:
                await self._channel.basic_ack(tag, multiple=multiple, wait=False)
            waiting = await self._wait_applied()
        await _until_back(self._channel, self.found.queue, waiting)
        return len(tags)

    async def give_back(self, deliveries: Iterable[RabbitDelivery]) -> None:
        """Return these to the queue, keep the others in hand, and return when the queue has them.

        Raises:
            One of `LOST`: the queue has not answered. Everything in hand comes again.
        """
        for tag, multiple in self._settlements([delivery.tag for delivery in deliveries]):
            await self._channel.basic_nack(tag, multiple=multiple, requeue=True, wait=False)
        await (
            self._wait_applied()
        )  # applied: all but those that the broker keeps back, which it sends in one command now
        waiting = await self._wait_applied()
        await _until_back(self._channel, self.found.queue, waiting)

    async def _wait_applied(self) -> int:
        """Return when the queue has applied what was sent before: it answers `basic.get` in the order of the commands.

        A message that it gives is returned, and is then behind the others that were returned.

        Returns:
            How many messages wait in the queue when that one is back; 0 if the queue gave none.
        """
        found = await self._ask_queue()
        if not isinstance(found.delivery, Basic.GetOk):
            return 0
        await self._channel.basic_nack(found.delivery.delivery_tag or 0, requeue=True, wait=False)
        return 1 + (found.delivery.message_count or 0)

    async def _ask_queue(self) -> DeliveredMessage:
        """What the queue answers to `basic.get`: a message, which is in hand then, or that it is empty."""
        async with asyncio.timeout(_ANSWER_SECONDS):
            return await self._channel.basic_get(self.found.queue)

    async def end(self, *, looked: bool = False) -> int:
        """Return everything that was not acknowledged to the queue, in order; how many messages.

        Closing the channel does so whatever is under way, and counts as a delivery. Nothing else is sent before: `close` says
        why. `looked` says that nothing was acknowledged but by `remove`. Then RabbitMQ 4.3 can return it without counting.
        """
        self._ended.cancel()
        back = self.in_hand
        with suppress(*LOST), asking_the_driver():
            if not looked:
                await self._let_apply()
            elif self._nack_does_not_count():
                await self._return_uncounted()
        with suppress(*LOST), asking_the_driver():
            await self.close()
        self.abandon()
        return back

    async def _let_apply(self) -> None:
        """Give the queue time for many acknowledgements: the broker forgets those that it keeps back when the channel closes.

        What they acknowledged would come again, in order.
        """
        if len(self._acknowledged) == _UNDER_WAY and time.monotonic() - self._acknowledged[0] < _RECENT_SECONDS:
            async with asyncio.timeout(_BACK_SECONDS):
                await self.synchronize()
                await asyncio.sleep(_APPLY_SECONDS)

    def _nack_does_not_count(self) -> bool:
        return number(version_of(self._channel.connection)) >= _NACK_COUNTS_NOT_SINCE

    async def _return_uncounted(self) -> None:
        """Return everything that was delivered with one `basic.nack`: tag 0 is for all that the broker has sent.

        Deliveries can arrive behind the answer to `basic.cancel`. The broker is asked once more, so that they are returned by
        the same command: with a second one they would be in front of the others. On a cluster some may come later still.
        These are returned by the end of the channel, and count.
        """
        async with asyncio.timeout(_ANSWER_SECONDS):
            await self.cancel()  # or it would be given what it returns
            await self.synchronize()
            await self._channel.basic_nack(0, multiple=True, requeue=True, wait=False)


@asynccontextmanager
async def reading(
    options: LinkOptions,
    purpose: str,
    choose: Choice,
    *,
    look: bool = False,
    expects: Callable[[], bool] | None = None,
) -> AsyncIterator[Reader]:
    """Consume a queue; what was not acknowledged is returned to it at the end.

    Args:
        options: how to reach the broker.
        purpose: the connection's name in the broker's management.
        choose: which queue, and with which prefetch: see `rabbitmq.queues`.
        look: nothing is acknowledged but by `Reader.remove`. What is returned is not counted as a delivery where the broker
            allows that, and the end waits until it is in the queue, or for two seconds: others may have taken it.
        expects: whether somebody waits for what is to be delivered. If so for a while, it is found out whether the node is
            cut off from the others, and the reader then ends as if the connection were lost. None: it is not found out.

    Raises:
        One of `LOST`: nobody answers, or not in time, or the broker refuses, for example because there is no such queue.
    """
    async with connect(options, purpose) as (connection, frame_reader):
        async with asyncio.timeout(_CHOOSE_SECONDS):
            channel = await open_channel(connection)
            found = await choose(channel)
        reader = Reader(channel, found, connection)
        frame_reader.channels[channel.number] = Inbound(deliver=reader.deliver)
        watching = None
        try:
            if expects is not None:
                watching = asyncio.create_task(_watch(reader, connection, frame_reader, expects))
            if found.prefetch:
                await reader.register(min(found.prefetch, PREFETCH_MAX))
            yield reader
        finally:
            if watching is not None:
                watching.cancel()
            if (back := await reader.end(looked=look)) and look:
                await _until_all_back(connection, found.queue, back)


async def _watch(
    reader: Reader, connection: aio_pika.Connection, frame_reader: FrameReader, expects: Callable[[], bool]
) -> None:
    """End the reader if its node is cut off from the others."""
    queue, private = reader.found.queue, reader.found.private
    refuses = False

    async def prove() -> None:
        nonlocal refuses
        if private:
            await write_metadata(connection)
        elif refuses or not await commit(connection, queue):
            refuses = True
            await stand_in_line(connection, frame_reader, queue)

    async def count() -> int:
        return 1 if private else await count_consumers(connection, queue)

    try:
        with asking_the_driver():
            await asyncio.sleep(_WATCH_AFTER_SECONDS)
            async with asyncio.timeout(_ANSWER_SECONDS):
                can_prove = not _is_before_4(connection) if private else await reader.type() == "quorum"
            # A queue of another type is on one node; before RabbitMQ 4 names are not committed by a majority.
            if not can_prove:
                return
            await Watch(
                queue,
                registered=lambda: not reader.in_hand and expects(),
                seen=lambda: (reader.last_tag, reader.in_hand, expects()),
                prove=prove,
                count=count,
                read_seconds=lambda: frame_reader.read_seconds,
                quiet_seconds=_PRIVATE_QUIET_SECONDS if private else None,
            ).wait_cut_off()
    except LOST as error:
        reader.give_up(describe(error).text)


def _is_before_4(connection: aio_pika.Connection) -> bool:
    return connection.transport is None or version_of(connection.transport.connection).startswith("3.")


async def _until_all_back(connection: aio_pika.Connection, queue: str, count: int) -> None:
    """As `_until_back`, on a new channel."""
    with suppress(*LOST), asking_the_driver():
        async with asyncio.timeout(_BACK_SECONDS):
            channel = await open_channel(connection)
        await _until_back(channel, queue, count)


async def _until_back(channel: AbstractChannel, queue: str, count: int) -> None:
    """Wait until `count` messages wait in the queue, or for two seconds: others may have taken them.

    RabbitMQ requeues in its own time, and shows no message until then.
    """
    if not count:
        return
    with suppress(*LOST), asking_the_driver():
        async with asyncio.timeout(_BACK_SECONDS):
            while ((await channel.queue_declare(queue, passive=True)).message_count or 0) < count:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.02)


@asynccontextmanager
async def looking(options: LinkOptions, purpose: str, choose: Choice) -> AsyncIterator[Reader]:
    """As `reading` with `look`. A queue that has no leader for a moment is read again, for some seconds.

    Raises:
        Unsuitable: it is a stream.
        One of `LOST`: the connection or the channel was lost, or the queue does not answer.
    """
    until = time.monotonic() + _ELECTION_SECONDS
    async with AsyncExitStack() as stack:
        while True:
            try:
                async with AsyncExitStack() as attempt:
                    with asking_the_driver():
                        reader = await attempt.enter_async_context(reading(options, purpose, choose, look=True))
                        if not reader.found.messages:
                            await reader.require_readable()
                    stack.push_async_exit(attempt.pop_all())
                break
            except LOST as error:
                if time.monotonic() > until or not cannot_reach_queue(error):
                    raise
            await asyncio.sleep(_AGAIN_SECONDS)
        yield reader
