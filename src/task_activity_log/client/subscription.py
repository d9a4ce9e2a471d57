"""The subscriber's loop: each new reply once, acknowledged when the loop asks for the next one."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from task_activity_log.aio import Backoff
from task_activity_log.client.errors import ClientError
from task_activity_log.client.messages import Received, received_reply
from task_activity_log.client.names import queue_name
from task_activity_log.client.news import News
from task_activity_log.client.notices import raised
from task_activity_log.client.opener import Opener
from task_activity_log.message import Delivery
from task_activity_log.rabbitmq.link import LOST, asking_the_driver, describe
from task_activity_log.rabbitmq.reading import PREFETCH_MAX

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
        self._opener = Opener("subscription")
        self._next_under_way = False
        self._connection: AsyncExitStack | None = None
        """What the `async with` that is under way has opened. A loop that began in an earlier one sees that it is another."""
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
        if self._connection is not None and not self._opener.ended:
            raise ClientError("the subscription is open already: make another one with `subscribe`")
        self._forget()  # what is left of an event loop that is closed
        self._new = None  # the body was not through with it
        self._left = self._most
        connection = AsyncExitStack()
        try:
            with asking_the_driver():
                feed = await self._connect(connection)
        except LOST as error:
            await _close(connection, error)
            raise self._source.failed(error) from error
        except ClientError:  # of `on_connected`
            await _close(connection)
            raise
        self._connection, self._feed = connection, feed
        self._opener.note()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect. The reply that the body of the loop had is delivered again, unless it was moved to the poison queue.

        In a process that was forked, or another event loop, it does nothing: the connection is not its own.
        """
        if not self._opener.is_here or self._connection is None:
            return
        connection, feed, under_way = self._connection, self._feed, self._under_way
        self._forget()
        try:
            if under_way is None or feed is None:
                return
            if self._finished:
                feed.keep([self._source.tag(under_way)])  # cancelled while it asked for the next one
            elif isinstance(error, Exception) and self._poison is not None:
                await self._set_aside(feed, under_way, self._poison, error)
        finally:
            await _close(connection)

    def _forget(self) -> None:
        """Forget the last connection and what it has delivered. What is not acknowledged comes again."""
        self._connection = self._feed = self._under_way = None
        self._taken.clear()
        self._next_under_way = False

    def __aiter__(self) -> Self:
        """The subscription itself."""
        return self

    async def __anext__(self) -> Received:
        """Acknowledge the last reply, and return the next one. A lost connection is opened again, however long that takes.

        Raises:
            ClientError: it is used outside of `async with`, or by two tasks at a time, or another task closes it.
        """
        if (connection := self._connection) is None:
            raise ClientError("the subscription is not open: write `async with subscribe(…) as replies`")
        self._opener.check()
        if self._next_under_way:
            raise ClientError("another task waits for the next reply: each needs a subscription of its own")
        self._next_under_way = self._finished = True
        if self._new is not None:
            self._news.remember(self._new)
            self._new = None
        try:
            return await self._next_of_any_feed(connection)
        finally:
            if connection is self._connection:
                self._next_under_way = False

    async def _next_of_any_feed(self, connection: AsyncExitStack) -> Received:
        while connection is self._connection:
            try:
                with asking_the_driver():
                    return await self._next(connection)
            except LOST as error:
                await self._disconnect(connection, error)
                if connection is self._connection:
                    self._on_outage(describe(error).text)
                    await asyncio.sleep(self._backoff.delay())
        raise ClientError("the subscription was closed while it waited for a reply")

    async def _next(self, connection: AsyncExitStack) -> Received:
        feed = self._feed
        if feed is None:
            feed = await self._connect(connection)
            self._check(connection)
            self._feed = feed
        if self._under_way is not None:
            await self._acknowledge(connection, feed, self._under_way)
            self._check(connection)
            self._under_way = None
        while self._left is None or self._left > 0:
            if not self._taken:
                taken = await feed.take(self._prefetch)
                self._check(connection)
                self._taken.extend(taken)
            delivery = self._taken.popleft()
            reply = received_reply(delivery)
            if self._everything or self._news.is_news(reply):
                self._left = self._left and self._left - 1
                self._under_way, self._finished = delivery, False
                self._new = None if self._everything else reply
                return reply
            await self._acknowledge(connection, feed, delivery)
        raise StopAsyncIteration

    def _check(self, connection: AsyncExitStack) -> None:
        """Raises `ConnectionError` if another task has closed the subscription: nobody else would close this connection."""
        if connection is not self._connection:
            raise ConnectionError("closed")

    async def _acknowledge(self, connection: AsyncExitStack, feed: Feed[D], delivery: D) -> None:
        tag = self._source.tag(delivery)
        if self._narrow and not delivery.attempts:  # behind it is nothing that was delivered before
            self._narrow = False
            try:
                await feed.widen(self._prefetch, [tag])
            except asyncio.CancelledError:
                await self._disconnect(connection)  # it may have no consumer now
                raise
        else:
            await feed.acknowledge([tag])

    async def _connect(self, connection: AsyncExitStack) -> Feed[D]:
        self._narrow = self._poison is not None and self._prefetch > 1
        opening = self._source.open(1 if self._narrow else self._prefetch)
        feed = await connection.enter_async_context(opening)
        self._backoff.reset()
        try:
            self._on_connected()
        except Exception as error:  # not taken for a lost connection
            raise raised("on_connected", error) from error
        return feed

    async def _disconnect(self, connection: AsyncExitStack, error: BaseException | None = None) -> None:
        """Close the connection, because of an error or because it cannot be used. What is not acknowledged comes again."""
        if connection is self._connection:
            self._feed = self._under_way = None
            self._taken.clear()
        await _close(connection, error)

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


async def _close(connection: AsyncExitStack, error: BaseException | None = None) -> None:
    """Close what was opened. With an error, the next connection is to another host."""
    with suppress(*LOST), asking_the_driver():
        async with connection.pop_all():
            if error is not None:
                raise error
