"""The queues and exchanges, and how they are declared or checked."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from pamqp.common import Arguments

from task_activity_log.problem import Unavailable

log = structlog.get_logger(__name__)

REQUEST_KEY = "upsert"

_RETURNS_UNLIMITED = 1_000_000
"""The delivery limit of queues that people look into. Without a limit RabbitMQ 4 deletes a message after 20 returns. -1
means unlimited there, but 3.10 deletes the message at its first return."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The names, and the options that the requests queue is declared with."""

    requests_queue: str = "task_activity_log.upsert"
    replies_queue: str = "task_activity_log.replies"
    dead_letters_queue: str = "task_activity_log.dead-letters"
    requests_exchange: str = "task_activity_log"
    replies_exchange: str = "task_activity_log.replies"
    delivery_limit: int = 20
    single_active_consumer: bool = False

    @property
    def own_queues(self) -> frozenset[str]:
        """Queues that a `reply_to` must not name: it would be a loop, or a forged reply."""
        return frozenset((self.requests_queue, self.replies_queue, self.dead_letters_queue))

    def queues(self) -> dict[str, Arguments]:
        """Each queue with its arguments. Limits that operators change (length, age) are policies, never arguments."""
        requests: dict[str, Any] = {
            "x-queue-type": "quorum",
            "x-delivery-limit": self.delivery_limit,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self.dead_letters_queue,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        if self.single_active_consumer:
            requests["x-single-active-consumer"] = True
        kept: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": _RETURNS_UNLIMITED}
        return {
            self.dead_letters_queue: kept,
            self.replies_queue: kept,
            self.requests_queue: requests,
        }

    def exchanges(self) -> dict[str, Literal["direct", "topic"]]:
        """Each exchange with its type."""
        return {self.requests_exchange: "direct", self.replies_exchange: "topic"}

    def bindings(self) -> tuple[tuple[str, str, str], ...]:
        """Each binding as queue, exchange and routing key."""
        return (
            (self.requests_queue, self.requests_exchange, REQUEST_KEY),
            (self.replies_queue, self.replies_exchange, "#"),
        )


async def declare(connection: AbstractConnection, topology: Topology) -> None:
    """Declare what is missing. What exists with other arguments is used as it is, with a warning that names the argument.

    Raises:
        aiormq.exceptions.AMQPError: the broker refuses (403: no permission to configure) or is gone.
    """
    for exchange, kind in topology.exchanges().items():
        async with _own_channel(connection, f"exchange {exchange}") as channel:
            await channel.declare_exchange(exchange, kind, durable=True)
    for queue, arguments in topology.queues().items():
        async with _own_channel(connection, f"queue {queue}") as channel:
            await channel.declare_queue(queue, durable=True, arguments=arguments)
    async with connection.channel() as channel:
        for queue, exchange, key in topology.bindings():
            await (await channel.get_queue(queue, ensure=False)).bind(exchange, key)


async def check(connection: AbstractConnection, topology: Topology) -> None:
    """Check that the queues and exchanges exist, and declare nothing.

    Raises:
        Unavailable: one does not exist.
    """
    for exchange in topology.exchanges():
        async with _own_channel(connection, f"exchange {exchange}") as channel:
            await channel.get_exchange(exchange)
    for queue in topology.queues():
        async with _own_channel(connection, f"queue {queue}") as channel:
            await channel.get_queue(queue)


async def consumers(connection: AbstractConnection, topology: Topology) -> int:
    """How many consumers the requests queue has."""
    async with connection.channel() as channel:
        queue = await channel.declare_queue(topology.requests_queue, passive=True)
        return queue.declaration_result.consumer_count or 0


@asynccontextmanager
async def _own_channel(connection: AbstractConnection, what: str) -> AsyncIterator[AbstractChannel]:
    """A channel for one declaration: when the broker refuses, it closes the channel."""
    channel = await connection.channel()
    try:
        yield channel
    except ChannelPreconditionFailed as error:
        log.warning("topology_differs", what=what, **_difference(str(error)), advice=_ADVICE)
    except ChannelNotFoundEntity:
        raise Unavailable(f"{what} does not exist: create it, or set WORKER_TOPOLOGY=declare") from None
    else:
        await channel.close()


_ADVICE = (
    "It is used as it is. Arguments cannot be changed in place: set limits by policy,"
    " or drain and delete the queue and let the worker declare it again."
)


def _difference(refusal: str) -> dict[str, str]:
    """The argument and both its values from the broker's refusal, or the refusal itself if it is worded differently."""
    found = re.search(
        r"inequivalent arg '(?P<argument>[^']+)'.*?: received (?P<wanted>.+?) but current is (?P<found>.+)",
        refusal,
    )
    return found.groupdict() if found else {"refusal": refusal[:200]}
