"""The link to the broker, without one."""

import asyncio

from task_activity_log.aio import end


async def test_a_task_that_loses_a_cancellation_is_ended_all_the_same() -> None:
    """asyncio.wait_for returns what it waited for when the cancellation comes in the same moment, and drops it."""
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


async def test_what_has_ended_is_left_alone() -> None:
    """Also where nothing was started."""
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    await end(task)
    await end()
