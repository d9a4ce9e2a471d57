"""Stand-ins for the broker and the database, for tests of the worker alone.

The store keeps the promises of the real one in memory; `tests/integration/test_store_contract.py` holds both to the same
tests.
"""

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID, uuid4

from task_activity_log.aio import Waiting
from task_activity_log.message import Delivery, Properties
from task_activity_log.pipeline.ports import Answer, D
from task_activity_log.pipeline.reply import Reply
from task_activity_log.pipeline.request import Request, UpdateMode
from task_activity_log.problem import TIMEOUT, Problem, Refused, Unavailable
from task_activity_log.record import FIELDS, Applied, Outcome, StoredTaskActivityLog


def delivered(
    body: bytes,
    message_id: str | None = None,
    content_type: str | None = "application/json",
    *,
    attempts: int = 0,
    **properties: Any,
) -> Delivery:
    """A delivery made of what a test says."""
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
    """Gives out what it was given; knows what was accepted, in order."""

    def __init__(self) -> None:
        self.waiting: Waiting[Delivery] = Waiting()
        self.accepted: list[Delivery] = []
        self.on_loan: list[Delivery] = []
        self.given_back: list[Delivery] = []
        self.vouched_for: list[Delivery] = []
        self.comes_again_one_by_one = False
        self.paused_by: set[str] = set()
        self.resumed = asyncio.Event()

    def put(self, *deliveries: Delivery) -> None:
        for delivery in deliveries:
            self.waiting.put(delivery)

    async def take(self, most: int) -> list[Delivery]:
        taken = await self.waiting.take(most)
        self.on_loan += taken
        return taken

    def take_waiting(self, most: int) -> list[Delivery]:
        taken = self.waiting.take_waiting(most)
        self.on_loan += taken
        return taken

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self.accepted += deliveries
        self.on_loan = [delivery for delivery in self.on_loan if delivery not in deliveries]

    @property
    def in_hand(self) -> int:
        return len(self.on_loan) + len(self.waiting)

    async def prove(self, deliveries: Sequence[Delivery]) -> None:
        self.vouched_for += deliveries

    async def pause(self, by: str) -> None:
        self.paused_by.add(by)

    async def resume(self, by: str) -> None:
        self.paused_by.discard(by)
        self.resumed.set()

    async def requeue(self, *, one_by_one: bool = False) -> int:
        count = len(self.on_loan)
        self.given_back += self.on_loan
        self.comes_again_one_by_one = one_by_one
        self.waiting.clear()
        self.on_loan = []
        return count


class FakeDatabase:
    """The two tables in memory: what is promised of the real ones (contract, section 7) holds here by plain code."""

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
    """The store over rows in memory. `refuses` names subjects that it refuses; while `away` is set it is unavailable."""

    def __init__(self) -> None:
        self.database = FakeDatabase()
        self.waves: list[list[str | None]] = []
        self.refuses: set[str | None] = set()
        self.locked: set[str | None] = set()
        self.doubts: set[str | None] = set()
        self.unwritable = False
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
            raise Unavailable(TIMEOUT)
        if subjects & self.refuses:
            raise Refused("23514")
        if subjects & self.doubts:
            raise Refused("42501", doubtful=True)
        return self.database.apply(wave)

    async def probe(self) -> None:
        await asyncio.sleep(0)
        self.tried.set()
        if self.away is not None or self.unwritable:
            raise Unavailable(self.away or "not permitted")


class FakeReplies:
    """Keeps what was published, in order; while `away` is set it is unavailable."""

    def __init__(self, log: list[str]) -> None:
        self.published: list[Reply] = []
        self.refusing: set[str] = set()
        self.away: str | None = None
        self.tried = asyncio.Event()
        self._log = log

    async def publish(self, replies: Sequence[Reply]) -> list[Reply]:
        await asyncio.sleep(0)
        self.tried.set()
        if self.away is not None:
            raise Unavailable(self.away)
        self._log.append("replies")
        refused = [reply for reply in replies if reply.reply_to in self.refusing]
        self.published += [reply for reply in replies if reply.reply_to not in self.refusing]
        return refused


class FakeDeadLetters:
    """Keeps what was rejected; while `away` is set it is unavailable."""

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
    """Counts what the worker tells; lets a test wait for a number of settled messages."""

    def __init__(self, log: list[str]) -> None:
        self.outcomes: list[str] = []
        self.held_reasons: list[str] = []
        self._log = log
        self._changed = asyncio.Condition()
        self._wakers: set[asyncio.Task[None]] = set()

    def took(self, stage: Literal["decode", "store", "reply"], seconds: float) -> None:
        assert seconds >= 0, stage

    def answered(self, answers: Sequence[Answer[D]]) -> None:
        self._log.append("settled")
        self.outcomes += [str(answer.reply.outcome) for answer in answers]
        waker = asyncio.ensure_future(self._wake())
        self._wakers.add(waker)
        waker.add_done_callback(self._wakers.discard)

    def held(self, place: str, reason: str) -> None:
        self.held_reasons.append(f"{place}: {reason}")

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
