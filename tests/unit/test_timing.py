"""How long a statement may take, and what is done with one that took longer."""

import pytest

from task_activity_log.pipeline.timing import FACTOR, Step, Timing, next_step

FAST = [(500, 0.05)] * 16
SINGLE = [(1, 0.01)] * 16


@pytest.mark.parametrize(
    ("passed", "probe", "rows", "least", "expected"),
    [
        ([], None, 500, 2.0, 2.0),  # nothing is known
        ([], 0.005, 500, 2.0, 2.0),
        ([], 3.0, 500, 2.0, 12.0),  # commits are slow
        (FAST, None, 500, 2.0, 2.0),
        (FAST, None, 1, 0.0, 0.2),  # fewer rows may take as long
        (FAST, 0.01, 500, 0.0, 0.2),
        ([(500, 5.0)] * 16, None, 500, 2.0, 20.0),
        ([(500, 5.0), (100, 1.01)] * 8, 0.01, 500, 2.0, 20.0),  # 10 ms a row
        ([(500, 0.05), *[(500, 5.0)] * 15], None, 500, 0.0, 20.0),  # all have become slow
        ([*[(500, 0.05)] * 12, *[(500, 9.0)] * 4], None, 500, 0.0, 0.2),  # some had slow rows
        ([*[(500, 0.05)] * 5, *[(500, 9.0)] * 11], None, 500, 0.0, 0.2),  # most had slow rows
        (SINGLE, None, 500, 2.0, 2.0),  # a commit takes 10 ms, or a row: it is not known which,
        (SINGLE, 0.01, 500, 2.0, 2.0),  # but a probe commits too
        ([(1, 0.05)] * 16, 0.01, 20, 2.0, 3.24),  # a row takes 40 ms
        ([(1, 0.05)] * 16, 0.01, 500, 2.0, 5.16),  # what is known of one row is not known of 500
    ],
)
def test_the_limit_of_a_statement(
    passed: list[tuple[int, float]], probe: float | None, rows: int, least: float, expected: float
) -> None:
    """Four times what is expected, and at least `least`."""
    timing = Timing()
    for statement in passed:
        timing.passed(*statement)
    if probe is not None:
        timing.probed(probe)
    assert timing.limit(rows, least) == pytest.approx(expected)


def test_after_an_outage_a_statement_may_take_longer_each_time() -> None:
    """Otherwise a database whose commits take six seconds could never pass again. What passes then is what is known."""
    timing = Timing()
    for statement in FAST:
        timing.passed(*statement)
    limits = []
    for _ in range(4):
        timing.outage()
        limits.append(timing.limit(500, 2.0))
    assert limits == [4.0, 8.0, 16.0, 32.0]
    timing.passed(1, 6.0)
    assert timing.limit(1, 2.0) == FACTOR * 6.0


def test_a_probe_that_passes_ends_the_longer_limit() -> None:
    """There are slow rows in the statement, and each trial of the search would take as long."""
    timing = Timing()
    timing.outage()
    timing.probed(0.01)
    assert timing.limit(500, 1.0) == 1.0


def test_a_slow_probe_ends_what_was_known() -> None:
    """The statements before it were made while the database was fast. Those after it count again."""
    timing = Timing()
    for statement in FAST:
        timing.passed(*statement)
    timing.probed(3.0)
    assert timing.limit(500, 2.0) == FACTOR * 3.0
    timing.passed(500, 0.05)
    assert timing.limit(500, 2.0) == 2.0


@pytest.mark.parametrize(
    ("rows", "limit", "now", "step"),
    [
        (500, 2.0, 2.0, Step.DIVIDE),
        (500, 2.0, 3.9, Step.DIVIDE),
        (500, 2.0, 4.0, Step.AGAIN),
        (1, 2.0, 4.0, Step.AGAIN),
        (1, 2.0, 2.0, Step.PARK),
        (500, None, 2.0, Step.DIVIDE),  # more time changes nothing
        (500, None, 9.0, Step.DIVIDE),
        (1, None, 9.0, Step.PARK),
    ],
)
def test_what_is_done_next_with_a_part_that_failed(rows: int, limit: float | None, now: float, step: Step) -> None:
    """If the database is slower than was known it is tried again; otherwise a row is at fault."""
    assert next_step(rows, limit, now) is step


@pytest.mark.parametrize(
    ("own", "limit", "rows"),
    [
        ((20, 0.05), 1.0, 500),  # 2 ms a row: perhaps by chance
        ((20, 0.15), 4 * 0.05 + 4 * 500 * 0.005, 400),
        ((20, 1.05), 4 * 0.05 + 4 * 500 * 0.05, 40),
        ((1, 0.45), 4 * 0.05 + 4 * 500 * 0.4, 5),
        ((1, 9.05), 4 * 0.05 + 4 * 500 * 9.0, 1),
    ],
)
def test_what_rows_of_the_workers_own_take_is_what_each_row_takes(
    own: tuple[int, float], limit: float, rows: int
) -> None:
    """Until a statement with others has taken less than half of that. Meanwhile a statement has fewer of them."""
    timing = Timing()
    for statement in FAST:
        timing.passed(*statement)
    timing.own_rows(own)
    assert timing.limit(500, 1.0) == pytest.approx(max(1.0, limit))
    assert timing.rows(500) == rows
    timing.passed(100, 0.052)
    assert timing.limit(500, 1.0) == 1.0
    assert timing.rows(500) == 500


def test_a_statement_has_as_many_rows_as_take_two_seconds() -> None:
    """Or four times what a statement takes without rows: it would take longer in parts."""
    timing = Timing()
    assert timing.rows(500) == 500
    for _ in range(16):
        timing.passed(100, 5.005)
    timing.probed(0.005)
    assert timing.rows(500) == 40
    timing.passed(1, 1.005)
    timing.probed(1.005)
    assert timing.rows(500) > 90
