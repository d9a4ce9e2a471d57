"""Divides the requests among another number of partitions, while nobody publishes or consumes.

A slot that moves from a queue with messages to another queue could be consumed from both at once, and lose the order of its
records. So the queues must be empty: publishers pause, workers finish what is there and stop, and then the exchange is
deleted. From then on nothing can come, and publishers that still publish are refused: no message is lost.

Before anything is changed, the broker is asked for all that would refuse the change later.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from task_activity_log.partitions import PARTITIONS_MAX, is_partition_count, queue_of
from task_activity_log.problem import Misconfigured
from task_activity_log.rabbitmq.link import LinkOptions, connect, connect_once, describe
from task_activity_log.rabbitmq.topology import Topology, declare, require_order

_COUNT_SECONDS = 3.0
"""How long a queue may take to show what was published before the exchange was deleted."""

_CONNECTIONS = 8
"""The number of connections over which queues are asked for at the same time: each waits for its answers."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A queue that exists: that of a partition, or the requests queue."""

    queue: str
    messages: int
    consumers: int


@dataclass(frozen=True, slots=True)
class Partitions:
    """The queues of requests that exist."""

    found: dict[int, Partition]
    """Those of partitions, by number."""
    exchange: bool
    """Whether the exchange for requests that are sent by record exists. It does not while a change is under way."""
    requests: Partition | None = None
    """The requests queue, from which requests are forwarded to the partitions."""

    @property
    def whole(self) -> bool:
        """Whether requests that are sent by record can arrive: no change was interrupted."""
        return self.count is not None and self.exchange == bool(self.found)

    @property
    def count(self) -> int | None:
        """Among how many partitions the requests are divided; None if queues are missing: a change was interrupted."""
        count = len(self.found)
        whole = set(self.found) == set(range(count)) and (count == 0 or is_partition_count(count))
        return count if whole else None

    @property
    def messages(self) -> int:
        """How many messages wait in all of them."""
        return sum(each.messages for each in self._queues)

    @property
    def consumed(self) -> int:
        """How many of them have a consumer. What a consumer has in hand is not among the messages."""
        return sum(each.consumers > 0 for each in self._queues)

    @property
    def _queues(self) -> list[Partition]:
        return [*self.found.values(), *([self.requests] if self.requests else [])]


class NotEmpty(Exception):
    """There are messages or consumers, or another change is under way. Nothing was changed, or all was put back.

    The text says what to do.
    """


async def look_up(options: LinkOptions, topology: Topology) -> Partitions:
    """The partitions' queues on the broker.

    Raises:
        Unavailable: nobody answers, or the broker refuses.
    """
    async with connect_once(options, "partitions") as connection:
        return await _look_up(connection, topology)


async def refuse(options: LinkOptions, topology: Topology, found: Partitions) -> None:
    """Raise what `change` to `topology.partitions` would raise before it changes anything.

    Raises:
        NotEmpty: a queue has messages or consumers.
        Unavailable: nobody answers, or the requests queue is a stream.
        Misconfigured: the requests queue would not keep the order, or the user lacks a permission.
    """
    async with connect_once(options, "partitions") as connection:
        await _refuse(connection, topology, found)


async def declare_missing(options: LinkOptions, topology: Topology) -> None:
    """Declare and bind what is missing of the partitions, as a worker does when it starts. Their number stays.

    Bindings cannot be asked for over AMQP, so those that an interrupted change has left out are all declared again.

    Raises:
        Misconfigured, Unavailable: as `change`.
    """
    async with connect_once(options, "partitions") as connection, _alone(connection, topology):
        await declare(connection, topology)


async def change(options: LinkOptions, topology: Topology, progress: Callable[[str], None]) -> None:
    """Divide the requests among `topology.partitions` queues, or remove the partitions if this is 0.

    A change that was interrupted continues where it ended.

    Raises:
        NotEmpty: a queue has messages or consumers.
        Unavailable: nobody answers, or the broker refuses.
        Misconfigured: the requests queue would not keep the order, or the user lacks a permission.
    """
    async with connect_once(options, "partitions") as connection, _alone(connection, topology):
        await _change(options, connection, topology, progress)


