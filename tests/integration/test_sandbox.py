"""The sandbox provides private services, in each of its ways, and tests may stop, kill and pause them."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import aiormq
import asyncpg
import pytest

import sandbox
from sandbox import PostgreSQL, RabbitMQ, SandboxError, environment, packages
from sandbox.choice import POSTGRESQL, RABBITMQ, Choice, Kind, ways
from sandbox.postgresql import from_url
from sandbox.service import NotReadyError, free_port


async def fetch(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def keep_one_message(url: str) -> None:
    """Publish a persistent message to a new durable queue, `kept`."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
        message = aio_pika.Message(b"x", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, queue.name)


async def kept_message(url: str) -> bytes:
    """The message in the queue `kept`. It is requeued when the connection closes.

    It consumes because a message count could be read before the queue has recovered, and it retries because a broker
    that already accepts connections may still refuse a queue that is recovering (541).
    """
    async with asyncio.timeout(180):
        while True:
            with suppress(aio_pika.exceptions.AMQPError, TimeoutError):
                async with asyncio.timeout(5), await aio_pika.connect(url) as connection:
                    messages: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
                    channel = await connection.channel()
                    await (await channel.get_queue("kept")).consume(messages.put)
                    return (await messages.get()).body


@pytest.mark.parametrize("attempt", [1, 2])
async def test_each_test_has_its_own_vhost(amqp_url: str, attempt: int) -> None:
    """Two tests that declare a queue with the same name get two queues."""
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("same-name", durable=True)
        assert queue.declaration_result.message_count == 0
        await channel.default_exchange.publish(aio_pika.Message(bytes([attempt])), queue.name)


@pytest.mark.parametrize("attempt", [1, 2])
async def test_each_test_has_its_own_database(empty_database_url: str, attempt: int) -> None:
    """Two tests that create a table with the same name get two tables."""
    await fetch(empty_database_url, f"CREATE TABLE same_name AS SELECT {attempt} AS attempt")
    assert await fetch(empty_database_url, "SELECT sum(attempt) FROM same_name") == attempt


async def test_the_database_is_migrated(database_url: str) -> None:
    """The database of `database_url` has the worker's tables and no records."""
    assert await fetch(database_url, "SELECT count(*) FROM task_activity_log") == 0


async def test_a_template_is_filled_once(postgresql: PostgreSQL) -> None:
    """The first caller fills the template; later and concurrent callers get the same one."""
    filled: list[str] = []
    names = await asyncio.gather(*(asyncio.to_thread(postgresql.template, filled.append, "once") for _ in range(4)))
    assert len(set(names)) == len(filled) == 1
    postgresql.drop_database(postgresql.url_of(names[0]))


def test_a_shared_service_cannot_be_stopped(rabbitmq: RabbitMQ, postgresql: PostgreSQL) -> None:
    """A test that tries to stop a shared service is told which private fixture to use."""
    with pytest.raises(SandboxError, match="own_rabbitmq"):
        rabbitmq.stop()
    with pytest.raises(SandboxError, match="own_postgresql"):
        postgresql.kill()


@pytest.mark.timeout(400)  # a slow machine
async def test_rabbitmq_can_be_killed(own_rabbitmq: RabbitMQ, own_amqp_url: str) -> None:
    """After a stop and after a kill the broker is back on its port with its messages.

    The stop comes first: a broker that is killed within seconds after a quorum queue was declared has not yet written
    the declaration to disk, and loses the queue.
    """
    await keep_one_message(own_amqp_url)
    await asyncio.to_thread(own_rabbitmq.restart)
    assert await kept_message(own_amqp_url) == b"x"
    await asyncio.to_thread(own_rabbitmq.kill)
    with pytest.raises(aiormq.exceptions.AMQPConnectionError):
        await aiormq.connect(own_amqp_url)  # aio_pika's connections warn when they are collected and were never open
    await asyncio.to_thread(own_rabbitmq.start)
    assert await kept_message(own_amqp_url) == b"x"


async def test_postgresql_can_be_killed(own_postgresql: PostgreSQL) -> None:
    """After a kill and after a stop the server is back on its port with all committed data."""
    url = await asyncio.to_thread(own_postgresql.create_database)
    await fetch(url, "CREATE TABLE kept AS SELECT 1 AS one")
    await asyncio.to_thread(own_postgresql.kill)
    with pytest.raises(OSError, match=str(urlsplit(url).port)):
        await fetch(url, "SELECT 1")
    await asyncio.to_thread(own_postgresql.start)
    assert await fetch(url, "SELECT one FROM kept") == 1
    await asyncio.to_thread(own_postgresql.restart)
    assert await fetch(url, "SELECT one FROM kept") == 1


