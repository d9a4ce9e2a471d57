"""Divides the requests among another number of partitions, while nobody publishes or consumes.

A slot that moves from a queue with messages to another queue could be consumed from both at once, and lose the order of its
records. So the queues must be empty: publishers pause, workers finish what is there and stop, and then the exchange is
deleted. From then on nothing can come, and publishers that still publish are refused: no message is lost.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from aio_pika.abc import AbstractConnection
from aiormq.exceptions import ChannelNotFoundEntity

from task_activity_log.partitions import PARTITIONS_MAX, is_partition_count, queue_of
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.link import LOST, LinkOptions, connect, describe
from task_activity_log.rabbitmq.topology import Topology, declare

_COUNT_SECONDS = 3.0
"""How long a queue may take to show what was published before the exchange was deleted."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition's queue that exists."""

    queue: str
    messages: int
    consumers: int


@dataclass(frozen=True, slots=True)
class Partitions:
    """All partitions' queues that exist, by number."""

    found: dict[int, Partition]
    exchange: bool
    """Whether the exchange for requests that are sent by record exists. It does not while a change is under way."""

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
        return sum(each.messages for each in self.found.values())

    @property
    def consumed(self) -> int:
        """How many of them have a consumer. What a consumer has in hand is not among the messages."""
        return sum(each.consumers > 0 for each in self.found.values())


class NotEmpty(Exception):
    """There are messages or consumers, so nothing was changed, or all was put back. The text says what to do."""


async def look_up(options: LinkOptions, topology: Topology) -> Partitions:
    """The partitions' queues on the broker.

    Raises:
        Unavailable: nobody answers, or the broker refuses.
    """
    try:
        async with connect(options, "partitions") as (connection, _):
            return await _look_up(connection, topology)
    except LOST as error:
        raise Unavailable(describe(error).text) from None


async def change(options: LinkOptions, topology: Topology, progress: Callable[[str], None]) -> None:
    """Divide the requests among `topology.partitions` queues. A change that was interrupted continues where it ended.

    Raises:
        NotEmpty: a queue has messages or consumers.
        Unavailable: nobody answers, or the broker refuses.
        Misconfigured: the requests queue would not keep the order.
    """
    try:
        async with connect(options, "partitions") as (connection, _):
            await _change(connection, topology, progress)
    except LOST as error:
        raise Unavailable(describe(error).text) from None


async def _change(connection: AbstractConnection, topology: Topology, progress: Callable[[str], None]) -> None:
    before = await _look_up(connection, topology)
    _must_be_empty(before, topology)
    progress(f"deleting exchange {topology.partitions_exchange}: publishers are refused until it exists again")
    async with connection.channel() as channel:
        await channel.exchange_delete(topology.partitions_exchange)
    await asyncio.sleep(_COUNT_SECONDS)
    try:
        _must_be_empty(await _look_up(connection, topology), topology)
    except NotEmpty:
        if before.count:
            progress("putting the exchange back")
            await declare(connection, replace(topology, partitions=before.count))
        raise
    async with connection.channel() as channel:
        for each in before.found.values():
            progress(f"deleting queue {each.queue}")
            await channel.queue_delete(each.queue)
    progress(f"declaring {topology.partitions} queues")
    await declare(connection, topology)


def _must_be_empty(partitions: Partitions, topology: Topology) -> None:
    if partitions.consumed:
        raise NotEmpty(
            f"workers consume {partitions.consumed} of the partitions: stop the publishers, let the workers empty"
            " the queues, then stop all workers"
        )
    if partitions.messages:
        raise NotEmpty(
            f"{partitions.messages} messages wait in the queues {topology.requests_queue}.…: stop the publishers and let"
            " the workers empty the queues, then stop all workers"
        )


async def _look_up(connection: AbstractConnection, topology: Topology) -> Partitions:
    found: dict[int, Partition] = {}
    for number in range(PARTITIONS_MAX):
        queue = queue_of(topology.requests_queue, number)
        channel = await connection.channel()  # its own: if there is no such queue, the broker closes it
        try:
            result = (await channel.declare_queue(queue, passive=True)).declaration_result
        except ChannelNotFoundEntity:
            continue
        await channel.close()
        found[number] = Partition(queue, result.message_count or 0, result.consumer_count or 0)
    channel = await connection.channel()
    try:
        await channel.get_exchange(topology.partitions_exchange)
    except ChannelNotFoundEntity:
        return Partitions(found, exchange=False)
    await channel.close()
    return Partitions(found, exchange=True)
