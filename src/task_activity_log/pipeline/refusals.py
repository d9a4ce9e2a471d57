"""Whose fault is it that the database refuses rows: that of the rows, or that of the database? Pure: no input or output.

A constraint that somebody has added, or a trigger that fails, can refuse every row. Then good messages must wait; but the bad
messages of one publisher must not have everybody wait. So refusals in a row only start a trial: the worker writes rows of its
own, one of them with the values of a record that was stored lately, and rolls back. The database is at fault only if it
refuses all of these too, one of them for the same reason, and if nothing has passed since the first of these refusals. As soon
as a row passes, it was the rows' fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from task_activity_log.problem import Failed, Rule
from task_activity_log.record import TaskActivityLog

TRY_AGAIN_SECONDS = 3.0
"""How often rows of our own are tried again while the database refuses every row: soon after it was fixed, work goes on."""
OF_COPIES = ("23505", "23P01")
"""Unique and exclusion constraints. They refuse a copy of a record because it is one."""


@dataclass(eq=False)
class Refusals:
    """What was refused since a row was last stored, and whether every row is refused."""

    most: int
    """After this number of refusals for one reason, rows of our own are tried; and after the first refusal, if there is
    a record that was stored lately. 0: never, a refusal is always the row's fault."""
    passes: int = field(init=False, default=0)
    """The number of statements that have stored something."""
    findings: int = field(init=False, default=0)
    """How often something was learned: a statement has stored something, or rows of our own were tried."""
    accepted: TaskActivityLog | None = field(init=False, default=None)
    """A record that was stored lately. A row of our own has its values: if the database refuses them now, it has changed."""
    everybodys: Failed | None = field(init=False, default=None)
    """Why the database refuses every row; None if it does not, as far as is known."""

    def __post_init__(self) -> None:
        self._counts: Counter[Rule] = Counter()  # since the last pass
        self._tried = 0.0  # when rows of our own were last tried, while every row is refused

    @property
    def next_trial(self) -> float:
        """When rows of our own are tried again (`time.monotonic`); infinity unless every row is refused."""
        return inf if self.everybodys is None else self._tried + TRY_AGAIN_SECONDS

    def passed(self, record: TaskActivityLog) -> bool:
        """A statement has stored this record, perhaps with others. Whether this shows that not every row is refused."""
        self.passes += 1
        self.findings += 1
        self.accepted = record
        self._counts.clear()
        ended, self.everybodys = self.everybodys is not None, None
        return ended

    def must_try(self, rule: Rule, since: int, now: float, *, lasting: bool) -> bool:
        """Whether rows of our own must be tried, because the database has refused a row of its own accord.

        Args:
            rule: what has refused it.
            since: `passes` when the row was first tried.
            now: `time.monotonic`.
            lasting: whether it is an error that is rarely a row's: then the first refusal is enough.
        """
        if since < self.passes or self.most == 0:
            return False
        if self.everybodys is not None:
            return now - self._tried >= TRY_AGAIN_SECONDS
        self._counts[rule] += 1
        quickly = self.accepted is not None and rule.sqlstate not in OF_COPIES and self._counts[rule] == 1
        return lasting or quickly or self._counts[rule] % self.most == 0

    def tried(self, rule: Rule, since: int, now: float, found: Sequence[Failed]) -> None:
        """Rows of our own were tried. `found` is why each of them was refused; empty if one has passed."""
        self.findings += 1
        if since < self.passes:
            return
        otherwise = found[0] if found and self.everybodys is not None else None  # it goes on, whatever refuses them now
        self.everybodys = next((failure for failure in found if failure.rule == rule), otherwise)
        self._tried = now
