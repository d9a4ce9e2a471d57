"""One channel that deliveries come through: which of them are not settled yet, and how they are settled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from itertools import takewhile
from math import inf
from typing import Any, TypeVar

from aiormq.abc import AbstractChannel, ChannelFrame, DeliveredMessage
from aiormq.exceptions import ConnectionInternalError
from pamqp.commands import Basic, Channel

from task_activity_log.aio import Waiting
from task_activity_log.message import Delivery
from task_activity_log.pipeline.suspects import is_doubtful
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq import headers
from task_activity_log.rabbitmq.channel import answered, wait_closed
from task_activity_log.rabbitmq.weight import Budget, weigh

T = TypeVar("T")

_ANSWER_SECONDS = 10.0
"""How long the broker may take to register or cancel a consumer."""

_CANCELLED = "the broker cancelled the consumer (queue deleted or moved, or consumer timeout)"

_READ_SECONDS = 0.1
"""How long the broker is given to read what was sent if its answer cannot arrive."""

_CLOSE_SECONDS = 3.0
"""How long the broker may take to close a channel."""


class RabbitDelivery(Delivery):
    """A delivery of one consumer, with the tag that settles it, and when it arrived, in seconds since 1970."""

    __slots__ = ("consumer", "redelivered", "tag", "taken")

    def __init__(self, consumer: Consumer, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self.consumer = consumer
        self.tag = tag
        self.taken = time.time()
        self.redelivered = redelivered
        self.body = body
        self.properties = headers.decode(header)
        # At the first delivery a header of this name is the publisher's own.
        count = self.properties.headers.get("x-delivery-count") if redelivered else None
        self.attempts = count if isinstance(count, int) else int(redelivered)  # its headers may be too long to be read
        self.slot = consumer.slot
        self.crashed = False
        self.suspect = False
        self.weight = weigh(body, header, len(self.properties.headers))


class Consumer:
    """Consumes one queue through one channel. Delivery tags die with the channel, and its deliveries come again.

    There is no way to cancel it and keep unfinished deliveries: `close` says why.
    """

    prefetch = 0
    """How many deliveries may be in hand; 0 before it is registered. Set by `register`."""
    slot: str | None = None
    """The routing key of the delivery that comes next, on the queue of a partition; else None. Set by `route`."""
    active = False
    """Whether it was given a message. Set by `deliver`."""
    last_tag = 0
    """The tag of the latest delivery; 0 if there was none. Set by `deliver`."""
    _hung_up = False
    """Whether the driver has closed the channel, because an answer is not waited for any more. Set by `_answered_in`."""

    def __init__(
        self,
        channel: AbstractChannel,
        queue: str,
        waiting: Waiting[RabbitDelivery],
        *,
        single_active: bool = False,
        budget: Budget | None = None,
        read_seconds: Callable[[], float] = lambda: inf,
    ) -> None:
        """Consume nothing yet.

        Args:
            channel: a channel that nobody else uses.
            queue: its name.
            waiting: where deliveries are put.
            single_active: what the queue was declared with.
            budget: how much may be in hand, of all consumers of the connection together; None: any number of bytes.
            read_seconds: for how long the connection has been read without a pause, because there is room.
        """
        self.single_active = single_active
        """Whether the queue gives its messages to one consumer only."""
        self._channel, self._queue = channel, queue
        self._waiting = waiting
        self._unsettled: dict[int, int] = {}  # the weight of each by its tag, in the order delivered
        self._budget, self._read_seconds = budget or Budget(), read_seconds
        self._budget.join(self)
        self._doubtful: set[int] = set()  # tags of what was returned several times before
        self._registered_as: str | None = None  # the consumer tag; None while not registered
        self._rejected: set[int] = set()  # tags left to the broker to dead-letter, whose answers are not placed yet
        self._kept: set[int] = set()  # tags of finished deliveries whose acknowledgements are kept back
        self._untaken: set[int] | None = None  # tags of what is never taken; None before `finish`
        self._finished = asyncio.Event()  # set when nothing else is unsettled
        self._settled = asyncio.Event()  # set when something is settled whose acknowledgement is kept back
        self._unusable = asyncio.Event()  # set by `give_up`
        self._why = ""
        self._asked: asyncio.Future[Any] | None = None  # the last question of `synchronize`
        self._abandoned = False  # set by `abandon` alone
        self._closing = False  # set by `close` alone
        channel.on_consumer_cancel_callbacks.add(lambda _: self.give_up(_CANCELLED))

    @property
    def in_hand(self) -> int:
        """How many deliveries are not settled. Those whose acknowledgement is kept back are."""
        return len(self._unsettled)

    def in_hand_up_to(self, tag: int) -> int:
        """How many deliveries are not settled, of those with a tag up to this one."""
        return sum(1 for each in self._unsettled if each <= tag)

    @property
    def is_empty(self) -> bool:
        """Whether the broker may send as much as the prefetch: nothing is in hand, and no acknowledgement is kept back."""
        return not self._unsettled and not self._kept

    @property
    def weight(self) -> int:
        """What these weigh; 0 while it is not registered: then the broker's answers are waited for, or nothing more comes."""
        return sum(self._unsettled.values()) if self._registered_as is not None else 0

    @property
    def doubtful(self) -> bool:
        """Whether something in hand was returned several times before."""
        self._doubtful.intersection_update(self._unsettled)
        return bool(self._doubtful)

    def route(self, slot: str) -> None:
        """The next delivery was published with this routing key. Called by the frame reader."""
        self.slot = slot

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        """Take a delivery in. Called by the frame reader."""
        if self._abandoned:
            return
        self.active = True
        delivery = RabbitDelivery(self, tag, redelivered, header, body)
        self.last_tag = tag
        self._unsettled[tag] = delivery.weight
        self._budget.take(delivery.weight)
        if is_doubtful(delivery):
            self._doubtful.add(tag)
        if self._untaken is None:
            self._waiting.put(delivery, delivery.weight)
        else:
            self._untaken.add(tag)

    def full(self, arriving: int) -> bool:
        """Whether there is no room for bodies of `arriving` bytes, whoever takes it. Called by the frame reader.

        There is room while nothing is delivered: before it is registered, and once it ends. Then the broker's answer is
        waited for, and it must not wait for others that may only be settled after it.
        """
        return self._registered_as is not None and not self._abandoned and self._budget.full(arriving)

    async def register(self, prefetch: int) -> None:
        """Consume with this prefetch.

        Raises:
            One of `link.LOST`: the broker refuses. If the queue cannot take a consumer, the text says so.
        """
        await self._answered_in(_ANSWER_SECONDS, self._channel.basic_qos(prefetch_count=prefetch))
        try:
            # A queue without a leader answers after 65 s, one without a majority does not answer. If the leader's process
            # does not exist, the broker ends the connection. It does so as well if the first message cannot be delivered.
            ok = await self._answered_in(_ANSWER_SECONDS, self._channel.basic_consume(self._queue, _not_called))
        except TimeoutError as error:
            raise Unavailable(f"queue {self._queue} takes no consumer: it has no leader, or no majority") from error
        except ConnectionInternalError as error:
            raise Unavailable(
                f"queue {self._queue} takes no consumer (INTERNAL_ERROR): it has no leader, or RabbitMQ cannot deliver its first"
                " message"
            ) from error
        self._registered_as = ok.consumer_tag
        self.prefetch = prefetch

    async def cancel(self, seconds: float | None = None) -> None:
        """Let the broker send nothing more. What is in hand stays there.

        This is no hand-over: other consumers may be given later messages before what is in hand is finished. It is for
        queues in which order does not matter, for `widen`, and for `close` when nothing is unfinished.
        """
        if self._registered_as is not None:
            tag, self._registered_as = self._registered_as, None
            await self._answered_in(seconds or _ANSWER_SECONDS, self._channel.basic_cancel(tag))

    async def widen(self, prefetch: int, finished: Iterable[int]) -> None:
        """Consume with a larger prefetch from now on, and acknowledge what is finished.

        To be called while as many deliveries are in hand as the prefetch allows, and all are finished. Then the broker
        sends nothing between the cancellation and the new registration, and nothing has to be returned to the queue.
        """
        await self.cancel()  # before the acknowledgement, which lets the broker send more
        await self.acknowledge(finished)
        await self.register(prefetch)

    async def synchronize(self) -> None:
        """Return when the broker has read everything that was sent: it handles a channel's frames in order.

        Its answer comes behind the deliveries that are on their way. If there is no room for these (`full`), the answer does
        not arrive. Then the broker has a tenth of a second to read.

        Raises:
            One of `link.LOST`: the connection is lost, or the broker does not answer in time.
        """
        if self._asked is not None and not await self._answered(self._asked):
            return
        self._asked = asked = asyncio.ensure_future(self._channel.basic_qos(prefetch_count=self.prefetch))
        asked.add_done_callback(_read)
        await self._answered(asked)

    async def _answered(self, asked: asyncio.Future[Any]) -> bool:
        """Wait for an answer; False if there is no room for what comes before it."""
        in_hand, silent_since = self.in_hand, time.monotonic()
        while not (await asyncio.wait({asked}, timeout=_READ_SECONDS))[0]:
            if self.full(0):
                return False
            if self.in_hand != in_hand:
                in_hand, silent_since = self.in_hand, time.monotonic()
            elif time.monotonic() - silent_since > _ANSWER_SECONDS:
                self.give_up("the broker did not answer in time")
                raise TimeoutError
        asked.result()
        return True

    async def _answered_in(self, seconds: float, asking: Awaitable[T]) -> T:
        try:
            return await answered(asking, seconds, self._read_seconds)
        except (TimeoutError, asyncio.CancelledError):
            self._hung_up = True
            self.give_up("the broker did not answer in time")
            raise

    def has(self, tag: int) -> bool:
        """Whether a delivery is not settled yet. One that was requeued meanwhile comes again."""
        return tag in self._unsettled

    async def acknowledge(self, tags: Iterable[int]) -> None:
        """Acknowledge those that are not settled, and those that were kept back.

        One frame is enough where all older ones are settled; the others need a frame each.
        """
        for tag, multiple in self._settlements(tags):
            await self._channel.basic_ack(tag, multiple=multiple, wait=False)

    async def reject(self, tag: int) -> None:
        """Let the broker dead-letter a delivery, as the arguments of its queue say, unless it is settled."""
        if self.has(tag):
            del self._unsettled[tag]
            self._rejected.add(tag)
            await self._channel.basic_reject(tag, requeue=False, wait=False)

    def forget_rejected(self, tags: Iterable[int]) -> int:
        """How many of these were rejected. Each counts once."""
        rejected = self._rejected.intersection(tags)
        self._rejected -= rejected
        return len(rejected)

    def keep(self, tags: Iterable[int]) -> None:
        """Settle these, and keep their acknowledgements back until `acknowledge` or `close` is called.

        Until then the broker sends nothing in their place.
        """
        for tag in filter(self.has, list(tags)):
            del self._unsettled[tag]
            self._kept.add(tag)
        self._settled.set()
        self._notice_finished()

    async def empty(self) -> None:
        """Return when nothing is in hand. Until then acknowledgements must be kept back, so that nothing more comes."""
        while self._unsettled:
            self._settled.clear()
            await self._settled.wait()

    async def finish(self) -> None:
        """Put nothing more where it is taken from, also of what has arrived; return when what was taken is finished.

        What is not taken stays in hand until `close` returns it.
        """
        self._untaken = {each.tag for each in self._waiting.remove(lambda delivery: delivery.consumer is self)}
        self._notice_finished()
        await self._finished.wait()

    def _notice_finished(self) -> None:
        if self._untaken is not None and len(self._unsettled) <= len(self._untaken):
            self._finished.set()

    def _settlements(self, tags: Iterable[int]) -> list[tuple[int, bool]]:
        """The tags to settle, with those that were kept back, and whether each includes all before it."""
        done = sorted({*filter(self.has, tags), *self._kept})
        self._kept.clear()
        for tag in done:
            self._unsettled.pop(tag, None)
        oldest = next(iter(self._unsettled), None)
        together = done if oldest is None else list(takewhile(oldest.__gt__, done))
        singly = [(tag, False) for tag in done[len(together) :]]
        return [(together[-1], True), *singly] if together else singly

    async def close(self) -> int:
        """Send what was kept back, return everything else in hand to the queue in order, and end; how many messages.

        Acknowledgements and `channel.close` go out in one write. RabbitMQ then applies both before it gives the next
        consumer anything, returns what is left in the order delivered, also what has arrived since, and only then
        activates the next consumer of a queue with a single active one. A `basic.cancel` before, between or after them
        breaks the order: the next consumer starts on later messages while earlier ones are still in hand here.

        With a prefetch of one, which an isolated queue has, it is different: the acknowledgement would let the broker send one
        more, and return it behind everything that was returned before. So if the one in hand is finished, the consumer is
        cancelled first. Nothing comes between that and the acknowledgement, and nothing unfinished is in hand.

        Each way of closing counts as a failed delivery of what is returned. A broker that is slow to apply
        acknowledgements drops some when the channel closes. Those messages come again in order.

        Raises:
            One of `link.LOST`: the connection is lost, or the broker does not answer in time. Everything comes again.
        """
        is_one_finished = not self._unsettled and len(self._kept) == self.prefetch == 1
        done = self._settlements(())
        count = len(self._unsettled)
        self.abandon()
        self._closing = True
        try:
            if is_one_finished:
                await self.cancel(_CLOSE_SECONDS)
            await self._close_channel(done)
        except TimeoutError:
            self.give_up("the broker did not close a channel in time")
            raise
        return count

    async def _close_channel(self, done: Iterable[tuple[int, bool]]) -> None:
        commands = [*(Basic.Ack(tag, multiple) for tag, multiple in done), Channel.Close(200, "", 0, 0)]
        closed = self._channel.closing
        # An acknowledgement behind the driver's close would make the broker end the connection.
        if not self._hung_up:
            # The driver's own close would be a second write. It takes our close for its own: it frees the channel
            # when the broker answers. A future for this write would be rejected by that answer.
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._channel.connection.write_queue.put(ChannelFrame.marshall(self._channel.number, commands))
        await self._answered_in(_CLOSE_SECONDS, asyncio.wait({closed}))

    def abandon(self) -> None:
        """Forget what is in hand and ignore what still arrives: the channel ends, and all of it comes again."""
        self._abandoned = True
        self._budget.leave(self)
        self._unsettled.clear()
        self._kept.clear()
        self._settled.set()
        self._finished.set()

    def give_up(self, why: str) -> None:
        """Use it no more: `wait_ended` raises, with this text."""
        self._why = why
        self._unusable.set()

    async def wait_ended(self) -> None:
        """Return once `close` has closed the channel.

        Raises:
            ConnectionError: the connection or the channel is lost, or the broker has cancelled the consumer.
        """
        reason = await wait_closed(self._channel, self._unusable)
        if self._unusable.is_set():
            raise ConnectionError(self._why)
        if not self._closing:
            raise ConnectionError(reason)


def _read(asked: asyncio.Future[Any]) -> None:
    _ = asked.cancelled() or asked.exception()  # read, or asyncio reports it where nobody waits any more


async def _not_called(_: DeliveredMessage) -> None:
    raise AssertionError("the frame reader has left a delivery to the driver")
