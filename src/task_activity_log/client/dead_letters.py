"""Dead letters: read without removing them, and removed only when whatever replaces them is safe."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256

from task_activity_log.client.connections import Connections, no_connection, options
from task_activity_log.client.messages import ClientError
from task_activity_log.message import Properties
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.headers import raw_headers
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, describe
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.queues import existing_queue
from task_activity_log.rabbitmq.reading import PREFETCH_MAX, Reader, reading
from task_activity_log.rabbitmq.topology import REQUEST_KEY

_IDLE_SECONDS = 5.0
"""If no dead letter arrives for this long although the broker counted more, another consumer has them."""

_REJECTIONS = (b"x-error-", b"x-original-", b"x-headers-dropped", b"x-first-death-", b"x-last-death-")
_BROKERS = frozenset((b"x-death", b"x-delivery-count"))


@dataclass(frozen=True)
class DeadLetter:
    """A rejected message, and why it was rejected."""

    body: bytes
    properties: Properties
    delivery: RabbitDelivery

    @property
    def code(self) -> str:
        """The worker's code, or the broker's reason if the broker dead-lettered it (`delivery_limit`)."""
        return self._text("x-error-code") or self._text("x-first-death-reason") or "unknown"

    @property
    def detail(self) -> str:
        """What was wrong, in words."""
        if detail := self._text("x-error-detail"):
            return detail
        return "dead-lettered by the broker" if self._text("x-first-death-reason") else "no reason given"

    @property
    def publisher(self) -> str:
        """Who sent it: app_id, or else the user, or else `-`."""
        properties = self.properties
        return properties.app_id or properties.user_id or self._text("x-original-user-id") or "-"

    @cached_property
    def name(self) -> str:
        """Its message_id, or a digest of the body where it has none."""
        return self.properties.message_id or "@" + sha256(self.body).hexdigest()[:12]

    @cached_property
    def key(self) -> tuple[str, bytes]:
        """Identifies it; copies of one message have the same."""
        return self.name, sha256(self.body).digest()

    @cached_property
    def since(self) -> datetime | None:
        """When it was first rejected, or else when it was sent; None when neither is known."""
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


class Loan:
    """The dead letters that were in the queue, delivered to us. Those that are not removed are returned, in their order."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.waiting = reader.found.messages
        """How many dead letters there were; at most 65,535 of them are delivered, the oldest."""
        self.others = reader.found.consumers
        """How many others consume the queue: what was delivered to them is not seen here."""

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
        """Return these now, so that others can see them."""
        with _explained():
            await self._reader.requeue_some([letter.delivery for letter in letters])

    async def remove(self, letters: Iterable[DeadLetter]) -> int:
        """Remove these for good; returns how many were still on loan."""
        with _explained():
            return await self._reader.remove([letter.delivery for letter in letters])


@asynccontextmanager
async def borrow_dead_letters(
    broker: str | LinkOptions, queue: str = "task_activity_log.dead-letters"
) -> AsyncIterator[Loan]:
    """Have the dead letters delivered, and return at the end what was not removed. A lost connection returns them too.

    Each loan counts as one delivery of each: the queue is declared with a delivery limit of a million.

    Raises:
        ClientError: no connection, no such queue, or the connection was lost: what was not removed is in the queue.
    """
    link = options(broker)
    async with AsyncExitStack() as stack:
        try:
            with asking_the_driver():
                reader = await stack.enter_async_context(
                    reading(link, "dead letters", existing_queue(queue), until_back=True)
                )
        except LOST as error:
            raise no_connection(link, describe(error)) from error
        yield Loan(reader)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        with asking_the_driver():
            yield
    except LOST as error:
        raise ClientError(
            f"connection lost ({describe(error).text}): dead letters that were not removed are in the queue; run it again"
        ) from error


@asynccontextmanager
async def publishing(broker: str | LinkOptions) -> AsyncIterator[Publisher]:
    """A publisher for replays.

    Raises:
        ClientError: no connection.
    """
    connections = Connections(broker, on_outage=lambda _: None)
    publisher = Publisher(connections.options, purpose="replays")
    await connections.open(publisher.run(), ready=publisher.wait_connected())
    try:
        yield publisher
    finally:
        await connections.close()


async def replay(
    loan: Loan,
    letters: Sequence[tuple[DeadLetter, bytes]],
    publisher: Publisher,
    *,
    exchange: str = "task_activity_log",
    user: str | None = None,
    rate: float = 100.0,
    on_replayed: Callable[[DeadLetter], None] = lambda _: None,
) -> int:
    """Publish each as the request that it was, and remove it from the dead letters once the broker has confirmed that.

    If this is interrupted in between, the request is in both queues: with a message_id it is applied once.

    Args:
        loan: the loan that they come from.
        letters: each with the body to send, its own or a corrected one.
        publisher: see `publishing`.
        exchange: the exchange that the worker takes its requests from.
        user: the user of the connection.
        rate: how many to publish per second, at most.
        on_replayed: called with each that has been replayed.

    Returns:
        How many were replayed.

    Raises:
        ClientError: the broker refuses them, or is away: those that were not replayed are in the queue.
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
        await loan.remove(done)
        count += len(done)
        for letter in done:
            on_replayed(letter)
        if len(done) < len(chunk):
            why = "the connection was lost" if Fate.LOST in fates else f"{exchange} took no more"
            raise ClientError(f"{count} replayed, then {why}; the others are in the queue")
    return count
