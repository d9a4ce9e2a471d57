"""Whether the node of a connection is cut off from the others, so that nothing would ever be delivered.

Such a node keeps its connections, also those of consumers. If it has the leader of a quorum queue, that leader goes on to
know its consumers, and delivers nothing because it can commit nothing. Nobody is told. RabbitMQ 4.3 has no partition handling;
before, `ignore` is the default. So a queue that has delivered nothing for a while is given a command that it has to
commit. It answers within milliseconds, or its node is cut off, or it has no majority at all.

A count of messages or consumers is no such command: a node answers it alone. But 0 consumers are a sign: a node says so that
cannot reach the leader.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import aio_pika
from aiormq.exceptions import ChannelLockedResource
from pamqp.commands import Basic

from task_activity_log.rabbitmq.channel import answered, open_channel
from task_activity_log.rabbitmq.frames import FrameReader, Inbound
from task_activity_log.rabbitmq.link import CutOff

_COUNT_EVERY_SECONDS = 15.0
_AGAIN_SECONDS = 3.0
"""How long after a first count of 0 consumers: while the members of a queue elect a leader, a node may say so."""
_LOOK_EVERY_SECONDS = 1.0
_QUIET_SECONDS = 30.0
"""For how long nothing is delivered before the queue is given a command. Up to half of it more, so that not all act together."""
_ANSWER_SECONDS = 10.0


class Quiet:
    """Says when nothing has happened for so long that the queue is to be given a command."""

    def __init__(self, seconds: float, now: float) -> None:
        """Begin now. Each wait is between these seconds and half as many more."""
        self._seconds = seconds
        self._seen: object = None
        self.proved(now)

    def proved(self, now: float) -> None:
        """The queue has carried something out."""
        self._due = now + self._seconds * random.uniform(1.0, 1.5)  # noqa: S311 - jitter, not cryptography

    def is_due(self, seen: object, now: float) -> bool:
        """Whether a command is due. `seen` is anything that changes with each delivery and each registration."""
        if seen != self._seen:
            self._seen = seen
            self.proved(now)
        return now >= self._due


class Watch:
    """Looks whether queues that are consumed over one connection still do something."""

    under_way = False
    """Whether a queue has been given a command and has not answered. Set by `wait_cut_off`."""

    def __init__(
        self,
        queue: str,
        *,
        registered: Callable[[], bool],
        seen: Callable[[], object],
        prove: Callable[[], Awaitable[object]],
        count: Callable[[], Awaitable[int]],
        read_seconds: Callable[[], float],
        quiet_seconds: float | None = None,
    ) -> None:
        """Ask nothing yet.

        Args:
            queue: its name, for people.
            registered: whether there is a consumer that waits for deliveries.
            seen: changes with each delivery and each registration.
            prove: returns when a queue has carried out a command; see `commit`.
            count: the number of consumers of a queue that are registered, as the node says.
            read_seconds: for how long the connection has been read without a pause. No answer arrives in a pause.
            quiet_seconds: for how long nothing is seen before a command is given; None: as a worker does.
        """
        self._queue, self._quiet_seconds = queue, _QUIET_SECONDS if quiet_seconds is None else quiet_seconds
        self._registered, self._seen, self._prove, self._count = registered, seen, prove, count
        self._read_seconds = read_seconds

    async def wait_cut_off(self) -> None:
        """Return never.

        Raises:
            CutOff: the node is cut off from the others, or the queue does not know the consumer any more.
            TimeoutError: the node does not answer at all.
        """
        quiet = Quiet(self._quiet_seconds, time.monotonic())
        count_at = time.monotonic() + _COUNT_EVERY_SECONDS
        known = self._registered()
        while True:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            if time.monotonic() >= count_at:
                # A queue counts a new consumer a moment late.
                if known and not await self._counted() and self._registered():
                    await self._count_again()
                known, count_at = self._registered(), time.monotonic() + _COUNT_EVERY_SECONDS
            if quiet.is_due(self._seen(), time.monotonic()) and self._registered():
                await self._command()
                quiet.proved(time.monotonic())

    async def _counted(self) -> int:
        return await answered(self._count(), _ANSWER_SECONDS, self._read_seconds)

    async def _count_again(self) -> None:
        await asyncio.sleep(_AGAIN_SECONDS)
        if not await self._counted() and self._registered():
            raise CutOff(f"queue '{self._queue}' does not know this consumer any more")

    async def _command(self) -> None:
        self.under_way = True
        try:
            await answered(self._prove(), _ANSWER_SECONDS, self._read_seconds)
        except TimeoutError:
            if self._registered():
                raise self.cut_off() from None
        self.under_way = False

    def cut_off(self) -> CutOff:
        """What to raise when the queue does not carry a command out."""
        return CutOff(
            f"queue '{self._queue}' does not answer: this node is cut off from the others, or it has no majority"
        )


async def count_consumers(connection: aio_pika.Connection, queue: str) -> int:
    """How many consumers a queue has, as the node says that the connection is to."""
    channel = await open_channel(connection)
    consumers = (await channel.queue_declare(queue, passive=True)).consumer_count
    await channel.close()
    return consumers or 0


async def commit(connection: aio_pika.Connection, queue: str) -> bool:
    """Have a quorum queue commit something: it gives its first message, which is returned, or says that it has none.

    To be called while a consumer waits for messages, so that it has none. Returns False if the queue has a single active
    consumer: it refuses, and the broker writes an error to its log.
    """
    channel = await open_channel(connection)
    try:
        found = await channel.basic_get(queue)
    except ChannelLockedResource:
        return False
    if isinstance(found.delivery, Basic.GetOk):
        await channel.basic_nack(found.delivery.delivery_tag or 0, requeue=True, wait=False)
    await channel.close()
    return True


async def stand_in_line(connection: aio_pika.Connection, frame_reader: FrameReader, queue: str) -> None:
    """Have a queue with a single active consumer commit something: a further consumer at the end of the line.

    It leaves at once. What it is given in between, because all others have left, is returned in order: it has no limit of
    its own, so it has everything in hand that they have returned. With a prefetch of 1, the first message would come back
    behind the others.
    """
    channel = await open_channel(connection)
    frame_reader.channels[channel.number] = Inbound(deliver=_not_taken)
    try:
        await channel.basic_consume(queue, _not_called)
        await channel.close()
    finally:
        frame_reader.channels.pop(channel.number, None)


async def write_metadata(connection: aio_pika.Connection) -> None:
    """Have the nodes agree on something: a queue that is exclusive, and is deleted again.

    For consumers of such a queue, which is on their node alone. A majority of the nodes has to commit it if the metadata store
    is Khepri, as it always is in RabbitMQ 4.3. With Mnesia a node that is cut off answers all the same.
    """
    channel = await open_channel(connection)
    declared = await channel.queue_declare(exclusive=True, auto_delete=True)
    await channel.queue_delete(declared.queue or "")
    await channel.close()


def _not_taken(*_: object) -> None:
    """The channel is about to be closed."""


async def _not_called(_: object) -> None:
    raise AssertionError("the frame reader has left a delivery to the driver")
