"""A synchronous standby is away: nothing is answered that would be lost with this server.

Here the standby is one that never comes: for the primary it is the same as one that is frozen. tests/failover has real ones.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import asyncpg
import pytest

from sandbox import PostgreSQL
from task_activity_log.pipeline.ports import Patience
from task_activity_log.postgresql import store as module
from task_activity_log.postgresql import survey as survey_module
from task_activity_log.postgresql.connecting import Connector
from task_activity_log.postgresql.store import Store
from task_activity_log.postgresql.survey import Survey
from task_activity_log.problem import TimedOut, Unavailable
from task_activity_log.service import Service
from tests.asking import Connection, ask, outcomes
from tests.commands import command
from tests.faults.conversation import conversing, until
from tests.serving import serving


@asynccontextmanager
async def storing(url: str, **options: float) -> AsyncIterator[Store]:
    store = Store(url, **options)  # type: ignore[arg-type]  # both options are numbers
    try:
        yield store
    finally:
        await store.close()


class Standby:
    """Makes all commits of a server wait for a standby, and ends that."""

    def __init__(self, database: Connection) -> None:
        self._database = database

    async def leave(self) -> None:
        """Return when commits wait."""
        await self._database.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await self._database.execute("SELECT pg_reload_conf()")
        waits = False
        while not waits:
            try:
                await self._database.execute("SELECT pg_logical_emit_message(true, '', '')", timeout=0.2)
            except TimeoutError:
                waits = True

    async def come_back(self) -> None:
        """Commits wait no longer."""
        await self._database.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await self._database.execute("SELECT pg_reload_conf()")


def soon_timing_out(amqp_url: str, database_url: str) -> AbstractAsyncContextManager[Service]:
    """A worker that gives a statement one second."""
    return serving(amqp_url, database_url, WORKER_DATABASE_COMMAND_TIMEOUT_SECONDS="1")


@pytest.fixture
async def standby(
    own_postgresql: PostgreSQL, own_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Standby]:
    """The standby of a server for these tests."""
    monkeypatch.setattr(module, "_CONFIRM_SECONDS", 0.5)
    assert own_postgresql.version
    database: Connection = await asyncpg.connect(own_database_url)
    standby = Standby(database)
    yield standby
    await standby.come_back()
    await database.close()


async def test_a_message_is_not_answered_before_its_commit_is_confirmed(
    amqp_url: str, own_database_url: str, standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the timeout the row is there, on this server alone. The worker is not ready, and answers when it is safe."""
    refused: list[Unavailable] = []
    confirm = Store._confirm

    async def confirming(store: Store) -> None:
        try:
            await confirm(store)
        except Unavailable as outage:
            refused.append(outage)
            raise

    monkeypatch.setattr(Store, "_confirm", confirming)
    async with conversing(amqp_url) as talk, soon_timing_out(amqp_url, own_database_url) as service:
        await standby.leave()
        await talk.send()
        await until(lambda: (service.status.hold_reason or "").startswith("commit not confirmed: database "))
        database: Connection = await asyncpg.connect(own_database_url)
        assert await database.fetchval("SELECT count(*) FROM task_activity_log") == 1
        await database.close()
        assert service.status.not_ready()
        before = len(refused)
        await until(lambda: len(refused) >= before + 2)  # it tries again, finds a duplicate, and holds on
        assert talk.answers.empty()
        await standby.come_back()
        assert await talk.outcomes(1) == ["duplicate"]


async def test_a_repeat_at_another_worker_is_not_answered_either(own_database_url: str, standby: Standby) -> None:
    """It finds the row and the key of a commit that was cancelled. It writes nothing, so its own commit would not wait."""
    request = ask()
    async with storing(own_database_url, command_timeout=5) as first, storing(own_database_url) as second:
        await standby.leave()
        with pytest.raises(TimedOut):
            await first.apply([request])
        for store in (first, second):
            with pytest.raises(Unavailable, match="commit not confirmed"):
                await store.apply([request])
        await standby.come_back()
        assert outcomes(await second.apply([request])) == ["duplicate"]


async def test_a_worker_does_not_begin_before_a_commit_is_confirmed(own_database_url: str, standby: Standby) -> None:
    """It may be one that was restarted because the other one waited."""
    async with storing(own_database_url) as store:
        await store.probe()
        await standby.leave()
        with pytest.raises(Unavailable, match=r"commit not confirmed: database \S+ at 127\.0\.0\.1:"):
            await store.probe()
        await standby.come_back()
        await store.probe()


