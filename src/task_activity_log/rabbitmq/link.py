"""One AMQP connection: opened with timeouts, supervised, and when lost closed and opened again as a whole.

aio-pika's robust connection restores channels in place, with a fixed delay, and only logs failures. A connection that is
opened again from the start has no half-restored state.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import aio_pika
import structlog
from aiormq.exceptions import AMQPError, ConnectionClosed, ProbableAuthenticationError
from yarl import URL

from task_activity_log.aio import Backoff
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.frames import FrameReader, FrameReaderFactory
from task_activity_log.tls import Tls

log = structlog.get_logger(__name__)

LOST = (AMQPError, OSError, TimeoutError, Unavailable, aio_pika.exceptions.AMQPException, RuntimeError)
"""What a lost or refused connection raises. RuntimeError is what aiormq raises for a channel on a closed connection."""

_CLOSE_SECONDS = 2.0


@contextmanager
def asking_the_driver() -> Iterator[None]:
    """Wrap every await on the driver. If the connection drops while it is being closed, aiormq cancels pending calls itself.

    Such a CancelledError is not ours. Taken for ours, it would silently end a task of the worker.

    Raises:
        ConnectionError: in place of a CancelledError that nobody here has asked for.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
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
    program: str = "task-activity-log-worker"
    """The program's name, which begins the connection's name in the broker's management."""
    on_outage: Callable[[str], None] | None = None
    """Called with the reason when there is no connection, in place of a log event. For programs other than the worker."""


@asynccontextmanager
async def connect(options: LinkOptions, purpose: str) -> AsyncIterator[tuple[aio_pika.Connection, FrameReader]]:
    """A connection and its frame reader. The broker's management shows the connection under its `purpose`.

    Raises:
        One of `LOST`: nobody answers, or the broker refuses.
    """
    factory = FrameReaderFactory()
    connection = aio_pika.Connection(
        URL(options.url).update_query(heartbeat=options.heartbeat_seconds),
        ssl_context=options.tls.context() if options.tls else None,
        client_properties={"connection_name": f"{options.program} {purpose}"},
    )
    connection.kwargs["transport_factory"] = factory
    try:
        await connection.connect(timeout=options.connect_timeout_seconds)
        assert factory.frame_reader is not None  # noqa: S101 - connect() has just made it
        yield connection, factory.frame_reader
    finally:
        # The driver's close waits for the broker's answer, which never comes from a broker that is gone.
        with suppress(*LOST), asking_the_driver():
            async with asyncio.timeout(_CLOSE_SECONDS):
                await connection.close()
        if factory.transport is not None:
            factory.transport.abort()  # closes also what was interrupted while it opened or closed


async def supervise(
    purpose: str,
    session: Callable[[Callable[[], None]], Awaitable[None]],
    lost: Callable[[], None],
    on_outage: Callable[[str], None] | None = None,
) -> None:
    """Run `session` again and again, with jittered pauses, until cancelled.

    Args:
        purpose: the connection's name in logs.
        session: connects, calls its argument once it is established, and ends when the connection is lost.
        lost: called after each session that was established and has ended.
        on_outage: called with the reason when a session ends; nothing is logged then.
    """
    backoff = Backoff(first=0.5, most=10.0)
    established = False

    def on_established() -> None:
        nonlocal established
        established = True
        backoff.reset()
        if on_outage is None:
            log.info("broker_connected", link=purpose)

    while True:
        established = False
        try:
            with asking_the_driver():
                await session(on_established)
            reason = "closed"
        except LOST as error:
            reason = describe(error)
        if established:
            lost()
        delay = backoff.delay()
        if on_outage is None:
            log.warning("broker_unavailable", link=purpose, reason=reason, retry_in_seconds=round(delay, 1))
        else:
            on_outage(reason)
        await asyncio.sleep(delay)


def describe(error: BaseException) -> str:
    """An error in few words, without the URL or anything that was in a message."""
    if isinstance(error, Unavailable):
        return error.reason
    if isinstance(error, ProbableAuthenticationError):
        return "the broker refuses the user name or password"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    # The driver's words where the broker closes instead of opening: "Expected one of ['Connection.OpenOk'] …".
    if (isinstance(error, ConnectionClosed) and "vhost" in str(error)) or "Connection.OpenOk" in str(error):
        return "the broker does not know this virtual host, or the user may not use it"
    text = " ".join(str(argument) for argument in error.args if argument)[:200]
    return text or type(error).__name__
