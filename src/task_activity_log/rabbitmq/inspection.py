"""What AMQP shows of the broker, for `check`. Everything is declared passively, so that nothing changes."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelNotFoundEntity

from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.link import LOST, LinkOptions, connect, describe
from task_activity_log.rabbitmq.topology import Topology

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue that exists."""

    messages: int
    consumers: int


@dataclass(frozen=True, slots=True)
class BrokerState:
    """What AMQP shows of the broker."""

    version: str
    exchanges: dict[str, bool]
    """Whether each exists."""
    queues: dict[str, Queue | None]
    """None for a queue that does not exist."""


async def inspect_broker(options: LinkOptions, topology: Topology) -> BrokerState:
    """Connect and inspect what the topology names.

    Raises:
        Unavailable: nobody answers, or the broker refuses; the reason is one line.
    """
    try:
        async with connect(options, "check") as (connection, _):
            assert connection.transport is not None  # noqa: S101 - it is connected
            properties = connection.transport.connection.server_properties
            return BrokerState(
                version=str(properties.get("version", "unknown")),
                exchanges={name: await _exchange(connection, name) for name in topology.exchanges()},
                queues={name: await _queue(connection, name) for name in topology.queues()},
            )
    except LOST as error:
        raise Unavailable(describe(error).text) from None


async def _exchange(connection: AbstractConnection, name: str) -> bool:
    return await _ask(connection, lambda channel: channel.get_exchange(name)) is not None


async def _queue(connection: AbstractConnection, name: str) -> Queue | None:
    found = await _ask(connection, lambda channel: channel.declare_queue(name, passive=True))
    if found is None:
        return None
    result = found.declaration_result
    return Queue(messages=result.message_count or 0, consumers=result.consumer_count or 0)


async def _ask(connection: AbstractConnection, question: Callable[[AbstractChannel], Awaitable[T]]) -> T | None:
    channel = await connection.channel()  # one for each question: a refusal closes the channel
    try:
        answer = await question(channel)
    except ChannelNotFoundEntity:
        return None
    await channel.close()
    return answer
