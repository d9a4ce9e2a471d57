"""Forwards what was not sent by record: on the requests queue, where records are divided among partitions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic

from task_activity_log.aio import SharedLock
from task_activity_log.pipeline.ports import D, Forwarder, Intake
from task_activity_log.pipeline.request import Request
from task_activity_log.pipeline.waves import waves


class Forwarding(Generic[D]):
    """Takes what was not sent by record out of a batch."""

    on_forwarded: Callable[[int], None] = staticmethod(lambda _: None)
    """Called with the number of requests that were forwarded and acknowledged."""

    def __init__(self, intake: Intake[D], forwarder: Forwarder[D], writes: SharedLock) -> None:
        """Forward nothing yet. `writes` is shared while requests are forwarded: that is a write as those to the database."""
        self._intake = intake
        self._forwarder = forwarder
        self._writes = writes

    async def take_out(
        self, requests: list[Request[D]], until_done: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
    ) -> list[Request[D]]:
        """Forward those that were not sent by record and acknowledge them; returns the others.

        One request of each record at a time, so that the order of a record is kept whatever must be tried again.

        Args:
            requests: those of a batch, in order.
            until_done: awaits its argument again and again until it succeeds.
        """
        foreign = [request for request in requests if request.delivery.slot is None]
        if not foreign:
            return requests
        for wave in waves(foreign):
            await until_done(partial(self._forward, wave))
        await self._intake.acknowledge([request.delivery for request in foreign])
        self.on_forwarded(len(foreign))
        return [request for request in requests if request.delivery.slot is not None]

    async def _forward(self, wave: Sequence[Request[D]]) -> None:
        """Forward these, without what was requeued meanwhile: another worker may have forwarded later ones."""
        async with self._writes.shared():
            if here := [request for request in wave if self._intake.has(request.delivery)]:
                await self._forwarder.forward(here)
