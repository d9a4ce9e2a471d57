"""PostgreSQL's connections: how to get one, and what its errors mean. The only place that calls asyncpg.

Three parts: whose fault an error is (`Fault`), how to connect (`connect`), and a connection that mends itself (`Link`).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, auto
from typing import Any, TypeAlias, cast
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from task_activity_log.problem import Refused, Unavailable
from task_activity_log.tls import Tls

Row: TypeAlias = Mapping[str, Any]
"""By column name."""
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

TIMEOUT = "timeout"
"""The reason of an `Unavailable` that a smaller wave may not meet: the wave took too long, or a row in it is locked."""

CLIENT = "client"
"""Stands for the SQLSTATE where the driver could not send a value or read an answer."""


class Fault(Enum):
    """Whose fault an error is; each member is dealt with in its own way."""

    ROW = auto()
    """The row's: halve, isolate, reject."""
    DOUBTFUL = auto()
    """The row's or everybody's: halve, and see whether others pass."""
    CONFLICT = auto()
    """Two transactions met: again at once, three times; then as the database's."""
    SCHEMA = auto()
    """Statement and schema do not fit: again on a new connection, which has cached nothing; then as the database's."""
    DATABASE = auto()
    """The database's: hold, and wait it out."""


_FAULTS = {
    "08": Fault.DATABASE,  # connection
    "0A000": Fault.SCHEMA,  # the result of a cached plan has changed
    "22": Fault.ROW,  # data
    "23": Fault.ROW,  # constraint
    "25": Fault.DATABASE,  # read-only
    "26": Fault.SCHEMA,  # a prepared statement is gone
    "28": Fault.DATABASE,  # authentication
    "3D": Fault.DATABASE,  # no such database
    "40": Fault.CONFLICT,  # deadlock, serialization
    "42": Fault.SCHEMA,  # no such table or column
    "42501": Fault.DOUBTFUL,  # no privilege: on the table, or row security against one row
    "44": Fault.ROW,  # WITH CHECK OPTION
    "53": Fault.DATABASE,  # disk, memory, connections
    "54": Fault.ROW,  # program limits
    "55": Fault.DATABASE,  # not in the state, lock timeout
    "57": Fault.DATABASE,  # operator intervention, statement timeout
    "58": Fault.DATABASE,  # system
    "P0001": Fault.ROW,  # RAISE EXCEPTION in a trigger
    "XX": Fault.DATABASE,  # internal
}
"""By SQLSTATE, or by the first two characters of it, its class. All others are doubtful."""

_WORDS = {
    "08": "connection lost",
    "25": "read-only",
    "28": "access refused",
    "3D": "no such database",
    "40": "conflict",
    "42P01": "not migrated yet",
    "53": "out of resources",
    "53100": "disk full",
    "53300": "too many connections",
    "55": "not in a fit state",
    "57": "shutting down or starting up",
}
_TIMEOUTS = ("55P03", "57014")  # lock_timeout; statement_timeout, or an administrator's pg_cancel_backend
_RETRIES = {Fault.CONFLICT: 3, Fault.SCHEMA: 1}
_HARMLESS = (Fault.ROW, Fault.DOUBTFUL, Fault.CONFLICT)  # the connection is as good as before


def fault(sqlstate: str) -> Fault:
    """Whose fault an error with this SQLSTATE is."""
    return _FAULTS.get(sqlstate) or _FAULTS.get(sqlstate[:2], Fault.DOUBTFUL)


def reason(sqlstate: str) -> str:
    """A short label for an outage, such as `disk full (53100)`; `timeout` for all timeouts."""
    if sqlstate in _TIMEOUTS:
        return TIMEOUT
    fallback = "schema does not fit" if fault(sqlstate) is Fault.SCHEMA else "database error"
    return f"{_WORDS.get(sqlstate) or _WORDS.get(sqlstate[:2], fallback)} ({sqlstate})"


NOT_MIGRATED = reason("42P01")
"""The reason of an `Unavailable` while our tables are not there."""

_DRIVER_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    ValueError,
    OverflowError,
)


def _judge(error: Exception) -> tuple[Fault, Refused | Unavailable]:
    """Whose fault a driver's error is, and what to raise for it. Of its text nothing is kept: it quotes rows."""
    if isinstance(error, asyncpg.PostgresError):
        sqlstate = error.sqlstate or "XX000"
        kind = fault(sqlstate)
        if kind in (Fault.ROW, Fault.DOUBTFUL):
            return kind, Refused(sqlstate, doubtful=kind is Fault.DOUBTFUL)
        return kind, Unavailable(reason(sqlstate))
    if isinstance(error, ValueError | OverflowError):
        return Fault.ROW, Refused(CLIENT)
    return Fault.DATABASE, Unavailable(TIMEOUT if isinstance(error, TimeoutError) else "connection lost")


