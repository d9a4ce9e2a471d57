"""The client's first connection and later ones, without a broker."""

import asyncio
import ssl

import pytest
from aiormq.exceptions import AMQPConnectionError, ChannelAccessRefused

from task_activity_log.client import ClientError
from task_activity_log.client.connections import Connections
from task_activity_log.client.notices import Notices
from task_activity_log.rabbitmq.link import LinkOptions, Outage, OutageKind, describe

URL = "amqp://guest:secret@broker.example/"


def away(kind: OutageKind = OutageKind.LOST, text: str = "away") -> Outage:
    return Outage(kind, text)


def refused(text: str) -> Outage:
    """What the driver says of a permission that is missing. Before RabbitMQ 3.13 the broker does not name it."""
    return describe(ChannelAccessRefused(403, f"ACCESS_REFUSED - {text}"))


def test_a_failure_of_tls_is_only_its_text() -> None:
    """Without the number before it, which says nothing. The driver wraps it: with the same arguments, or in a text of its own."""
    text = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1000)"
    failure = ssl.SSLCertVerificationError(1, text)
    wrapped = AMQPConnectionError(*failure.args), AMQPConnectionError(f"Server communication error: {failure!r}")
    for each in wrapped:
        each.__cause__ = failure
    assert [describe(each).text for each in (failure, *wrapped)] == [text] * 3


def report(connections: Connections, outage: Outage) -> None:
    """What a supervised session does when it ends."""
    assert connections.options.on_outage is not None
    connections.options.on_outage(outage)


async def until_cancelled() -> None:
    await asyncio.Event().wait()


async def test_outages_after_the_first_connection_are_only_reported() -> None:
    """The tasks go on, until the connections are closed."""
    outages: list[Outage] = []
    connections = Connections(URL, on_outage=outages.append)
    ended = asyncio.Event()

    async def run() -> None:
        try:
            await until_cancelled()
        finally:
            ended.set()

    await connections.open(run(), ready=asyncio.sleep(0))
    report(connections, away())
    assert outages == [away()]
    assert not ended.is_set()
    await connections.close()
    assert ended.is_set()


@pytest.mark.parametrize(
    ("outage", "text"),
    [
        (away(), "no connection to broker.example:5672: away"),
        (
            away(OutageKind.CONNECTION_REFUSED, OutageKind.CONNECTION_REFUSED.value),
            "no connection to broker.example:5672: connection refused",
        ),
        (
            refused("access to queue 'amq.gen-x' in vhost '/' refused for user 'pub'"),
            "user 'pub' may not use queue 'amq.gen-…' (the private queue for replies, which the broker names): "
            "see Permissions in docs/publishing.md and docs/subscribing.md",
        ),
        (
            refused("write access to exchange 'task_activity_log' in vhost '/' refused for user 'pub'"),
            "user 'pub' may not write to exchange 'task_activity_log': see Permissions in docs/",
        ),
        (
            refused("read access to topic 'a' in exchange 'b' in vhost '/' refused for user 'pub'"),
            "user 'pub' may not read topic 'a': see Permissions in docs/",
        ),
        (
            refused("queue 'x' in vhost '/' in exclusive use"),
            "the broker refuses access: 403 ACCESS_REFUSED - queue 'x' in vhost '/' in exclusive use: see Permissions",
        ),
        (
            away(OutageKind.NOT_FOUND, "exchange 'x' does not exist"),
            "exchange 'x' does not exist: a worker declares it",
        ),
    ],
)
async def test_an_outage_of_the_first_connection_is_raised(outage: Outage, text: str) -> None:
    """It is not reported as well, and no task is left."""
    connections = Connections(URL, on_outage=lambda _: pytest.fail("reported"))
    ended = asyncio.Event()

    async def run() -> None:
        try:
            report(connections, outage)
            report(connections, away(text="the other connection"))  # before `open` has raised the first
            await until_cancelled()
        finally:
            ended.set()

    with pytest.raises(ClientError) as refusal:
        await connections.open(run(), ready=until_cancelled())
    assert str(refusal.value).startswith(text)
    assert ended.is_set()


