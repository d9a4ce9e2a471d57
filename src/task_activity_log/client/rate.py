"""A limit of messages per second, also after an interruption: what was not sent meanwhile is not sent faster."""

import asyncio


class Rate:
    """Limits how many are sent per second."""

    def __init__(self, per_second: float) -> None:
        """Nothing was sent yet."""
        self._per_second = per_second
        self._next = 0.0  # when more may be sent, on the clock of the event loop

    async def wait(self, count: int) -> None:
        """Return when `count` more may be sent."""
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(max(0.0, self._next - clock()))
        self._next = max(self._next, clock()) + count / self._per_second
