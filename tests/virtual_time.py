"""An event loop with a virtual clock: waiting takes no time, and waiting for ever is an error."""

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Stuck(Exception):
    """The loop waits for something that can never happen."""


class _Impatient(selectors.SelectSelector):
    """Reports what is ready now; if nothing is, advances the clock by the requested timeout."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Stuck
            self.now += max(timeout, 0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time` starts at 0 and advances only when there is nothing to do."""

    def __init__(self) -> None:
        self._impatient = _Impatient()
        super().__init__(self._impatient)

    def time(self) -> float:
        return self._impatient.now

    @property
    def _clock_resolution(self) -> float:
        """How much too early a timer may run. Not a nanosecond, as usual: this clock would stand still meanwhile.

        Two tasks that wait for instants so near would keep the loop busy, and look at the clock for ever.
        """
        return math.ulp(self._impatient.now)

    @_clock_resolution.setter
    def _clock_resolution(self, _: float) -> None:
        """Leave out what the loop measures when it is made."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a loop with its own virtual clock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
