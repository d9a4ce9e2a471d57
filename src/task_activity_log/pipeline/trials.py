"""Trials: which messages have crashed a worker while nothing else was processed.

RabbitMQ counts a failed delivery whenever a channel closes: at a crash, and at each orderly return of what is in hand. So a
count of deliveries alone never rejects a message. A suspect is tried alone, and that is marked in the inbox before. The
marks are removed when it was processed, or returned in good order. A mark that is found at the next delivery is a trial that
ended with the process. A message is rejected when there are `CRASHES_MAX` of them, and it was delivered often.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Generic
from uuid import UUID

from task_activity_log.message import Delivery
from task_activity_log.pipeline.ports import D, Store
from task_activity_log.pipeline.request import digest
from task_activity_log.pipeline.suspects import is_suspect
from task_activity_log.problem import Unavailable

CRASHES_MAX = 3
"""How many trials of a message may end with the process. One or two may be a kill at the wrong moment."""


class Trials(Generic[D]):
    """The trials of one worker. There is one at a time."""

    def __init__(self, store: Store) -> None:
        """Try nothing yet. The marks are kept in `store`."""
        self._store = store
        self._own: list[UUID] = []  # the marks of the present trial, or of one that was interrupted in good order
        self._all: list[UUID] = []  # these, and the marks of earlier trials of the same messages

    @asynccontextmanager
    async def of(
        self,
        batch: Sequence[D],
        until_done: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]],
        settled: Callable[[], Awaitable[None]],
    ) -> AsyncIterator[None]:
        """Mark the suspects of a batch while it is processed. Sets `crashed` of those that have crashed workers.

        Args:
            batch: what is processed next.
            until_done: awaits its argument again and again until it succeeds.
            settled: awaited before the marks are removed: the suspects are answered, or wait for something harmless.
        """
        suspects = [delivery for delivery in batch if is_suspect(delivery)]
        if not suspects:
            yield
            return
        await until_done(self.undo)
        await until_done(partial(self._look, suspects))
        await until_done(self._mark)
        yield
        await settled()
        self._own = self._all
        await until_done(self._unmark)

    async def undo(self) -> None:
        """Remove the mark of a trial that was interrupted in good order, if there is one.

        Raises:
            Unavailable: the database cannot be used. Call it again later.
        """
        if self._own:
            await self._unmark()

    async def drained(self) -> None:
        """Remove the mark if the database can be used. The worker ends, and what it had in hand is returned."""
        with suppress(Unavailable):
            await self.undo()

    async def _look(self, suspects: Sequence[D]) -> None:
        marks = [marks_of(suspect) for suspect in suspects]
        self._all = [mark for each in marks for mark in each]
        found = await self._store.marked(self._all)
        free: list[UUID] = []
        for suspect, each in zip(suspects, marks, strict=True):
            left = [mark for mark in each if mark not in found]
            suspect.crashed = not left
            free += left[:1]
        self._own = free

    async def _mark(self) -> None:
        await self._store.mark(self._own)

    async def _unmark(self) -> None:
        await self._store.unmark(self._own)
        self._own = []


def marks_of(delivery: Delivery) -> list[UUID]:
    """The marks that a message may have. Another message with the same content would crash a worker as well."""
    properties = delivery.properties
    content = [
        f"{properties.message_id}".encode(errors="replace"),
        f"{properties.content_type}".encode(errors="replace"),
    ]
    return [UUID(bytes=digest(b"trial", b"%d" % number, *content, delivery.body)) for number in range(CRASHES_MAX)]
