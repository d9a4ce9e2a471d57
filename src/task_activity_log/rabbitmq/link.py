"""One AMQP connection: opened with timeouts, supervised, and when lost closed and opened again as a whole.

aio-pika's robust connection restores channels in place, with a fixed delay, and only logs failures. A connection that is
opened again from the start has no half-restored state.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aio_pika
import aiormq
import structlog
from aio_pika.abc import UnderlayConnection
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ConnectionInternalError,
    ConnectionNotAllowed,
    ProbableAuthenticationError,
)
from yarl import URL

from task_activity_log import __version__
from task_activity_log.aio import Backoff
from task_activity_log.hosts import Hosts, vhost
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.frames import FrameReader, FrameReaderFactory
from task_activity_log.rabbitmq.management import Management
from task_activity_log.tls import Tls

log = structlog.get_logger(__name__)

LOST = (AMQPError, OSError, TimeoutError, Unavailable, aio_pika.exceptions.AMQPException, RuntimeError)
"""What a lost or refused connection raises. RuntimeError is what aiormq raises for a channel on a closed connection."""

_CLOSE_SECONDS = 2.0
_AGAIN_SECONDS = 60.0
"""How often an outage with the same reason is logged."""
_INTERNAL_ERROR = "INTERNAL_ERROR"


class OutageKind(Enum):
    """Why there is no connection, as far as the driver's exceptions and the broker's reply codes tell."""

    CONNECTION_REFUSED = "connection refused"
    NO_SUCH_HOST = "no such host"
    UNUSABLE = "the URL cannot be used"
    NO_FILE = "a file for TLS cannot be used"
    LOGIN_REFUSED = "the broker refuses the user name or password"
    VHOST_REFUSED = "the broker does not know this virtual host, or the user may not use it"
    NOT_FOUND = "a queue or an exchange does not exist"
    ACCESS_REFUSED = "the user lacks a permission"
    TIMEOUT = "no answer in time"
    LOST = "closed"


@dataclass(frozen=True, slots=True)
class Outage:
    """Why there is no connection: the kind, for programs, and one line for people, which contains no URL."""

    kind: OutageKind
    text: str


def is_certificate_checked(url: str) -> bool:
    """Whether the driver checks the broker's certificate for an amqps:// URL without `LinkOptions.tls`."""
    return parse_qs(urlsplit(url).query, keep_blank_values=True).get("no_verify_ssl", ["0"])[0] == "0"


class Missing(ConnectionError):
    """A queue or an exchange does not exist; the text says so."""


class CutOff(ConnectionError):
    """The host takes what it is sent and carries nothing out, as a node does that is cut off from the others.

    Raised within `connect`, it also ends other connections of the process to that host.
    """

    def __init__(self, text: str, others: Collection[str] | None = None) -> None:
        """The text for people, and the purposes of the connections that are ended; None: of all to that host."""
        super().__init__(text)
        self.others = others


class _Unusable(ConnectionError):
    """The driver cannot use the URL; the text says why."""


class _NoFile(ConnectionError):
    """A file of `LinkOptions.tls` cannot be used; the text says which, and why."""