async def test_a_fault_of_the_client_is_raised_before_the_first_connection_and_reported_after_it() -> None:
    """Without it, whoever waits for a connection or an answer would wait without end."""
    failures: list[ClientError] = []
    connections = Connections(URL, on_outage=lambda _: None, on_failure=failures.append)
    go_on = asyncio.Event()

    async def run() -> None:
        await go_on.wait()
        raise ZeroDivisionError

    go_on.set()
    with pytest.raises(ClientError, match="the client failed: ZeroDivisionError"):
        await connections.open(run(), ready=until_cancelled())
    failures.clear()
    go_on.clear()
    await connections.open(run(), until_cancelled(), ready=asyncio.sleep(0))
    assert failures == []
    go_on.set()
    while not failures:
        await asyncio.sleep(0)
    assert [str(failure) for failure in failures] == ["the client failed: ZeroDivisionError"]
    await connections.close()


@pytest.mark.parametrize(
    "url", ["localhost", "http://broker/", "amqp:///", "amqp://broker:port/", "amqp://broker:99999/"]
)
def test_a_url_that_is_not_that_of_a_broker_is_refused(url: str) -> None:
    """Before anything is connected, given alone or in options."""
    for broker in (url, LinkOptions(url)):
        with pytest.raises(ClientError, match="should be one such as amqp://"):
            Connections(broker, on_outage=lambda _: None)


async def test_closing_ends_the_wait_for_a_connection() -> None:
    """Without a time limit, an upsert would wait for ever for the connection of its answer."""
    connections = Connections(URL, on_outage=lambda _: None)
    opening = asyncio.create_task(connections.open(until_cancelled(), ready=until_cancelled()))
    await asyncio.sleep(0)
    await connections.close()
    with pytest.raises(ClientError, match="the client was closed while it connected"):
        await opening
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_attempt_that_ends_late_does_not_disturb_the_next_one() -> None:
    """An upsert waited for the connection of its answer when the client was closed, and the client is opened again at once."""
    connections = Connections(URL, on_outage=lambda _: None)
    earlier = asyncio.create_task(connections.open(until_cancelled(), ready=until_cancelled()))
    await asyncio.sleep(0)
    connections.fail(ClientError("closed"), opening_only=True)
    next_one = asyncio.create_task(connections.open(until_cancelled(), ready=asyncio.sleep(0.05)))
    with pytest.raises(ClientError, match="closed"):
        await earlier
    await asyncio.wait_for(next_one, 5)
    await connections.close()


def _unexpected(failure: ClientError) -> None:
    raise failure


def test_an_outage_is_told_once_for_each_reason() -> None:
    """A client has two connections, each of which is tried again and again."""
    told: list[str] = []
    notices = Notices(on_outage=told.append, on_connected=lambda: told.append("connected"), on_failure=_unexpected)
    notices.connected()
    for reason in ("closed", "closed", "refused", "refused", "closed"):
        notices.away(reason)
    notices.connected()
    notices.back()  # nobody was told since
    notices.away("closed")
    notices.back()
    assert told == ["connected", "closed", "refused", "closed", "connected", "closed", "connected"]


@pytest.mark.parametrize("error", [OSError, RuntimeError, TimeoutError, ZeroDivisionError])
def test_an_exception_of_a_function_of_the_caller_is_named(error: type[Exception]) -> None:
    """Those that a lost connection raises too are not taken for one."""
    failures: list[ClientError] = []

    def fails(*_: object) -> None:
        raise error

    notices = Notices(on_outage=fails, on_connected=fails, on_failure=failures.append)
    with pytest.raises(ClientError, match=f"on_outage has raised {error.__name__}"):
        notices.away("closed")
    with pytest.raises(ClientError, match=f"on_connected has raised {error.__name__}") as raised:
        notices.connected()
    assert isinstance(raised.value.__cause__, error)
    assert failures[1] is raised.value
