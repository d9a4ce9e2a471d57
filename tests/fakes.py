"""Stand-ins for the broker and the database, for tests of the worker alone.

The store keeps its rows in memory. `tests/integration/test_store_contract.py` runs the same tests on it and on the real one.
"""

import asyncio
import json
from collections.abc import Sequence
from itertools import compress
from operator import not_
from typing import Any, Literal
from uuid import UUID, uuid4

from task_activity_log.aio import Waiting
from task_activity_log.message import Delivery, Properties
from task_activity_log.pipeline.ports import PATIENT, D, Patience, Settlement
from task_activity_log.pipeline.reply import Reply
from task_activity_log.pipeline.request import Request
from task_activity_log.problem import Failed, Problem, Refused, TimedOut, Unavailable
from task_activity_log.record import Applied, Outcome, StoredTaskActivityLog, TaskActivityLog, Unread
from task_activity_log.testing import FakeDatabase


def delivered(
    body: bytes,
    message_id: str | None = None,
    content_type: str | None = "application/json",
    *,
    attempts: int = 0,
    **properties: Any,
) -> Delivery:
    """A delivery with these properties."""
    return Delivery(body, Properties(content_type=content_type, message_id=message_id, **properties), attempts)


def upsert(
    identifier: UUID | None = None,
    *,
    message_id: str | None = None,
    reply_to: str | None = None,
    attempts: int = 0,
    **fields: object,
) -> Delivery:
    """A delivery with a JSON record."""
    body = json.dumps({"id": str(identifier or uuid4()), **fields}).encode()
    return delivered(body, message_id or str(uuid4()), reply_to=reply_to, attempts=attempts)


class FakeIntake:
    """Gives out the deliveries that it was given. Records what was acknowledged and requeued, in order."""

    def __init__(self) -> None:
        self.waiting: Waiting[Delivery] = Waiting()
        self.acknowledged: list[Delivery] = []
        self.unsettled: list[Delivery] = []
        self.requeued: list[Delivery] = []
        self.proved: list[Delivery] = []
        self.batches: list[list[Delivery]] = []
        """What `take` returns before it takes anything from `waiting`."""
        self.sets_apart = False
        """Whether suspects are to come again one by one."""
        self.renewed = 0
        self.acknowledged_when_renewed: list[Delivery] = []
        self.synchronized = 0
        self.paused_by: set[str] = set()
        self.resumed = asyncio.Event()

    def put(self, *deliveries: Delivery) -> None:
        for delivery in deliveries:
            self.waiting.put(delivery)

    async def take(self, most: int) -> list[Delivery] | None:
        if self.batches:
            self.unsettled += self.batches[0]
            return self.batches.pop(0)
        taken = await self.waiting.take(most)
        self.unsettled += taken
        return taken or None

    def coming(self, most: int) -> list[Delivery]:
        return self.waiting.peek(most)

    def set_apart(self, suspects: Sequence[Delivery]) -> bool:
        return self.sets_apart and suspects[0] in self.unsettled

    async def renew(self) -> None:
        self.renewed += 1
        self.acknowledged_when_renewed = list(self.acknowledged)

    async def synchronize(self) -> None:
        self.synchronized += 1

    def has(self, delivery: Delivery) -> bool:
        return delivery in self.unsettled

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self.acknowledged += deliveries
        self.unsettled = [delivery for delivery in self.unsettled if delivery not in deliveries]

    @property
    def in_hand(self) -> int:
        return len(self.unsettled) + len(self.waiting)

    async def prove(self, deliveries: Sequence[Delivery]) -> None:
        self.proved += deliveries

    def holds_up(self, delivery: Delivery) -> bool:  # noqa: ARG002
        return False

    async def pause(self, by: str) -> None:
        self.paused_by.add(by)

    async def resume(self, by: str) -> None:
        self.paused_by.discard(by)
        self.resumed.set()

    def lose(self, *deliveries: Delivery) -> None:
        """These went back to their queue, and come to another worker."""
        self.unsettled = [delivery for delivery in self.unsettled if delivery not in deliveries]

    async def requeue(self) -> int:
        count = len(self.unsettled)
        self.requeued += self.unsettled
        self.waiting.clear()
        self.unsettled = []
        return count


