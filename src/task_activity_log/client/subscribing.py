"""`subscribe`: the replies of a queue of a broker, and where those go that the subscriber cannot process."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from task_activity_log.client.connections import WORKER_DECLARES, no_connection, options, publishing
from task_activity_log.client.errors import ClientError
from task_activity_log.client.messages import SHORT_MAX, is_short
from task_activity_log.client.names import exchange_name, queue_name
from task_activity_log.client.subscription import PoisonQueue, Subscription
from task_activity_log.message import PERSISTENT
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.headers import raw_headers
from task_activity_log.rabbitmq.link import LinkOptions, describe
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.queues import Choice, durable_queue, ensure_queue, existing_queue, own_queue
from task_activity_log.rabbitmq.reading import Reader, reading
from task_activity_log.rabbitmq.topology import Topology

SHARED = "task_activity_log.replies"
"""The default name of the queue that subscribers share, and of its exchange."""
_COUNTED = frozenset((b"x-delivery-count", b"x-acquired-count"))
"""Headers that the broker sets at each delivery."""
_NOT_MOVED = _COUNTED | {b"CC", b"BCC"}
"""Headers that a copy does not have. The last two would send it to queues that the sender of the reply has chosen."""


def check_queues(queue: str | None, routing_keys: Sequence[str], on_poison: PoisonQueue | None, *, shared: str) -> None:
    """Check arguments of `subscribe` that would otherwise fail later, or wait for replies that cannot come.

    Raises `ValueError`, or `TypeError` if `routing_keys` is one text, as its letters would be bound as keys, or if `on_poison`
    is not a `PoisonQueue`.
    """
    if on_poison is not None and not isinstance(on_poison, PoisonQueue):
        raise TypeError("on_poison should be a PoisonQueue: write PoisonQueue(name)")
    if queue is not None:
        queue_name("queue", queue)
    if isinstance(routing_keys, str):
        raise TypeError("routing_keys should be a sequence of keys: write [key]")
    if not all(map(is_short, routing_keys)):
        raise ValueError(f"each of routing_keys should be text of at most {SHORT_MAX} bytes")
    if on_poison is not None and routing_keys and queue is None:
        raise ValueError("on_poison needs a queue that keeps the reply: name a durable one with queue")
    if on_poison is not None and on_poison.name == (queue or shared):
        raise ValueError("on_poison should name another queue than the one that is read")
    Topology().check_reply_queue("queue", queue)
    Topology().check_reply_queue("on_poison", on_poison.name if on_poison is not None else None)


def how_to_declare(queue: str | None, routing_keys: Sequence[str], *, shared: str) -> str:
    """Says of a queue or an exchange that does not exist how it comes to exist."""
    if queue in (None, shared) or routing_keys:
        return WORKER_DECLARES
    return (
        "declare it and bind it to the exchange of the replies, or pass routing_keys too, and it is declared and bound"
    )


class _Broker:
    """Replies from a queue of a broker."""

    def __init__(
        self, link: LinkOptions, choice: Callable[[int], Choice], poison: PoisonQueue | None, missing: str
    ) -> None:
        self._link = link
        self._choice = choice
        self._poison = poison
        self._missing = missing
        self._counts: bool | None = None  # whether the queue counts deliveries; None: not known yet

    @asynccontextmanager
    async def open(self, prefetch: int) -> AsyncIterator[Reader]:
        """Connect, and declare what is missing. `ClientError` if the queue does not count the tries that are to be counted."""
        choice = self._choice(prefetch)
        if self._poison is not None:
            choice = ensure_queue(self._poison.name, choice)
        async with reading(self._link, "subscriber", choice, expects=lambda: True) as reader:
            if self._counts is None and self._poison is not None and self._poison.tries > 1:
                found = await reader.type()
                if found not in (None, "quorum"):
                    name = reader.found.queue
                    raise ClientError(
                        f"on_poison needs a quorum queue, which counts the tries: queue {name} is of type {found}"
                    )
                self._counts = True
            yield reader

    def tag(self, delivery: RabbitDelivery) -> int:
        """What settles a delivery."""
        return delivery.tag

    async def move(self, delivery: RabbitDelivery, queue: str, headers: dict[str, object]) -> None:
        """Publish a copy to a queue, over a connection of its own. Raises `ClientError` if the broker has not taken it."""
        kept = (entry for name, entry in raw_headers(delivery.properties.table) if name not in _NOT_MOVED)
        # The broker refuses the user_id of somebody else.
        properties = replace(
            delivery.properties,
            table=b"".join(kept),
            headers=headers,
            user_id=None,
            expiration=None,
            delivery_mode=PERSISTENT,
        )
        async with publishing(self._link, "poison replies") as publisher:
            [fate] = await publisher.publish([Outgoing("", queue, properties, delivery.body)])
        if fate is not Fate.CONFIRMED:
            raise ClientError(fate.value)

    def failed(self, error: BaseException) -> ClientError:
        """The reason, without secrets."""
        return no_connection(self._link, describe(error), missing=self._missing)


def subscribe(
    broker: str | LinkOptions,
    *,
    queue: str | None = None,
    exchange: str = SHARED,
    routing_keys: Sequence[str] = (),
    everything: bool = False,
    prefetch: int = 100,
    remember: int = 100_000,
    most: int | None = None,
    on_poison: PoisonQueue | None = None,
    on_connected: Callable[[], None] = lambda: None,
    on_outage: Callable[[str], None] = lambda _: None,
) -> Subscription[RabbitDelivery]:
    """Read the replies of a queue, within `async with`, in an `async for` loop.

    Each is a `StoredReply`, a `RejectedReply` or an `UnreadableReply`. It is acknowledged when the loop asks for the next one.
    If the loop is left in the middle of its body (`break`, `return`, an exception), that reply is not acknowledged and
    is delivered again. A lost connection is opened again, however long that takes.

    Args:
        broker: the URL.
        queue: the queue of the replies; None: the queue that all subscribers share, or with `routing_keys` a private one.
        exchange: the exchange that a queue of this subscriber's own is bound to.
        routing_keys: such as `stored.*` or `rejected`: read the replies with these keys through a queue of this
            subscriber's own, and take nothing from others. With `queue`, this queue is durable: it is declared if it does not
            exist, bound by these keys in addition to those that it is bound by, and keeps what is published while the
            subscriber is away. Without, the queue is private, and replies that are published while it is not connected are
            missed.
        everything: also yield repeated replies, and records that are older than the last one yielded for their id or the
            same. (XML has only the milliseconds of `modified_dateutc`, so two states of one millisecond are both yielded.)
        prefetch: how many replies may be delivered ahead.
        remember: how many message_ids, and how many records' times, are remembered to recognize those.
        most: end after this many; None: never.
        on_poison: the queue for replies for which the body of the loop raises an exception again and again; None: such a
            reply is delivered again each time, and those behind it wait.
        on_connected: called each time that it begins to read the queue. If it raises an exception, so does the
            subscription: a `ClientError` names it.
        on_outage: called with the reason each time that the connection is lost or cannot be opened again.

    Raises:
        ClientError: the URL is not that of a broker.
        ValueError: a name is one that cannot be sent; `prefetch` is not from 1 to 65,535; `on_poison` cannot work, because the
            queue is private, or is the poison queue itself; or one of the two is the worker's queue of requests or dead letters.
    """
    link = options(broker)
    exchange_name("exchange", exchange)
    check_queues(queue, routing_keys, on_poison, shared=SHARED)

    def choice(prefetch: int) -> Choice:
        if not routing_keys:
            return existing_queue(queue or SHARED, prefetch)
        return (
            durable_queue(exchange, queue, prefetch, routing_keys)
            if queue
            else own_queue(exchange, prefetch, routing_keys)
        )

    return Subscription(
        _Broker(link, choice, on_poison, how_to_declare(queue, routing_keys, shared=SHARED)),
        everything=everything,
        prefetch=prefetch,
        remember=remember,
        most=most,
        on_poison=on_poison,
        on_connected=on_connected,
        on_outage=on_outage,
    )
