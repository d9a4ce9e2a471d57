"""Which queue a reader reads. No type of a driver appears in this interface."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import Any, TypeAlias

import aiormq
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from task_activity_log.aio import in_thread
from task_activity_log.hosts import vhost
from task_activity_log.rabbitmq.link import LinkOptions, Missing
from task_activity_log.rabbitmq.management import (
    RETURNS_UNLIMITED,
    DeliveryLimit,
    ManagementError,
    delivery_limit,
)
from task_activity_log.rabbitmq.version import number, version_of

KEPT: Mapping[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": RETURNS_UNLIMITED}
"""The arguments of queues that keep what nobody has read."""

_FEWEST, _FEWEST_BEFORE = 20, 1_000
"""A queue with a smaller delivery limit is not looked through. Before RabbitMQ 4.3 each look counts as a delivery; since then
only one that is interrupted."""
_LOOKS_COUNT_BEFORE, _UNLIMITED_SINCE = (4, 3), (4, 0)
_LIMIT = re.compile(r"inequivalent arg 'x-delivery-limit'.* but current is (?:the value )?'(-?\d+)'")


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
    set by a policy, or the default of RabbitMQ 4.0, is known only where `options` have the management API: if that does not
    answer, it is `Unsuitable` as well.
    """

    async def choose(channel: aiormq.abc.AbstractChannel) -> Found:
        found = await existing_queue(queue)(channel)
        if not found.messages:
            return found
        version = version_of(channel.connection)
        for limit in (await _own_limit(channel, queue), await _limit_shown(options, queue, version)):
            if limit is not None and deletes_soon(limit.limit, version):
                raise Unsuitable(
                    f"queue {queue} has the delivery limit {limit.limit}: a look can count as a delivery, and RabbitMQ deletes"
                    f" the messages at the limit. They are not read: {limit.remedy}"
                )
        return replace(found, prefetch=min(found.messages, prefetch_max) if found.messages <= most else 0)

    return choose


def deletes_soon(limit: int, version: str) -> bool:
    """Whether a broker of this version would soon delete the messages of a queue with this delivery limit, if it is looked at.

    Since RabbitMQ 4.0 a negative limit means that there is no limit. Before, the broker deletes a message at its first return.
    """
    if limit < 0:
        return number(version) < _UNLIMITED_SINCE
    return limit < (_FEWEST_BEFORE if number(version) < _LOOKS_COUNT_BEFORE else _FEWEST)


async def _limit_shown(options: LinkOptions, queue: str, version: str) -> DeliveryLimit | None:
    """The limit of a queue as the management API shows it; None if it has none, or the API is not configured.

    Raises `Unsuitable` if the API does not show it. Whoever has configured it relies on the limit being known.
    """
    management = options.management
    if management is None:
        return None
    try:
        details = await in_thread(lambda: management.one("queues", vhost(options.url), queue))
    except ManagementError as error:
        raise Unsuitable(
            f"it is not known whether queue {queue} has a low delivery limit (management API: {error}): a look can count as a"
            " delivery, and RabbitMQ deletes the messages at the limit. They are not read: correct MANAGEMENT_URL, or unset it to"
            " read them all the same"
        ) from None
    return delivery_limit(details, version)


async def _own_limit(channel: aiormq.abc.AbstractChannel, queue: str) -> DeliveryLimit | None:
    """The argument x-delivery-limit of a queue, if it is not ours; None if it is ours, or is not known.

    The broker names it when the queue is declared with ours, which needs the permission to configure. It does not name a limit
    that is set by a policy.
    """
    asking = await channel.connection.channel(publisher_confirms=False)  # the broker closes it if it refuses
    try:
        await asking.queue_declare(queue, durable=True, arguments=dict(KEPT))
    except (ChannelPreconditionFailed, ChannelAccessRefused) as refused:
        limit = _LIMIT.search(str(refused))
        return DeliveryLimit(int(limit[1])) if limit else None
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
    """Raises `Missing`, which says `what` does not exist, where the broker says that something does not.

    To ask takes any one permission (since RabbitMQ 4.3.1). Without one, the broker names that to configure: its name is
    removed from the error, because it is not the one that is needed.
    """
    try:
        yield
    except ChannelNotFoundEntity:
        raise Missing(f"{what} does not exist on this broker") from None
    except ChannelAccessRefused as error:
        arguments = (arg.replace("configure access", "access") if isinstance(arg, str) else arg for arg in error.args)
        raise ChannelAccessRefused(*arguments) from None
