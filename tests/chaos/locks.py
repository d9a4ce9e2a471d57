"""Faults of some rows: other sessions lock them, or a trigger is slow. They delay these records, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg

from task_activity_log.message import Delivery, Properties
from task_activity_log.pipeline.request import Rules, decode
from tests.asking import Connection
from tests.chaos.messages import Message

if TYPE_CHECKING:
    from tests.chaos.faults import Faults

DATABASE_ERRORS = (
    OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what asyncpg raises when a connection is lost in the middle of an exchange
)  # fmt: skip

_PARKED_SECONDS = 90.0
"""How long a busy machine may take to send a request and to park it: some seconds."""
_SOME = "SELECT id FROM task_activity_log ORDER BY random() LIMIT $1"
_FREE = f"SELECT id FROM task_activity_log WHERE id IN ({_SOME}) FOR UPDATE SKIP LOCKED"  # noqa: S608 - constants
_CHANGE = f"UPDATE task_activity_log SET description = 'never committed' WHERE id IN ({_FREE}) RETURNING id"  # noqa: S608
"""Some rows that no other session has locked, so that nobody waits for another fault."""
_SLOW = """
    INSERT INTO chaos_slow (id, seconds, until) VALUES ($1, $2, now() + $3::float8 * interval '1 second')
    ON CONFLICT (id) DO UPDATE SET seconds = excluded.seconds, until = excluded.until
