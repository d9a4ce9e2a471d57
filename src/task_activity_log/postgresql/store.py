"""PostgreSQL: waves of requests in, outcomes and stored records out. The statements are in `sql/`."""

from __future__ import annotations

import json
import re
from asyncio import gather
from collections.abc import Awaitable, Sequence
from datetime import datetime, timedelta
from importlib import resources
from operator import attrgetter
from typing import Any
from uuid import UUID

from task_activity_log.pipeline.request import Request, UpdateMode
from task_activity_log.postgresql.session import NOT_MIGRATED, Connection, Link, Row, connect
from task_activity_log.problem import Refused, Unavailable
from task_activity_log.record import FIELDS, Applied, Outcome, StoredTaskActivityLog
from task_activity_log.tls import Tls


def _sql(name: str) -> str:
    """A statement from `sql/` without its comments, which would fill what pg_stat_activity shows of it."""
    text = resources.files("task_activity_log.postgresql").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")
    return re.sub(r"(?m)^\s*--.*\n", "", text)


_WRITE = {UpdateMode.REPLACE: _sql("replace"), UpdateMode.MERGE: _sql("merge")}
_READ = _sql("read")
_PROBE = _sql("probe")
_TRIM = _sql("trim")
_SCHEMA_VERSION = _sql("schema_version")
_CHECK = _sql("check")

GRANTS = resources.files("task_activity_log.postgresql").joinpath("sql", "grants.sql")
"""What the role of workers needs, for psql."""

_OUTCOMES = {str(outcome): outcome for outcome in Outcome}
_ORDER = attrgetter("record.id.int")  # as PostgreSQL orders uuids, and faster than comparing them
_VALUES = attrgetter(*FIELDS)
_INSTANTS = tuple(index for index, name in enumerate(FIELDS) if name in ("due_date", "date_closed"))


