"""A stage of the worker: what it does is tried until it succeeds, and the outage is shown meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from task_activity_log.aio import SharedLock
from task_activity_log.pipeline.hold import Hold, Requeued
from task_activity_log.pipeline.ports import D, Intake, Watch
from task_activity_log.pipeline.search import PartFailed
from task_activity_log.problem import Refused, Unavailable

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class Stage(Generic[D]):
    """Waits out outages."""

    hold: Hold
    intake: Intake[D]
    watch: Watch
    hold_limit_seconds: float
    writes: SharedLock
    """Shared by each write. Held alone to requeue: otherwise a write could come after those of the next worker."""

    async def until_done(self, attempt: Callable[[], Awaitable[T]], *, repeatable: bool = True) -> T:
        """Try until the attempt succeeds, and back off in between.

        After the hold limit all unsettled deliveries are requeued, once, and no more are taken until an attempt succeeds.
        Replies are still tried then, because a repeated reply does no harm. A wave is not (`repeatable=False`), because
        another worker may have stored later requests of its records. Raises `Abandoned` or `Requeued`.
        """
        requeued = False
        while True:
            try:
                result = await attempt()
            except Unavailable as outage:
                self.watch.held(self.hold.place, outage)
                await self.hold.wait(outage.reason)
                if self.hold.seconds > self.hold_limit_seconds and not requeued:
                    requeued = True
                    await self.intake.pause(self.hold.place)
                    async with self.writes.alone():
                        given_back = await self.intake.requeue()
                    log.warning("stood_down", place=self.hold.place, given_back=given_back)
                    if not repeatable:
                        raise Requeued from outage
            except (Refused, PartFailed):
                self.release()  # the database answers
                raise
            else:
                self.release()
                if requeued:
                    await self.intake.resume(self.hold.place)
                return result

    def show(self, outage: Unavailable) -> None:
        """Show an outage although the work goes on."""
        self.watch.held(self.hold.place, outage)
        self.hold.begin(outage.reason)

    def release(self) -> None:
        """End the hold, if there is one."""
        if self.hold.reason is not None:
            self.watch.released(self.hold.place, self.hold.release())