async def test_a_commit_that_an_administrator_cancels_is_not_confirmed(own_database_url: str, standby: Standby) -> None:
    """PostgreSQL says that the statement has succeeded, with a warning."""
    request = ask()
    async with storing(own_database_url) as store:
        await store.open()
        await standby.leave()
        applying = asyncio.create_task(store.apply([request]))
        database: Connection = await asyncpg.connect(own_database_url)
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name LIKE 'task%'"
        while (pid := await database.fetchval(waiting)) is None:
            await asyncio.sleep(0.01)
        await database.execute("SELECT pg_cancel_backend($1)", pid)
        with pytest.raises(TimedOut):
            await applying
        await database.close()
        await standby.come_back()
        assert outcomes(await store.apply([request])) == ["duplicate"]


async def test_nobody_turns_the_warning_of_an_unconfirmed_commit_off(own_database_url: str, standby: Standby) -> None:
    """client_min_messages, set for the database or the role. Neither that of the write nor that of its confirmation."""
    database: Connection = await asyncpg.connect(own_database_url)
    name = await database.fetchval("SELECT quote_ident(current_database())")
    await database.execute(f"ALTER DATABASE {name} SET client_min_messages = error")
    request = ask()
    async with storing(own_database_url) as store:
        await store.open()
        await standby.leave()
        with pytest.raises(TimedOut):
            await store.apply([request], Patience(seconds=0.2))
        await store.open()
        confirming = asyncio.create_task(store.probe())
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name LIKE 'task%'"
        while (pid := await database.fetchval(waiting)) is None:
            assert not confirming.done()
            await asyncio.sleep(0.01)
        await database.execute("SELECT pg_cancel_backend($1)", pid)
        with pytest.raises(Unavailable):
            await confirming
        await standby.come_back()
        assert outcomes(await store.apply([request])) == ["duplicate"]
    await database.close()


async def test_a_commit_that_takes_longer_than_its_limit_is_applied_once(
    own_database_url: str, standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standby that is slow to confirm is no slow row. The commit is there, so it is waited for, and not made again."""
    monkeypatch.setattr(module, "_CONFIRM_SECONDS", 30.0)
    database: Connection = await asyncpg.connect(own_database_url)
    async with storing(own_database_url) as store:
        await store.open()
        await standby.leave()
        applying = asyncio.create_task(store.apply([ask(key=False)], Patience(seconds=0.2)))
        waiting = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%logical_emit%task%'"
        while not await database.fetch(waiting):
            assert not applying.done()
            await asyncio.sleep(0.01)
        await standby.come_back()
        assert outcomes(await applying) == ["inserted"]
    await database.close()


async def test_a_row_that_no_standby_has_is_not_sent_again(
    amqp_url: str, own_database_url: str, standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Subscribers would keep a state that the database may never have had. A role that only reads can still send rows."""
    monkeypatch.setattr(survey_module, "_CONFIRM_SECONDS", 0.5)
    survey = Survey(Connector(own_database_url))
    record = ask().record.id
    async with conversing(amqp_url), storing(own_database_url, command_timeout=2) as store:
        await survey.confirm()
        await standby.leave()
        with pytest.raises(TimedOut):
            await store.apply([ask(record)])
        async with asyncio.timeout(20):
            while not (rows := await survey.records([record])):
                await asyncio.sleep(0.01)  # others see the row once the server has got the request to cancel its commit
        assert [row.id for row in rows] == [record]
        with pytest.raises(Unavailable, match="commit not confirmed"):
            await survey.confirm()
        resend = ("resend", "--id", str(record), "--yes")
        said = await command(*resend, AMQP_URL=amqp_url, DATABASE_URL=own_database_url)
        assert (said.code, "commit not confirmed" in said.err) == (1, True)
        reading = f"{own_database_url}?default_transaction_read_only=on"
        said = await command(*resend, AMQP_URL=amqp_url, DATABASE_URL=reading)
        assert (said.code, "commit not confirmed" in said.err) == (1, True)
        await standby.come_back()
        said = await command(*resend, AMQP_URL=amqp_url, DATABASE_URL=own_database_url)
        assert (said.code, "1 record sent" in said.err) == (0, True)
    await survey.close()