async def _change(
    options: LinkOptions, connection: AbstractConnection, topology: Topology, progress: Callable[[str], None]
) -> None:
    before = await _look_at_all(options, topology)
    await _refuse(connection, topology, before)
    if before.exchange:
        until = (
            "publishers are refused until it exists again" if topology.partitions else "nothing is sent by record then"
        )
        progress(f"deleting exchange {topology.partitions_exchange}: {until}")
        async with connection.channel() as channel:
            await channel.exchange_delete(topology.partitions_exchange)
    if before.found:
        await asyncio.sleep(_COUNT_SECONDS)
        try:
            _must_be_empty(await _look_at_all(options, topology), topology)
        except NotEmpty:
            if before.count:
                progress("putting the exchange back")
                await declare(connection, replace(topology, partitions=before.count))
            raise
    for each in before.found.values():
        progress(f"deleting queue {each.queue}")
        await _delete_empty(connection, each.queue)
    if topology.partitions:
        progress(f"declaring {topology.partitions} queues")
        await declare(connection, topology)


@asynccontextmanager
async def _alone(connection: AbstractConnection, topology: Topology) -> AsyncIterator[None]:
    """Keep other changes away: two at once would bind a slot to queues of both.

    The lock is an exclusive queue, which ends with its connection at the latest. Raises `NotEmpty` if another has it.
    """
    lock = queue_of(topology.requests_queue, PARTITIONS_MAX + 1)
    channel = await connection.channel()
    try:
        await channel.declare_queue(lock, exclusive=True, auto_delete=True)
    except ChannelLockedResource:
        raise NotEmpty(
            "another command is changing the partitions: nothing was changed; wait for it, then run the same command again"
        ) from None
    except ChannelAccessRefused:
        yield  # `_refuse` says what is missing
        return
    yield
    await channel.queue_delete(lock)


async def _refuse(connection: AbstractConnection, topology: Topology, found: Partitions) -> None:
    """Raise what is known to make the change fail. Nothing has been changed yet."""
    try:
        await _must_be_permitted(connection, topology, found)
        if topology.partitions and found.requests:
            await require_order(connection, topology, topology.requests_queue)
    except ChannelAccessRefused as error:
        raise Misconfigured(
            f"{describe(error).text}: use a user with the permissions of a worker that declares its queues"
            " (docs/operations.md, Permissions in RabbitMQ)"
        ) from None
    _must_be_empty(found, topology)


async def _must_be_permitted(connection: AbstractConnection, topology: Topology, found: Partitions) -> None:
    """Ask for the permissions with a queue that no partition has.

    RabbitMQ checks the permissions before it refuses a negative length, and before it finds that there is nothing to bind or
    to delete.
    """
    queue, exchange = queue_of(topology.requests_queue, PARTITIONS_MAX), topology.partitions_exchange

    async def bind(channel: AbstractChannel) -> None:
        await (await channel.get_underlay_channel()).queue_bind(queue, exchange, "00")

    await _ask_permission(
        connection, lambda channel: channel.declare_queue(queue, durable=True, arguments={"x-max-length": -1})
    )
    if found.exchange:
        await _ask_permission(connection, lambda channel: channel.declare_exchange(exchange, "direct", durable=True))
    else:
        await _ask_permission(connection, lambda channel: channel.exchange_delete(exchange, if_unused=True))
    if topology.partitions:
        await _ask_permission(connection, bind)


async def _ask_permission(connection: AbstractConnection, ask: Callable[[AbstractChannel], Awaitable[object]]) -> None:
    channel = await connection.channel()
    try:
        await ask(channel)
    except (ChannelPreconditionFailed, ChannelNotFoundEntity):
        return  # the broker has closed the channel
    await channel.close()


async def _delete_empty(connection: AbstractConnection, queue: str) -> None:
    """Delete a queue that has neither messages nor consumers. Quorum queues do not support the broker's own conditions.

    A worker that has started meanwhile has declared the exchange again, and publishers use it.
    """
    now = await _Asking(connection).queue(queue)
    if now is not None and (now.messages or now.consumers):
        raise NotEmpty(
            f"queue {queue} is in use again (messages: {now.messages}, consumers: {now.consumers}): stop the publishers, let"
            " the workers empty the queues, stop all workers, and run the same command again"
        )
    async with connection.channel() as channel:
        deleted = await channel.queue_delete(queue)
    if deleted.message_count:
        raise NotEmpty(f"{deleted.message_count} messages arrived in queue {queue} while it was deleted, and are lost")


