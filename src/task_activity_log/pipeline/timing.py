"""How long statements take at present, and so how long one may take before its rows are searched. No input or output.

A statement with one slow row must not make other records wait for as long as the database allows. But a database can be
slow for everybody: a loaded machine, a checkpoint, a standby that is slow to confirm commits, a trigger that costs 50 ms
for each row. So the limit of a statement grows with what statements have taken lately:

    limit = the larger of `least` and FACTOR x expected;  expected = fixed + rows x per row

`fixed` is what a statement takes without rows: the least of the last statements and of the last probe. `per row` is the lower
quartile of what the last statements took beyond that: three quarters of them would have to have a slow row before it counts.

A statement that exceeds its limit is cancelled, a probe is made, and a row of the worker's own is written and rolled back. If
the limit is much longer now, because commits are slow, or because each row is, the same rows are tried again. Otherwise
the rows are searched (see `search`). If the probe takes too long as well, nothing is known. Then a statement may take four
seconds, and twice as long after each time that this happens again, or it could never pass.

If each row takes long, a statement has only as many rows as take two seconds, so that one that exceeds its limit costs little.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto

FACTOR = 4.0
"""How much longer than expected a statement may take."""
LONGER = 2.0
"""How much longer the limit must be now for the same rows to be tried again. It doubles each time, so this ends."""
_RECENT = 16
"""How many statements are remembered. A database that becomes slow for all rows is known after most of these."""
_LARGER = 32
"""What is known of a few rows says little of hundreds: they are expected to take as long as 32 times as many at most."""
_AFTER_OUTAGE_SECONDS = 4.0
"""How long a statement may take when the database did not answer in time: there may be slow rows in it all the same."""
_UNUSUAL_SECONDS = 0.2
"""A probe that takes longer, and longer than expected, shows that the database has changed."""
OWN_ROWS = 20
"""How many rows of the worker's own are timed: a delay by chance is divided by this number."""
_UNUSUAL_ROW_SECONDS = 0.003
"""If each of them takes longer, each row takes long."""
_STATEMENT_SECONDS = 2.0
"""How long a statement is expected to take at most, if it is because of its rows."""

_REPEATS_SECONDS = 2.0
"""How long the same records may be written again and again in one batch. Then the rest of them is parked, if they are costly."""
_COSTLY_SECONDS = 0.01
"""From this time on, for each row, a record is costly. Others are not parked: they pass sooner in their batch."""


class Timing:
    """What is known of the time that statements take."""

    def __init__(self) -> None:
        """Nothing is known."""
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT)
        self._probe: float | None = None
        self._own = 0.0  # what each row takes at least, by a row of the worker's own
        self._after_outage = 0.0

    def passed(self, rows: int, seconds: float) -> None:
        """A statement with this number of rows has passed."""
        self._recent.append((rows, seconds))
        self._after_outage = 0.0
        if seconds - self._fixed() < rows * self._own / 2:
            self._own = 0.0

    def own_rows(self, took: tuple[int, float]) -> None:
        """A number of rows of the worker's own have taken this long. Nothing is wrong with them, so others take as long."""
        rows, seconds = took
        per_row = (seconds - self._fixed()) / rows
        self._own = per_row if per_row > _UNUSUAL_ROW_SECONDS else 0.0

    def probed(self, seconds: float) -> None:
        """A probe has passed, after a statement that did not."""
        if seconds > max(_UNUSUAL_SECONDS, FACTOR * self._fixed()):
            self._recent.clear()
        self._probe = seconds
        self._after_outage = 0.0

    def outage(self) -> None:
        """A statement took too long, and the probe did not pass either."""
        self._recent.clear()
        self._probe, self._own = None, 0.0
        self._after_outage = max(_AFTER_OUTAGE_SECONDS, 2 * self._after_outage)

    def _fixed(self) -> float:
        """What a statement takes at least."""
        probe = () if self._probe is None else (self._probe,)
        return min((*(seconds for _, seconds in self._recent), *probe), default=0.0)

    def expected(self, rows: int) -> float:
        """How many seconds a statement with this number of rows takes."""
        most = _LARGER * max((count for count, _ in self._recent), default=0)
        return self._fixed() + max(min(rows, most) * self._per_row(), rows * self._own)

    def _per_row(self) -> float:
        """What the last statements took for a row."""
        fixed = self._fixed()
        per_row = sorted((seconds - fixed) / count for count, seconds in self._recent)
        return per_row[len(per_row) // 4] if per_row else 0.0

    def rows(self, count: int) -> int:
        """How many of `count` rows one statement should have."""
        per_row = max(self._per_row(), self._own)
        within = max(_STATEMENT_SECONDS, FACTOR * self._fixed())
        return count if count * per_row <= within else max(1, int(within / per_row))

    def limit(self, rows: int, least: float) -> float:
        """How many seconds a statement with this number of rows may take, at least `least`."""
        return max(least, self._after_outage, FACTOR * self.expected(rows))


class Repeats:
    """The waves of a batch in which the same records come again. They may be costly to write: a long text, a slow trigger."""

    def __init__(self) -> None:
        """A batch begins."""
        self._waves, self._rows, self._seconds = 0, 0, 0.0
        self._begun: tuple[int, float] | None = None  # the rows of the wave under way, and when it began

    def begin(self, rows: int, now: float) -> None:
        """A wave begins."""
        self._begun = rows, now

    def end(self, now: float) -> None:
        """The wave that has begun, if there is one, is stored."""
        if self._begun is not None:
            rows, begun = self._begun
            self._waves, self._rows, self._seconds = self._waves + 1, self._rows + rows, self._seconds + now - begun
            self._begun = None

    @property
    def long(self) -> bool:
        """Whether others have waited long for these waves."""
        return self._seconds > _REPEATS_SECONDS

    def costly(self, fixed: float) -> bool:
        """Whether it was because of the records, if a statement takes `fixed` seconds whatever the rows."""
        return self._seconds - self._waves * fixed > max(_REPEATS_SECONDS, _COSTLY_SECONDS * self._rows)


class Step(Enum):
    """What is done with a part of a wave that has failed although the database works."""

    AGAIN = auto()
    """The database is slower than was known: the same rows get more time."""
    DIVIDE = auto()
    """One of the rows may be at fault: try the others without it."""
    PARK = auto()
    """The row is at fault."""


def next_step(rows: int, limit: float | None, now: float) -> Step:
    """What is done next with a part of this number of rows.

    Args:
        rows: how many it has.
        limit: the limit that it has exceeded; None: that of any statement, or it failed for a reason that more time does
            not change.
        now: what the limit would be now, after the probe.
    """
    if limit is not None and now >= LONGER * limit:
        return Step.AGAIN
    return Step.DIVIDE if rows > 1 else Step.PARK
