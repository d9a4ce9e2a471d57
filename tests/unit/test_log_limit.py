"""How often an event is logged that anybody can cause."""

from task_activity_log.rabbitmq.log_limit import LogLimit


def test_ten_events_in_a_minute_are_logged() -> None:
    """The next one that is logged says how many were omitted."""
    limit = LogLimit()
    assert [limit.omit(3, now) for now in range(12)] == [0] * 10 + [None] * 2
    assert limit.omit(5, 59.9) is None
    assert limit.omit(5, 60.0) == 11
    assert limit.omit(5, 60.9) is None
    assert [limit.omit(1, now) for now in (200, 201)] == [5, 0]
