"""Wait out an outage: how long until the next try, for what reason, since when."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from task_activity_log.aio import Backoff


class Abandoned(Exception):
    """The hold was given up because the worker drains: what is in hand goes back to the broker."""


class Hold:
    """One place where work may have to wait, and what operators are told of it."""

    def __init__(self, place: str, backoff: Backoff | None = None) -> None:
        self.place = place
        """What waits: `store` or `reply`."""
        self.reason: str | None = None
        """Why we are holding; None while we are not."""
        self.since: float | None = None
        """When the hold began (`time.monotonic`)."""
        self._backoff = backoff or Backoff()
        self._draining = asyncio.Event()

    @property
    def seconds(self) -> float:
        """How long we have been holding."""
        return 0.0 if self.since is None else time.monotonic() - self.since

    async def wait(self, reason: str) -> None:
        """Begin or go on holding for `reason`, and sleep until the next try.

        Raises:
            Abandoned: the worker drains, and the last try has failed too.
        """
        if self._draining.is_set():
            raise Abandoned
        if self.since is None:
            self.since = time.monotonic()
        self.reason = reason
        with suppress(TimeoutError):
            async with asyncio.timeout(self._backoff.delay()):
                await self._draining.wait()

    def release(self) -> float:
        """The work went through: stop holding. Returns the seconds held."""
        held = self.seconds
        self.reason = self.since = None
        self._backoff.reset()
        return held

    def drain(self) -> None:
        """Try what waits here once more, at once, and hold no longer."""
        self._draining.set()
