"""What waits for the network in a thread of its own."""

import asyncio
from threading import Event

import pytest

from task_activity_log.aio import in_thread


async def test_what_it_returns_or_raises() -> None:
    assert await in_thread(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


def test_an_event_loop_that_ends_does_not_wait_for_it() -> None:
    """A command that is interrupted while the management API is silent ends at once."""
    answered = Event()

    async def interrupted() -> None:
        asking = asyncio.create_task(in_thread(answered.wait))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(interrupted())
    assert not answered.is_set()
    answered.set()
