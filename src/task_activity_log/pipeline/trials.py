"""Trials: which messages were processed when a worker crashed.

RabbitMQ counts a failed delivery whenever a channel closes: at a crash, and at each orderly return of what is in hand. So a
count of deliveries alone never rejects a message. What was returned more than once is marked in the inbox before it is
tried. The marks are removed when it was processed, or returned in good order. A mark that is found at the next delivery is a
trial that ended with the process. The more of these a message has, the fewer others are tried with it (`suspects`), in the
end none. A message is rejected when `CRASHES_MAX` trials of it alone have ended so, and it was delivered often.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import dropwhile
from typing import Generic, NamedTuple
from uuid import UUID

from task_activity_log.aio import Slices
from task_activity_log.message import Delivery
from task_activity_log.pipeline.ports import D, Intake, Store
from task_activity_log.pipeline.request import digest
from task_activity_log.pipeline.suspects import ALONE, by_attempts, divided, is_doubtful, is_suspect
from task_activity_log.problem import Unavailable

CRASHES_MAX = 3
"""How many trials of a message alone may end with the process. One or two may be a kill at the wrong moment."""

UntilDone = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
"""Awaits its argument again and again until it succeeds."""


class Marks(NamedTuple):
    """The marks that a message may have, in the order in which they are made."""

    alone: Sequence[UUID]
    shared: Sequence[UUID]
    """Of its trials together with others."""

    @property
    def all(self) -> list[UUID]:
        """Both kinds."""
        return [*self.alone, *self.shared]


class Trials(Generic[D]):
    """The trials of one worker. There is one at a time."""

    on_suspects: Callable[[Sequence[D]], None] = staticmethod(lambda _: None)
    """Called with the messages of a batch that are tried alone because of their marks, before the first of them is."""

    def __init__(self, store: Store, intake: Intake[D], batch_max: int) -> None:
        """Try nothing yet. The marks are kept in `store`; a part has at most `batch_max` messages."""
        self._store, self._intake, self._batch_max = store, intake, batch_max
        self._marks: dict[D, Marks] = {}  # of what was returned more than once, in the batch that was looked at last
        self._found: set[UUID] = set()  # those of these marks that exist
        self._own: list[UUID] = []  # the marks of the present trial, or of one that was interrupted in good order
        self._guilty = False  # whether a message has crashed workers alone, and others came again behind it since
        self._suspects = False  # whether the last batch had suspects

    @property
    def under_way(self) -> bool:
        """Whether the present batch has messages that were returned more than once. Nothing else may be processed then."""
        return bool(self._marks)

    async def parts(
        self, batch: Sequence[D], until_done: UntilDone, settled: Callable[[], Awaitable[None]]
    ) -> AsyncGenerator[Sequence[D], None]:
        """The parts of a batch that are to be processed one after the other: mostly the batch itself.

        What was returned more than once is marked until the next part is asked for. Sets `crashed` of what is to be rejected,
        and `suspect` of what is to be tried alone. An empty part is the last one: the rest must be returned to the queue.

        Args:
            batch: what is processed next.
            until_done: awaits its argument again and again until it succeeds.
            settled: awaited before the first part with marks, and before marks are removed. It returns when everything that was
                processed is settled, or waits for something harmless.
        """
        if not await self._look(batch, until_done):
            yield batch
            return
        await self._finish(settled)
        for part in divided(batch, self._batch_max, self.step):
            marked = [
                self._marks[delivery] for delivery in part if delivery in self._marks and self._intake.has(delivery)
            ]
            # Another one may be alone by chance, and be killed so by chance.
            alone = len(part) == 1 and is_suspect(part[0])
            if alone and part[0].suspect and self._intake.set_apart(_suspects_from(part[0], batch)):
                yield ()
                return
            each = [marks.alone if alone else marks.shared for marks in marked]
            self._own = [mark for its in each if (mark := self._free(its)) is not None]
            await until_done(self._mark)
            yield part
            await self._finish(settled)
            self._own += self._found.intersection(mark for marks in marked for mark in marks.all)
            await until_done(self.undo)

    async def _look(self, batch: Sequence[D], until_done: UntilDone) -> bool:
        """Find out which messages of a batch have crashed workers; False if nothing of it was returned more than once."""
        doubtful = [delivery for delivery in batch if is_doubtful(delivery)]
        self._marks = {}
        if not doubtful:
            self._guilty = self._suspects = False
            return False
        slices = Slices()
        for delivery in doubtful:
            self._marks[delivery] = marks_of(delivery)
            if slices.over(len(delivery.body)):
                await slices.next()
        await until_done(self.undo)
        await until_done(self._find)
        for delivery, marks in self._marks.items():
            delivery.crashed = self._found.issuperset(marks.alone)
            self._guilty = self._guilty or not self._found.isdisjoint(marks.alone)
        for delivery in doubtful:
            delivery.suspect = self.step(delivery) >= ALONE
        before, suspects = self._suspects, [delivery for delivery in doubtful if delivery.suspect]
        self._suspects = bool(suspects)
        if suspects and not before:
            self.on_suspects(suspects)
        return True

    async def _find(self) -> None:
        """Look for the first mark of each kind, and for the others of those messages that have one."""
        first = {marks.alone[0]: marks for marks in self._marks.values()}
        first |= {marks.shared[0]: marks for marks in self._marks.values()}
        found = await self._store.marked(list(first))
        if found:
            found |= await self._store.marked(list({mark for one in found for mark in first[one].all} - found))
        self._found = found

    def step(self, delivery: D) -> int:
        """How small the part of the batch must be that this message is tried in; see `suspects`."""
        marks = self._marks.get(delivery)
        if marks is None:
            return 0
        if not self._found.isdisjoint(marks.alone):
            return ALONE
        crashes = len(self._found.intersection(marks.shared))
        return max(crashes, by_attempts(delivery)) if self._guilty else crashes

    async def _finish(self, settled: Callable[[], Awaitable[None]]) -> None:
        """Return when the broker knows what is settled: a crash does not return it."""
        await settled()
        await self._intake.synchronize()

    async def _mark(self) -> None:
        if self._own:
            await self._store.mark(sorted(self._own))

    def _free(self, marks: Sequence[UUID]) -> UUID | None:
        return next((mark for mark in marks if mark not in self._found), None)

    async def undo(self) -> None:
        """Remove the marks of a trial that was interrupted in good order, if there is one.

        Raises:
            Unavailable: the database cannot be used. Call it again later.
        """
        if self._own:
            await self._store.unmark(sorted(self._own))
            self._own = []

    async def drained(self) -> None:
        """Remove the marks if the database can be used. The worker ends, and what it had in hand is returned."""
        with suppress(Unavailable):
            await self.undo()


def _suspects_from(first: D, batch: Sequence[D]) -> list[D]:
    return [delivery for delivery in dropwhile(lambda each: each is not first, batch) if delivery.suspect]


def marks_of(delivery: Delivery) -> Marks:
    """The marks that a message may have. Another message with the same content would crash a worker as well."""
    properties = delivery.properties
    names = (f"{properties.message_id}", f"{properties.content_type}")
    content = digest(b"trial", *(name.encode(errors="replace") for name in names), delivery.body)
    alone = [UUID(bytes=digest(b"alone", b"%d" % number, content)) for number in range(CRASHES_MAX)]
    return Marks(alone, [UUID(bytes=digest(b"shared", b"%d" % number, content)) for number in range(ALONE)])
