"""An event loop whose clock jumps: nobody waits, and what would wait for ever is an error."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Stuck(Exception):
    """Nothing will ever happen any more."""


class _Impatient(selectors.SelectSelector):
    """Reports what is ready now, and lets the time pass that it was asked to wait for."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Stuck
            self.now += max(timeout, 0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its `time` starts at 0 and passes only while nothing is to be done."""

    def __init__(self) -> None:
        self._impatient = _Impatient()
        super().__init__(self._impatient)

    def time(self) -> float:
        # a step's worth more than what the selector was asked for, which is rounded
        return self._impatient.now


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, on a clock of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
