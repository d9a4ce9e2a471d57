"""A PostgreSQL connection that is replaced when it fails."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

from task_activity_log.postgresql.connection import ServerConnection
from task_activity_log.postgresql.faults import DRIVER_ERRORS, Fault, Ours, is_of_the_server, judge
from task_activity_log.problem import Refused, TimedOut, Unavailable

Row: TypeAlias = Mapping[str, Any]
"""Values by column name."""

_RETRIES = {Fault.CONFLICT: 3, Fault.SCHEMA: 1, Fault.STATEMENT: 1, Fault.SKIPPED: 1}
_NEW_SECONDS = 10.0
"""For how long a connection counts as new that was opened because of `Fault.SCHEMA`."""
_HARMLESS = (Fault.ROW, Fault.LASTING, Fault.TIMEOUT, Fault.CONFLICT, Fault.SKIPPED)  # the connection can still be used


class Session:
    """One connection, for one statement at a time. It is opened when it is needed and replaced after a failure."""

    _IDLE_SECONDS = 120.0
    """A firewall may have dropped a connection that was idle for longer (the strictest: 4 minutes)."""
    _CLOSE_SECONDS = 5.0
    _END_SECONDS = 1.0
    """How long the server may take to cancel a statement. If it does not, the connection is closed."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[ServerConnection]],
        confirm: str,
        confirm_seconds: float,
        ours: Callable[[], Ours] = Ours,
    ) -> None:
        """Prepare a session without connecting.

        Args:
            connect: opens its connections.
            confirm: a statement that returns when all earlier commits are as safe as a commit is here.
            confirm_seconds: how long it may take.
            ours: what is known of our tables now, for errors.
        """
        self._connect = connect
        self._confirm, self._confirm_seconds = confirm, confirm_seconds
        self._turn = asyncio.Lock()
        self._connection: ServerConnection | None = None
        self._used = 0.0
        self._new_until = 0.0  # until when the connection is new (`Fault.SCHEMA`)
        self._closing: set[asyncio.Task[None]] = set()
        self._ours = ours

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as the driver knows."""
        return self._connection is not None and not self._connection.is_closed()

    async def open(self) -> None:
        """Connect if there is no connection.

        Raises:
            Unavailable: it is not possible to connect.
        """
        async with self._turn:
            await self._open()

    async def ask(
        self,
        statement: str,
        *arguments: object,
        seconds: float | None = None,
        end_after: float | None = None,
        restore: bool = False,
    ) -> list[Row]:
        """Execute one statement in its own transaction and return its rows.

        Conflicts and outdated caches are retried here (see `Fault`). Callers take turns; since each statement and each
        attempt to connect has a timeout, no caller waits for ever.

        `seconds` replaces the timeout of the statement, after which its connection is closed. After `end_after` seconds the
        server is asked to cancel the statement, and its answer is waited for: so it is known whether it was committed.

        With `restore` what triggers have set is taken back, which takes one more round trip.

        Raises:
            Refused: the database or the driver refuses a value.
            Failed: the statement failed; `TimedOut` if it took too long.
            Unavailable: the database cannot be used.
        """
        tried: Counter[Fault] = Counter()
        async with self._turn:
            while True:
                connection = await self._open()
                try:
                    rows = await self._fetch(connection, statement, arguments, seconds, end_after)
                except DRIVER_ERRORS as error:
                    kind, failure = self._failed(connection, error, restore=restore)
                except BaseException:
                    self._abandon()
                    raise
                else:
                    await self._executed(connection, restore=restore)
                    return cast("list[Row]", rows)  # each Record is read once, so making a dict of it would be slower
                tried[kind] += 1
                if (self.connected and kind is Fault.SCHEMA) or tried[kind] > _RETRIES.get(kind, 0):
                    raise failure  # not chained to the driver's error, which quotes rows

    def _failed(
        self, connection: ServerConnection, error: Exception, *, restore: bool
    ) -> tuple[Fault, Refused | Unavailable]:
        """After an error: what it means. The connection is replaced if it cannot be used any more.

        With `restore` it is also replaced if the driver cannot read an answer: the statement was committed, with what triggers
        have set.
        """
        kind, failure = judge(error, connection.where, self._ours())
        may_be_changed = restore and not is_of_the_server(error)
        if may_be_changed or not (self._can_be_used(kind) and connection.is_utf8):
            self._abandon()
        return kind, failure

    async def _executed(self, connection: ServerConnection, *, restore: bool) -> None:
        """After a statement: undo what triggers may have done to the session, and wait for the standby if that is left to do.

        They may have set a search path in which other tables have the names of ours.
        """
        self._used = time.monotonic()
        if (restore and not await self._restored(connection)) or not connection.is_utf8:
            self._abandon()  # in another encoding it would refuse characters in the rows of others
        if connection.unreplicated:
            connection.unreplicated = False
            await self._replicate(connection.where)

    async def _restored(self, connection: ServerConnection) -> bool:
        """Whether the settings are again as they were when the connection was opened."""
        try:
            await connection.execute(connection.as_connected, timeout=self._confirm_seconds)
        except DRIVER_ERRORS:
            return False
        return True

    def _can_be_used(self, kind: Fault) -> bool:
        """Whether the connection can still be used after this error."""
        if kind is not Fault.SCHEMA:
            return kind in _HARMLESS
        now = time.monotonic()
        if now < self._new_until:
            return True
        self._new_until = now + _NEW_SECONDS  # the next one is
        return False

    async def _fetch(
        self,
        connection: ServerConnection,
        statement: str,
        arguments: Sequence[object],
        seconds: float | None,
        end_after: float | None,
    ) -> list[Any]:
        if end_after is None:
            return await connection.fetch(statement, *arguments, timeout=seconds)
        ended = False

        def end() -> None:
            nonlocal ended
            ended = True
            connection.end_statement()

        timer = asyncio.get_running_loop().call_later(end_after, end)
        try:
            rows = await connection.fetch(statement, *arguments, timeout=end_after + self._END_SECONDS)
        finally:
            timer.cancel()
        if ended:
            self._abandon()  # the statement was faster than the request to cancel it, which could cancel the next one
        return rows

    async def _replicate(self, where: str) -> None:
        """Return once a commit that was cancelled while it waited for a standby is on the standby too.

        Raises:
            TimedOut: it takes too long. The transaction is committed on this server alone.
        """
        connection = await self._open()
        try:
            await connection.fetch(self._confirm, timeout=self._confirm_seconds)
        except DRIVER_ERRORS:
            self._abandon()
        else:
            if not connection.unreplicated:
                return
            connection.unreplicated = False
        raise TimedOut(where)

    async def rehearse(self, *statements: tuple[str, Sequence[object]], seconds: float) -> Refused | Unavailable | None:
        """Execute statements in one transaction and roll back. What `ask` would raise for them and for a commit; None: nothing.

        Each of them finds the settings as they were when the connection was opened.

        Raises:
            Unavailable: it is not possible to connect.
        """
        failure: Refused | Unavailable | None = None
        async with self._turn:
            connection = await self._open()
            transaction = connection.transaction()
            try:
                async with asyncio.timeout(seconds):
                    await transaction.start()
                    for statement, arguments in statements:
                        await connection.fetch(statement, *arguments)
                        if not await self._restored(connection):
                            break  # the rest would fail because of the settings, which it does not on another connection
                    else:
                        await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            except DRIVER_ERRORS as error:
                failure = judge(error, connection.where, self._ours())[1]
            except BaseException:
                self._abandon()
                raise
            try:
                async with asyncio.timeout(seconds):
                    await transaction.rollback()
            except DRIVER_ERRORS:
                self._abandon()
        return failure

    @property
    def where(self) -> str:
        """The database and its server, for people; empty if there is no connection."""
        return "" if self._connection is None else self._connection.where

    async def survives(self) -> bool:
        """Whether the connection is open and answers."""
        async with self._turn:
            if self._connection is None or self._connection.is_closed():
                return False
            try:
                await self._connection.fetch("SELECT 1", timeout=self._confirm_seconds)
            except DRIVER_ERRORS:
                self._abandon()
                return False
            return True

    def renew(self) -> None:
        """Use another connection from the next statement on. To be called by whoever has executed the last one."""
        self._abandon()

    async def close(self) -> None:
        """Close the connection, and wait until all abandoned connections are closed."""
        self._abandon()
        if self._closing:
            await asyncio.wait(self._closing)

    async def _open(self) -> ServerConnection:
        if time.monotonic() - self._used > self._IDLE_SECONDS:
            self._abandon()
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
            self._used = time.monotonic()
        return self._connection

    def _abandon(self) -> None:
        """Stop using the connection, and close it without waiting.

        After a timeout or a cancellation the server still executes the statement and holds locks that the next attempt
        would wait for. asyncpg asks the server to cancel it, through a second connection, and closing waits for that;
        hence the limit.
        """
        connection, self._connection = self._connection, None
        if connection is None or connection.is_closed():
            return

        async def close() -> None:
            try:
                async with asyncio.timeout(self._CLOSE_SECONDS):
                    await connection.close()
            except (*DRIVER_ERRORS, asyncio.CancelledError):
                connection.terminate()

        task = asyncio.create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
