"""Balance: which partitions a worker hands over, decided without input, output or a clock.

Every worker consumes every partition, and the broker makes one of them the active consumer: the lock is the broker's, and
there is no coordinator. The others stand in a line, in the order in which they began to consume. Whoever closes its channel
and consumes again goes to the end of the line. With N partitions and W workers

* the share of a worker is at least N // W partitions, and at most one more if W does not divide N;
* whoever is active on more than its share hands over half of what is too much, at least one partition, which the first in
  line gets;
* whoever has less than the smallest share is *short* and says so. While anybody is short, whoever has more than the smallest
  share hands over one partition, by chance, so that about as many partitions are handed over as workers are short;
* whoever has got its share leaves its place in every line to those who have not: it consumes again where it is not active.
  It does so when its share changes, when it has got the smallest or the largest share, and again while others are short.

A worker knows that it is active on a partition once that has given it a message. A partition that is empty may belong to
anybody. It costs nothing there, and is balanced when messages come.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

_PATIENCE = 5
"""After this many decisions, those who have their share leave their places in the lines again, if somebody is still short:
others may have come to stand behind them meanwhile."""
_REJOIN_MOST = 32
"""How many partitions are consumed again after one decision at most, because each takes the broker some work."""


@dataclass(frozen=True, slots=True)
class Moves:
    """What a worker does next; both are numbers of partitions."""

    hand_over: frozenset[int] = frozenset()
    """Partitions on which it is active, to be finished and left to the first in line."""
    rejoin: frozenset[int] = frozenset()
    """Partitions on which it is not active, to be consumed again from the end of the line."""

    def __bool__(self) -> bool:
        """Whether anything is to be done."""
        return bool(self.hand_over or self.rejoin)


class Balance:
    """Decides for one worker. Its decisions depend on what it has seen before."""

    def __init__(self, partitions: int, chance: random.Random | None = None) -> None:
        """Begin with no partition. `chance` makes two workers decide differently."""
        self._all = frozenset(range(partitions))
        self._chance = chance or random.Random()  # noqa: S311 - jitter, not cryptography
        self._workers = 0
        self._waited = 0
        self._first_in_line: frozenset[int] = frozenset()  # where it may stand before those who have not their share
        self._full = False
        self.short = True
        """Whether it has less than the smallest share."""

    @property
    def share(self) -> int:
        """The largest number of partitions that it may be active on; 0 before the first decision."""
        return -(-len(self._all) // self._workers) if self._workers else 0

    def over(self, active: Collection[int]) -> bool:
        """Whether these are more than its share."""
        return 0 < self.share < len(active)

    def decide(self, active: Collection[int], workers: int, short: int) -> Moves:
        """The next moves of a worker that is active on these partitions.

        Args:
            active: the partitions that have given it messages since it began to consume them.
            workers: how many workers there are, with this one; at least 1.
            short: how many of them have said that they are short.
        """
        mine = frozenset(active)
        self._notice(mine, max(1, workers), short)
        hand_over = self._chance.sample(sorted(mine), self._too_many(len(mine), short))
        ahead = sorted(self._first_in_line - mine)
        rejoin = [] if self.short else self._chance.sample(ahead, min(len(ahead), _REJOIN_MOST))
        self._first_in_line = self._first_in_line.difference(rejoin)
        return Moves(frozenset(hand_over), frozenset(rejoin))

    def _notice(self, mine: frozenset[int], workers: int, short: int) -> None:
        """Find out whether others may stand behind this worker who should not."""
        was_short, was_full, before = self.short, self._full, (self.share, self._smallest)
        self._workers = workers
        self.short = len(mine) < self._smallest
        self._full = len(mine) >= self.share
        self._waited = self._waited + 1 if short and not self.short else 0
        changed = before != (self.share, self._smallest)
        if changed or was_short > self.short or self._full > was_full or self._waited > _PATIENCE:
            self._first_in_line = self._all
            self._waited = 0

    @property
    def _smallest(self) -> int:
        return len(self._all) // self._workers if self._workers else 0

    def _too_many(self, count: int, short: int) -> int:
        if count > self.share:
            return (count - self.share + 1) // 2
        if count > self._smallest and short:
            able = (
                len(self._all) - self._smallest * self._workers
            )  # how many workers can have more than the smallest share
            return int(self._chance.random() * max(1, able) < short)
        return 0