class Store:
    """The tables task_activity_log and task_activity_log_inbox of one database."""

    def __init__(
        self,
        dsn: str,
        *,
        connect_timeout: float = 10.0,
        command_timeout: float = 30.0,
        statement_cache_size: int = 100,
        tls: Tls | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            dsn: `postgresql://…`, with several hosts and libpq's options if need be.
            connect_timeout: seconds that each host may take to let us in.
            command_timeout: seconds that a statement may take.
            statement_cache_size: prepared statements kept; 0 behind pgbouncer in transaction mode, for one more round
                trip a statement.
            tls: files for TLS, instead of what the DSN says.
        """

        def connection() -> Awaitable[Connection]:
            return connect(
                dsn,
                connect_timeout=connect_timeout,
                command_timeout=command_timeout,
                statement_cache_size=statement_cache_size,
                tls=tls,
            )

        self._writer = Link(connection)
        self._maintenance = Link(connection)

    @property
    def connected(self) -> bool:
        """Whether there is a connection to write through."""
        return self._writer.connected

    async def open(self) -> None:
        """Connect.

        Raises:
            Unavailable: the database does not let us in.
        """
        await self._writer.open()

    async def close(self) -> None:
        """Disconnect. A statement under way is cancelled; ends within five seconds even if the server is deaf."""
        await gather(self._writer.close(), self._maintenance.close())

    async def apply(self, wave: Sequence[Request[Any]]) -> list[Applied]:
        """Store a wave in one transaction, and tell what became of each request, in the wave's order.

        A wave has each id once and one update mode (`batch.waves`). It has each request key once as well: a key is made
        of the body, which names the id. When it returns, the wave is committed; when it raises, it is not, or the
        connection was lost and nobody knows, and it can be sent again.

        An outcome comes with the record as it stands, and with None where there is none to answer with: the row of a
        duplicate or stale request was deleted since, or (outcome `rejected`) the row is stored and cannot be read in
        Python, having been given such values by others.

        Raises:
            Refused: something in the wave is not acceptable to the database; nothing of it is stored.
            Unavailable: the database is away; with the reason `timeout` where a smaller wave may pass.
        """
        if not wave:
            return []
        mode = wave[0].mode
        written = {row["id"]: row for row in await self._writer.ask(_WRITE[mode], *_arguments(wave, mode))}
        applied: list[Applied] = []
        unwritten: list[int] = []
        for index, request in enumerate(wave):
            row = written.get(request.record.id)
            outcome = Outcome.DUPLICATE if row is None else _OUTCOMES[row["outcome"]]
            if row is None or outcome is Outcome.STALE:
                unwritten.append(index)
                applied.append(Applied(outcome, None))
            else:
                applied.append(_answer(outcome, row))
        if unwritten:
            ids = [wave[index].record.id for index in unwritten]
            current = {row["id"]: row for row in await self._writer.ask(_READ, ids)}
            for index in unwritten:
                if (row := current.get(wave[index].record.id)) is not None:
                    applied[index] = _answer(applied[index].outcome, row)
        return applied

    async def probe(self) -> None:
        """Prove that we can write, without writing.

        Raises:
            Unavailable: we cannot, or may not.
        """
        await self._tend(self._writer, _PROBE)

    async def trim(self, keep: timedelta, chunk: int) -> int:
        """Forget at most `chunk` requests that were taken longer than `keep` ago; returns how many.

        Fewer than `chunk` means: done for now, or another worker is at it.

        Raises:
            Unavailable: the database is away, or we may not.
        """
        [row] = await self._tend(self._maintenance, _TRIM, keep, chunk)
        return int(row["count"])

    async def schema_version(self) -> str | None:
        """The revision that the schema was migrated to (see `migrations.head`); None when it was not migrated yet.

        Raises:
            Unavailable: the database is away, or we may not ask.
        """
        try:
            [row] = await self._tend(self._maintenance, _SCHEMA_VERSION)
        except Unavailable as outage:
            if outage.reason == NOT_MIGRATED:
                return None
            raise
        return str(row["version_num"])

    async def look(self) -> Row:
        """What `check` wants to know of the database (see sql/check.sql).

        Raises:
            Unavailable: the database is away, or we may not ask.
        """
        [row] = await self._tend(self._maintenance, _CHECK)
        return row

    async def modified(self, ids: Sequence[UUID]) -> dict[UUID, datetime]:
        """When each of these records was changed last; those that are not there, or cannot be read, are left out.

        Raises:
            Unavailable: the database is away, or we may not ask.
        """
        rows = await self._tend(self._maintenance, _READ, ids)
        return {row["id"]: row["modified_dateutc"] for row in rows if row["modified_dateutc"] is not None}

    async def _tend(self, link: Link, statement: str, *arguments: object) -> list[Row]:
        """Ask what belongs to no message: there is none that a refusal could be the fault of."""
        try:
            return await link.ask(statement, *arguments)
        except Refused as refused:
            outage = Unavailable(f"not permitted ({refused.sqlstate})")
        raise outage


def _arguments(wave: Sequence[Request[Any]], mode: UpdateMode) -> list[object]:
    """The parameters of the statement that writes a wave: columns, sorted by id (why, is in replace.sql)."""
    ordered = sorted(wave, key=_ORDER)
    columns: list[Sequence[Any]] = list(zip(*[_VALUES(request.record) for request in ordered], strict=True))
    for index in _INSTANTS:
        columns[index] = [instant and instant.isoformat() for instant in columns[index]]
    arguments: list[object] = [*columns, [request.key for request in ordered], [request.version for request in ordered]]
    if mode is UpdateMode.MERGE:
        present = {str(request.record.id): list(request.record.model_fields_set) for request in ordered}
        return [*arguments, json.dumps(present)]
    return arguments


def _answer(outcome: Outcome, row: Row) -> Applied:
    if row["outcome"] == Outcome.REJECTED:
        return Applied(Outcome.REJECTED, None)
    return Applied(outcome, StoredTaskActivityLog.from_row(row))
