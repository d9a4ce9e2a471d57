"""Ending tasks, and the kinds of failed connections. Needs no broker."""

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import structlog
from aiormq.base import FutureStore
from aiormq.exceptions import (
    AMQPConnectionError,
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ConnectionClosed,
    ConnectionNotAllowed,
    InvalidFrameError,
    ProbableAuthenticationError,
)

from task_activity_log.aio import end
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq import link
from task_activity_log.rabbitmq.link import LOST, LinkOptions, Missing, Outage, OutageKind, connect, describe, supervise
from tests import virtual_time


async def test_a_task_that_loses_a_cancellation_is_ended_nevertheless() -> None:
    """If the result comes at the same time as the cancellation, asyncio.wait_for returns it and drops the cancellation."""
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    lost = asyncio.Event()

    async def session() -> None:
        try:
            await answer
        except asyncio.CancelledError:
            lost.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(session())
    await asyncio.sleep(0)
    await end(task)
    assert lost.is_set()
    assert task.cancelled()


async def test_what_has_ended_is_left_alone() -> None:
    """Also if nothing was started."""
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    await end(task)
    await end()


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"),
            OutageKind.CONNECTION_REFUSED,
            "connection refused",
        ),
        (ProbableAuthenticationError("ACCESS_REFUSED - Login was refused"), OutageKind.LOGIN_REFUSED, "user name or"),
        (ConnectionNotAllowed(530, "NOT_ALLOWED - access to vhost"), OutageKind.VHOST_REFUSED, "this virtual host"),
        (
            InvalidFrameError("Expected one of ['Connection.OpenOk'], got"),
            OutageKind.VHOST_REFUSED,
            "this virtual host",
        ),
        (socket.gaierror(-2, "Name or service not known"), OutageKind.NO_SUCH_HOST, "no such host"),
        (Missing("queue 'x' does not exist"), OutageKind.NOT_FOUND, "queue 'x' does not exist"),
        (ChannelNotFoundEntity(404, "NOT_FOUND - no queue 'x'"), OutageKind.NOT_FOUND, "404 NOT_FOUND - no queue 'x'"),
        (ChannelAccessRefused(403, "ACCESS_REFUSED - 'x'"), OutageKind.ACCESS_REFUSED, "403 ACCESS_REFUSED - 'x'"),
        (TimeoutError(), OutageKind.TIMEOUT, "no answer in time"),
        (ConnectionClosed(320, "CONNECTION_FORCED - stopped"), OutageKind.LOST, "320 CONNECTION_FORCED - stopped"),
        (Unavailable("no publisher connection"), OutageKind.LOST, "no publisher connection"),
        (RuntimeError(), OutageKind.LOST, "RuntimeError"),
        (
            RuntimeError("async generator raised StopAsyncIteration"),
            OutageKind.LOST,
            "the server closed the connection",
        ),
        (
            AMQPConnectionError("Server connection reset: ConnectionResetError(104, 'Connection reset by peer')"),
            OutageKind.LOST,
            "the server closed the connection",
        ),
        (
            AMQPConnectionError("Server connection unexpectedly closed. Read 0 bytes but 1 bytes expected"),
            OutageKind.LOST,
            "the server closed the connection",
        ),
        (
            ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"),
            OutageKind.LOST,
            "the server does not speak TLS at this port: use its port for TLS, usually 5671, or amqp://",
        ),
        (
            ChannelInvalidStateError('<Channel: "1" at 0x7f0f4fea9c20> closed'),
            OutageKind.LOST,
            "the server closed the connection",
        ),
        (
            AMQPConnectionError("Server connection unexpectedly closed. Read 96 bytes but 1345270063 bytes expected"),
            OutageKind.LOST,
            "the server is not an AMQP broker, or it closed the connection",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_outage_has_a_kind_and_one_line(error: Exception, kind: OutageKind, text: str) -> None:
    """The kind follows from the exception's type or code; the line is for people."""
    outage = describe(error)
    assert outage.kind is kind
    assert text in outage.text
    assert "\n" not in outage.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_port_without_a_listener_refuses_the_connection(host: str) -> None:
    """Given by address and by name: a name may have several addresses, whose failures become one text."""
    with pytest.raises(LOST) as refused:
        async with connect(LinkOptions(f"amqp://{host}:1/"), "test"):
            pass
    assert describe(refused.value).kind is OutageKind.CONNECTION_REFUSED


def test_the_refusals_of_several_addresses_are_one_refusal() -> None:
    """For machines where localhost has one address only, so that the test above does not show it."""
    several = OSError(f"Multiple exceptions: [Errno {errno.ECONNREFUSED}] first, [Errno {errno.ECONNREFUSED}] second")
    assert describe(several).kind is OutageKind.CONNECTION_REFUSED


@pytest.mark.parametrize("query", ["cadata=x", "cafile=/nonexistent"])
async def test_an_option_that_the_driver_cannot_use_is_an_outage_with_a_reason(query: str) -> None:
    """It ends no command with a traceback, and no worker."""
    with pytest.raises(LOST) as unusable:
        async with connect(LinkOptions(f"amqps://127.0.0.1:1/?{query}"), "test"):
            pass
    assert describe(unusable.value).text


async def test_a_name_that_nobody_knows_is_no_such_host() -> None:
    """In the words that the database has for it."""
    with pytest.raises(LOST) as refused:
        async with connect(LinkOptions("amqp://nohost.invalid/"), "test"):
            pass
    assert describe(refused.value).text == "no such host"


def test_an_outage_is_logged_once_for_each_reason_and_again_after_a_minute() -> None:
    """Each attempt would otherwise be a line, of each connection, for as long as the broker is away."""
    reasons = ["a"] * 5 + ["b"] * 5

    async def session(_: Callable[[], None]) -> None:
        raise ConnectionError(reasons.pop(0) if reasons else "b")

    async def supervised() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(200):
                await supervise("intake", session, lambda: None)

    with structlog.testing.capture_logs() as events:
        virtual_time.run(supervised())
    told = [event["reason"] for event in events]
    assert told[:2] == ["a", "b"]
    assert 3 <= len(told) <= 6


def test_too_few_channels_are_not_said_to_be_a_wrong_virtual_host() -> None:
    """The broker uses one code for both."""
    refused = ConnectionNotAllowed(
        530, "NOT_ALLOWED - number of channels opened (1) has reached the negotiated channel_max (1)"
    )
    outage = describe(refused)
    assert outage.kind is OutageKind.LOST
    assert outage.text == "the broker permits too few channels for a connection: raise its channel_max"


async def test_a_command_whose_call_the_driver_cancels_has_lost_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver cancels calls itself if no heartbeat comes. It would be a traceback. Its caller can still cancel it."""

    @asynccontextmanager
    async def connected(*_: object) -> AsyncIterator[tuple[None, None]]:
        yield None, None

    monkeypatch.setattr(link, "connect", connected)
    options = LinkOptions("amqp://localhost/")
    with pytest.raises(Unavailable, match="connection lost"):
        async with link.connect_once(options, "test"):
            raise asyncio.CancelledError
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0), link.connect_once(options, "test"):
            await asyncio.Event().wait()


async def test_a_call_that_the_driver_rejects_without_a_reason_is_a_lost_connection() -> None:
    """The driver raises `Exception` itself where a connection is closed without one; the session would not begin again."""
    store = FutureStore(asyncio.get_running_loop())

    async def session(_: Callable[[], None]) -> None:
        pending = store.create_task(asyncio.sleep(60))
        await asyncio.gather(pending, store.reject_all(None))

    outages: list[Outage] = []
    supervised = asyncio.create_task(supervise("test", session, lambda: None, outages.append))
    while not outages and not supervised.done():
        await asyncio.sleep(0)
    await end(supervised)
    assert [(outage.kind, outage.text) for outage in outages] == [(OutageKind.LOST, "connection lost")]


async def test_a_fault_of_ours_is_no_lost_connection() -> None:
    """It is not tried again and again."""

    async def session(_: Callable[[], None]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await supervise("test", session, lambda: None)
