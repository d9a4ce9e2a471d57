"""What AMQP shows of the broker, for `check` and the console. Everything is declared passively, so that nothing changes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from task_activity_log.partitions import queue_of
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, connect, connect_once, describe
from task_activity_log.rabbitmq.topology import Topology, queue_type
from task_activity_log.rabbitmq.version import version_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue that exists."""

    messages: int
    consumers: int


Counted: TypeAlias = Mapping[str, Queue]
_COUNT_SECONDS = 6.0


class Hidden:
    """A queue or an exchange on which the user has no permission: since RabbitMQ 4.3.1 it may not ask whether it exists."""


HIDDEN = Hidden()


@dataclass(frozen=True, slots=True)
class BrokerState:
    """What AMQP shows of the broker."""

    version: str
    exchanges: dict[str, bool | Hidden]
    """Whether each exists: those of the topology, and the one for requests by record, also without partitions."""
    queues: dict[str, Queue | Hidden | None]
    """None for a queue that does not exist. After those of the topology comes the partition that would follow the last one."""
    requests_type: str | None
    """The type of the requests queue; None if the queue does not exist, or its type is not told."""


async def inspect_broker(options: LinkOptions, topology: Topology) -> BrokerState:
    """Connect and inspect what the topology names.

    Raises:
        Unavailable: nobody answers, or the broker refuses; the reason is one line.
    """
    exchanges = dict.fromkeys((*topology.exchanges(), topology.partitions_exchange))
    async with connect_once(options, "check") as connection:
        next_partition = queue_of(topology.requests_queue, topology.partitions)
        assert connection.transport is not None  # noqa: S101 - it is connected
        return BrokerState(
            version=version_of(connection.transport.connection) or "unknown",
            exchanges={name: await _exchange(connection, name) for name in exchanges},
            queues={name: await _queue(connection, name) for name in (*topology.queues(), next_partition)},
            requests_type=await _requests_type(connection, topology.requests_queue),
        )


async def queue_is_missing(options: LinkOptions, name: str) -> bool:
    """Connect and find out whether a queue does not exist; no if the user may not ask.

    Raises:
        Unavailable: nobody answers, or the broker refuses; the reason is one line.
    """
    async with connect_once(options, "check") as connection:
        return await _queue(connection, name) is None


@asynccontextmanager
async def counting(
    options: LinkOptions, purpose: str
) -> AsyncIterator[Callable[[Iterable[str]], Awaitable[dict[str, Queue | Hidden | None]]]]:
    """A connection, and what counts the messages and the consumers of queues over it, again and again.

    Raises:
        One of `LOST`: nobody answers, the broker refuses, or the connection is lost.
    """
    async with connect(options, purpose) as (connection, _):

        async def count(queues: Iterable[str]) -> dict[str, Queue | Hidden | None]:
            return {name: await _queue(connection, name) for name in queues}

        yield count


async def watch_queues(
    options: LinkOptions, purpose: str, queues: Sequence[str], every: float, on_counted: Callable[[Counted, str], None]
) -> None:
    """Count the messages and consumers of queues every few seconds, also after an outage, until it is cancelled.

    `on_counted` gets those that exist and that the user may see; or none, and why the broker cannot be asked.
    """
    while True:
        try:
            with asking_the_driver():
                async with counting(options, purpose) as count:
                    while True:
                        async with asyncio.timeout(_COUNT_SECONDS):
                            found = await count(queues)
                        on_counted({name: queue for name, queue in found.items() if isinstance(queue, Queue)}, "")
                        await asyncio.sleep(every)
        except LOST as error:
            on_counted({}, describe(error).text)
        await asyncio.sleep(every)


async def _exchange(connection: AbstractConnection, name: str) -> bool | Hidden:
    found = await _ask(connection, lambda channel: channel.get_exchange(name))
    return found if isinstance(found, Hidden) else found is not None


async def _queue(connection: AbstractConnection, name: str) -> Queue | Hidden | None:
    found = await _ask(connection, lambda channel: channel.declare_queue(name, passive=True))
    if found is None or isinstance(found, Hidden):
        return found
    result = found.declaration_result
    return Queue(messages=result.message_count or 0, consumers=result.consumer_count or 0)


async def _requests_type(connection: AbstractConnection, name: str) -> str | None:
    try:
        return await queue_type(connection, name)
    except ChannelAccessRefused:  # the permissions are judged elsewhere
        return None


async def _ask(
    connection: AbstractConnection, question: Callable[[AbstractChannel], Awaitable[T]]
) -> T | Hidden | None:
    channel = await connection.channel()  # one for each question: a refusal closes the channel
    try:
        answer = await question(channel)
    except ChannelNotFoundEntity:
        return None
    except ChannelAccessRefused:
        return HIDDEN
    await channel.close()
    return answer
