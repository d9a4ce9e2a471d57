"""Waits out an outage, and shows why, since when, and how long until the next attempt."""

import asyncio
import time
from contextlib import suppress

from task_activity_log.aio import Backoff


class Requeued(Exception):
    """Deliveries were requeued before they were stored: the outage was too long, or the connection is lost."""


class Abandoned(Exception):
    """The hold was given up because the worker drains. Unsettled messages return to the broker."""


class Hold:
    """A place where work waits during an outage. Operators see its state."""

    def __init__(self, place: str, backoff: Backoff | None = None) -> None:
        self.place = place
        """What waits: `start`, `store`, `forward`, `reply`, or `idle` if no message waits."""
        self.reason: str | None = None
        """Why the work waits; None if it does not."""
        self.since: float | None = None
        """When the hold began (`time.monotonic`)."""
        self._backoff = backoff or Backoff()
        self._draining = asyncio.Event()

    @property
    def seconds(self) -> float:
        """How long the hold has lasted; 0 if there is none."""
        return 0.0 if self.since is None else time.monotonic() - self.since

    @property
    def draining(self) -> bool:
        """Whether `drain` was called."""
        return self._draining.is_set()

    def begin(self, reason: str) -> None:
        """Start the hold, or continue it for another reason, without waiting."""
        if self.since is None:
            self.since = time.monotonic()
        self.reason = reason

    async def wait(self, reason: str, seconds: float | None = None) -> None:
        """Start or continue the hold for this reason, and sleep until the next attempt, or for this many seconds.

        Raises:
            Abandoned: the worker drains, and its last attempt has failed too.
        """
        if self._draining.is_set():
            raise Abandoned
        self.begin(reason)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._backoff.delay() if seconds is None else seconds):
                await self._draining.wait()

    def release(self) -> float:
        """End the hold because the work succeeded, and return how many seconds it lasted."""
        held = self.seconds
        self.reason = self.since = None
        self._backoff.reset()
        return held

    def drain(self) -> None:
        """Let the waiting work try once more, at once, and hold no longer."""
        self._draining.set()
