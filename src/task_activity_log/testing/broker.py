"""Queues in memory, and the topic exchange of the replies."""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import takewhile
from uuid import uuid4

from task_activity_log.client.connections import no_connection
from task_activity_log.client.errors import ClientError
from task_activity_log.client.subscribing import how_to_declare
from task_activity_log.client.subscription import PoisonQueue
from task_activity_log.message import Delivery, Properties
from task_activity_log.rabbitmq.link import LinkOptions, Missing, Outage, OutageKind, describe

_LINK = LinkOptions("amqp://memory/")
_RESERVED = "amq."
"""How the names begin that the broker gives."""


@dataclass(eq=False)
class Queue:
    """One queue. What is returned to it comes before what was never delivered."""

    keys: set[str] = field(default_factory=set)
    """The routing keys that it is bound by."""
    messages: deque[Delivery] = field(default_factory=deque)
    """Those that are with no subscriber."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, body: bytes, properties: Properties) -> None:
        """Add a message at the end."""
        self.messages.append(Delivery(body, properties))
        self._changed.set()

    def give_back(self, deliveries: Iterable[Delivery]) -> None:
        """Return these, in their order: as in RabbitMQ behind those that were returned before."""
        before = sum(1 for _ in takewhile(lambda message: message.attempts, self.messages))
        self.messages.rotate(-before)
        self.messages.extendleft(reversed(list(deliveries)))
        self.messages.rotate(before)
        self._changed.set()

    async def take(self, most: int, ended: Callable[[], bool]) -> list[Delivery]:
        """At least one message, at most `most`. Raises `ConnectionError` once `ended` says so, after a change."""
        while not (ended() or self.messages):
            self._changed.clear()
            await self._changed.wait()
        if ended():
            raise ConnectionError("closed")
        return [self.messages.popleft() for _ in range(min(most, len(self.messages)))]


class Queues:
    """All queues, and the exchange that routes replies to those that are bound to it."""

    def __init__(self, shared: str) -> None:
        self.shared = shared
        self._by_name = {shared: Queue({"#"})}

    def __getitem__(self, name: str) -> Queue:
        if name not in self._by_name:
            raise Missing(f"queue '{name}' does not exist on this broker")
        return self._by_name[name]

    def publish(self, routing_key: str, body: bytes, properties: Properties) -> None:
        """Put a message into every queue that is bound by a matching key."""
        for queue in self._by_name.values():
            if any(matches(key, routing_key) for key in queue.keys):
                queue.put(body, properties)

    def declare(self, name: str, keys: Iterable[str] = ()) -> Queue:
        """The queue with this name, which is declared if it does not exist, and bound by these keys as well.

        Raises:
            ClientError: it does not exist, and such names are the broker's own, as in RabbitMQ.
        """
        if name.startswith(_RESERVED) and name not in self._by_name:
            text = f"ACCESS_REFUSED - queue name '{name}' contains reserved prefix '{_RESERVED}*'"
            raise no_connection(_LINK, Outage(OutageKind.ACCESS_REFUSED, text))
        return self._add(name, keys)

    def declare_private(self, keys: Iterable[str]) -> str:
        """Declare a new queue that is bound by these keys; returns the name that the broker gives it."""
        name = f"{_RESERVED}gen-{uuid4()}"
        self._add(name, keys)
        return name

    def _add(self, name: str, keys: Iterable[str]) -> Queue:
        queue = self._by_name.setdefault(name, Queue())
        queue.keys.update(keys)
        return queue

    def delete(self, name: str) -> None:
        """Delete a queue and what is in it."""
        del self._by_name[name]


def matches(pattern: str, routing_key: str) -> bool:
    """Whether a topic exchange routes a message by a binding: `*` stands for one word, `#` for any number of words."""
    words = [
        r"\.[^.]*" if word == "*" else r"(\.[^.]*)*" if word == "#" else re.escape(f".{word}")
        for word in pattern.split(".")
    ]
    return re.fullmatch("".join(words), f".{routing_key}") is not None


class Loan:
    """What one subscriber has of a queue (`client.subscription.Feed`)."""

    def __init__(self, queue: Queue, prefetch: int) -> None:
        self._queue = queue
        self._prefetch = prefetch
        self._unsettled: dict[int, Delivery] = {}
        self._ended = False

    async def take(self, most: int) -> list[Delivery]:
        """What has been delivered, at least one, at most `most`."""
        taken = await self._queue.take(min(most, self._prefetch), lambda: self._ended)
        self._unsettled |= {id(delivery): delivery for delivery in taken}
        return taken

    async def acknowledge(self, tags: Iterable[int]) -> None:
        """Remove these from the queue."""
        self.keep(tags)

    async def widen(self, prefetch: int, finished: Iterable[int]) -> None:
        """Take more at a time from now on, and remove what is finished."""
        self._prefetch = prefetch
        await self.acknowledge(finished)

    def keep(self, tags: Iterable[int]) -> None:
        """Remove these from the queue."""
        for tag in tags:
            self._unsettled.pop(tag, None)

    def end(self) -> None:
        """Return what was not acknowledged, and count it as delivered, as RabbitMQ does."""
        self._ended = True
        self._queue.give_back(
            replace(delivery, attempts=delivery.attempts + 1) for delivery in self._unsettled.values()
        )


class MemorySource:
    """Replies from a queue in memory (`client.subscription.Source`)."""

    def __init__(self, queues: Queues, queue: str | None, keys: Sequence[str], poison: PoisonQueue | None) -> None:
        self._queues = queues
        self._name = queue
        self._keys = keys
        self._poison = poison

    @asynccontextmanager
    async def open(self, prefetch: int) -> AsyncIterator[Loan]:
        """Have deliveries; what was not acknowledged is returned at the end."""
        if self._poison is not None:
            self._queues.declare(self._poison.name)
        private = self._keys and self._name is None
        name = self._queues.declare_private(self._keys) if private else self._name or self._queues.shared
        if self._keys and not private:
            self._queues.declare(name, self._keys)
        loan = Loan(self._queues[name], prefetch)
        try:
            yield loan
        finally:
            loan.end()
            if private:
                self._queues.delete(name)

    def tag(self, delivery: Delivery) -> int:
        """What settles a delivery."""
        return id(delivery)

    async def move(self, delivery: Delivery, queue: str, headers: dict[str, object]) -> None:
        """Put a copy with further headers into a queue."""
        properties = replace(delivery.properties, headers={**delivery.properties.headers, **headers})
        self._queues[queue].put(delivery.body, properties)

    def failed(self, error: BaseException) -> ClientError:
        """What to raise if the first connection fails."""
        missing = how_to_declare(self._name, self._keys, shared=self._queues.shared)
        return no_connection(_LINK, describe(error), missing=missing)
