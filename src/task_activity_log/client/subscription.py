"""The subscriber's loop: each new reply once, acknowledged when the loop asks for the next one."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from task_activity_log.aio import Backoff
from task_activity_log.client.connections import WORKER_DECLARES, no_connection, options, publishing
from task_activity_log.client.messages import SHORT_MAX, ClientError, Received, is_short, received_reply
from task_activity_log.client.names import exchange_name, queue_name
from task_activity_log.client.news import News
from task_activity_log.client.notices import raised
from task_activity_log.client.opener import Opener
from task_activity_log.message import PERSISTENT, Delivery
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.headers import raw_headers
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, describe
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.queues import Choice, durable_queue, ensure_queue, existing_queue, own_queue
from task_activity_log.rabbitmq.reading import PREFETCH_MAX, Reader, reading
from task_activity_log.rabbitmq.topology import Topology

SHARED = "task_activity_log.replies"
"""The default name of the queue that subscribers share, and of its exchange."""
_COUNTED = frozenset((b"x-delivery-count", b"x-acquired-count"))
"""Headers that the broker sets at each delivery."""
_NOT_MOVED = _COUNTED | {b"CC", b"BCC"}
"""Headers that a copy does not have. The last two would send it to queues that the sender of the reply has chosen."""
_TRIES, _ERROR = "x-subscriber-tries", "x-subscriber-error"


@dataclass(frozen=True, slots=True)
class PoisonQueue:
    """Where replies go that the body of the loop cannot process, so that they do not block those behind them.

    `subscribe` declares the queue if it does not exist. A reply is moved there when the body has raised an exception for it
    and it was delivered `tries` times. The broker counts the deliveries, also those whose body was not run. This needs a
    quorum queue: another type of queue is a `ClientError` unless `tries` is 1.
    """

    name: str
    tries: int = 3

    def __post_init__(self) -> None:
        queue_name("name", self.name)
        if self.tries < 1:
            raise ValueError("tries should be at least 1")


D = TypeVar("D", bound=Delivery)


class Feed(Protocol[D]):
    """Deliveries of one queue over one connection."""

    async def take(self, most: int) -> list[D]:
        """What has been delivered, at least one, at most `most`."""

    async def acknowledge(self, tags: Iterable[int]) -> None:
        """Remove these from the queue."""

    async def widen(self, prefetch: int, finished: Iterable[int]) -> None:
        """Consume with a larger prefetch from now on, and acknowledge what is finished."""

    def keep(self, tags: Iterable[int]) -> None:
        """Remove these from the queue at the end, together with the return of the others."""


class Source(Protocol[D]):
    """Where replies come from: a broker, or a fake of one for tests."""

    def open(self, prefetch: int) -> AbstractAsyncContextManager[Feed[D]]:
        """Connect; what was not acknowledged is returned at the end."""

    def tag(self, delivery: D) -> int:
        """What settles a delivery."""

    async def move(self, delivery: D, queue: str, headers: dict[str, object]) -> None:
        """Put a copy with further headers into a queue. Raises `ClientError` if the queue has not taken it."""

    def failed(self, error: BaseException) -> ClientError:
        """What to raise if the first connection fails."""


class Subscription(Generic[D]):
    """The replies of a queue: `async with subscribe(…) as replies: async for reply in replies`."""

    def __init__(
        self,
        source: Source[D],
        *,
        everything: bool,
        prefetch: int,
        remember: int,
        most: int | None,
        on_poison: PoisonQueue | None,
        on_connected: Callable[[], None],
        on_outage: Callable[[str], None],
    ) -> None:
        """Do not connect yet. The arguments are those of `subscribe`, which says what it raises."""
        if not 1 <= prefetch <= PREFETCH_MAX:
            raise ValueError(f"prefetch should be from 1 to {PREFETCH_MAX}")
        self._source = source
        self._everything = everything
        self._prefetch = prefetch
        self._news = News(remember)
        self._most = most
        self._left = most
        self._poison = on_poison
        self._on_connected = on_connected
        self._on_outage = on_outage
        self._backoff = Backoff(first=0.5)
        self._open = False
        self._opener = Opener("subscription")
        self._next_under_way = False
        self._connection = AsyncExitStack()
        self._feed: Feed[D] | None = None
        self._narrow = False
        """Whether one reply is delivered at a time. Otherwise those behind a reply that fails would be counted as well."""
        self._taken: deque[D] = deque()
        self._under_way: D | None = None  # what the body of the loop has
        self._finished = False  # whether the body is through with it
        self._new: Received | None = (
            None  # the reply that the body has, to be remembered once the body is through with it
        )

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            ClientError: the connection cannot be opened, the queue does not exist, or the subscription is open already.
        """
        if self._open and not self._opener.ended:
            raise ClientError("the subscription is open already: make another one with `subscribe`")
        if self._open:  # in an event loop that is closed, and its connection with it
            self._feed = self._under_way = None
            self._taken.clear()
            self._connection = AsyncExitStack()
        self._open = self._next_under_way = False
        self._new = None  # the body was not through with it
        self._left = self._most
        try:
            with asking_the_driver():
                await self._connect()
        except LOST as error:
            await self._disconnect(error)
            raise self._source.failed(error) from error
        except ClientError:  # of `on_connected`
            await self._disconnect()
            raise
        self._open = True
        self._opener.note()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect. The reply that the body of the loop had is delivered again, unless it was moved to the poison queue.

        In a process that was forked, or another event loop, it does nothing: the connection is not its own.
        """
        if not self._opener.is_here:
            return
        self._open = False
        try:
            if self._finished and self._under_way is not None and self._feed is not None:
                self._feed.keep([self._source.tag(self._under_way)])  # cancelled while it asked for the next one
            elif (
                isinstance(error, Exception)
                and self._poison is not None
                and self._under_way is not None
                and self._feed is not None
            ):
                await self._set_aside(self._feed, self._under_way, self._poison, error)
        finally:
            await self._disconnect()

    def __aiter__(self) -> Self:
        """The subscription itself."""
        return self

    async def __anext__(self) -> Received:
        """Acknowledge the last reply, and return the next one. A lost connection is opened again, however long that takes.

        Raises:
            ClientError: it is used outside of `async with`, or by two tasks at a time, or another task closes it.
        """
        if not self._open:
            raise ClientError("the subscription is not open: write `async with subscribe(…) as replies`")
        self._opener.check()
        if self._next_under_way:
            raise ClientError("another task waits for the next reply: each needs a subscription of its own")
        self._next_under_way = self._finished = True
        if self._new is not None:
            self._news.remember(self._new)
            self._new = None
        try:
            return await self._next_of_any_connection()
        finally:
            self._next_under_way = False

    async def _next_of_any_connection(self) -> Received:
        while self._open:
            try:
                with asking_the_driver():
                    return await self._next()
            except LOST as error:
                await self._disconnect(error)
                if self._open:
                    self._on_outage(describe(error).text)
                    await asyncio.sleep(self._backoff.delay())
        raise ClientError("the subscription was closed while it waited for a reply")

    async def _next(self) -> Received:
        feed = self._feed or await self._connect()
        if not self._open:  # another task has closed it: nobody else would close this connection
            raise ConnectionError("closed")
        if self._under_way is not None:
            await self._acknowledge(feed, self._under_way)
            self._under_way = None
        while self._left is None or self._left > 0:
            if not self._taken:
                self._taken.extend(await feed.take(self._prefetch))
            delivery = self._taken.popleft()
            reply = received_reply(delivery)
            if self._everything or self._news.is_news(reply):
                self._left = self._left and self._left - 1
                self._under_way, self._finished = delivery, False
                self._new = None if self._everything else reply
                return reply
            await self._acknowledge(feed, delivery)
        raise StopAsyncIteration

    async def _acknowledge(self, feed: Feed[D], delivery: D) -> None:
        tag = self._source.tag(delivery)
        if self._narrow and not delivery.attempts:  # behind it is nothing that was delivered before
            self._narrow = False
            try:
                await feed.widen(self._prefetch, [tag])
            except asyncio.CancelledError:
                await self._disconnect()  # it may have no consumer now
                raise
        else:
            await feed.acknowledge([tag])

    async def _connect(self) -> Feed[D]:
        self._narrow = self._poison is not None and self._prefetch > 1
        opening = self._source.open(1 if self._narrow else self._prefetch)
        self._feed = feed = await self._connection.enter_async_context(opening)
        self._backoff.reset()
        try:
            self._on_connected()
        except Exception as error:  # not taken for a lost connection
            raise raised("on_connected", error) from error
        return feed

    async def _disconnect(self, error: BaseException | None = None) -> None:
        """Close the connection, because of an error or because it is not needed. What is not acknowledged comes again."""
        self._feed = self._under_way = None
        self._taken.clear()
        connection = self._connection.pop_all()
        with suppress(*LOST), asking_the_driver():
            async with connection:
                if error is not None:
                    raise error  # so that the next connection is to another host

    async def _set_aside(self, feed: Feed[D], delivery: D, poison: PoisonQueue, error: Exception) -> None:
        """Move a reply that was tried often enough. The error is raised all the same, with a note that says what was done."""
        tries = delivery.attempts + 1
        if tries < poison.tries:
            error.add_note(f"This was try {tries} of {poison.tries}: the reply is delivered again.")
            return
        try:
            # Only the kind of error: its text may quote the record.
            await self._source.move(delivery, poison.name, {_TRIES: tries, _ERROR: type(error).__name__})
            feed.keep([self._source.tag(delivery)])  # acknowledged together with the end, which keeps the order
        except (ClientError, *LOST) as failure:
            # A broker that blocks publishers, or a lost connection, may have taken the copy all the same.
            what = f"Queue {poison.name} has not confirmed the reply, which is delivered again"
            error.add_note(f"{what}: {failure}")
        else:
            deliveries = "delivery" if tries == 1 else "deliveries"
            error.add_note(f"After {tries} {deliveries} the reply was moved to queue {poison.name}.")


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
