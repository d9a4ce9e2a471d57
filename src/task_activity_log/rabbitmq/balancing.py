"""Shares the partitions with other workers: carries out what `Balance` decides, so that the order of each record is kept."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import aio_pika
import structlog

from task_activity_log.rabbitmq.balance import Balance
from task_activity_log.rabbitmq.members import join
from task_activity_log.rabbitmq.queue_intake import QueueIntake
from task_activity_log.rabbitmq.topology import Topology

log = structlog.get_logger(__name__)

_EVERY_SECONDS = 1.0
_HURRY_SECONDS = 0.3
"""While this worker has too much."""
_FINISH_SECONDS = 2.0
"""How long what is in hand of a partition may take before the partition is handed over. What is not finished then, because
its row is locked or its reply is not confirmed, comes again to the next worker."""


class Balancing:
    """Hands over partitions of which this worker has too many, and lets workers with fewer be first in line."""

    alone: Callable[[], AbstractAsyncContextManager[object]] = staticmethod(nullcontext)
    """Had while a partition is handed over: no write to the database is under way then, and none begins. Otherwise one could
    come after those of the next worker. Set by whoever knows the writers."""
    workers = 0
    """How many workers there are, with this one; 0 while it is not known. Set by `run`."""
    on_handed_over: Callable[[], None] = staticmethod(lambda: None)
    """Called when a partition was handed over."""

    def __init__(self, partitions: Sequence[QueueIntake], topology: Topology) -> None:
        """Balance nothing yet."""
        self._partitions = partitions
        self._topology = topology

    @property
    def active(self) -> frozenset[int]:
        """The partitions of which this worker is the active consumer, as far as it knows: they have given it messages."""
        return frozenset(number for number, queue in enumerate(self._partitions) if queue.active)

    async def run(
        self, connection: aio_pika.Connection, working: Callable[[], bool], read_seconds: Callable[[], float]
    ) -> None:
        """Balance until the connection is lost.

        Args:
            connection: that of the partitions.
            working: says whether the worker is not paused.
            read_seconds: for how long the connection has been read without a pause, because there is room.

        Raises:
            One of `link.LOST`: the connection is lost.
        """
        members = await join(connection, self._topology, read_seconds)
        balance = Balance(len(self._partitions))
        try:
            while True:
                await members.say_short(balance.short and working())
                pause = _HURRY_SECONDS if balance.over(self.active) else _EVERY_SECONDS
                await asyncio.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311 - jitter, not cryptography
                self.workers, short = await members.count()
                if working():
                    moves = balance.decide(self.active, self.workers, short)
                    await asyncio.gather(
                        *(self._hand_over(number) for number in moves.hand_over),
                        *(self._rejoin(number) for number in moves.rejoin),
                    )
        finally:
            self.workers = 0

    async def _hand_over(self, number: int) -> None:
        """Finish what was taken from a partition, return the rest in order, and stand in line for it again."""
        queue = self._partitions[number]
        returned = await queue.hand_over(self.alone, _FINISH_SECONDS)
        if returned is None:
            return
        self.on_handed_over()
        log.info("partition_handed_over", queue=queue.queue, given_back=returned, workers=self.workers)

    async def _rejoin(self, number: int) -> None:
        """Stand at the end of the line for a partition. Does nothing if it has given a message meanwhile."""
        await self._partitions[number].close(unless_active=True)
