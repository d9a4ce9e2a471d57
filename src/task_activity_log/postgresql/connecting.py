"""Opens connections: to which server. The only module that calls `asyncpg.connect`."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakSet

import asyncpg

from task_activity_log.libpq import Host, Target, read, trust
from task_activity_log.postgresql.connection import ServerConnection
from task_activity_log.postgresql.faults import DRIVER_ERRORS
from task_activity_log.postgresql.logins import CERTIFICATE, NoConnection, explained, is_about_tls
from task_activity_log.problem import Unavailable
from task_activity_log.tls import Tls

APPLICATION_NAME = "task-activity-log-worker"
"""What pg_stat_activity shows, unless the connection string has another name."""

_OTHERS_SECONDS = 1.0
"""How long the other hosts may take to answer when one that accepts writes, and is no old primary, has answered."""
_CLOSE_SECONDS = 1.0


class _NoAddress(Exception):
    """No address of a host can be used: the failures, each cause once."""

    def __init__(self, failures: Sequence[NoConnection]) -> None:
        super().__init__("; ".join(map(str, failures)))
        self.failures = failures


_KEEPALIVE = (
    ("keepalives_idle", "TCP_KEEPIDLE"),
    ("keepalives_interval", "TCP_KEEPINTVL"),
    ("keepalives_count", "TCP_KEEPCNT"),
)


def _keep_alive(connection: ServerConnection, target: Target) -> None:
    """Set what finds out that the server is gone, as libpq does."""
    connected = connection.socket
    if connected is None or connected.family == getattr(socket, "AF_UNIX", None):
        return
    if target.options.get("keepalives") != "0":
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, constant in _KEEPALIVE:
            _set(connected, constant, target.number(name))
    _set(connected, "TCP_USER_TIMEOUT", target.number("tcp_user_timeout"))


def _set(connected: socket.socket, constant: str, value: int | None) -> None:
    if value and value > 0 and hasattr(socket, constant):
        connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, constant), value)


@dataclass(eq=False)
class Connector:
    """Opens connections to one database. All sessions of a process share one, so that all of them use one server.

    Each address of each host has its own timeout. If there are several, the one that accepts writes is used. If several
    accept writes, it is the one with the highest timeline, because another one is an old primary that came back, and of
    equal ones the one that was used last.
    """

    source: str | Callable[[], str]
    """The connection string (see `libpq`), or what reads it: it is read again for each connection."""
    connect_timeout: float = 10.0
    """Seconds for each address, unless the connection string has connect_timeout."""
    tls: Tls | None = None
    """Files for TLS. They replace the options of the connection string."""
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    on_secrets: Callable[[set[str]], None] = lambda _: None
    """Called with the passwords for each connection, so that they are not shown."""
    last: str | None = field(init=False, default=None)
    """The server that was used last."""

    def __post_init__(self) -> None:
        self._timelines: dict[int, int] = {}  # the highest that was seen, by cluster
        self._open: WeakSet[ServerConnection] = WeakSet()

    def target(self) -> Target:
        """What the connection string means now.

        Raises:
            Unavailable: it cannot be read.
        """
        try:
            target = read(self.source if isinstance(self.source, str) else self.source(), self.environment)
        except ValueError as error:
            why = str(error)
        else:
            self.on_secrets(target.secrets)
            return target
        raise Unavailable("the database URL cannot be used", why)

    async def connect(self, *, command_timeout: float, statement_cache_size: int = 0) -> ServerConnection:
        """Connect to the server that accepts writes. A single server is used even if it does not accept them.

        Raises:
            Unavailable: it is not possible. The reason names the database, each server, and the cause.
        """
        target = self.target()
        opener = _Opener(target, self.tls, self.connect_timeout, command_timeout, statement_cache_size, self._timelines)
        hosts = list(target.hosts)
        if balanced := target.options.get("load_balance_hosts") == "random":
            random.shuffle(hosts)
        opened, failures = await opener.open_all(hosts)
        chosen = choose(opened, None if balanced else self.last, self._timelines)
        await _close([connection for connection in opened if connection is not chosen])
        if chosen is None:
            raise _unavailable(target, [*failures, *(self._unfit(connection) for connection in opened)])
        self._use(chosen)
        return chosen

    def _use(self, chosen: ServerConnection) -> None:
        """Remember the server, and end the connections to older primaries of its cluster."""
        self.last = chosen.place
        if chosen.cluster is not None:
            self._timelines[chosen.cluster] = max(chosen.timeline, self._timelines.get(chosen.cluster, 0))
            for other in list(self._open):
                if other.cluster == chosen.cluster and other.timeline < chosen.timeline:
                    other.terminate()
        self._open.add(chosen)

    def _unfit(self, connection: ServerConnection) -> NoConnection:
        if not connection.writable:
            return NoConnection(connection.place, "read-only")
        seen = self._timelines.get(connection.cluster or 0, 0)
        advice = "restart the worker to use it, if the newer one is gone for good"
        said = f"on timeline {connection.timeline}, after timeline {seen} was seen; {advice}"
        return NoConnection(connection.place, "an old primary", said)


def choose(
    opened: Sequence[ServerConnection], last: str | None, timelines: Mapping[int, int]
) -> ServerConnection | None:
    """The connection to use; None if no server accepts writes or all that do are older than one that was seen.

    Timelines of different clusters cannot be compared: that of the first server counts.
    """
    fit = [each for each in opened if _is_fit(each, timelines)]
    fit.sort(key=lambda each: each.place != last)  # it is a stable sort
    return max((each for each in fit if each.cluster == fit[0].cluster), key=lambda each: each.timeline, default=None)


def _is_fit(connection: ServerConnection, timelines: Mapping[int, int]) -> bool:
    """Whether the server accepts writes, and is no older than one of its cluster that was seen."""
    return connection.writable and connection.timeline >= timelines.get(connection.cluster or 0, 0)


@dataclass(frozen=True, slots=True)
class _Opener:
    """Opens connections to the hosts of one target."""

    target: Target
    tls: Tls | None
    timeout: float
    command_timeout: float
    statement_cache_size: int
    timelines: Mapping[int, int]

    async def open_all(self, hosts: Sequence[Host]) -> tuple[list[ServerConnection], list[NoConnection]]:
        """Connections to all hosts that answer in time, in their order, and why there is none to the others."""
        tasks = [asyncio.create_task(self._open_host(host, alone=len(hosts) == 1)) for host in hosts]
        try:
            await self._wait(tasks)
        except BaseException:
            await self._discard(tasks)
            raise
        late = [task for task in tasks if not task.done()]
        await self._discard(late)
        opened: list[ServerConnection] = []
        failures: list[NoConnection] = []
        for task in tasks:
            if task in late:
                continue
            try:
                opened.append(task.result())
            except NoConnection as failure:
                failures.append(failure)
            except _NoAddress as host:
                failures += host.failures
        return opened, failures

    async def _wait(self, tasks: Sequence[asyncio.Task[ServerConnection]]) -> None:
        """Wait until all have ended, or for some more time after one has found a server that can be used."""
        loop = asyncio.get_running_loop()
        pending, until = set(tasks), float("inf")
        while pending and loop.time() < until:
            limit = None if until == float("inf") else until - loop.time()
            done, pending = await asyncio.wait(pending, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if until == float("inf") and any(
                task.exception() is None and _is_fit(task.result(), self.timelines) for task in done
            ):
                until = loop.time() + _OTHERS_SECONDS

    async def _discard(self, tasks: Sequence[asyncio.Task[ServerConnection]]) -> None:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await _close([result for result in results if isinstance(result, ServerConnection)])

    async def _open_host(self, host: Host, *, alone: bool) -> ServerConnection:
        """The first address of a host that accepts writes and is no old primary, or else the last one that lets us in."""
        addresses = [host.socket] if host.socket else await self._addresses(host)
        compare = not alone or len(addresses) > 1
        failures: dict[str, NoConnection] = {}  # by cause: that of the last address may say less than that of another
        opened: ServerConnection | None = None
        for address in addresses:
            place = str(host) if address in (host.name, host.socket) else f"{host} ({address})"
            try:
                found = await self._open(host, address, place, compare=compare)
            except NoConnection as error:
                failures[str(error)] = error
                continue
            if opened is not None:
                await _close([opened])
            opened = found
            if _is_fit(opened, self.timelines):
                break
        if opened is not None:
            return opened
        raise _NoAddress(list(failures.values()))

    @property
    def _seconds(self) -> float:
        asked = self.target.number("connect_timeout") or 0
        return asked if asked > 0 else self.timeout

    async def _addresses(self, host: Host) -> list[str]:
        name = host.address or host.name
        try:
            async with asyncio.timeout(self._seconds):
                found = await asyncio.get_running_loop().getaddrinfo(name, host.port, type=socket.SOCK_STREAM)
        except TimeoutError:
            raise NoConnection(str(host), "no such host", "no name server answers") from None
        except (OSError, UnicodeError) as error:
            said = getattr(error, "strerror", None) or "not a name"
            raise NoConnection(str(host), "no such host", said) from None
        return list(dict.fromkeys(_address(*address[4]) for address in found))

    async def _open(self, host: Host, address: str, place: str, *, compare: bool) -> ServerConnection:
        try:
            context = trust.context(self.target, host, self.tls)
        except OSError as error:
            said = self.target.unreadable_file() or str(error.strerror)
            raise NoConnection(place, "a file for TLS cannot be used", said) from None
        failures: list[NoConnection] = []
        for attempt in self._attempts(context):
            try:
                async with asyncio.timeout(self._seconds):
                    connection = await self._log_in(host, address, attempt)
                    await self._examine(connection, place, compare=compare)
            except DRIVER_ERRORS as error:
                failures.append(explained(error, place, host, self.target, self._seconds))
                if not is_about_tls(error):
                    break
            else:
                return connection
        first, last = failures[0], failures[-1]
        if first is not last and first.label == CERTIFICATE:
            raise NoConnection(place, first.label, f"{first.said}; without TLS: {last}")
        raise last

    def _attempts(self, context: ssl.SSLContext | None) -> tuple[ssl.SSLContext | None, ...]:
        """With TLS, without, or one after the other."""
        if context is None or self.tls is not None or self.target.tls:
            return (context,)
        return (context, None) if self.target.options["sslmode"] == "prefer" else (None, context)

    async def _log_in(self, host: Host, address: str, context: ssl.SSLContext | None) -> ServerConnection:
        options = self.target.options
        name = options.get("application_name") or options.get("fallback_application_name") or APPLICATION_NAME
        settings = {**self.target.server_settings, "application_name": name}
        if "options" in options:
            settings["options"] = options["options"]
        more: dict[str, Any] = {name: options[name] for name in ("krbsrvname", "gsslib") if name in options}
        return await asyncpg.connect(
            host=address,
            port=host.port,
            user=self.target.user,
            password=host.password or "",  # with None the driver would look for one by itself
            database=self.target.database,
            timeout=self._seconds,
            command_timeout=self.command_timeout,
            statement_cache_size=self.statement_cache_size,
            ssl=context or False,
            direct_tls=context is not None and options.get("sslnegotiation") == "direct",
            server_settings=settings,
            target_session_attrs=cast("Any", "any"),  # `Connector` chooses
            connection_class=ServerConnection,
            **more,
        )

    async def _examine(self, connection: ServerConnection, place: str, *, compare: bool) -> None:
        """Find out what is needed to compare servers. A single one need not be compared, which saves a round trip."""
        connection.place = place
        connection.where = f"database {self.target.database} at {place}"
        connection.writable, connection.cluster, connection.timeline = True, None, 0
        connection.unreplicated = False
        connection.add_log_listener(connection.notice)
        try:
            _keep_alive(connection, self.target)
            connection.know_arrays()
            await connection.remember_settings()
            if compare:
                try:
                    row = await connection.fetchrow(_EXAMINE)
                except asyncpg.PostgresError:  # somebody has revoked the functions, or it only resembles PostgreSQL
                    row = await connection.fetchrow(_EXAMINE_LESS)
                assert row is not None  # noqa: S101 - these statements return one row
                connection.writable = not row["read_only"]
                connection.cluster = row["cluster"]
                connection.timeline = int(row["timeline"] or "0", 16)
        except asyncpg.InternalClientError:  # the server has ended it between two messages of a statement
            connection.terminate()
            raise asyncpg.ConnectionDoesNotExistError from None
        except BaseException:
            connection.terminate()
            raise


_EXAMINE_LESS = """\
SELECT pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool AS read_only,
    NULL AS cluster, NULL AS timeline"""
# The first eight digits of a WAL file's name are the timeline. The control file has the old one until the first checkpoint
# after a promotion.
_EXAMINE = """\
SELECT pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool AS read_only,
    (SELECT system_identifier FROM pg_catalog.pg_control_system()) AS cluster,
    CASE WHEN NOT pg_catalog.pg_is_in_recovery()
        THEN pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8)
    END AS timeline"""


def _address(host: str, _: int, __: int = 0, scope: int = 0) -> str:
    """An address from what `getaddrinfo` returns. A link-local one of IPv6 needs the number of its interface."""
    return f"{host}%{scope}" if scope and "%" not in host else host


async def _close(connections: Sequence[ServerConnection]) -> None:
    for connection in connections:
        with suppress(*DRIVER_ERRORS):
            await connection.close(timeout=_CLOSE_SECONDS)
        connection.terminate()


def _unavailable(target: Target, failures: Sequence[NoConnection]) -> Unavailable:
    """All failures in one."""
    database = f"database {target.database} at"
    if len(failures) == 1:
        [only] = failures
        return Unavailable(only.label, f"{database} {only.place}" + (f": {only.said}" if only.said else ""))
    labels = {failure.label for failure in failures}
    if labels & {"read-only", "an old primary"}:
        why = "no host takes writes"
    else:
        why = labels.pop() if len(labels) == 1 else "no host can be used"
    return Unavailable(why, f"{database} " + "; ".join(f"{failure.place}: {failure}" for failure in failures))
