"""Four asyncio tools: a queue that is taken from in batches, a shared lock, jittered delays, and the end of tasks."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

_CANCEL_AGAIN_SECONDS = 3.0
"""Longer than closing a connection takes, which a second cancellation would cut off."""


class Waiting(Generic[Item]):
    """The inbox queue of the process. No timers: a batch is whatever is waiting when its taker is free.

    It has no bound of its own: the broker's prefetch bounds it.
    """

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._changed = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> None:
        """Add `item` at the end."""
        self._items.append(item)
        self._changed.set()

    async def take(self, most: int) -> list[Item]:
        """Wait until there is something, then take what is there, at most `most`. Empty once closed."""
        while not self._items and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        return [] if self._closed else self.take_waiting(most)

    def peek(self, most: int) -> list[Item]:
        """What would be taken now, at most `most`. It is not taken."""
        return list(islice(self._items, most))

    async def changed(self) -> None:
        """Wait until something is put, or until `wake` or `close` is called."""
        self._changed.clear()
        await self._changed.wait()

    def wake(self) -> None:
        """End each wait for a change, because what may be taken has changed."""
        self._changed.set()

    def take_waiting(self, most: int) -> list[Item]:
        """What is there now, at most `most`; empty if that is nothing."""
        if len(self._items) <= most:
            items = list(self._items)
            self._items.clear()
            return items
        return [self._items.popleft() for _ in range(most)]

    def clear(self) -> None:
        """Forget everything that waits: it belonged to a channel that is gone and comes again."""
        self._items.clear()

    def close(self) -> None:
        """Give nothing out any more; what waits stays untaken."""
        self._closed = True
        self._changed.set()


class SharedLock:
    """A lock that several tasks may share, or one task may have alone. Whoever waits for it alone is served first."""

    def __init__(self) -> None:
        self._shares = 0
        self._alone = asyncio.Lock()
        self._unshared = asyncio.Event()
        self._unshared.set()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Share it with others. It must not be taken alone meanwhile by the same task."""
        async with self._alone:
            self._shares += 1
            self._unshared.clear()
        try:
            yield
        finally:
            self._shares -= 1
            if not self._shares:
                self._unshared.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Have it while nobody shares it."""
        async with self._alone:
            await self._unshared.wait()
            yield


class Backoff:
    """Delays in seconds that double from `first` to `most`, jittered so that workers do not march in step."""

    def __init__(self, first: float = 0.2, most: float = 10.0) -> None:
        self._first = first
        self._most = most
        self._next = first

    def delay(self) -> float:
        """The next delay: between half of the present step and the whole of it."""
        step = self._next
        self._next = min(step * 2, self._most)
        return random.uniform(step / 2, step)  # noqa: S311 - jitter, not cryptography

    def reset(self) -> None:
        """Start again from the first delay."""
        self._next = self._first


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel until each has ended.

    Once is not enough: `asyncio.wait_for`, which the driver is made of, loses a cancellation that comes with the answer
    it waits for (before Python 3.12).
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_CANCEL_AGAIN_SECONDS)
