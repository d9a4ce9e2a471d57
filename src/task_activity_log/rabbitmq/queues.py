"""Which queue a reader reads. No type of a driver appears in this interface."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import Any, TypeAlias

import aiormq
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from task_activity_log.hosts import vhost
from task_activity_log.rabbitmq.link import LinkOptions, Missing
from task_activity_log.rabbitmq.management import DeliveryLimit, ManagementError

RETURNS_UNLIMITED = 1_000_000
"""The delivery limit of queues that people look into. Without a limit RabbitMQ 4 deletes a message after 20 returns. -1
means unlimited there, but 3.10 deletes the message at its first return."""
KEPT: Mapping[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": RETURNS_UNLIMITED}
"""The arguments of queues that keep what nobody has read."""

_RETURNS_MIN = 20
"""A queue with a smaller delivery limit is not looked through: the broker would soon delete its messages."""
_LIMIT = re.compile(r"inequivalent arg 'x-delivery-limit'.* but current is (?:the value )?'(\d+)'")


@dataclass(frozen=True, slots=True)
class Found:
    """A queue to read, and what the broker said of it."""

    queue: str
    prefetch: int
    """How many deliveries may be unsettled at a time; 0 consumes nothing."""
    messages: int = 0
    """How many were waiting."""
    consumers: int = 0
    private: bool = False
    """Whether it is exclusive: on the node of its connection alone, and deleted with it."""


class Unsuitable(Exception):
    """A queue is not to be read; the text says why."""


def stream(queue: str) -> Unsuitable:
    """Why a stream is not read."""
    return Unsuitable(f"queue {queue} is a stream: it cannot be looked through")


Choice: TypeAlias = Callable[[aiormq.abc.AbstractChannel], Awaitable[Found]]
"""Inspects or declares the queue, on the channel that will read it."""


def existing_queue(queue: str, prefetch: int | None = None) -> Choice:
    """A queue that a worker or an operator has declared; without a prefetch, as many messages as are waiting now."""

    async def choose(channel: aiormq.abc.AbstractChannel) -> Found:
        async with must_exist(f"queue '{queue}'"):
            ok = await channel.queue_declare(queue, passive=True)
        messages = ok.message_count or 0
        return Found(queue, messages if prefetch is None else prefetch, messages, ok.consumer_count or 0)

    return choose


def kept_queue(queue: str, options: LinkOptions, prefetch_max: int, most: float = inf) -> Choice:
    """An existing queue whose messages are looked at and returned: all, or none if more than `most` are waiting.

    A look at a part may change the order: what is returned is behind what another look has returned before.

    The choice raises `Unsuitable` if its delivery limit is so low that the broker would soon delete messages. A limit that is
    set by a policy is known only where `options` have the management API.
    """

    async def choose(channel: aiormq.abc.AbstractChannel) -> Found:
        found = await existing_queue(queue)(channel)
        if not found.messages:
            return found
        limit = await _lower_limit(channel, queue)
        if limit is not None and limit < _RETURNS_MIN:
            remedy = f"shovel them to a queue with x-delivery-limit {RETURNS_UNLIMITED}"
            raise _too_few_deliveries(queue, limit, remedy)
        of_policy = await _limit_of_policy(options, queue)
        if of_policy is not None and 0 <= of_policy.limit < _RETURNS_MIN:
            remedy = f"remove delivery-limit from the policy that applies to it ({of_policy.policy}), or raise it"
            raise _too_few_deliveries(queue, of_policy.limit, remedy)
        return replace(found, prefetch=min(found.messages, prefetch_max) if found.messages <= most else 0)

    return choose


def _too_few_deliveries(queue: str, limit: int, remedy: str) -> Unsuitable:
    return Unsuitable(
        f"queue {queue} has the delivery limit {limit}: a look can count as a delivery, and RabbitMQ deletes the messages at"
        f" the limit. They are not read: {remedy}"
    )


async def _limit_of_policy(options: LinkOptions, queue: str) -> DeliveryLimit | None:
    """The limit of a queue that a policy sets; None if none does, or it is not known: commands work without this API."""
    management = options.management
    if management is None:
        return None
    try:
        found = await asyncio.to_thread(management.delivery_limit, vhost(options.url), queue)
    except ManagementError:
        return None
    return found if found is not None and found.policy else None


async def _lower_limit(channel: aiormq.abc.AbstractChannel, queue: str) -> int | None:
    """The argument x-delivery-limit of a queue, if it is not ours; None if it is ours, or is not known.

    The broker names it when the queue is declared with ours, which needs the permission to configure. It does not name a limit
    that is set by a policy.
    """
    asking = await channel.connection.channel(publisher_confirms=False)  # the broker closes it if it refuses
    try:
        await asking.queue_declare(queue, durable=True, arguments=dict(KEPT))
    except (ChannelPreconditionFailed, ChannelAccessRefused) as refused:
        limit = _LIMIT.search(str(refused))
        return int(limit[1]) if limit else None
    await asking.close()
    return None


def own_queue(exchange: str, prefetch: int, routing_keys: Sequence[str] = ()) -> Choice:
    """A new exclusive queue, bound to an existing exchange by these keys, and deleted when its connection closes."""

    async def choose(channel: aiormq.abc.AbstractChannel) -> Found:
        async with must_exist(f"exchange '{exchange}'"):
            await channel.exchange_declare(exchange, passive=True)
        queue = (await channel.queue_declare(exclusive=True, auto_delete=True)).queue or ""
        for key in routing_keys:
            await channel.queue_bind(queue, exchange, key)
        return Found(queue, prefetch, private=True)

    return choose


def durable_queue(exchange: str, queue: str, prefetch: int, routing_keys: Sequence[str]) -> Choice:
    """A durable queue with this name, bound to an existing exchange by these keys. It is declared if it does not exist.

    Keys that it is bound by already stay.
    """

    async def choose(channel: aiormq.abc.AbstractChannel) -> Found:
        async with must_exist(f"exchange '{exchange}'"):
            await channel.exchange_declare(exchange, passive=True)
        await _ensure(channel, queue)
        for key in routing_keys:
            await channel.queue_bind(queue, exchange, key)
        return await existing_queue(queue, prefetch)(channel)

    return choose


def ensure_queue(queue: str, then: Choice) -> Choice:
    """Declare a durable queue if it does not exist, before another queue is chosen."""

    async def choose(channel: aiormq.abc.AbstractChannel) -> Found:
        await _ensure(channel, queue)
        return await then(channel)

    return choose


async def _ensure(channel: aiormq.abc.AbstractChannel, queue: str) -> None:
    """Declare a quorum queue, unless there is one with this name: it is used as it is, whatever its arguments."""
    asking = await channel.connection.channel(
        publisher_confirms=False
    )  # the broker closes it if there is no such queue
    try:
        await asking.queue_declare(queue, passive=True)
    except ChannelNotFoundEntity:
        await channel.queue_declare(queue, durable=True, arguments=dict(KEPT))
    else:
        await asking.close()


@asynccontextmanager
async def must_exist(what: str) -> AsyncIterator[None]:
    """Raises `Missing`, which says `what` does not exist, where the broker says that something does not."""
    try:
        yield
    except ChannelNotFoundEntity:
        raise Missing(f"{what} does not exist on this broker") from None
