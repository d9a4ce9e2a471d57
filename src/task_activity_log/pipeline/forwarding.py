"""Forwards what was not sent by record: on the requests queue, where records are divided among partitions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Self

import structlog

from task_activity_log.aio import SharedLock
from task_activity_log.pipeline.hold import Abandoned, Hold
from task_activity_log.pipeline.ports import D, Forwarder, Intake, Watch
from task_activity_log.pipeline.request import Request
from task_activity_log.pipeline.stage import Stage
from task_activity_log.pipeline.waves import waves

log = structlog.get_logger(__name__)


@dataclass(eq=False, kw_only=True)
class Forwarding(Stage[D]):
    """A stage of its own: a partition that takes no messages must not keep the worker from emptying it.

    What waits is bounded by the prefetch of the requests queue.
    """

    forwarder: Forwarder[D]
    on_forwarded: Callable[[int], None] = field(default=lambda _: None)
    """Called with the number of requests that were forwarded and acknowledged."""
    _waiting: asyncio.Queue[Sequence[Request[D]] | None] = field(init=False, default_factory=asyncio.Queue)

    @classmethod
    def with_hold(cls, intake: Intake[D], watch: Watch, writes: SharedLock, forwarder: Forwarder[D]) -> Self:
        """It never stands down: a partition that takes no messages takes none from another worker either."""
        return cls(Hold("forward"), intake, watch, inf, writes, forwarder=forwarder)

    def take_out(self, requests: list[Request[D]]) -> list[Request[D]]:
        """Let those of a batch be forwarded that were not sent by record; returns the others."""
        foreign = [request for request in requests if request.delivery.slot is None]
        if not foreign:
            return requests
        self._waiting.put_nowait(foreign)
        return [request for request in requests if request.delivery.slot is not None]

    def stop(self) -> None:
        """End `run` when what waits is forwarded, or abandoned because the worker drains."""
        self._waiting.put_nowait(None)

    async def run(self) -> None:
        """Forward batch after batch, in order, until `stop` is called."""
        try:
            while (requests := await self._waiting.get()) is not None:
                await self._forward_all(requests)
        except Abandoned:
            log.info("batch_abandoned", stage="forward")

    async def _forward_all(self, requests: Sequence[Request[D]]) -> None:
        """Forward a batch and acknowledge it.

        One request of each record at a time, so that the order of a record is kept whatever must be tried again.
        """
        for wave in waves(requests):
            await self.until_done(partial(self._forward, wave))
        await self.intake.acknowledge([request.delivery for request in requests])
        self.on_forwarded(len(requests))

    async def _forward(self, wave: Sequence[Request[D]]) -> None:
        """Forward these, without what was requeued meanwhile: another worker may have forwarded later ones."""
        async with self.writes.shared():
            if here := [request for request in wave if self.intake.has(request.delivery)]:
                await self.forwarder.forward(here)
