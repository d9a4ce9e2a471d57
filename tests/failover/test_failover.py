"""A primary with a streaming standby: failover, a standby that is frozen, and an old primary that comes back.

Needs PostgreSQL's binaries, because it starts two servers: `make test` leaves these tests out, `make test-failover` runs
them.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from sandbox import PostgreSQL, close, postgresql
from task_activity_log.cli.check.database import findings
from task_activity_log.postgresql import migrations
from task_activity_log.postgresql import store as module
from task_activity_log.postgresql.connecting import Connector
from task_activity_log.postgresql.connection import ServerConnection
from task_activity_log.postgresql.session import Session
from task_activity_log.postgresql.store import Store
from task_activity_log.problem import Unavailable
from task_activity_log.settings import load
from tests.asking import Connection, ask, outcomes
from tests.faults.conversation import conversing, until
from tests.serving import serving

pytestmark = pytest.mark.failover

QUICK = {"WORKER_DATABASE_COMMAND_TIMEOUT_SECONDS": "1", "WORKER_DATABASE_CONNECT_TIMEOUT_SECONDS": "2"}


@dataclass
class Cluster:
    """Two servers of one cluster."""

    primary: PostgreSQL
    standby: PostgreSQL

    def url(self, *, reverse: bool = False, form: str = "{login}@{hosts}{path}") -> str:
        """The connection string with both hosts, the primary first."""
        servers = [self.standby, self.primary] if reverse else [self.primary, self.standby]
        parts = urlsplit(self.primary.url)
        hosts = ",".join(map(host_of, servers))
        ports = ",".join(host.rpartition(":")[2] for host in hosts.split(","))
        login = parts.netloc.rpartition("@")[0]
        return "postgresql://" + form.format(login=login, hosts=hosts, path=parts.path, ports=ports)

    async def synchronous(self, names: str) -> None:
        """Set which standbys commits wait for, and return when it holds."""
        database: Connection = await asyncpg.connect(self.primary.url)
        await database.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        await database.execute("SELECT pg_reload_conf()")
        wanted = "sync" if names else "async"
        while await database.fetchval("SELECT sync_state FROM pg_stat_replication") != wanted:
            await asyncio.sleep(0.01)
        await database.close()


def host_of(server: PostgreSQL) -> str:
    """Host and port of a server."""
    return urlsplit(server.url).netloc.rpartition("@")[2]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A new cluster for each test, because a promotion cannot be undone."""
    binaries = postgresql.find_binaries()
    if isinstance(binaries, str):
        pytest.fail(f"{binaries}: install it (Debian and Ubuntu: postgresql)", pytrace=False)
    primary = postgresql.from_binaries(binaries, durable=True)
    try:
        migrations.migrate(primary.url)
        standby = postgresql.standby_from_binaries(binaries, primary)
    except BaseException:
        primary.close()
        raise
    yield Cluster(primary, standby)
    for server in (primary, standby):
        server.resume()
    close(primary, standby)


@asynccontextmanager
async def connected(connector: Connector) -> AsyncIterator[ServerConnection]:
    connection = await connector.connect(command_timeout=10)
    try:
        yield connection
    finally:
        await connection.close()


async def server_of(connector: Connector) -> str:
    """The server that the next connection uses."""
    async with connected(connector) as connection:
        return connection.place


async def test_the_server_that_accepts_writes_is_used(cluster: Cluster) -> None:
    """In each form, whatever the order, with `any` as well. With the standby alone, the reason says what it is."""
    for form in (
        "{login}@{hosts}{path}",
        "{login}@{path}?host=127.0.0.1,127.0.0.1&port={ports}",
        "{login}@127.0.0.1,127.0.0.1{path}?port={ports}",
        "{login}@{hosts}{path}?target_session_attrs=any",
        "{login}@{hosts}{path}?load_balance_hosts=random",
    ):
        for reverse in (True, False):
            assert await server_of(Connector(cluster.url(reverse=reverse, form=form))) == host_of(cluster.primary)
    async with connected(Connector(cluster.standby.url)) as alone:  # `check` reports that it is read-only
        assert await alone.fetchval("SELECT pg_is_in_recovery()")
    cluster.primary.kill()
    with pytest.raises(Unavailable) as caught:
        await server_of(Connector(cluster.url()))
    primary, standby = host_of(cluster.primary), host_of(cluster.standby)
    assert caught.value.label == "no host takes writes"
    assert caught.value.reason.endswith(f"{primary}: connection refused; {standby}: read-only")