def _must_be_empty(partitions: Partitions, topology: Topology) -> None:
    """Raise if the order of a record could be lost.

    Without partitions the requests queue keeps its messages and its consumers. Before the first partitions, it must be empty:
    what is sent by record would overtake what waits in it.
    """
    requests = partitions.requests or Partition(topology.requests_queue, 0, 0)
    divided = replace(partitions, requests=None)
    if divided.consumed:
        raise NotEmpty(
            f"workers consume {divided.consumed} of the partitions: stop the publishers, let the workers empty"
            " the queues, then stop all workers"
        )
    if divided.messages:
        raise NotEmpty(
            f"{divided.messages} messages wait in the queues {topology.requests_queue}.…: stop the publishers and let"
            " the workers empty the queues, then stop all workers"
        )
    if not topology.partitions:
        return
    if requests.consumers:
        raise NotEmpty(
            f"workers consume queue {requests.queue}: stop the publishers, let the workers empty the queue, then stop all"
            " workers"
        )
    if requests.messages and not partitions.found:
        raise NotEmpty(
            f"{requests.messages} messages wait in queue {requests.queue}: stop the publishers and let workers without"
            " WORKER_PARTITIONS empty the queue, then stop all workers"
        )


async def _look_up(connection: AbstractConnection, topology: Topology) -> Partitions:
    """Ask for each partition's queue that may exist, one after the other.

    The broker closes a channel that has asked for what does not exist. So only those are asked for that may exist: the last
    queue of each number of partitions, all before the last one of these that exists, and those that follow it. Only a queue
    that is left alone by hand is not found then.
    """
    asking = _Asking(connection)
    found: dict[int, Partition] = {}
    counts = [2**power for power in range(PARTITIONS_MAX.bit_length())]
    await _ask(asking, topology, (count - 1 for count in counts), found)
    last = max((count - 1 for count in counts if count - 1 in found), default=-1)
    await _ask(asking, topology, range(last + 1), found)
    for number in range(last + 1, PARTITIONS_MAX):
        await _ask(asking, topology, [number], found)
        if number not in found:
            break
    requests = await asking.queue(topology.requests_queue)
    return Partitions(dict(sorted(found.items())), await asking.exchange(topology.partitions_exchange), requests)


async def _look_at_all(options: LinkOptions, topology: Topology) -> Partitions:
    """As `_look_up`, but each number is asked for, over several connections.

    One connection does not do: the driver does not always answer when the broker closes channels while others are used.
    """
    found: dict[int, Partition] = {}

    async def ask(first: int) -> tuple[bool, Partition | None]:
        async with connect(options, "partitions") as (connection, _):
            asking = _Asking(connection)
            await _ask(asking, topology, range(first, PARTITIONS_MAX, _CONNECTIONS), found)
            return await asking.exchange(topology.partitions_exchange), await asking.queue(topology.requests_queue)

    (exchange, requests), *_ = await asyncio.gather(*map(ask, range(_CONNECTIONS)))
    return Partitions(dict(sorted(found.items())), exchange, requests)


async def _ask(asking: "_Asking", topology: Topology, numbers: Iterable[int], found: dict[int, Partition]) -> None:
    """Add those of these partitions that exist to `found`."""
    for number in numbers:
        if number not in found and (partition := await asking.queue(queue_of(topology.requests_queue, number))):
            found[number] = partition


class _Asking:
    """Asks for queues and exchanges over one channel, and opens another one when the broker has closed it."""

    def __init__(self, connection: AbstractConnection) -> None:
        """Open no channel yet."""
        self._connection = connection
        self._channel: AbstractChannel | None = None

    async def queue(self, name: str) -> Partition | None:
        """How much is in this queue; None if it does not exist."""
        try:
            result = (await (await self._opened()).declare_queue(name, passive=True)).declaration_result
        except ChannelNotFoundEntity:
            self._channel = None
            return None
        return Partition(name, result.message_count or 0, result.consumer_count or 0)

    async def exchange(self, name: str) -> bool:
        """Whether this exchange exists."""
        try:
            await (await self._opened()).get_exchange(name)
        except ChannelNotFoundEntity:
            self._channel = None
            return False
        return True

    async def _opened(self) -> AbstractChannel:
        if self._channel is None:
            self._channel = await self._connection.channel()
        return self._channel
