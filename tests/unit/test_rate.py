"""How many messages a long command sends per second."""

import asyncio

from task_activity_log.client.rate import Rate
from tests.virtual_time import run


def test_what_an_interruption_has_delayed_is_not_made_up_for() -> None:
    """Ten are sent per second, in tens. After half a minute without any, still ten per second."""

    async def times() -> list[float]:
        clock, pace, sent = asyncio.get_running_loop().time, Rate(10.0), list[float]()
        for part in range(6):
            await pace.wait(10)
            sent.append(clock())
            if part == 2:
                await asyncio.sleep(30.0)  # the broker was away
        return sent

    assert run(times()) == [0.0, 1.0, 2.0, 32.0, 33.0, 34.0]
