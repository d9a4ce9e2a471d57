"""A PostgreSQL that fails over while the worker is busy, and one whose disk is full."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from sandbox import PostgreSQL, SandboxError, postgresql
from sandbox.processes import Processes
from sandbox.replication import Pair
from sandbox.service import Service
from task_activity_log.postgresql import migrations
from tests.cluster.traffic import check_writes, traffic
from tests.faults.conversation import until
from tests.serving import serving

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

QUICK: dict[str, Any] = {
    "WORKER_DATABASE_COMMAND_TIMEOUT_SECONDS": "4",
    "WORKER_DATABASE_CONNECT_TIMEOUT_SECONDS": "4",
    "WORKER_AMQP_CONNECT_TIMEOUT_SECONDS": "4",
    "WORKER_AMQP_HEARTBEAT_SECONDS": "2",
    "WORKER_CONFIRM_TIMEOUT_SECONDS": "5",
}


async def test_the_worker_stays_with_the_new_primary(pair: Pair, amqp_url: str) -> None:
    """The old primary comes back and accepts writes. None of the worker's goes there, not even after a lost connection."""
    url = await asyncio.to_thread(pair.create_database)
    await asyncio.to_thread(migrations.migrate, pair.primary_url(url))
    await asyncio.to_thread(pair.wait_replicated)
    async with serving(amqp_url, url, **QUICK):
        async with traffic(amqp_url, pair.primary_url(url)) as sending:
            await asyncio.to_thread(pair.fail_over)
            await sending.goes_on()
            await asyncio.to_thread(pair.return_old_primary)
            old = pair.other.url_of(urlsplit(url).path[1:])
            before = await writes_in(old)
            await sending.goes_on()
            await end_sessions(pair.primary_url(url))
            await sending.goes_on()
            assert await writes_in(old) == before
            await asyncio.to_thread(pair.other.kill)
        await check_writes(sending, pair.primary_url(url))


async def writes_in(url: str) -> int:
    """How many writes a server has seen."""
    connection = await asyncpg.connect(url)
    count = await connection.fetchval("SELECT count(*) FROM audit")
    await connection.close()
    return int(count)


async def end_sessions(url: str) -> None:
    """Each session of the worker connects again."""
    connection = await asyncpg.connect(url)
    await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    await connection.close()


def data_of(service: Service) -> Path:
    """The directory of a service's data, which is a file system of its own."""
    runner = service._runner
    assert isinstance(runner, Processes)
    assert runner.data.is_mount()
    return runner.data


def fill(directory: Path) -> Path:
    """Leave no room at all; the file that takes it."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65_536))
        except OSError:
            return filler


@pytest.fixture
def small_postgresql() -> Iterator[PostgreSQL]:
    """A server with room for 250 MB."""
    binaries = postgresql.find_binaries()
    if isinstance(binaries, str):
        pytest.fail(f"{binaries}: install it (Debian and Ubuntu: postgresql)", pytrace=False)
    try:
        server = postgresql.from_binaries(binaries, durable=True, disk_megabytes=250)
    except SandboxError as error:
        pytest.fail(str(error), pytrace=False)
    yield server
    server.close()


async def test_a_full_disk_of_the_database_is_waited_out(small_postgresql: PostgreSQL, amqp_url: str) -> None:
    """The server may end itself when it cannot write its log. The worker says what it waits for."""
    server = small_postgresql
    await asyncio.to_thread(migrations.migrate, server.url)
    async with serving(amqp_url, server.url, **QUICK) as service:
        async with traffic(amqp_url, server.url) as sending:
            filler = await asyncio.to_thread(fill, data_of(server))
            # a new segment of its log is what it has no room for
            large = asyncio.create_task(write_much(server.url))
            await until(lambda: "holding" in str(service.status.not_ready()), 120)
            await large
            reasons = service.status.hold_reason or ""
            assert any(text in reasons for text in ("disk full", "recovery", "refused", "lost", "starting"))
            filler.unlink()
            await asyncio.to_thread(server.ensure_running)
            await sending.goes_on()
        await check_writes(sending, server.url)


async def write_much(url: str) -> None:
    """Write until the server cannot any more."""
    connection = await asyncpg.connect(url)
    try:
        with pytest.raises((asyncpg.PostgresError, OSError, asyncpg.InterfaceError)):
            await connection.execute("CREATE TABLE much AS SELECT repeat('x', 900) FROM generate_series(1, 400000)")
    finally:
        connection.terminate()
