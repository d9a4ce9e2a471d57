"""A limit on how often an event is logged that anybody can cause. No input or output."""

from __future__ import annotations

from collections import deque

_EVENTS_MAX = 10
_SECONDS = 60.0


class LogLimit:
    """Lets ten events pass in a minute, so that a publisher that names many addresses does not fill the log."""

    def __init__(self) -> None:
        """Nothing was logged yet."""
        self._times: deque[float] = deque(maxlen=_EVENTS_MAX)
        self._omitted = 0

    def omit(self, count: int, now: float) -> int | None:
        """None: an event about this number of things is not logged. Otherwise it is: how many were omitted before it."""
        if len(self._times) == _EVENTS_MAX and now - self._times[0] < _SECONDS:
            self._omitted += count
            return None
        self._times.append(now)
        omitted, self._omitted = self._omitted, 0
        return omitted
