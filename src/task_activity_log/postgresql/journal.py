"""The journal: how each message was answered, for the people who look for one (`task-activity-log find`).

It is written behind the work, over a connection of its own: no message waits for it, and what cannot be written is
counted and dropped. So it is a help and no proof: what a killed worker has answered last may be missing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple, TypeGuard
from uuid import UUID

import structlog

from task_activity_log.aio import end
from task_activity_log.message import ERROR_CODE, Delivery
from task_activity_log.pipeline.ports import D, Settlement
from task_activity_log.pipeline.request import message_id
from task_activity_log.postgresql.connecting import Connector
from task_activity_log.postgresql.connection import ServerConnection
from task_activity_log.postgresql.faults import Fault, fault
from task_activity_log.postgresql.session import Session
from task_activity_log.postgresql.statements import sql
from task_activity_log.postgresql.store import CONFIRM
from task_activity_log.problem import Failed, Refused, Unavailable
from task_activity_log.record import is_storable

log = structlog.get_logger(__name__)

_WRITE = sql("journal")
_ROWS_MAX = 10_000
"""How many rows wait while the journal cannot be written. If there are more, the oldest are dropped."""
_ROWS_AT_ONCE = 1_000
_REFUSED_IN_A_ROW = 10
"""After how many refused rows it is said that the journal cannot be written. A single one says nothing."""
_STATEMENT_SECONDS = 5.0
_RETRY_SECONDS = 5.0
_TEXT_MAX = 255
"""The most bytes of an AMQP short string. A header can have more: nobody looks for that."""


class Row(NamedTuple):
    """How a message was answered, in the order of the statement's parameters. No payload."""

    answered_at: str
    """In UTC, in ISO 8601."""
    record_id: UUID | None
    """None if the message could not be decoded."""
    reply_id: UUID
    """The message_id of the reply."""
    outcome: str
    code: str | None
    message_id: str | None
    correlation_id: str | None
    """Only if it is another one than the message_id."""
    publisher: str | None
    """The app_id, or else the user_id."""