async def connect(
    dsn: str,
    *,
    connect_timeout: float,
    command_timeout: float,
    statement_cache_size: int = 0,
    tls: Tls | None = None,
) -> Connection:
    """Connect as libpq would: the hosts in turn, each with a timeout of its own.

    asyncpg has one timeout for all hosts, so that a first one that does not answer would leave none for the others. Of
    several hosts we want the one that takes writes, unless the DSN says otherwise.

    Raises:
        Unavailable: none of the hosts lets us in.
    """
    try:
        options: dict[str, Any] = {"ssl": tls.context()} if tls else {}
    except OSError as error:
        raise Unavailable(_why_not_connected(error)) from None
    if "application_name" not in dsn:
        options["server_settings"] = {"application_name": "task-activity-log-worker"}
    hosts = _each_host(dsn)
    if len(hosts) > 1 and "target_session_attrs" not in dsn:
        options["target_session_attrs"] = "read-write"
    outage = "unreachable"
    for host in hosts:
        try:
            return await asyncpg.connect(
                host,
                timeout=connect_timeout,
                command_timeout=command_timeout,
                statement_cache_size=statement_cache_size,
                **options,
            )
        except _DRIVER_ERRORS as error:
            outage = _why_not_connected(error)
    raise Unavailable(outage)


def _each_host(dsn: str) -> list[str]:
    try:
        parts = urlsplit(dsn)
    except ValueError:
        return [dsn]  # the driver refuses it, too
    login, at, hosts = parts.netloc.rpartition("@")
    if "," not in hosts:
        return [dsn]
    return [urlunsplit(parts._replace(netloc=f"{login}{at}{host}")) for host in hosts.split(",")]


_FILE = "a certificate file or the server's socket is not there or may not be read"
_CONNECT_ERRORS: tuple[tuple[type[Exception], str], ...] = (
    (asyncpg.TargetServerAttributeNotMatched, "no host takes writes"),
    (ssl.SSLError, "TLS failed"),
    (TimeoutError, "connect timeout"),
    (FileNotFoundError, _FILE),
    (PermissionError, _FILE),
    (OSError, "unreachable"),
    (ValueError, "the database URL is not understood"),  # the driver's text may quote a part of the password
)
"""By type, the first that fits. All others: the server or its way to log in is none that the driver knows."""


def _why_not_connected(error: Exception) -> str:
    if isinstance(error, asyncpg.PostgresError):
        return reason(error.sqlstate or "XX000")
    return next((words for kind, words in _CONNECT_ERRORS if isinstance(error, kind)), "access refused")


class Link:
    """One connection: opened when it is needed, given up after trouble, one statement at a time."""

    _IDLE_SECONDS = 120.0  # what is silent for longer may be a dead end behind a firewall (the strictest: 4 minutes)
    _CLOSE_SECONDS = 5.0

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        """Take what opens the connection."""
        self._connect = connect
        self._turn = asyncio.Lock()
        self._connection: Connection | None = None
        self._used = 0.0
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None and not self._connection.is_closed()

    async def open(self) -> None:
        """Connect if there is no connection.

        Raises:
            Unavailable: it cannot be had.
        """
        async with self._turn:
            await self._open()

    async def ask(self, statement: str, *arguments: object) -> list[Row]:
        """Execute one statement, in a transaction of its own, and return its rows.

        Conflicts and outdated caches are tried again here; see `Fault`. Nobody waits for his turn without end: each
        statement and each attempt to connect has its timeout.

        Raises:
            Refused: the database or the driver refuses a value.
            Unavailable: the database is away, or the statement took too long.
        """
        tried: Counter[Fault] = Counter()
        async with self._turn:
            while True:
                connection = await self._open()
                try:
                    rows = await connection.fetch(statement, *arguments)
                except _DRIVER_ERRORS as error:
                    kind, trouble = _judge(error)
                    if kind not in _HARMLESS:
                        self._part()
                except BaseException:
                    self._part()
                    raise
                else:
                    self._used = time.monotonic()
                    return cast("list[Row]", rows)  # a Record has no dict made of it: it is read once
                tried[kind] += 1
                if tried[kind] > _RETRIES.get(kind, 0):
                    raise trouble  # not chained to the driver's error, which quotes rows

    async def close(self) -> None:
        """Close the connection, and wait until those given up are closed."""
        self._part()
        if self._closing:
            await asyncio.wait(self._closing)

    async def _open(self) -> Connection:
        if time.monotonic() - self._used > self._IDLE_SECONDS:
            self._part()
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
            self._used = time.monotonic()
        return self._connection

    def _part(self) -> None:
        """Give the connection up, without waiting for it.

        After a timeout or a cancellation the server is still at work, with locks that the next try would wait for.
        asyncpg asks it to stop, on a second connection; closing waits for that, but not longer than we allow.
        """
        connection, self._connection = self._connection, None
        if connection is None or connection.is_closed():
            return

        async def close() -> None:
            try:
                async with asyncio.timeout(self._CLOSE_SECONDS):
                    await connection.close()
            except (*_DRIVER_ERRORS, asyncio.CancelledError):
                connection.terminate()

        task = asyncio.create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
