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


def test_after_an_outage_a_statement_may_take_as_long_as_any() -> None:
    """Otherwise a database whose commits take six seconds could never pass again. What passes then is what is known."""
    timing = Timing()
    for statement in FAST:
        timing.passed(*statement)
    timing.outage()
    assert timing.limit(500, 2.0) is None
    timing.passed(1, 6.0)
    assert timing.limit(1, 2.0) == FACTOR * 6.0


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
    ("rows", "limit", "now", "in_time", "step"),
    [
        (500, 2.0, 2.0, True, Step.DIVIDE),
        (500, 2.0, 3.9, True, Step.DIVIDE),
        (500, 2.0, 4.0, True, Step.AGAIN),
        (500, 2.0, None, True, Step.AGAIN),
        (500, 2.0, 4.0, False, Step.AGAIN),
        (1, 2.0, 4.0, False, Step.AGAIN),
        (500, 2.0, 2.0, False, Step.PARK),
        (1, 2.0, 2.0, True, Step.PARK),
        (500, None, None, True, Step.DIVIDE),  # more time changes nothing
        (500, None, 9.0, True, Step.DIVIDE),
        (1, None, 9.0, True, Step.PARK),
        (500, None, 9.0, False, Step.PARK),
    ],
)
def test_what_is_done_next_with_a_part_that_failed(
    rows: int, limit: float | None, now: float | None, in_time: bool, step: Step
) -> None:
    """If the database is slower than was known it is tried again; otherwise a row is at fault."""
    assert next_step(rows, limit, now, in_time=in_time) is step
