"""The queues and exchanges, and how they are declared or checked."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from pamqp.common import Arguments

from task_activity_log.partitions import PARTITIONS_MAX, queue_of, slots_of
from task_activity_log.problem import Misconfigured, Unavailable
from task_activity_log.rabbitmq.queues import KEPT

log = structlog.get_logger(__name__)

REQUEST_KEY = "upsert"
_REASON_SECONDS = 5.0
"""How long the driver may take to close a channel after the broker has."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The names, and the options that the requests queue is declared with."""

    requests_queue: str = "task_activity_log.upsert"
    replies_queue: str = "task_activity_log.replies"
    dead_letters_queue: str = "task_activity_log.dead-letters"
    requests_exchange: str = "task_activity_log"
    replies_exchange: str = "task_activity_log.replies"
    partitions_exchange: str = "task_activity_log.by-record"
    workers_queue: str = "task_activity_log.workers"
    delivery_limit: int = 20
    single_active_consumer: bool = False
    partitions: int = 0
    """Among how many queues the records are divided; 0 if there is only the requests queue."""

    @property
    def is_single_active(self) -> bool:
        """Whether each request queue gives its messages to one consumer only."""
        return self.single_active_consumer or self.partitions > 0

    @property
    def partition_queues(self) -> tuple[str, ...]:
        """The queues of the partitions, in order."""
        return tuple(queue_of(self.requests_queue, number) for number in range(self.partitions))

    @property
    def request_queues(self) -> tuple[str, ...]:
        """All queues that a worker consumes: the partitions first, then the requests queue."""
        return (*self.partition_queues, self.requests_queue)

    @property
    def short_workers_queue(self) -> str:
        """The queue that workers consume which have less than their share of the partitions."""
        return f"{self.workers_queue}.short"

    @property
    def proof_queue(self) -> str:
        """A queue that a connected worker always consumes."""
        return self.workers_queue if self.partitions else self.requests_queue

    @property
    def own_queues(self) -> frozenset[str]:
        """Queues that a `reply_to` must not name: it would be a loop, or a forged reply."""
        return frozenset(self.queues())

    def check_reply_queue(self, argument: str, queue: str | None) -> None:
        """Raise `ValueError` if replies must be neither read from nor written to this queue, however many partitions there are.

        A subscription acknowledges what it reads: requests and dead letters would be lost. A reply there would be a request.
        """
        if queue in replace(self, partitions=PARTITIONS_MAX).own_queues - {self.replies_queue}:
            raise ValueError(f"{argument} should name another queue: {queue} is for the worker, and not for replies")

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
        if self.is_single_active:
            requests[_SINGLE_ACTIVE] = True
        kept = dict(KEPT)
        return {
            self.dead_letters_queue: kept,
            self.replies_queue: kept,
            **dict.fromkeys(reversed(self.request_queues), requests),  # in this order: see `_check_partition_count`
            **dict.fromkeys((self.workers_queue, self.short_workers_queue) if self.partitions else (), kept),
        }

    def exchanges(self) -> dict[str, Literal["direct", "topic"]]:
        """Each exchange with its type."""
        by_record: dict[str, Literal["direct", "topic"]] = (
            {self.partitions_exchange: "direct"} if self.partitions else {}
        )
        return {self.requests_exchange: "direct", self.replies_exchange: "topic", **by_record}

    def bindings(self) -> tuple[tuple[str, str, str], ...]:
        """Each binding as queue, exchange and routing key."""
        return (
            (self.requests_queue, self.requests_exchange, REQUEST_KEY),
            (self.replies_queue, self.replies_exchange, "#"),
            *(
                (queue, self.partitions_exchange, slot)
                for number, queue in enumerate(self.partition_queues)
                for slot in slots_of(number, self.partitions)
            ),
        )


