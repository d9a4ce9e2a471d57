"""Take what is waiting; split it into waves; halve."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from task_activity_log.request import Delivery, Request, UpdateMode

Item = TypeVar("Item")
D = TypeVar("D", bound=Delivery)


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


def waves(requests: Sequence[Request[D]]) -> list[list[Request[D]]]:
    """Split a batch into waves: each holds an id once and one update mode, and an id's requests stay in order.

    One statement can neither touch a row twice (SQLSTATE 21000) nor both replace and merge.
    """
    split: list[tuple[UpdateMode, list[Request[D]]]] = []
    earliest: dict[object, int] = {}
    for request in requests:
        index = earliest.get(request.record.id, 0)
        while index < len(split) and split[index][0] is not request.mode:
            index += 1
        if index == len(split):
            split.append((request.mode, []))
        split[index][1].append(request)
        earliest[request.record.id] = index + 1
    return [wave for _, wave in split]


def halve(wave: Sequence[Request[D]]) -> tuple[Sequence[Request[D]], Sequence[Request[D]]]:
    """The two halves of a wave of at least two: a guilty row among n is found in O(log n) statements."""
    middle = len(wave) // 2
    return wave[:middle], wave[middle:]
