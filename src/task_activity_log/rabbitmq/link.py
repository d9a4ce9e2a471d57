"""One AMQP connection: opened with timeouts, watched, torn down and rebuilt as a whole.

aio-pika's robust connection restores channels in place, with a fixed delay and failures that are only logged. A link
that is rebuilt from nothing has no half-restored state.
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
"""What a lost or refused link raises. RuntimeError: aiormq's word for "connection closed" when opening a channel."""

_CLOSE_SECONDS = 2.0


@contextmanager
def asking_the_driver() -> Iterator[None]:
    """Around each await on the driver: it ends calls with its own cancellation when it loses the connection while closing it.

    Taken for ours it would end a task of the worker without a word.

    Raises:
        ConnectionError: instead of a CancelledError that nobody here has asked for.
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
    """Files for TLS, instead of what the URL says."""
    heartbeat_seconds: int = 10
    connect_timeout_seconds: float = 10.0
    program: str = "task-activity-log-worker"
    """What the broker's management shows as the connection's owner."""
    on_outage: Callable[[str], None] | None = None
    """Told why there is no connection, instead of the log: for programs that are no service."""


@asynccontextmanager
async def connect(options: LinkOptions, purpose: str) -> AsyncIterator[tuple[aio_pika.Connection, FrameReader]]:
    """A connection, named after its `purpose` in the broker's management, and the tap in its transport.

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
        # The driver's own close waits for the broker's word; a broker that is gone has none.
        with suppress(*LOST), asking_the_driver():
            async with asyncio.timeout(_CLOSE_SECONDS):
                await connection.close()
        if factory.transport is not None:
            factory.transport.abort()  # what was cut off in the middle of its beginning or its end is closed, too


async def supervise(
    purpose: str,
    session: Callable[[Callable[[], None]], Awaitable[None]],
    lost: Callable[[], None],
    on_outage: Callable[[str], None] | None = None,
) -> None:
    """Run `session` again and again, with jittered pauses, until cancelled.

    Args:
        purpose: the link's name in logs.
        session: connects, calls what it is given once it is established, and ends when the link is lost.
        lost: called after each session that was established and has ended.
        on_outage: told why each session ended; nothing is logged then.
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