class Journal:
    """Writes how messages were answered into the table task_activity_log_journal."""

    def __init__(
        self,
        connector: Connector,
        *,
        statement_cache_size: int = 100,
        on_dropped: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Do not connect yet. `on_dropped` is called with the number of rows that will be missing."""

        def connection() -> Awaitable[ServerConnection]:
            return connector.connect(command_timeout=_STATEMENT_SECONDS, statement_cache_size=statement_cache_size)

        self._session = Session(connection, CONFIRM, _STATEMENT_SECONDS)
        self._on_dropped = on_dropped
        self._rows: deque[Row] = deque()
        self._filled = asyncio.Event()
        self._written = asyncio.Event()  # not set while something waits
        self._written.set()
        self._reason: str | None = None  # why it cannot be written at present
        self._refused = 0  # rows in a row

    def add(self, settlements: Sequence[Settlement[D]]) -> None:
        """These were answered just now. Returns at once."""
        now = datetime.now(UTC).isoformat()
        self._rows.extend(row for each in settlements if (row := _row(each, now)) is not None)
        if (over := len(self._rows) - _ROWS_MAX) > 0:
            for _ in range(over):
                self._rows.popleft()
            self._on_dropped(over)
        if self._rows:
            self._written.clear()
            self._filled.set()

    async def run(self) -> None:
        """Write what is added, for ever. What cannot be written now is tried again, until too much waits."""
        while True:
            await self._filled.wait()
            try:
                await self._write_all()
            except Unavailable as outage:
                self._fails(outage)
                await asyncio.sleep(_RETRY_SECONDS)
                self._session.renew()  # what was corrected may count for new connections alone, as the settings of a role do

    def _fails(self, why: Unavailable) -> None:
        if self._reason != why.label:
            self._reason = why.label
            log.warning("journal_failing", reason=why.reason)

    def _count(self, rows: int, written: int, why: str) -> None:
        """How many of these rows were written, and why the others were not."""
        if written < rows:
            self._on_dropped(rows - written)
        self._refused = 0 if written else self._refused + rows
        if written and self._reason is not None:
            self._reason = None
            log.info("journal_recovered")
        elif self._refused >= _REFUSED_IN_A_ROW:
            self._fails(Unavailable(why, self._session.where))

    async def finish(self, running: asyncio.Task[None], seconds: float) -> None:
        """Let `running`, the task of `run`, write what was added last; end it after this time; and disconnect."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._written.wait()
        await end(running)
        if self._rows:
            self._on_dropped(len(self._rows))
            log.warning("journal_rows_lost", rows=len(self._rows), reason=self._reason)
        await self._session.close()

    async def _write_all(self) -> None:
        """Write all rows that wait. A row that the database refuses is found by halving, and dropped.

        If the error may be that of the table, the row goes behind the others, and is dropped once one of them is written.

        Raises:
            Unavailable: those that are not written still wait.
        """
        most, failing, some_written = _ROWS_AT_ONCE, 0, False
        while self._rows:
            rows = [self._rows.popleft() for _ in range(min(most, len(self._rows)))]
            try:
                written = await self._write(rows)
            except BaseException as error:
                if not _may_be_a_rows(error):
                    self._rows.extendleft(reversed(rows))  # if it was written, it is written twice, which does no harm
                    raise
                most = max(1, len(rows) // 2)
                if len(rows) > 1:
                    self._rows.extendleft(reversed(rows))
                elif isinstance(error, Failed) and not some_written:
                    self._rows.extend(rows)
                    failing += 1
                    if failing == min(len(self._rows), _REFUSED_IN_A_ROW):
                        self._rows.rotate(failing)  # as they were
                        if len(self._rows) == failing or not await self._takes_newest():
                            raise
                        failing, some_written = 0, True
                elif some_written:  # others are written, so it is only this row
                    self._on_dropped(1)
                else:
                    self._count(
                        1, 0, error.label if isinstance(error, Failed) else f"every row is refused ({error.sqlstate})"
                    )
            else:
                most = min(most * 2, _ROWS_AT_ONCE)
                some_written = some_written or written > 0
                self._count(len(rows), written, "a trigger skips every row")
        self._filled.clear()
        self._written.set()

    async def _takes_newest(self) -> bool:
        """Whether the newest row is written, while the oldest are not: their time may be the reason."""
        newest = self._rows.pop()
        try:
            written = await self._write([newest])
        except BaseException as error:
            self._rows.append(newest)
            if not _may_be_a_rows(error):
                raise
            return False
        self._count(1, written, "a trigger skips every row")
        return written > 0

    async def _write(self, rows: Sequence[Row]) -> int:
        """Write rows in one statement; returns how many were written: a trigger may skip some."""
        return len(await self._session.ask(_WRITE, *map(list, zip(*rows, strict=True))))


def _may_be_a_rows(error: BaseException) -> TypeGuard[Refused | Failed]:
    """Whether other rows may be written: this one has values that are refused, or that no partition takes."""
    return isinstance(error, Refused) or (
        isinstance(error, Failed) and fault(error.sqlstate) in (Fault.ROW, Fault.LASTING)
    )


def _row(settlement: Settlement[D], answered_at: str) -> Row | None:
    """The row for an answer; None if it has nothing by which somebody could find it."""
    delivery, reply = settlement.delivery, settlement.reply
    message, correlation = _text(message_id(delivery)), _text(delivery.properties.correlation_id)
    record = settlement.record or settlement.asked
    if message is None and correlation is None and record is None:
        return None
    return Row(
        answered_at,
        record,
        UUID(reply.message_id),
        reply.outcome.value,
        reply.headers.get(ERROR_CODE),
        message,
        None if correlation == message else correlation,
        _publisher(delivery),
    )


def _publisher(delivery: Delivery) -> str | None:
    return _text(delivery.properties.app_id or delivery.properties.user_id)


def _text(value: str | None) -> str | None:
    """The text if the database can store it and it is no longer than an AMQP short string."""
    return value if value and is_storable(value) and len(value.encode()) <= _TEXT_MAX else None