async def test_nothing_that_was_answered_is_lost_with_the_primary(
    cluster: Cluster, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The synchronous standby is frozen, so commits time out and remain on the primary alone. The primary is lost then."""
    monkeypatch.setattr(module, "_CONFIRM_SECONDS", 0.5)
    await cluster.synchronous("*")
    tries = 0
    apply = Store.apply

    async def counted(store: Store, *arguments: Any) -> Any:
        nonlocal tries
        tries += 1
        return await apply(store, *arguments)

    monkeypatch.setattr(Store, "apply", counted)
    async with conversing(amqp_url) as talk, serving(amqp_url, cluster.url(), **QUICK) as service:  # type: ignore[arg-type]
        await talk.send()
        assert await talk.outcomes(1) == ["inserted"]
        await asyncio.to_thread(cluster.standby.pause)
        await talk.send()
        await until(lambda: tries == 4)  # the first message; the second, which times out; a repeat, and one more
        assert (service.status.hold_reason or "").startswith("commit not confirmed")
        assert talk.answers.empty()
        await asyncio.to_thread(cluster.primary.kill)
        await asyncio.to_thread(cluster.standby.resume)
        await asyncio.to_thread(cluster.standby.promote)
        assert await talk.outcomes(1) in (["inserted"], ["duplicate"])
        database: Connection = await asyncpg.connect(cluster.standby.url)
        assert await database.fetchval("SELECT count(*) FROM task_activity_log") == 2
        await database.close()


async def test_a_standby_that_comes_back_ends_the_wait(
    cluster: Cluster, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not confirmed is answered then."""
    monkeypatch.setattr(module, "_CONFIRM_SECONDS", 0.5)
    await cluster.synchronous("*")
    async with conversing(amqp_url) as talk, serving(amqp_url, cluster.url(), **QUICK) as service:  # type: ignore[arg-type]
        await asyncio.to_thread(cluster.standby.pause)
        await talk.send()
        await until(lambda: (service.status.hold_reason or "").startswith("commit not confirmed"))
        await asyncio.to_thread(cluster.standby.resume)
        assert await talk.outcomes(1) == ["duplicate"]


async def test_an_old_primary_that_comes_back_is_not_used(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both accept writes. The timeline tells which one is newer, at once, although the control file does not yet."""
    store = Store(Connector(cluster.url()))
    old = Store(Connector(cluster.primary.url))
    assert outcomes(await store.apply([ask()])) == ["inserted"]
    await store.trim(timedelta(days=1), 1)  # the connection for maintenance is open too
    await asyncio.to_thread(cluster.primary.kill)
    await asyncio.to_thread(cluster.standby.promote)
    await asyncio.to_thread(cluster.primary.start)
    assert outcomes(await old.apply([ask()])) == ["inserted"]  # it does accept writes
    monkeypatch.setattr(Session, "_IDLE_SECONDS", 0.0)  # each statement has a new connection
    for _ in range(3):
        assert outcomes(await store.apply([ask()])) == ["inserted"]
        assert store._writer._connection is not None
        assert store._writer._connection.place == host_of(cluster.standby)
    await store.trim(timedelta(days=1), 1)
    assert store._maintenance._connection is not None
    assert store._maintenance._connection.place == host_of(cluster.standby)
    await asyncio.to_thread(cluster.standby.kill)
    with pytest.raises(Unavailable, match="an old primary, on timeline 1, after timeline 2 was seen") as caught:
        await store.apply([ask()])
    assert caught.value.label == "no host takes writes"
    await store.close()
    await old.close()


async def test_a_newer_primary_that_does_not_answer_is_named(cluster: Cluster) -> None:
    """It is waited for as long as any server, although the old primary has answered: the old one cannot be used."""
    connector = Connector(cluster.url(), connect_timeout=2)
    await asyncio.to_thread(cluster.primary.kill)
    await asyncio.to_thread(cluster.standby.promote)
    await asyncio.to_thread(cluster.primary.start)
    assert await server_of(connector) == host_of(cluster.standby)
    await asyncio.to_thread(cluster.standby.pause)
    with pytest.raises(Unavailable, match=f"{host_of(cluster.standby)}: connect timeout, no answer") as caught:
        await connector.connect(command_timeout=10)
    assert f"{host_of(cluster.primary)}: an old primary, on timeline 1" in caught.value.reason


async def test_a_process_that_starts_during_a_split_takes_the_newer_primary(cluster: Cluster) -> None:
    """It has seen nothing before, and the old primary is the first in its connection string."""
    await asyncio.to_thread(cluster.primary.kill)
    await asyncio.to_thread(cluster.standby.promote)
    await asyncio.to_thread(cluster.primary.start)
    for reverse in (True, False):
        assert await server_of(Connector(cluster.url(reverse=reverse))) == host_of(cluster.standby)


async def test_the_connections_to_an_old_primary_are_ended(cluster: Cluster) -> None:
    """As soon as any connection of the process finds the new one."""
    connector = Connector(cluster.url())
    async with connected(connector) as before:
        await asyncio.to_thread(cluster.standby.promote)  # the network between both is cut: nobody stops the primary
        assert await before.fetchval("SELECT 1") == 1
        assert await server_of(connector) == host_of(cluster.standby)
        assert before.is_closed()


async def test_check_warns_about_standbys_that_are_asynchronous(cluster: Cluster) -> None:
    """Because a failover then loses what was answered. A role without privileges sees it too."""
    database: Connection = await asyncpg.connect(cluster.primary.url)
    await database.execute("CREATE ROLE nobody LOGIN PASSWORD 'nothing'")
    await database.close()
    parts = urlsplit(cluster.primary.url)
    url = urlunsplit(parts._replace(netloc=f"nobody:nothing@{host_of(cluster.primary)}"))
    for names, expected in (("", ["1, none of them synchronous"]), ("*", [])):
        await cluster.synchronous(names)
        found = await findings(load({"DATABASE_URL": url}, needed=("database_url",)))
        assert [one.found for one in found if one.what == "standbys"] == expected
