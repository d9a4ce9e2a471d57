"""The event loop of the tests that need no time."""

import asyncio
from contextlib import suppress

from tests.virtual_time import run


def test_tasks_get_to_an_instant_that_is_very_near() -> None:
    """Each looks at the clock again when its time limit is over. Together they leave the loop no moment without work."""
    looks = 0

    async def wait_until(instant: float) -> None:
        nonlocal looks
        while asyncio.get_running_loop().time() < instant:
            looks += 1
            assert looks < 100
            with suppress(TimeoutError):
                async with asyncio.timeout_at(instant):
                    await asyncio.Event().wait()

    async def one_after_the_other(steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(0)
        await wait_until(1 + 1e-12)

    async def all_of_them() -> None:
        await asyncio.sleep(1)
        await asyncio.gather(*map(one_after_the_other, range(4)))

    run(all_of_them())
