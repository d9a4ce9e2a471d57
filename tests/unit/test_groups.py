"""Which rows are tried together: how many trials, and how long others wait, on a clock that only counts trials."""

from collections.abc import Callable
from random import Random

import pytest

from task_activity_log.pipeline.groups import TRIAL_SECONDS, Groups

_PASS_SECONDS = 0.003
_CANCEL_SECONDS = 0.003


class Simulated:
    """Two lanes that take turns with the trials of one wave, until every row has passed or is known to be slow."""

    def __init__(self, rows: int, slow: set[int], limit: Callable[[int], float] = lambda _: TRIAL_SECONDS) -> None:
        self.passed_at: dict[int, float] = {}
        self.found: list[int] = []
        self.exceeded = 0
        groups = Groups([range(rows)])
        again: set[int] = set()
        free = [0.0, 0.0]  # when each lane is free
        while part := groups.next():
            lane = free.index(min(free))
            if slow.isdisjoint(part):
                free[lane] += _PASS_SECONDS
                groups.passed()
                self.passed_at |= dict.fromkeys(part, free[lane])
                continue
            free[lane] += limit(len(part)) + _CANCEL_SECONDS
            self.exceeded += 1
            if not groups.exceeded(part):
                if part[0] in again:
                    self.found.append(part[0])
                else:
                    again.add(part[0])
                    groups.add_again(part)
        self.others = max(self.passed_at.values(), default=0.0)
        """When the last of the others had passed."""


@pytest.mark.parametrize(
    ("rows", "slow", "trials", "seconds"),
    [
        (500, 1, 5, 0.2),
        (500, 30, 110, 1.5),
        (500, 300, 700, 3.0),
        (500, 499, 1020, 4.0),
        (1000, 300, 800, 4.0),  # as much as may be parked
        (2, 1, 3, 0.1),
        (500, 0, 0, 0.1),
    ],
)
@pytest.mark.parametrize("order", ["mixed", "first", "last"])
def test_all_slow_rows_are_found_and_the_others_pass_early(
    rows: int, slow: int, trials: int, seconds: float, order: str
) -> None:
    """Each other row is stored, and after a number of trials that grows with the number of slow rows alone."""
    for seed in range(5):
        those = set(range(slow))
        if order == "mixed":
            those = set(Random(seed).sample(range(rows), slow))  # noqa: S311 - reproducible
        if order == "last":
            those = {rows - 1 - row for row in those}
        seen = Simulated(rows, those)
        assert set(seen.found) == those
        assert len(seen.found) == slow
        assert set(seen.passed_at) == set(range(rows)) - those
        assert seen.exceeded <= trials
        assert seen.others < seconds


def test_rows_that_nobody_has_tried_come_before_those_that_have_exceeded_a_limit() -> None:
    """A wave that comes later passes before the slow rows of an earlier one are tried for the second time."""
    groups = Groups([["a"], ["b"]])
    assert groups.next() == ["a"]
    assert not groups.exceeded(["a"])
    groups.add_again(["a"])
    groups.add(["c", "d"])
    assert [groups.next() for _ in range(3)] == [["b"], ["c", "d"], ["a"]]
    assert groups.next() == ()


def test_what_is_divided_waits_behind_the_others() -> None:
    """In parts that have all of it, in order."""
    groups = Groups([range(500), range(500, 510)])
    assert groups.exceeded(groups.next())
    assert groups.next() == range(500, 510)
    parts = groups.rest()
    assert [row for part in parts for row in part] == list(range(500))
    assert 8 <= len(parts) <= 9
    assert len(groups) == 0


def test_the_more_parts_exceed_their_limits_the_smaller_they_become() -> None:
    """When most of the rows are slow, larger parts would be tried in vain. Once a part has passed, they are larger again."""
    groups: Groups[int] = Groups()
    assert groups.exceeded(range(500))
    groups.rest()
    assert groups.exceeded(range(62))
    assert [len(part) for part in groups.rest()] == [1] * 62
    groups.passed()
    assert groups.exceeded(range(64))
    assert [len(part) for part in groups.rest()] == [8] * 8
