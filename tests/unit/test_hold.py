"""A hold: how long it waits, what it shows, and how it ends."""

import asyncio

import pytest

from task_activity_log.aio import Backoff
from task_activity_log.pipeline.hold import Abandoned, Hold


def test_delays_double_up_to_the_maximum_and_are_jittered() -> None:
    """Each delay is between half a step and a whole step. The steps are 1, 2, 4, 5, 5."""
    backoff = Backoff(first=1, most=5)
    delays = [backoff.delay() for _ in range(5)]
    assert all(step / 2 <= delay <= step for delay, step in zip(delays, (1, 2, 4, 5, 5), strict=True))
    backoff.reset()
    assert backoff.delay() <= 1


async def test_a_hold_shows_its_reason_until_released() -> None:
    """Operators see why the work waits and since when."""
    hold = Hold("store", Backoff(first=0.001))
    shown = [(hold.reason, hold.since is None)]
    for reason in ("database down", "still down"):
        await hold.wait(reason)
        shown.append((hold.reason, hold.since is None))
    assert hold.release() > 0
    shown.append((hold.reason, hold.since is None))
    assert shown == [(None, True), ("database down", False), ("still down", False), (None, True)]


async def test_draining_ends_the_sleep_and_allows_one_more_try() -> None:
    """A waiting task continues at once; the next wait raises `Abandoned`."""
    hold = Hold("store", Backoff(first=3600, most=3600))
    sleeping = asyncio.create_task(hold.wait("database down"))
    await asyncio.sleep(0)
    hold.drain()
    await asyncio.wait_for(sleeping, 5)
    with pytest.raises(Abandoned):
        await hold.wait("database down")
