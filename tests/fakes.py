"""Stand-ins for the broker and the database, for tests of the worker alone.

The store keeps its rows in memory. `tests/integration/test_store_contract.py` runs the same tests on it and on the real one.
"""

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import compress
from typing import Any, Literal
from uuid import UUID, uuid4

from task_activity_log.aio import Waiting
from task_activity_log.message import Delivery, Properties
from task_activity_log.pipeline.ports import D, Settlement
from task_activity_log.pipeline.reply import Reply
from task_activity_log.pipeline.request import Request, UpdateMode
from task_activity_log.problem import Problem, Refused, TimedOut, Unavailable
from task_activity_log.record import FIELDS, Applied, Outcome, StoredTaskActivityLog, Unread


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
        self.requeued_one_by_one = False
        self.paused_by: set[str] = set()
        self.resumed = asyncio.Event()

    def put(self, *deliveries: Delivery) -> None:
        for delivery in deliveries:
            self.waiting.put(delivery)

    async def take(self, most: int) -> list[Delivery]:
        taken = await self.waiting.take(most)
        self.unsettled += taken
        return taken

    def take_waiting(self, most: int) -> list[Delivery]:
        taken = self.waiting.take_waiting(most)
        self.unsettled += taken
        return taken

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self.acknowledged += deliveries
        self.unsettled = [delivery for delivery in self.unsettled if delivery not in deliveries]

    @property
    def in_hand(self) -> int:
        return len(self.unsettled) + len(self.waiting)

    async def prove(self, deliveries: Sequence[Delivery]) -> None:
        self.proved += deliveries

    async def pause(self, by: str) -> None:
        self.paused_by.add(by)

    async def resume(self, by: str) -> None:
        self.paused_by.discard(by)
        self.resumed.set()

    async def requeue(self, *, one_by_one: bool = False) -> int:
        count = len(self.unsettled)
        self.requeued += self.unsettled
        self.requeued_one_by_one = one_by_one
        self.waiting.clear()
        self.unsettled = []
        return count


class FakeDatabase:
    """The two tables in memory. Implements what the contract promises (section 7) in plain code."""

    def __init__(self) -> None:
        self.rows: dict[UUID, StoredTaskActivityLog] = {}
        self.versions: dict[UUID, int] = {}
        self.inbox: set[UUID] = set()
        self.writes: list[Request[Delivery]] = []
        """The requests that wrote a row, in order."""
        self._now = datetime.now(UTC)

    def apply(self, wave: Sequence[Request[Delivery]]) -> list[Applied]:
        """Take a wave, as one transaction."""
        assert len({request.record.id for request in wave}) == len(wave), "SQLSTATE 21000: an id twice"
        assert len({request.mode for request in wave}) <= 1, "a wave has one mode"
        return [self._apply(request) for request in wave]

    def _apply(self, request: Request[Delivery]) -> Applied:
        identifier = request.record.id
        before = self.rows.get(identifier)
        if request.key is not None:
            if request.key in self.inbox:
                return Applied(Outcome.DUPLICATE, before)
            self.inbox.add(request.key)
        if request.version is not None:
            if before is not None and request.version <= self.versions.get(identifier, request.version - 1):
                return Applied(Outcome.STALE, before)
            self.versions[identifier] = request.version
        elif before is None:
            self.versions.pop(identifier, None)
        asked = {name: getattr(request.record, name) for name in FIELDS}
        if request.mode is UpdateMode.MERGE and before is not None:
            asked |= {name: getattr(before, name) for name in FIELDS if name not in request.record.model_fields_set}
        self._now += timedelta(microseconds=1)
        row = StoredTaskActivityLog.model_construct(**asked, modified_dateutc=self._now)
        self.rows[identifier] = row
        self.writes.append(request)
        return Applied(Outcome.UPDATED if before else Outcome.INSERTED, row)


class FakeStore:
    """The store over rows in memory. It refuses the subjects in `refuses`. While `away` is set, it is unavailable."""

    def __init__(self) -> None:
        self.database = FakeDatabase()
        self.waves: list[list[str | None]] = []
        self.refuses: set[str | None] = set()
        self.locked: set[str | None] = set()
        self.doubts: set[str | None] = set()
        self.unwritable = False
        self.leaves_unread = False
        """Whether the records of a wave are left unread, but for the first."""
        self.away: str | None = None
        self.tried = asyncio.Event()

    @property
    def rows(self) -> dict[UUID, StoredTaskActivityLog]:
        """The table of records."""
        return self.database.rows

    async def apply(self, wave: Sequence[Request[Delivery]]) -> list[Applied]:
        await asyncio.sleep(0)
        self.tried.set()
        if self.away is not None:
            raise Unavailable(self.away)
        self.waves.append([request.record.subject for request in wave])
        subjects = {request.record.subject for request in wave}
        if subjects & self.locked:
            raise TimedOut("timeout")
        if subjects & self.refuses:
            raise Refused("23514")
        if subjects & self.doubts:
            raise Refused("42501", doubtful=True)
        applied = self.database.apply(wave)
        if self.leaves_unread:
            applied[1:] = [Unread(each.outcome, None) for each in applied[1:]]
        return applied

    async def read(self, request: Request[Delivery], outcome: Outcome) -> Applied:
        await asyncio.sleep(0)
        if self.away is not None:
            raise Unavailable(self.away)
        return Applied(outcome, self.rows.get(request.record.id))

    async def probe(self) -> None:
        await asyncio.sleep(0)
        self.tried.set()
        if self.away is not None or self.unwritable:
            raise Unavailable(self.away or "not permitted")


class FakeReplies:
    """Records what was published, in order. While `away` is set, it is unavailable."""

    def __init__(self, log: list[str]) -> None:
        self.published: list[Reply] = []
        self.refusing: set[str] = set()
        self.away: str | None = None
        self.tried = asyncio.Event()
        self._log = log

    async def publish(self, replies: Sequence[Reply]) -> list[bool]:
        await asyncio.sleep(0)
        self.tried.set()
        if self.away is not None:
            raise Unavailable(self.away)
        self._log.append("replies")
        placed = [reply.reply_to not in self.refusing for reply in replies]
        self.published += compress(replies, placed)
        return placed


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

    def set_apart(self, suspects: Sequence[D]) -> None:
        assert suspects

    async def settled(self, count: int) -> None:
        """Return once `count` messages are settled."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.outcomes) >= count)

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()