class FakeStore:
    """The store over rows in memory. While `away` is set, it is unavailable.

    Sets of subjects say what happens to a wave that has one of them: `refuses`, `locks` (a timeout, and `locked` names the
    row), `delays` (a timeout, and it does not), `fails` (with what may pass) and `doubts` (with what lasts).
    """

    def __init__(self) -> None:
        self.database = FakeDatabase()
        self.waves: list[list[str | None]] = []
        self.refuses: set[str | None] = set()
        self.locks: set[str | None] = set()
        self.delays: set[str | None] = set()
        self.fails: set[str | None] = set()
        self.doubts: set[str | None] = set()
        self.patience: Patience | None = None  # of the last wave
        self._subjects: dict[UUID, str | None] = {}  # by the record that was last tried with it
        self.own: list[Failed] = []
        """Why rows of the worker's own are refused."""
        self.own_tried = 0
        self.unwritable = False
        self.leaves_unread = False
        """Whether the records of a wave are left unread, but for the first."""
        self.away: str | None = None
        self.tried = asyncio.Event()

    @property
    def rows(self) -> dict[UUID, StoredTaskActivityLog]:
        """The table of records."""
        return self.database.rows

    async def apply(self, wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        await asyncio.sleep(0)
        self.patience = patience
        self.tried.set()
        if self.away is not None:
            raise Unavailable(self.away)
        self.waves.append([request.record.subject for request in wave])
        self._subjects |= {request.record.id: request.record.subject for request in wave}
        subjects = {request.record.subject for request in wave}
        if subjects & (self.locks | self.delays):
            raise TimedOut(locked=bool(subjects & self.locks))
        if subjects & self.refuses:
            raise Refused("23514")
        if subjects & self.fails:
            raise Failed("out of resources (53200)", "53200")
        if subjects & self.doubts:
            raise Failed("not permitted (42501)", "42501", lasting=True)
        applied = self.database.apply(wave)
        if self.leaves_unread:
            applied[1:] = [Unread(each.outcome, None) for each in applied[1:]]
        return applied

    async def read(self, request: Request[Delivery], outcome: Outcome) -> Applied:
        await asyncio.sleep(0)
        if self.away is not None:
            raise Unavailable(self.away)
        return Applied(outcome, self.rows.get(request.record.id))

    async def locked(self, ids: Sequence[UUID]) -> set[UUID]:
        await asyncio.sleep(0)
        if self.away is not None:
            raise Unavailable(self.away)
        return {identifier for identifier in ids if self._subjects.get(identifier) in self.locks}

    async def try_own_rows(self, like: TaskActivityLog | None) -> list[Failed]:  # noqa: ARG002 - the values do not matter
        await self.probe()
        self.own_tried += 1
        return self.own

    async def time_own_rows(self, count: int) -> float:
        await self.probe()
        return 0.002 + 0.0001 * count

    async def marked(self, marks: Sequence[UUID]) -> set[UUID]:
        await self.probe()
        return self.database.inbox.intersection(marks)

    async def mark(self, marks: Sequence[UUID]) -> None:
        await self.probe()
        self.database.inbox |= set(marks)

    async def unmark(self, marks: Sequence[UUID]) -> None:
        await self.probe()
        self.database.inbox -= set(marks)

    async def survives(self) -> bool:
        await asyncio.sleep(0)
        return True

    async def close(self) -> None:
        """Nothing is open."""

    async def probe(self) -> None:
        await asyncio.sleep(0)
        self.tried.set()
        if self.away is not None or self.unwritable:
            raise Unavailable(self.away or "not permitted")


class FakeReplies:
    """Records what was published, in order. While `away` is set, it is unavailable. Addresses in `refusing` refuse."""

    def __init__(self, log: list[str]) -> None:
        self.published: list[Reply] = []
        self.away: str | None = None
        self.tried = asyncio.Event()
        self._refusing: set[str] = set()
        self._changed = asyncio.Event()
        self._waiting: list[Settlement[Delivery]] = []
        self._log = log

    @property
    def refusing(self) -> set[str]:
        return self._refusing

    @refusing.setter
    def refusing(self, addresses: set[str]) -> None:
        self._refusing = addresses
        self._changed.set()

    def _takes(self, settlement: Settlement[Delivery]) -> bool:
        return settlement.reply.reply_to not in self._refusing

    async def publish(self, settlements: Sequence[Settlement[Delivery]]) -> list[bool]:
        await asyncio.sleep(0)
        self.tried.set()
        if self.away is not None:
            raise Unavailable(self.away)
        self._log.append("replies")
        placed = list(map(self._takes, settlements))
        self.published += [each.reply for each in compress(settlements, placed) if each.answers]
        self._waiting += compress(settlements, map(not_, placed))
        return placed

    async def settled(self) -> list[Settlement[Delivery]]:
        while not (done := list(filter(self._takes, self._waiting))):
            self._changed.clear()
            await self._changed.wait()
        self._waiting = [each for each in self._waiting if each not in done]
        self.published += [each.reply for each in done]
        return done


class FakeDeadLetters:
    """Records what was rejected. While `away` is set, it is unavailable."""

    def __init__(self, log: list[str]) -> None:
        self.kept: list[tuple[Delivery, Problem]] = []
        self.away: str | None = None
        self._log = log

    async def keep(self, rejected: Sequence[tuple[Delivery, Problem]]) -> None:
        await asyncio.sleep(0)
        if self.away is not None:
            raise Unavailable(self.away)
        self._log.append("dead letters")
        self.kept += rejected


class FakeWatch:
    """Records what the worker reports. A test can wait for a number of settled messages."""

    def __init__(self, log: list[str]) -> None:
        self.outcomes: list[str] = []
        self.held_reasons: list[str] = []
        self._log = log
        self._changed = asyncio.Condition()
        self._wakers: set[asyncio.Task[None]] = set()

    def took(self, stage: Literal["decode", "store", "reply"], seconds: float) -> None:
        assert seconds >= 0, stage

    def answered(self, settlements: Sequence[Settlement[D]]) -> None:
        self._log.append("settled")
        self.outcomes += [str(each.reply.outcome) for each in settlements]
        waker = asyncio.ensure_future(self._wake())
        self._wakers.add(waker)
        waker.add_done_callback(self._wakers.discard)

    def held(self, place: str, outage: Unavailable) -> None:
        self.held_reasons.append(f"{place}: {outage.reason}")

    def released(self, place: str, seconds: float) -> None:
        assert seconds >= 0, place

    async def settled(self, count: int) -> None:
        """Return once `count` messages are settled."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.outcomes) >= count)

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()
