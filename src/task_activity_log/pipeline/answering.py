"""The second stage of the worker: keeps dead letters, publishes replies, and acknowledges, batch after batch in order.

While the broker confirms the replies of one batch, those of the next ones are published, if they can be: the replies of one
record must not overtake each other, whatever must be published again. All else waits for the batches before.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import compress
from typing import NamedTuple
from uuid import UUID

import structlog

from task_activity_log.pipeline.hold import Abandoned
from task_activity_log.pipeline.overtaking import Overtaking
from task_activity_log.pipeline.ports import D, DeadLetters, Replies, Settlement, Stored
from task_activity_log.pipeline.stage import Stage
from task_activity_log.problem import Unavailable

log = structlog.get_logger(__name__)

_UNDER_WAY_LEAST, _UNDER_WAY_MAX = 2, 4
_UNDER_WAY_BYTES = 4 * 2**20
"""Two batches are settled at a time; more, if the replies of those under way are at most this long together. The broker may take
longer to confirm the replies of a batch than the database to store the next one. More than four gained nothing."""


class _UnderWay(NamedTuple):
    """A batch that is being settled: its records, the bytes of its replies, and the task that settles it."""

    records: set[UUID | None]
    size: int
    task: asyncio.Task[None]


@dataclass(eq=False, kw_only=True)
class Answering(Stage[D]):
    """The second stage."""

    dead_letters: DeadLetters[D]
    replies: Replies[D]
    stored: Stored[D]
    overtaking: Overtaking[D] = field(init=False, default_factory=Overtaking)
    abandoned: bool = field(init=False, default=False)
    """Whether a batch was given up. Those behind it are given up too: the replies of one record must not overtake each other."""

    async def run(self) -> None:
        """Settle batch after batch until the first stage ends. Replies that wait then are left: their messages come again."""
        async with asyncio.TaskGroup() as tasks:
            late = tasks.create_task(self._settle_late(), name="late replies")
            await self._settle_batches()
            late.cancel()

    async def _settle_batches(self) -> None:
        """Settle each batch in a task. There are a few at most, and they acknowledge one after the other."""
        under_way: deque[_UnderWay] = deque()
        async with asyncio.TaskGroup() as tasks:
            while (batch := await self.stored.get()) is not None:
                records = {each.record for each in batch}
                while under_way and not self._may_overlap(under_way, batch, records):
                    await asyncio.wait({under_way.popleft().task})
                before = under_way[-1].task if under_way else None
                task = tasks.create_task(self._settle_in_turn(batch, before), name="settle")
                under_way.append(_UnderWay(records, sum(len(each.reply.body) for each in batch), task))
                while _are_enough(under_way):
                    await asyncio.wait({under_way.popleft().task})

    def _may_overlap(
        self, under_way: Iterable[_UnderWay], following: Sequence[Settlement[D]], records: set[UUID | None]
    ) -> bool:
        """Whether the replies of the following batch may be published before those of the ones under way are confirmed.

        They answer requests of other records, are not dead letters, which are kept before they are answered, and go to the
        exchange, and not to addresses, at which replies wait in line.
        """
        if self.abandoned or self.hold.reason is not None:
            return False
        if any(each.problem is not None or each.reply.reply_to is not None for each in following):
            return False
        return all(records.isdisjoint(one.records) for one in under_way)

    async def _settle_in_turn(self, batch: Sequence[Settlement[D]], before: asyncio.Task[None] | None) -> None:
        """Settle a batch, but publish its replies before the batch `before` is settled."""
        try:
            await self._settle(batch, before)
        except Abandoned:
            if not self.abandoned:
                log.info("batch_abandoned", stage="reply")
            self.abandoned = True
        finally:
            self.stored.task_done()

    async def _settle(self, batch: Sequence[Settlement[D]], before: asyncio.Task[None] | None) -> None:
        """Keep the dead letters, publish the replies, then acknowledge: whoever reads a reply finds its row and dead letter."""
        started = time.perf_counter()
        placed = None if before is None else await self._publish_early(batch, before)
        if self.abandoned:
            return
        if placed is None:
            if rejected := [(each.delivery, each.problem) for each in batch if each.problem is not None]:
                await self.until_done(lambda: self.dead_letters.keep(rejected))
            placed = await self.until_done(lambda: self.replies.publish(batch))
        done = list(compress(batch, placed))
        if len(done) < len(batch):
            await self.intake.prove([each.delivery for each, is_done in zip(batch, placed, strict=True) if not is_done])
        now = self.overtaking.acknowledged(batch, placed, self.intake.has, self.intake.holds_up)
        await self.intake.acknowledge(now)
        self.watch.took("reply", time.perf_counter() - started)
        self.watch.answered(done)

    async def _publish_early(self, batch: Sequence[Settlement[D]], before: asyncio.Task[None]) -> Sequence[bool] | None:
        """Publish replies once, and return when the batch `before` is settled; None if they are not all confirmed."""
        placed: Sequence[bool] | None = None
        with suppress(Unavailable):  # they are published again in their turn, when the batch before has waited it out
            placed = await self.replies.publish(batch)
        await asyncio.wait({before})
        return placed

    async def _settle_late(self) -> None:
        """Acknowledge what waited for its reply to be confirmed or given up."""
        while True:
            done = await self.replies.settled()
            await self.intake.acknowledge([each.delivery for each in done if not each.acknowledged])
            self.watch.answered(done)


def _are_enough(under_way: deque[_UnderWay]) -> bool:
    """Whether the first of these must be settled before a further batch is begun. Those that are settled are removed."""
    while under_way and under_way[0].task.done():
        under_way.popleft()
    if len(under_way) < _UNDER_WAY_LEAST:
        return False
    return len(under_way) >= _UNDER_WAY_MAX or sum(one.size for one in under_way) > _UNDER_WAY_BYTES
