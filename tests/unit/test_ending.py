"""`aio.end`, which cancels tasks until they have ended."""

import asyncio

import pytest

from task_activity_log import aio


async def losing_a_cancellation(started: asyncio.Event) -> None:
    """Loses the first cancellation, as `asyncio.wait_for` does before Python 3.12."""
    started.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


async def started_task() -> asyncio.Task[None]:
    started = asyncio.Event()
    task = asyncio.create_task(losing_a_cancellation(started))
    await started.wait()
    return task


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "_CANCEL_AGAIN_SECONDS", 0.01)


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    """Once is not enough."""
    task = await started_task()
    await aio.end(task)
    assert task.cancelled()


async def test_tasks_end_although_the_caller_is_cancelled() -> None:
    """A client that is closed in a cancelled scope has no connection left that nobody closes."""
    task = await started_task()
    closing = asyncio.create_task(aio.end(task))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()