async def declare(connection: AbstractConnection, topology: Topology) -> None:
    """Declare what is missing. What exists with other arguments is used as it is, with a warning that names the argument.

    Raises:
        Misconfigured: the requests are divided among another number of partitions, or among some although this worker has
            none; or a request queue exists without the single active consumer that it should have.
        aiormq.exceptions.AMQPError: the broker refuses (403: no permission to configure) or is gone.
        Unavailable: the queue of the requests or of the dead letters is a stream.
    """
    await _check_partition_count(connection, topology)
    await _declare_exchanges(connection, topology, by_record=False)
    for queue, arguments in topology.queues().items():
        ordered = topology.is_single_active and queue in topology.request_queues
        async with _own_channel(connection, f"queue {queue}") as channel:
            try:
                await channel.declare_queue(queue, durable=True, arguments=arguments)
            except ChannelPreconditionFailed as error:
                if ordered:
                    await require_order(connection, topology, queue)
                elif queue in topology.request_queues:
                    _refuse_stream(queue, await queue_type(connection, queue))
                elif queue == topology.dead_letters_queue:
                    await _refuse_stream_of_dead_letters(connection, queue)
                if queue == topology.requests_queue and not topology.is_single_active and _SINGLE_ACTIVE in str(error):
                    await _refuse_partitions(connection, topology)
                raise
    await _declare_exchanges(connection, topology, by_record=True)
    await _bind(connection, topology.bindings())


async def keep_replies(connection: AbstractConnection, topology: Topology) -> None:
    """Declare the replies queue again if it was deleted, and bind it, which costs two round trips if nothing is missing.

    While another queue is bound to the exchange, the broker does not tell that this one or its binding is gone.
    Raises as `declare`.
    """
    queue = topology.replies_queue
    channel = await connection.channel()
    try:
        await channel.declare_queue(queue, passive=True)
    except ChannelNotFoundEntity:
        async with _own_channel(connection, f"queue {queue}") as channel:
            await channel.declare_queue(queue, durable=True, arguments=topology.queues()[queue])
    else:
        await channel.close()
    await _bind(connection, [each for each in topology.bindings() if each[0] == queue])


async def _declare_exchanges(connection: AbstractConnection, topology: Topology, *, by_record: bool) -> None:
    """Declare the exchange for requests by record, or the others.

    That exchange is declared after the queues: publishers send by record as soon as it exists. If a queue cannot be declared,
    they send as before.
    """
    for exchange, type_ in topology.exchanges().items():
        if (exchange == topology.partitions_exchange) == by_record:
            async with _own_channel(connection, f"exchange {exchange}") as channel:
                await channel.declare_exchange(exchange, type_, durable=True)


async def _bind(connection: AbstractConnection, bindings: Sequence[tuple[str, str, str]]) -> None:
    """Bind queues to exchanges. The broker answers the last binding alone: 256 answers would be 256 round trips.

    If it refuses an earlier one, it closes the channel, and the last one fails with the reason.
    """
    channel = await connection.channel()
    underlay = await channel.get_underlay_channel()
    try:
        for queue, exchange, key in bindings[:-1]:
            await underlay.queue_bind(queue, exchange, key, nowait=True)
        await underlay.queue_bind(*bindings[-1])
    except ChannelInvalidStateError:  # the driver does not give the reason here
        await asyncio.wait({underlay.closing}, timeout=_REASON_SECONDS)
        if underlay.closing.done() and (reason := underlay.closing.exception()) is not None:
            raise reason from None
        raise
    await channel.close()


async def check(connection: AbstractConnection, topology: Topology) -> None:
    """Check that the queues and exchanges exist, and declare nothing.

    Raises:
        Misconfigured: the requests are divided among another number of partitions, or among some although this worker has
            none.
        Unavailable: one does not exist, the user has no permission on one, or that of the requests or of the dead letters is a
            stream.
    """
    await _check_partition_count(connection, topology)
    if not topology.is_single_active:
        # From RabbitMQ 4.3.1 on it may be refused: it is not known then, and not a permission that must be there.
        with suppress(ChannelAccessRefused):
            await _refuse_partitions(connection, topology)
    for exchange in topology.exchanges():
        async with _own_channel(connection, f"exchange {exchange}", passive=True) as channel:
            await channel.get_exchange(exchange)
    for queue in topology.queues():
        async with _own_channel(connection, f"queue {queue}", passive=True) as channel:
            await channel.get_queue(queue)
    await _refuse_stream_of_dead_letters(connection, topology.dead_letters_queue)
    requests = topology.requests_queue
    found = await queue_type(connection, requests)
    _refuse_stream(requests, found)
    if found not in ("quorum", None):
        different = {"argument": "x-queue-type", "wanted": "quorum", "found": found}
        log.warning("topology_differs", what=f"queue {requests}", **different, advice=_ADVICE)