@pytest.mark.timeout(400)  # a slow machine
async def test_services_can_be_paused(own_rabbitmq: RabbitMQ, own_amqp_url: str, own_postgresql: PostgreSQL) -> None:
    """A paused service keeps its connections and answers nothing; once resumed, it continues as if it had been slow."""
    await keep_one_message(own_amqp_url)
    connection = await asyncpg.connect(own_postgresql.url)
    await asyncio.gather(*(asyncio.to_thread(service.pause) for service in (own_rabbitmq, own_postgresql)))
    query = asyncio.create_task(connection.fetchval("SELECT 1"))
    kept = asyncio.create_task(kept_message(own_amqp_url))
    done, _ = await asyncio.wait((query, kept), timeout=0.5)
    assert not done
    await asyncio.gather(*(asyncio.to_thread(service.resume) for service in (own_rabbitmq, own_postgresql)))
    assert (await query, await kept) == (1, b"x")
    await connection.close()


@pytest.mark.timeout(400)  # a slow machine
@pytest.mark.parametrize("way", ["docker", "binaries"])
async def test_a_way_can_be_forced(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SANDBOX decides where both services come from; they run next to those of other tests and leave nothing behind."""
    monkeypatch.setenv("SANDBOX", way)
    # this test uses what is installed and must not install packages
    monkeypatch.setattr(packages, "cannot_install", lambda: "a test must not install packages")
    try:
        Choice(RABBITMQ, ways()).prepare(print)
        Choice(POSTGRESQL, ways()).prepare(print)
    except SandboxError as error:
        pytest.skip(str(error))
    said: list[str] = []

    def start_and_stop() -> list[int]:
        with sandbox.start(durable=False, say=said.append) as services:
            services.rabbitmq.create_vhost()
            services.postgresql.create_database()
            return [int(urlsplit(url).port or 0) for url in (services.rabbitmq.url, services.postgresql.url)]

    ports = await asyncio.to_thread(start_and_stop)
    assert said.pop(0) == "getting RabbitMQ and PostgreSQL ready"
    assert [f"from the {'Docker image' if way == 'docker' else 'binaries'}" in line for line in said] == [True, True]
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


class TestEnvironment:
    """AMQP_URL and DATABASE_URL name servers on which the sandbox creates its own virtual host and database."""

    @pytest.fixture(autouse=True)
    def _named(self, monkeypatch: pytest.MonkeyPatch, rabbitmq: RabbitMQ, postgresql: PostgreSQL) -> None:
        monkeypatch.setenv("AMQP_URL", rabbitmq.url)
        monkeypatch.setenv("MANAGEMENT_URL", rabbitmq.management_url)
        monkeypatch.setenv("DATABASE_URL", postgresql.url)
        monkeypatch.delenv("SANDBOX", raising=False)

    async def test_only_what_is_ours_is_touched(self, rabbitmq: RabbitMQ, postgresql: PostgreSQL) -> None:
        """The sandbox creates its own virtual hosts and databases next to the existing ones, and removes all of them."""
        said: list[str] = []
        broker = Choice(RABBITMQ, ways()).start(said.append, durable=True)
        server = Choice(POSTGRESQL, ways()).start(said.append, durable=True)
        assert [line.partition(" from ")[2].split()[0] for line in said] == ["AMQP_URL", "DATABASE_URL"]
        assert broker.vhost.startswith("task_activity_log_sandbox_")
        assert server.database.startswith("task_activity_log_sandbox_")
        await keep_one_message(broker.create_vhost())
        assert await fetch(server.create_database(), "SELECT 1") == 1
        with pytest.raises(SandboxError, match="not ours"):
            broker.stop()

        broker.close()
        server.close()
        assert broker.vhost not in str(rabbitmq.api("GET", "/vhosts?columns=name"))
        left = "SELECT count(*) FROM pg_database WHERE starts_with(datname, '{}')"
        assert await fetch(postgresql.url, left.format(server.database)) == 0

    def test_a_private_service_never_comes_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A service that a test may kill is never somebody's own server, even with SANDBOX=environment."""
        assert "environment" not in ways(private=True)
        monkeypatch.setenv("SANDBOX", "environment")
        with pytest.raises(SandboxError, match="may kill"):
            ways(private=True)

    def test_a_broker_without_management_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the management API no virtual host can be created, and the error says what to do about it."""
        monkeypatch.setenv("MANAGEMENT_URL", f"http://127.0.0.1:{free_port()}")
        with pytest.raises(SandboxError, match=r"Connection refused.*rabbitmq_management.*unset AMQP_URL"):
            environment.rabbitmq()

    def test_a_named_server_that_is_down_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The sandbox does not silently use another server when the one in DATABASE_URL is down."""
        monkeypatch.setenv("DATABASE_URL", f"postgresql://127.0.0.1:{free_port()}/x")
        with pytest.raises(SandboxError, match=r"does not answer.*unset DATABASE_URL"):
            Choice(POSTGRESQL, ways()).start(print, durable=True)

    async def test_a_role_that_may_not_create_databases_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch, postgresql: PostgreSQL, empty_database_url: str
    ) -> None:
        """The sandbox does not use the role's existing database, which may hold somebody's data."""
        role = f"plain_{os.getpid()}"
        await fetch(postgresql.url, f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        try:
            parts = urlsplit(empty_database_url)
            plain = parts._replace(netloc=f"{role}:secret@{parts.hostname}:{parts.port}").geturl()
            monkeypatch.setenv("DATABASE_URL", plain)
            with pytest.raises(SandboxError, match="may not create databases"):
                environment.postgresql()
        finally:
            await fetch(postgresql.url, f"DROP ROLE {role}")


@pytest.mark.parametrize("kind", [RABBITMQ, POSTGRESQL], ids=lambda kind: kind.name)
def test_without_any_way_the_message_says_what_to_do(
    kind: Kind[sandbox.Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error lists every way that was tried, why each failed, and three things that the user can do."""
    monkeypatch.delenv(kind.variable, raising=False)
    monkeypatch.delenv("SANDBOX", raising=False)
    monkeypatch.setattr("sandbox.containers.missing", lambda _image, _say: "no Docker engine answers")
    monkeypatch.setattr(packages, "cannot_install", lambda: "installing packages takes root or passwordless sudo")
    absent = Kind(**{**vars(kind), "find_binaries": lambda: "it is not installed"})
    with pytest.raises(SandboxError) as caught:
        Choice(absent, ways()).prepare(print)
    for part in (
        f"{kind.variable} is not set",
        "no Docker",
        "not installed",
        "passwordless",
        f"install {kind.package}",
    ):
        assert part in str(caught.value)


def test_an_unknown_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelled value of SANDBOX is an error and does not silently mean `auto`."""
    monkeypatch.setenv("SANDBOX", "dokcer")
    with pytest.raises(SandboxError, match=r"'dokcer'; it must be one of auto, environment, docker, binaries"):
        ways()


def test_broken_binaries_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox does not choose a directory on the PATH whose `postgres` does not run."""
    for name in ("initdb", "postgres"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert POSTGRESQL.find_binaries() != tmp_path


def test_the_binaries_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if others are newer. If they cannot be used, that is an error: other ones would hide it."""
    (tmp_path / "initdb").touch()
    (tmp_path / "postgres").write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 14.2'\n")
    (tmp_path / "postgres").chmod(0o755)
    monkeypatch.setenv("SANDBOX_POSTGRESQL_BIN", str(tmp_path))
    assert POSTGRESQL.find_binaries() == tmp_path
    (tmp_path / "initdb").unlink()
    with pytest.raises(SandboxError, match=r"SANDBOX_POSTGRESQL_BIN=.* has no PostgreSQL 13 or newer"):
        POSTGRESQL.find_binaries()


def test_a_slow_answer_of_the_shared_server_fails_no_test(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest keeps the failure of a shared fixture for all tests of its process, so one try would not be enough."""
    answers = iter([NotReadyError("no answer within 5 s"), None])

    def check(_: PostgreSQL) -> None:
        if (error := next(answers)) is not None:
            raise error

    monkeypatch.setattr(PostgreSQL, "check", check)
    shared = from_url(postgresql.origin, postgresql.url, postgresql.version)
    assert shared.url == postgresql.url
    assert next(answers, "asked twice") == "asked twice"
