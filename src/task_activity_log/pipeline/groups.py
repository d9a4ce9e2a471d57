"""Which rows are tried together while slow ones are searched for. A pure decision: no input or output.

A statement with one slow row takes as long as that row. If it exceeds its limit, its rows are divided into parts, and these
wait behind the other parts: rows that nobody has tried yet come first. A part that passes is done. A part of one row that
exceeds its limit twice is a slow row: once may be chance. So one slow row among 500 is found after about five statements that
exceed their limits, and when most of the rows are slow, hardly any statement is spent on parts that cannot pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

TRIAL_SECONDS = 0.01
"""How long a trial may take at least. The limit of a row doubles each time that the row exceeds it (see `lines`)."""
_PARTS = 8
"""A part that passes costs a fifth of one that exceeds its limit, so eight parts are better than two."""


class Groups(Generic[T]):
    """The parts that are to be tried, in order."""

    def __init__(self, parts: Iterable[Sequence[T]] = ()) -> None:
        """Begin with these parts."""
        self._waiting: deque[Sequence[T]] = deque(filter(None, parts))
        self._again: deque[Sequence[T]] = deque()
        self._in_a_row = 0  # how many parts have exceeded their limits since one has passed

    def __len__(self) -> int:
        return len(self._waiting) + len(self._again)

    def add(self, part: Sequence[T]) -> None:
        """Try this part, behind the others."""
        if part:
            self._waiting.append(part)

    def add_again(self, row: Sequence[T]) -> None:
        """Try this part of one row, which has exceeded its limit once, when no others wait."""
        self._again.append(row)

    def next(self) -> Sequence[T]:
        """The part that is tried next; empty if there is none."""
        waiting = self._waiting or self._again
        return waiting.popleft() if waiting else ()

    def rest(self) -> list[Sequence[T]]:
        """All parts that wait. They wait no more."""
        rest = [*self._waiting, *self._again]
        self._waiting.clear()
        self._again.clear()
        return rest

    def passed(self) -> None:
        """A part has passed."""
        self._in_a_row = 0

    def exceeded(self, part: Sequence[T]) -> bool:
        """A part has exceeded its limit. Whether it is divided; if not, it is one row.

        The more parts in a row have exceeded theirs, the more rows are slow, and the smaller are the parts.
        """
        self._in_a_row += 1
        if len(part) == 1:
            return False
        size = max(1, len(part) // _PARTS ** min(self._in_a_row, 8))
        self._waiting += [part[start : start + size] for start in range(0, len(part), size)]
        return True
