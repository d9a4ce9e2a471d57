"""Asyncio tools: batches from a queue, a lock to share, slices of work, delays, work in the meantime, threads, an end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from itertools import accumulate, islice, takewhile
from math import inf
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

_CANCEL_AGAIN_SECONDS = 3.0
"""Longer than it takes to close a connection, because a second cancellation would interrupt that."""


class Waiting(Generic[Item]):
    """The queue of the process. There are no timers: a batch is whatever is waiting when the next one is taken.

    The queue has no limit of its own, because the broker's prefetch limits it.
    """

    def __init__(self, most_weight: float = inf) -> None:
        """Empty at first. What is taken at a time weighs at most `most_weight`, or is one item."""
        self._most_weight = most_weight
        self._items: deque[Item] = deque()
        self._weights: deque[int] = deque()  # of each item
        self._weight = 0  # of all
        self._changed = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item, weight: int = 0) -> None:
        """Add `item`, which has this weight, at the end."""
        self._items.append(item)
        self._weights.append(weight)
        self._weight += weight
        self._changed.set()

    async def take(self, most: int) -> list[Item]:
        """Wait until there is an item, then take all items, at most `most`. Empty once the queue is closed."""
        while not self._items and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        return [] if self._closed else self.take_waiting(most)

    def peek(self, most: int) -> list[Item]:
        """What would be taken now, at most `most`. It is not taken."""
        return list(islice(self._items, self._fitting(most)))

    async def changed(self) -> None:
        """Wait until something is put, or until `wake` or `close` is called."""
        self._changed.clear()
        await self._changed.wait()

    def wake(self) -> None:
        """End each wait for a change, because what may be taken has changed."""
        self._changed.set()

    def take_waiting(self, most: int) -> list[Item]:
        """Take the items that are waiting now, at most `most`. May be empty."""
        count = self._fitting(most)
        if count == len(self._items):
            items = list(self._items)
            self.clear()
            return items
        self._weight -= sum(self._weights.popleft() for _ in range(count))
        return [self._items.popleft() for _ in range(count)]

    def _fitting(self, most: int) -> int:
        """How many items may be taken at a time: at most `most`, and at most `most_weight` together unless it is one."""
        if self._weight <= self._most_weight:
            return min(most, len(self._items))
        sums = accumulate(islice(self._weights, most))
        return max(1, sum(1 for _ in takewhile(self._most_weight.__ge__, sums)))

    def remove(self, chosen: Callable[[Item], bool]) -> list[Item]:
        """Remove and return the items that are chosen."""
        items = list(zip(self._items, self._weights, strict=True))
        self.clear()
        removed = []
        for item, weight in items:
            if chosen(item):
                removed.append(item)
            else:
                self.put(item, weight)
        return removed

    def put_first(self, chosen: Callable[[Item], bool]) -> None:
        """Move the items that are chosen before all others. Both keep their order among themselves."""
        items = list(zip(self._items, self._weights, strict=True))
        items.sort(key=lambda each: not chosen(each[0]))
        self._items, self._weights = deque(item for item, _ in items), deque(weight for _, weight in items)

    def clear(self) -> None:
        """Remove all items. Their channel was lost, so the broker delivers them again."""
        self._items.clear()
        self._weights.clear()
        self._weight = 0

    def close(self) -> None:
        """Give out no more items. Waiting items are not taken."""
        self._closed = True
        self._changed.set()


class SharedLock:
    """A lock that several tasks may share, or one task may have alone. A task that waits for it alone is served first."""

    def __init__(self) -> None:
        self._shares = 0
        self._alone = asyncio.Lock()
        self._unshared = asyncio.Event()
        self._unshared.set()
        self.wanted = asyncio.Event()
        """Set while somebody waits to have it alone. Who shares it for long should stop."""

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
            self.wanted.set()
            try:
                await self._unshared.wait()
            finally:
                self.wanted.clear()
            yield


class Slices:
    """Divides long work into slices, between which the event loop runs: for loops over a batch whose items can be costly.

        slices = Slices()
        for item in batch:
            work(item)
            if slices.over(len(item)):
                await slices.next()

    The loop is stopped for a slice and one item at most.
    """

    SECONDS = 0.02
    """The longest slice. The costliest item takes some 70 ms, and the loop must not stop for more than 100 ms."""
    BYTES = 2**19
    """What is worked on in one slice at most, so that it does not depend on the clock alone."""

    def __init__(self, seconds: float | None = None) -> None:
        """Begin the first slice. Each is this long; None: as long as the loop may be stopped."""
        self._seconds = self.SECONDS if seconds is None else seconds
        self._begin()

    def _begin(self) -> None:
        self.until = time.perf_counter() + self._seconds
        """When the slice ends (`time.perf_counter`)."""
        self._left = self.BYTES

    def over(self, size: int = 0) -> bool:
        """Whether the slice is over, after an item of `size` bytes."""
        self._left -= size
        return self._left < 0 or time.perf_counter() > self.until

    async def next(self) -> None:
        """Let the event loop run once, then begin the next slice."""
        await asyncio.sleep(0)
        self._begin()


class Backoff:
    """Delays in seconds that double from `first` to `most`, with jitter so that workers do not act at the same time."""

    def __init__(self, first: float = 0.2, most: float = 10.0) -> None:
        self._first = first
        self._most = most
        self._next = first

    def delay(self) -> float:
        """The next delay: between half a step and a whole step."""
        step = self._next
        self._next = min(step * 2, self._most)
        return random.uniform(step / 2, step)  # noqa: S311 - jitter, not cryptography

    def reset(self) -> None:
        """Start again from the first delay."""
        self._next = self._first


@asynccontextmanager
async def meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Let this work go on while the block waits for something. What is left of it when the block ends is not done."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # read, or asyncio reports it


async def in_thread(function: Callable[[], Item]) -> Item:
    """What a function returns that waits for the network, in a thread of its own.

    Unlike with `asyncio.to_thread`, neither the event loop nor the process waits for the thread when it ends: a command that
    is interrupted ends at once.
    """
    result: concurrent.futures.Future[Item] = concurrent.futures.Future()

    def run() -> None:
        try:
            result.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
            result.set_exception(error)

    result.set_running_or_notify_cancel()
    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(result)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks until each has ended. They still end if the caller is cancelled meanwhile.

    Cancelling once is not enough. Before Python 3.12 `asyncio.wait_for`, which the driver uses, loses a cancellation that
    arrives together with the result. And a caller in a cancelled scope of anyio is cancelled again at each of its waits.
    """
    await asyncio.shield(_cancel_until_ended(tasks))


async def _cancel_until_ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_CANCEL_AGAIN_SECONDS)
