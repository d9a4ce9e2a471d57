"""Dead letters: looked at without changing the queue, and removed only when what follows them is safe."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from typing import Any

import aiormq

from task_activity_log.aio import end
from task_activity_log.client.link import no_connection, options
from task_activity_log.client.messages import ClientError
from task_activity_log.message import Properties
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.headers import raw_headers
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, describe
from task_activity_log.rabbitmq.publisher import Fate, Outgoing, Publisher
from task_activity_log.rabbitmq.reading import PREFETCH_MAX, Reader, reading
from task_activity_log.rabbitmq.topology import REQUEST_KEY

_IDLE_SECONDS = 5.0
"""So long without another dead letter, though the broker counted more: somebody else has them in hand."""

_REJECTIONS = (b"x-error-", b"x-original-", b"x-headers-dropped", b"x-first-death-", b"x-last-death-")
_BROKERS = frozenset((b"x-death", b"x-delivery-count"))


@dataclass(frozen=True)
class DeadLetter:
    """A rejected message, and why."""

    body: bytes
    properties: Properties
    delivery: RabbitDelivery

    @property
    def code(self) -> str:
        """The worker's code, or the broker's reason where that dead-lettered it (`delivery_limit`)."""
        return self._text("x-error-code") or self._text("x-first-death-reason") or "unknown"

    @property
    def detail(self) -> str:
        """What was wrong, in words."""
        if detail := self._text("x-error-detail"):
            return detail
        return "dead-lettered by the broker" if self._text("x-first-death-reason") else "no reason given"

    @property
    def publisher(self) -> str:
        """Who sent it: app_id, else the user, else `-`."""
        properties = self.properties
        return properties.app_id or properties.user_id or self._text("x-original-user-id") or "-"

    @cached_property
    def name(self) -> str:
        """Its message_id; one made of the content where it has none."""
        return self.properties.message_id or "@" + sha256(self.body).hexdigest()[:12]

    @cached_property
    def key(self) -> tuple[str, bytes]:
        """What tells it from others, but for its own copies."""
        return self.name, sha256(self.body).digest()

    @cached_property
    def since(self) -> datetime | None:
        """When it was first rejected, else when it was sent; None where nothing says."""
        with suppress(ValueError):
            seen = datetime.fromisoformat(self._text("x-first-seen") or "")
            return seen if seen.tzinfo else seen.replace(tzinfo=UTC)
        sent = self.properties.sent
        return None if sent is None else datetime.fromtimestamp(sent, UTC)

    @property
    def headers(self) -> dict[str, object]:
        """The headers that its request had, and when it was first rejected."""
        return {name: value for name, value in self.properties.headers.items() if _is_publishers(name.encode())}

    def restored(self, user: str | None) -> Properties:
        """The properties that its request had. A user_id only if it is `user`: the broker refuses a foreign one."""
        original = self._text("x-original-user-id")
        kept = (entry for name, entry in raw_headers(self.properties.table) if _is_publishers(name))
        return replace(
            self.properties,
            table=b"".join(kept),
            headers={},
            user_id=original if original == user else None,
            expiration=self._text("x-original-expiration"),
        )

    def _text(self, header: str) -> str | None:
        value = self.properties.headers.get(header)
        return value if isinstance(value, str) else None


def _is_publishers(header: bytes) -> bool:
    return header not in _BROKERS and not header.startswith(_REJECTIONS)


class Look:
    """The dead letters that are in the queue now, on loan. All that was not removed goes back at the end, in its order."""

    def __init__(self, reader: Reader, waiting: int, others: int) -> None:
        self._reader = reader
        self.waiting = waiting
        """How many there are; at most 65,535 of them are looked at, the oldest."""
        self.others = others
        """How many others consume the queue: what they have in hand is not seen here."""

    async def __aiter__(self) -> AsyncIterator[DeadLetter]:
        """Each dead letter, oldest first."""
        left = min(self.waiting, PREFETCH_MAX)
        with suppress(TimeoutError):
            while left > 0:
                async with asyncio.timeout(_IDLE_SECONDS):
                    with _explained():
                        deliveries = await self._reader.take(min(left, 500))
                left -= len(deliveries)
                for delivery in deliveries:
                    yield DeadLetter(delivery.body, delivery.properties, delivery)
        with _explained():
            await self._reader.cancel()

    async def give_back(self, letters: Iterable[DeadLetter]) -> None:
        """Return these at once, for others to see."""
        with _explained():
            await self._reader.requeue_some([letter.delivery for letter in letters])

    async def remove(self, letters: Iterable[DeadLetter]) -> int:
        """Take these off the queue for good; returns how many were still in hand."""
        with _explained():
            return await self._reader.remove([letter.delivery for letter in letters])


@asynccontextmanager
async def look(broker: str | LinkOptions, queue: str = "task_activity_log.dead-letters") -> AsyncIterator[Look]:
    """Take the dead letters on loan, and return at the end what was not removed. A lost connection returns them too.

    Each look counts as one return of each: the queue is declared with a limit of a million.

    Raises:
        ClientError: no connection, no such queue, or the connection was lost: what was not removed is in the queue.
    """
    link = options(broker, lambda _: None)
    found = (0, 0)

    async def choose(channel: aiormq.abc.AbstractChannel) -> tuple[str, int]:
        nonlocal found
        ok = await channel.queue_declare(queue, passive=True)
        found = (ok.message_count or 0, ok.consumer_count or 0)
        return queue, found[0]

    async with AsyncExitStack() as stack:
        try:
            with asking_the_driver():
                reader = await stack.enter_async_context(reading(link, "dead letters", choose, until_back=True))
        except LOST as error:
            raise no_connection(link, describe(error)) from error
        yield Look(reader, *found)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        with asking_the_driver():
            yield
    except LOST as error:
        raise ClientError(
            f"connection lost ({describe(error)}): what was not removed before is in the queue; run it again"
        ) from error


@asynccontextmanager
async def publishing(broker: str | LinkOptions) -> AsyncIterator[Publisher]:
    """A publisher for replays.

    Raises:
        ClientError: no connection.
    """
    refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    link = options(broker, lambda reason: None if refused.done() else refused.set_result(reason))
    publisher = Publisher(link, purpose="replays")
    running = asyncio.create_task(publisher.run())
    connected = asyncio.create_task(publisher.wait_connected())
    either: set[asyncio.Future[Any]] = {connected, refused}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not connected.done():
            raise no_connection(link, refused.result())
        yield publisher
    finally:
        await end(running, connected)


async def replay(
    taken: Look,
    letters: Sequence[tuple[DeadLetter, bytes]],
    publisher: Publisher,
    *,
    exchange: str = "task_activity_log",
    user: str | None = None,
    rate: float = 100.0,
    on_replayed: Callable[[DeadLetter], None] = lambda _: None,
) -> int:
    """Publish each as the request that it was, and remove it from the dead letters when the broker has confirmed that.

    Interrupted in between a request can be there twice: with a message_id it is applied once.

    Args:
        taken: the look that they come from.
        letters: each with the body to send, its own or a corrected one.
        publisher: see `publishing`.
        exchange: where the worker takes its requests from.
        user: the user of the connection.
        rate: at most so many a second.
        on_replayed: told of each that is done.

    Returns:
        How many were replayed.

    Raises:
        ClientError: the broker does not take them, or is gone: those that are not done are in the queue.
    """
    size = max(1, min(500, int(rate / 10)))
    began, count = time.monotonic(), 0
    for start in range(0, len(letters), size):
        await asyncio.sleep(max(0.0, began + start / rate - time.monotonic()))
        chunk = letters[start : start + size]
        try:
            fates = await publisher.publish(
                [Outgoing(exchange, REQUEST_KEY, letter.restored(user), body) for letter, body in chunk]
            )
        except Unavailable as error:
            raise ClientError(f"{count} replayed, then: {error.reason}; the others are in the queue") from error
        done = [letter for (letter, _), fate in zip(chunk, fates, strict=True) if fate is Fate.CONFIRMED]
        await taken.remove(done)
        count += len(done)
        for letter in done:
            on_replayed(letter)
        if len(done) < len(chunk):
            raise ClientError(f"{count} replayed, then {exchange} took no more; the others are in the queue")
    return count