async def require_order(connection: AbstractConnection, topology: Topology, queue: str) -> None:
    """Raise if a request queue, which exists, has no single active consumer, which keeps the order. Nothing is changed.

    The broker refuses to declare a queue again with other arguments, and names the first that differs, with its value. It is
    asked again with this value until it names none, or the single active consumer.

    Raises:
        Misconfigured: the queue has no single active consumer.
        Unavailable: the queue is a stream.
        aiormq.exceptions.AMQPError: the user may not configure it, or the broker is gone.
    """
    _refuse_stream(queue, await queue_type(connection, queue))
    arguments = dict(topology.queues()[queue] or {})
    named: set[str] = set()
    while True:
        channel = await connection.channel()
        try:
            await channel.declare_queue(queue, durable=True, arguments=arguments)
        except ChannelPreconditionFailed as error:
            different = _difference(str(error))
        else:
            await channel.close()
            return
        argument = different.get("argument", "")
        if argument == _SINGLE_ACTIVE:
            needed, then = _FOR_PARTITIONS if topology.partitions else _FOR_ONE_QUEUE
            raise Misconfigured(
                f"queue {queue} has no single active consumer ({_SINGLE_ACTIVE}), {needed}. {_DRAIN}"
                f" {then.format(topology.partitions)}"
            ) from None
        if argument not in arguments or argument in named:  # the broker words it differently: `declare` decides
            return
        named.add(argument)
        del arguments[argument]
        if value := re.match(r"the value '(.*)' of type '(\w+)'", different["found"]):
            arguments[argument] = value[1] if value[2] == "longstr" else int(value[1])


async def queue_type(connection: AbstractConnection, queue: str) -> str | None:
    """The type of a queue (`quorum`, `classic`, `stream`); None if it does not exist, or the broker does not tell it.

    AMQP 0-9-1 has no command that asks for it. Every type of queue refuses a consumer with these two arguments before it
    registers anything, and the refusal names the type. It needs only the permission to read, and leaves an error in the
    broker's log.

    Raises:
        aiormq.exceptions.AMQPError: the user may not read the queue, or the broker is gone.
    """
    channel = await connection.channel()
    try:
        await (await channel.get_queue(queue, ensure=False)).consume(_ignore, arguments=_REFUSED_BY_EVERY_TYPE)
    except ChannelNotFoundEntity:
        return None
    except ChannelPreconditionFailed as error:
        found = re.search(r"of queue type rabbit_(\w+)_queue", str(error))
        return found[1] if found else None
    await channel.close()
    return None


_REFUSED_BY_EVERY_TYPE: Arguments = {"x-stream-offset": "next", "x-priority": 1}


async def _ignore(_: object) -> None:
    pass


def _refuse_stream(queue: str, found: str | None, setting: str = "WORKER_REQUESTS_QUEUE") -> None:
    """Raise `Unavailable` if this queue, which the setting names, is a stream.

    A stream keeps what was acknowledged. A worker that starts consumes only what is published from then on, so what was
    published before would never be stored, and nobody would notice.
    """
    if found == "stream":
        raise Unavailable(f"queue {queue} is a stream: name a quorum queue in {setting}")


async def _refuse_stream_of_dead_letters(connection: AbstractConnection, queue: str) -> None:
    """Raise `Unavailable` if the queue is a stream. If the user may not read it, that is not known.

    RabbitMQ converts what is published to a stream to AMQP 1.0, and ends the connection with an internal error if a header of the
    publisher is a decimal, for example. The same dead letter would be published again and again.
    """
    with suppress(ChannelAccessRefused):
        _refuse_stream(queue, await queue_type(connection, queue), "WORKER_DEAD_LETTERS_QUEUE")