"""
"""It ends by itself, also if the database ends meanwhile."""


def _until_the_database_ends(fault: Callable[[Faults], Awaitable[None]]) -> Callable[[Faults], Awaitable[None]]:
    """Another fault may end the database meanwhile, and every lock with it."""

    @wraps(fault)
    async def run(faults: Faults) -> None:
        with suppress(*DATABASE_ERRORS):
            await fault(faults)

    return run


@_until_the_database_ends
async def rows_locked(faults: Faults) -> None:
    """Two sessions lock some rows each, one for longer than a worker waits for a lock."""
    seconds = faults.seconds(0.3, 10)
    faults.journal.fault("rows locked", f"for 0.5 and {seconds:.1f} s")
    await asyncio.gather(_rows_locked(faults, 0.5), _rows_locked(faults, seconds))


async def _rows_locked(faults: Faults, seconds: float) -> None:
    async with _transaction(faults) as session:
        with faults.locks.held(await _ids(session, _FREE, faults.random.randint(1, 3))):
            await asyncio.sleep(seconds)


@_until_the_database_ends
async def rows_changed(faults: Faults) -> None:
    """A session changes some rows and dies before it commits."""
    seconds = faults.seconds(0.3, 10)
    async with _transaction(faults) as session:
        with faults.locks.held(await _ids(session, _CHANGE, faults.random.randint(1, 3))):
            faults.journal.fault("rows changed", f"by a session that dies after {seconds:.1f} s")
            await asyncio.sleep(seconds)


@_until_the_database_ends
async def requests_taken(faults: Faults) -> None:
    """A session has taken some requests before they arrive, as a second worker, and dies before it commits.

    It holds the keys of some in the inbox, and the rows of others, which nobody else has written yet.
    """
    seconds = faults.seconds(0.3, 10)
    messages = [faults.stranger.plain() for _ in range(faults.random.randint(2, 4))]
    keyed, rest = messages[::2], messages[1::2]
    async with _transaction(faults) as session:
        await session.executemany("INSERT INTO task_activity_log_inbox (request_key) VALUES ($1)", _keys(keyed))
        await session.executemany("INSERT INTO task_activity_log (id) VALUES ($1)", [[one.record] for one in rest])
        with faults.locks.held([one.record for one in messages if one.record]):
            faults.journal.fault("requests taken", f"by a session that dies after {seconds:.1f} s")
            faults.stranger.send(messages)
            await asyncio.sleep(seconds)


async def rows_locked_until_parked(faults: Faults) -> None:
    """A session has inserted rows and does not commit, until workers have parked the requests for them.

    How long others have waited until then is what the workers grant. Without a limit, they would wait for the end of the lock.
    """
    messages = [faults.stranger.plain() for _ in range(2)]
    records = {str(one.record) for one in messages}
    async with _transaction(faults) as session:
        await session.executemany("INSERT INTO task_activity_log (id) VALUES ($1)", [[one.record] for one in messages])
        with faults.locks.held([one.record for one in messages if one.record]):
            faults.journal.fault("rows locked until parked")
            faults.stranger.send(messages)
            with suppress(TimeoutError):
                async with asyncio.timeout(_PARKED_SECONDS):
                    while not records <= faults.fleet.parked():
                        await asyncio.sleep(0.2)
                    return
    faults.fleet.failures.append(
        f"requests were not parked within {_PARKED_SECONDS:.0f} s although their rows were locked"
    )


@_until_the_database_ends
async def rows_referred_to(faults: Faults) -> None:
    """A session writes to a second table that refers to some rows, and does not commit for a while: this delays nobody."""
    seconds = faults.seconds(0.3, 10)
    async with _transaction(faults) as session:
        faults.journal.fault("rows referred to", f"for {seconds:.1f} s")
        await session.execute("SET LOCAL lock_timeout = '1s'")
        await session.execute(f"INSERT INTO chaos_refers (id) {_SOME.replace('$1', '5')}")
        await asyncio.sleep(seconds)


@_until_the_database_ends
async def rows_slow(faults: Faults) -> None:
    """A trigger takes its time for some rows, those of a few records and of many new ones. Nothing is locked."""
    seconds = faults.seconds(1, 8)
    messages = [faults.stranger.plain() for _ in range(faults.random.randint(3, 20))]
    session: Connection = await asyncpg.connect(faults.database_url, timeout=5)
    try:
        known = [row["id"] for row in await session.fetch(_SOME, faults.random.randint(1, 3))]
        records = [*known, *(one.record for one in messages if one.record)]
        with faults.locks.held(records):
            await session.executemany(_SLOW, [[record, faults.seconds(0.3, 3), seconds] for record in records])
            faults.journal.fault("rows slow", f"{len(records)}, for {seconds:.1f} s")
            faults.stranger.send(messages)
            await asyncio.sleep(seconds)
    finally:
        session.terminate()


class Locks:
    """Which records were locked or slow, and when."""

    def __init__(self) -> None:
        self._held: dict[UUID, list[list[float]]] = {}

    def held(self, records: Iterable[UUID]) -> _Held:
        """A context in which these records are locked."""
        return _Held(self._held, records)

    def free_since(self, record: UUID | None, sent: float, answered: float) -> float:
        """When a record became free that was locked between two moments (`time.monotonic`); `sent` if it was not."""
        windows = self._held.get(record, ()) if record else ()
        return max([sent, *(min(ended, answered) for began, ended in windows if began < answered)])


class _Held:
    def __init__(self, held: dict[UUID, list[list[float]]], records: Iterable[UUID]) -> None:
        self._windows = [held.setdefault(record, []) for record in records]

    def __enter__(self) -> None:
        self._window = [time.monotonic(), float("inf")]
        for windows in self._windows:
            windows.append(self._window)

    def __exit__(self, *_: object) -> None:
        self._window[1] = time.monotonic()


@asynccontextmanager
async def _transaction(faults: Faults) -> AsyncIterator[Connection]:
    """A transaction of somebody else. At the end its session dies, which rolls it back."""
    session: Connection = await asyncpg.connect(faults.database_url, timeout=5)
    try:
        await session.execute("BEGIN")
        yield session
    finally:
        session.terminate()


async def _ids(session: Connection, statement: str, count: int) -> Sequence[UUID]:
    return [row["id"] for row in await session.fetch(statement, count)]


def _keys(messages: Iterable[Message]) -> list[list[UUID | None]]:
    """What the inbox will remember of these messages."""
    delivered = [Delivery(m.body, Properties(content_type=m.content_type, message_id=m.message_id)) for m in messages]
    return [[decode(delivery, Rules()).key] for delivery in delivered]
