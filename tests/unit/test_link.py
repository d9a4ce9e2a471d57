"""Ending tasks, without a broker."""

import asyncio

from task_activity_log.aio import end


async def test_a_task_that_loses_a_cancellation_is_ended_anyway() -> None:
    """asyncio.wait_for drops a cancellation that comes in the same moment as its result, so one is not enough."""
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    lost = asyncio.Event()

    async def session() -> None:
        try:
            await answer
        except asyncio.CancelledError:
            lost.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(session())
    await asyncio.sleep(0)
    await end(task)
    assert lost.is_set()
    assert task.cancelled()


async def test_a_task_that_has_ended_or_was_never_started_is_left_alone() -> None:
    """Ending it again, or ending nothing, does no harm."""
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    await end(task)
    await end()