async def consumers(connection: AbstractConnection, topology: Topology) -> int:
    """How many consumers the requests queue has."""
    async with connection.channel() as channel:
        queue = await channel.declare_queue(topology.requests_queue, passive=True)
        return queue.declaration_result.consumer_count or 0


async def _check_partition_count(connection: AbstractConnection, topology: Topology) -> None:
    """Two workers with different numbers of partitions would bind a slot to two queues, and each would get a copy.

    The queues are declared from the last one to the first, so that the first one exists only where all do. If only the last
    one is missing, it was deleted: with half as many partitions the first one of the upper half would be missing, too. Of two
    partitions these are the same queue, so a deleted one cannot be told from a single partition, and is refused as well.
    """
    if not topology.partitions:
        if topology.single_active_consumer:
            await _refuse_partitions(connection, topology)
        return
    count = topology.partitions
    first, middle, last, next_one = (
        queue_of(topology.requests_queue, number) for number in (0, count // 2, count - 1, count)
    )
    more = await _exists(connection, next_one)
    fewer = await _exists(connection, first) and not (
        await _exists(connection, last) or await _exists(connection, middle)
    )
    if more or fewer:
        raise Misconfigured(
            f"the requests are divided among {'more' if more else 'fewer'} than {topology.partitions} partitions: queue"
            f" {next_one if more else last} {'exists' if more else 'does not exist'}. Set WORKER_PARTITIONS to the number of"
            f" the queues {topology.requests_queue}.…, the same for all workers{'' if more else _DELETED.format(count)}"
        )


async def _refuse_partitions(connection: AbstractConnection, topology: Topology) -> None:
    """Raise `Misconfigured` if there are partitions: this worker has none, and would store what the others forward to them.

    It is asked only where the requests queue has a single active consumer, as partitions need it, and where this is not
    known, because operators declare the queues. The broker logs an error when it is asked for a queue that does not exist.
    """
    first = queue_of(topology.requests_queue, 0)
    if await _exists(connection, first):
        raise Misconfigured(
            f"the requests are divided among partitions: queue {first} exists. Set WORKER_PARTITIONS to the number of the"
            f" queues {topology.requests_queue}.…, the same for all workers; or remove the partitions with"
            " `task-activity-log partitions --to 0`"
        )


async def _exists(connection: AbstractConnection, queue: str) -> bool:
    channel = await connection.channel()  # its own: if there is no such queue, the broker closes it
    try:
        await channel.get_queue(queue)
    except ChannelNotFoundEntity:
        return False
    await channel.close()
    return True


@asynccontextmanager
async def _own_channel(
    connection: AbstractConnection, what: str, *, passive: bool = False
) -> AsyncIterator[AbstractChannel]:
    """A channel for one declaration: when the broker refuses, it closes the channel."""
    channel = await connection.channel()
    try:
        yield channel
    except ChannelPreconditionFailed as error:
        log.warning("topology_differs", what=what, **_difference(str(error)), advice=_ADVICE)
    except ChannelNotFoundEntity:
        raise Unavailable(f"{what} does not exist: create it, or set WORKER_TOPOLOGY=declare") from None
    except ChannelAccessRefused:
        if not passive:
            raise
        # Since 4.3.1. The broker's own text asks for the permission to configure, which is not needed.
        raise Unavailable(f"no permission on {what}: grant the user one of configure, write and read") from None
    else:
        await channel.close()


_SINGLE_ACTIVE = "x-single-active-consumer"
_DELETED = ". If queues were deleted, stop the workers and run `task-activity-log partitions --to {}`"
_DRAIN = (
    "Arguments cannot be changed in place: stop the publishers, let the workers that run now empty the queue, stop them,"
    " and delete the queue."
)
_FOR_PARTITIONS = (
    "which partitions need",
    "`task-activity-log partitions --to {0} --yes` and workers with WORKER_PARTITIONS={0} declare it again",
)
_FOR_ONE_QUEUE = (
    "which WORKER_SINGLE_ACTIVE_CONSUMER=true needs: all workers would consume, and the order would be lost",
    "A worker with this setting declares it again",
)
"""What a single active consumer is needed for, and who declares the queue with one."""
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