@contextmanager
def asking_the_driver() -> Iterator[None]:
    """Wrap every await on the driver. If the connection drops while it is being closed, aiormq cancels pending calls itself.

    Such a CancelledError is not ours. Taken for ours, it would silently end a task of the worker. Or it has them raise
    `Exception` itself, without a text.

    Raises:
        ConnectionError: in place of a CancelledError that this code did not request, and of that `Exception`.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionError("connection lost") from None
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise ConnectionError("connection lost") from None


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How to reach the broker."""

    url: str
    tls: Tls | None = None
    """Files for TLS. They take precedence over what the URL says."""
    heartbeat_seconds: int = 10
    connect_timeout_seconds: float = 10.0
    """For each host of the URL, and each address of a host's name."""
    program: str = "task-activity-log-worker"
    """The program's name, which begins the connection's name in the broker's management."""
    on_outage: Callable[[Outage], None] | None = None
    """Called with each outage instead of logging it: for commands."""
    source: Callable[[], str] | None = None
    """Reads the URL again for each connection, because it may have changed. Raises `Unavailable` if that is not possible."""
    management: Management | None = field(default=None, compare=False)
    """The management API of this broker, which shows what AMQP does not: the policies of queues."""
    hosts: Hosts = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Share the order of the hosts among all connections that are opened with these options."""
        object.__setattr__(self, "hosts", Hosts(self.source or self.url))


@asynccontextmanager
async def connect(
    options: LinkOptions, purpose: str, *, leads: bool = False
) -> AsyncIterator[tuple[aio_pika.Connection, FrameReader]]:
    """A connection and its frame reader. The broker's management shows the connection under its `purpose`.

    The hosts of the URL are tried in turn, and of a host's name each address, until one of them lets us in. The next
    connection begins with another host than one that was lost. After a `CutOff` other connections leave that host, too.
    With `leads`, other connections to other hosts are ended: they come to this one.

    Raises:
        One of `LOST`: nobody answers, or the broker refuses; it is that of the last address.
    """
    async with AsyncExitStack() as stack:
        url, opened = await _open_any(options, purpose, stack)
        end = opened[1].abort
        with options.hosts.connected(url, purpose, end) as connected:
            if leads:
                options.hosts.gather(url, f"{purpose} is at another host")
            try:
                yield opened
            except CutOff as cut_off:
                options.hosts.abandon(url, str(cut_off), cut_off.others)
                end()  # the host would answer `connection.close` late
                raise
            except LOST as error:
                options.hosts.leave(url)
                if connected.why is not None:
                    raise ConnectionError(connected.why) from error
                raise


async def _open_any(
    options: LinkOptions, purpose: str, stack: AsyncExitStack
) -> tuple[str, tuple[aio_pika.Connection, FrameReader]]:
    failure: BaseException | None = None
    for url in options.hosts:
        try:
            addresses = await _addresses(url, options.connect_timeout_seconds)
        except OSError as error:
            failure = error
            addresses = []
        for address in addresses:
            try:
                opened = await stack.enter_async_context(_open(options, purpose, URL(url), address))
            except LOST as error:
                failure = error
            except ValueError as error:  # an option of the URL that the driver cannot read
                failure = _Unusable(str(error))
            else:
                options.hosts.stay(url)
                return url, opened
        options.hosts.leave(url)
    assert failure is not None  # noqa: S101 - there is at least one host, and it has failed
    raise failure


@asynccontextmanager
async def connect_once(options: LinkOptions, purpose: str) -> AsyncIterator[aio_pika.Connection]:
    """A connection for a command, which is not opened again.

    Raises:
        Unavailable: nobody answers, the broker refuses, or the connection is lost; the reason is one line.
    """
    try:
        with asking_the_driver():
            async with connect(options, purpose) as (connection, _):
                yield connection
    except LOST as error:
        raise Unavailable(describe(error).text) from None


async def _addresses(url: str, timeout_seconds: float) -> list[str]:
    """The addresses of a URL's host. Raises `OSError`: there is no such name, or no name server answers in time."""
    host = URL(url).host or ""
    async with asyncio.timeout(timeout_seconds):
        found = await asyncio.get_running_loop().getaddrinfo(host, URL(url).port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


class _Driver(aiormq.Connection):
    """The driver's connection, with room for any number of frames that are not written yet.

    Whoever waits for room when the connection is lost waits for ever: the driver ends its writer and leaves the frames. What
    is written is bounded otherwise, by what is in hand and by the confirms that are waited for.
    """

    FRAME_BUFFER_SIZE = 0


class _Underlay(UnderlayConnection):
    """The driver's connection, to the virtual host that the URL means.

    The driver decodes the path twice, and resolves its dots: for a virtual host that is called `%2F` it would use `/`.
    """

    @classmethod
    async def make_connection(
        cls, url: URL, timeout: float | None = None, **kwargs: Any
    ) -> aiormq.abc.AbstractConnection:
        virtual_host = kwargs.pop("vhost")
        connection = _Driver(url, **kwargs)
        connection.vhost = virtual_host
        await asyncio.wait_for(connection.connect(), timeout)
        await connection.ready()
        return connection


class _Connection(aio_pika.Connection):
    """aio-pika's connection, which passes its `kwargs` to `_Underlay`."""

    async def connect(self, timeout: float | None = None) -> None:
        self.transport = await _Underlay.connect(self.url, self._on_connection_close, timeout=timeout, **self.kwargs)
        await self._on_connected()


def _context(tls: Tls) -> ssl.SSLContext:
    try:
        return tls.context()
    except OSError:
        raise _NoFile(tls.unusable()) from None


@asynccontextmanager
async def _open(
    options: LinkOptions, purpose: str, url: URL, address: str
) -> AsyncIterator[tuple[aio_pika.Connection, FrameReader]]:
    factory = FrameReaderFactory(address)
    connection = _Connection(
        url.update_query(heartbeat=options.heartbeat_seconds),
        ssl_context=None if options.tls is None else _context(options.tls),
        client_properties={"connection_name": f"{options.program} {purpose}", "release": __version__},
    )
    connection.kwargs |= {"transport_factory": factory, "vhost": vhost(str(url))}
    try:
        await connection.connect(timeout=options.connect_timeout_seconds)
        assert factory.frame_reader is not None  # noqa: S101 - connect() has just made it
        yield connection, factory.frame_reader
    finally:
        # The driver's close waits for the broker's answer, which never comes from a broker that is gone.
        with suppress(*LOST), asking_the_driver():
            async with asyncio.timeout(_CLOSE_SECONDS):
                await connection.close()
        await connection.close()  # marks it as closed if that was cut short; the driver's finalizer warns about others
        if factory.transport is not None:
            factory.transport.abort()  # closes also what was interrupted while it opened or closed


class _Log:
    """Logs the state of a supervised connection: an outage once for each reason, and again once a minute."""

    def __init__(self, purpose: str) -> None:
        self._purpose = purpose
        self._logged: tuple[str, float] | None = None  # the latest reason, and when it was logged (time of the loop)

    def connected(self) -> None:
        self._logged = None
        log.info("broker_connected", link=self._purpose)

    def unavailable(self, outage: Outage, delay: float) -> None:
        now = asyncio.get_running_loop().time()
        if self._logged is None or self._logged[0] != outage.text or now - self._logged[1] >= _AGAIN_SECONDS:
            self._logged = outage.text, now
            log.warning("broker_unavailable", link=self._purpose, reason=outage.text, retry_in_seconds=round(delay, 1))


async def supervise(
    purpose: str,
    session: Callable[[Callable[[], None]], Awaitable[None]],
    lost: Callable[[], None],
    on_outage: Callable[[Outage], None] | None = None,
) -> None:
    """Run `session` again and again, with jittered pauses, until cancelled.

    Args:
        purpose: the connection's name in logs.
        session: connects, calls its argument once it is established, and ends when the connection is lost.
        lost: called after each session that was established and has ended.
        on_outage: called with the reason when a session ends; nothing is logged then.
    """
    backoff, logged = Backoff(first=0.5, most=10.0), _Log(purpose)
    established = False

    def on_established() -> None:
        nonlocal established
        established = True
        backoff.reset()
        if on_outage is None:
            logged.connected()

    while True:
        established = False
        try:
            with asking_the_driver():
                await session(on_established)
            outage = Outage(OutageKind.LOST, OutageKind.LOST.value)
        except LOST as error:
            outage = describe(error)
        if established:
            lost()
        delay = backoff.delay()
        if on_outage is None:
            logged.unavailable(outage, delay)
        else:
            on_outage(outage)
        await asyncio.sleep(delay)


def broker_failed(error: BaseException) -> bool:
    """Whether the broker has closed the connection because of an error of its own.

    It may be a message that it cannot deliver. RabbitMQ 4 takes what AMQP 1.0 permits, and fails if that has no form in
    AMQP 0-9-1, such as a content_type of more than 255 bytes.
    """
    return isinstance(error.__cause__, ConnectionInternalError) or describe(error).text.startswith(_INTERNAL_ERROR)


def cannot_reach_queue(error: BaseException) -> bool:
    """Whether one of `LOST` is a node that cannot reach a queue, as while it is cut off or the queue has no leader.

    Either the queue has not answered in time, or the node has closed the connection because of it.
    """
    return isinstance(error, Unavailable) or describe(error).text.startswith(_INTERNAL_ERROR)


def describe(error: BaseException) -> Outage:
    """One of `LOST` as an outage."""
    kind = _kind(error)
    if isinstance(error, Unavailable):
        return Outage(kind, error.reason)
    if "channel_max" in str(error):
        return Outage(OutageKind.LOST, "the broker permits too few channels for a connection: raise its channel_max")
    if kind in _OWN_WORDS:
        return Outage(kind, kind.value)  # the driver's own text says less, or too much
    said = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error  # the driver raises its own
    parts = said.args[1:] if isinstance(said, ssl.SSLError) else said.args  # the first one is OpenSSL's number
    text = " ".join(str(part) for part in parts if part)[:200]
    if plain := _in_plain_words(text):
        return Outage(kind, plain)
    if kind in (OutageKind.UNUSABLE, OutageKind.NO_FILE):
        text = f"{kind.value}: {text}"
    return Outage(kind, text or type(error).__name__)


def _in_plain_words(text: str) -> str:
    """Plain words for what the driver says of a server that is not what the URL says; empty if it says something else."""
    if "WRONG_VERSION_NUMBER" in text:
        return "the server does not speak TLS at this port: use its port for TLS, usually 5671, or amqp://"
    if any(
        sign in text
        for sign in (
            "async generator raised StopAsyncIteration",
            "Read 0 bytes but",
            "Connection reset by peer",
            "> closed",  # a channel of the driver, as Python shows it
        )
    ):
        return "the server closed the connection"
    return "the server is not an AMQP broker, or it closed the connection" if "bytes expected" in text else ""


def _kind(error: BaseException) -> OutageKind:
    # Two come as text alone: asyncio joins the failures of a name's several addresses into one text without an errno,
    # and the driver reports the broker's `connection.close` as a malformed answer to `connection.open`.
    text = str(error)
    if getattr(error, "errno", None) == errno.ECONNREFUSED or f"[Errno {errno.ECONNREFUSED}]" in text:
        return OutageKind.CONNECTION_REFUSED
    if "Connection.OpenOk" in text:
        return OutageKind.VHOST_REFUSED
    return next((kind for types, kind in _KINDS if isinstance(error, types)), OutageKind.LOST)


_OWN_WORDS = (
    OutageKind.CONNECTION_REFUSED,
    OutageKind.NO_SUCH_HOST,
    OutageKind.LOGIN_REFUSED,
    OutageKind.VHOST_REFUSED,
    OutageKind.TIMEOUT,
)
_KINDS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], OutageKind], ...] = (
    (ProbableAuthenticationError, OutageKind.LOGIN_REFUSED),
    (ConnectionNotAllowed, OutageKind.VHOST_REFUSED),
    (socket.gaierror, OutageKind.NO_SUCH_HOST),
    (_Unusable, OutageKind.UNUSABLE),
    (_NoFile, OutageKind.NO_FILE),
    ((Missing, ChannelNotFoundEntity), OutageKind.NOT_FOUND),
    (ChannelAccessRefused, OutageKind.ACCESS_REFUSED),
    (TimeoutError, OutageKind.TIMEOUT),
)
