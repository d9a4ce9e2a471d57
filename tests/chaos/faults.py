"""The faults. Each one happens to one worker or service, lasts for a while, and is undone."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

import asyncpg

from sandbox.cluster import Cluster
from sandbox.postgresql import PostgreSQL
from sandbox.proxy import Proxies, Proxy
from sandbox.rabbitmq import RabbitMQ
from sandbox.replication import Pair
from tests.broker_control import limit_messages
from tests.chaos import nodes
from tests.chaos.askers import LARGEST_MESSAGE, asker_silent
from tests.chaos.fleet import Fleet, WorkerProcess
from tests.chaos.hostile import Stranger
from tests.chaos.locks import (
    DATABASE_ERRORS,
    Locks,
    requests_taken,
    rows_changed,
    rows_locked,
    rows_locked_until_parked,
    rows_referred_to,
    rows_slow,
)
from tests.chaos.plan import ASKERS, ROWS, SLOW, Journal, Plan
from tests.chaos.pooler import Pooler

Fault: TypeAlias = Callable[["Faults"], Awaitable[None]]
_AT_ONCE, _HOSTILE_AT_ONCE = 2, 4
"""With more outages at once there would be no time in which anything works. What is hostile stops nobody."""


@dataclass
class Faults:
    """Injects faults for a given time. Two faults may overlap, but not on the same service or worker."""

    plan: Plan
    journal: Journal
    fleet: Fleet
    broker: RabbitMQ | Cluster
    database: PostgreSQL | Pair
    amqp_url: str
    url_of_database: str
    """The DSN that workers have."""
    pooler: Pooler | None
    stranger: Stranger
    all_taken: Callable[[], Awaitable[bool]]
    """Whether every message in the requests queue has been delivered to a worker."""

    def __post_init__(self) -> None:
        self.random = Random(f"{self.plan.seed}/faults")  # noqa: S311 - it has to be repeatable, not secret
        self._busy: dict[object, asyncio.Lock] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self.locks = Locks()

    async def run(self, seconds: float) -> None:
        """Inject faults for `seconds`, and return when all of them are undone."""
        weights = {fault: weight for fault, weight in self._kinds() if weight}
        most = _AT_ONCE if self.plan.outages else _HOSTILE_AT_ONCE
        if not self.plan.outages and ROWS in self.plan.hostile:
            self._begin(rows_locked_until_parked)  # in each run, whatever the seed
        try:
            async with asyncio.timeout(seconds):
                while True:
                    await asyncio.sleep(self.random.expovariate(1 / self.plan.gap_seconds))
                    if not weights or len(self._under_way) >= most:
                        continue
                    [fault] = self.random.choices(list(weights), list(weights.values()))
                    task = self._begin(fault)
                    if self.plan.in_order and not self.plan.one_consumer:
                        await self._recovered(task)
        except TimeoutError:
            self.journal.note("no more faults")
        if self._under_way:
            await asyncio.wait(self._under_way)

    def _begin(self, fault: Fault) -> asyncio.Task[None]:
        task = asyncio.ensure_future(fault(self))
        self._under_way.add(task)
        task.add_done_callback(self._over)
        return task

    async def _recovered(self, fault: asyncio.Task[None]) -> None:
        """Wait until a fault is over and the workers have been delivered all messages again.

        A quorum queue redelivers requeued messages in the order in which they were requeued. If the next fault requeued
        some messages while others from an earlier fault were still waiting, they would be redelivered out of order.
        Without versions, order is therefore promised for one interruption at a time only; but a single active consumer
        has all of them in hand at once, and keeps the order through any interruption.
        """
        await asyncio.wait({fault})
        await asyncio.sleep(1)  # the workers may need some time to notice the fault
        while not await self.all_taken():
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)  # let most of the messages be settled, too

    def _over(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fleet.failures.append(f"the test harness itself failed: {error!r}")

    def _kinds(self) -> list[tuple[Fault, float]]:
        return [*self._hostile_kinds(), *(self._outages() if self.plan.outages else [])]

    def _hostile_kinds(self) -> list[tuple[Fault, float]]:
        rows: list[tuple[Fault, float]] = [
            (rows_locked, 3),
            (rows_changed, 2),
            (requests_taken, 2),
            (rows_referred_to, 1),
        ]
        askers: list[tuple[Fault, float]] = [(asker_silent, 3)]
        slow: list[tuple[Fault, float]] = [(rows_slow, 3)]
        kinds = ((ROWS, rows), (ASKERS, askers), (SLOW, slow))
        return [fault for kind, faults in kinds if kind in self.plan.hostile for fault in faults]

    def _outages(self) -> list[tuple[Fault, float]]:
        half_opens = 3.0 if self.plan.half_opens else 0.0
        return [
            (worker_killed, 6),
            (worker_terminated, 4),
            (handed_over, 6 if self.plan.hand_overs else 0),
            (scaled, 5 if self.plan.scales else 0),
            (worker_frozen, 3),
            *(nodes.OUTAGES if self.plan.cluster else _one_broker(half_opens / 2)),
            (database_killed, 2),
            (database_restarted, 2),
            (database_frozen, 2),
            (database_read_only, 3),
            (database_sessions_ended, 3),
            (table_locked, 2),
            (pooler_killed, 4 if self.pooler else 0),
            (amqp_cut, 4),
            (amqp_refused, 2),
            (amqp_half_open, half_opens),
            (amqp_stranded, half_opens),
            (amqp_slow, 2),
            (sql_cut, 4),
            (sql_half_open, 3),
            (sql_stranded, 3),
            (sql_slow, 2),
        ]

    async def limit(self, size: int | None = LARGEST_MESSAGE) -> None:
        """Limit the size of messages until the broker restarts, if oversized replies are part of the plan."""
        if ASKERS in self.plan.hostile and isinstance(self.broker, RabbitMQ):  # a cluster is started with the limit
            await limit_messages(self.broker, size)

    @property
    def database_url(self) -> str:
        """The DSN of the server that accepts writes at present."""
        database, url = self.database, self.url_of_database
        return database.primary_url(url) if isinstance(database, Pair) else url

    def lock_of(self, what: object) -> asyncio.Lock:
        """The lock that a fault holds while it affects `what`."""
        return self._busy.setdefault(what, asyncio.Lock())

    def worker(self) -> WorkerProcess:
        """A random worker."""
        return self.random.choice(self.fleet.workers)

    def seconds(self, least: float, most: float) -> float:
        """A random length of time, distributed evenly on a logarithmic scale."""
        return float(least * (most / least) ** self.random.random())


def _one_broker(freezes: float) -> list[tuple[Fault, float]]:
    return [(broker_killed, 0.7), (broker_restarted, 0.7), (broker_frozen, freezes)]


def _broker(faults: Faults) -> RabbitMQ:
    assert isinstance(faults.broker, RabbitMQ)
    return faults.broker


async def worker_killed(faults: Faults) -> None:
    """SIGKILL at a random moment."""
    worker = faults.worker()
    async with faults.lock_of(worker):
        if worker.send(signal.SIGKILL):
            faults.journal.fault("worker killed", worker.name)
            await asyncio.sleep(faults.seconds(0.1, 3))


async def worker_terminated(faults: Faults) -> None:
    """SIGTERM: the worker drains."""
    worker = faults.worker()
    async with faults.lock_of(worker):
        faults.journal.fault("worker terminated", worker.name)
        await worker.terminate(faults.journal, faults.fleet.failures)


async def handed_over(faults: Faults) -> None:
    """The workers drain one after the other while the database is slow and a backlog has built up."""
    async with AsyncExitStack() as stack:
        for worker in faults.fleet.workers:
            await stack.enter_async_context(faults.lock_of(worker))
        faults.journal.fault("handed over", "under a backlog")
        databases = [proxy for worker in faults.fleet.workers for proxy in worker.database.of]
        for proxy in databases:
            proxy.delay(0.3)
        await asyncio.sleep(faults.seconds(1, 4))
        for worker in faults.fleet.workers:
            await worker.terminate(faults.journal, faults.fleet.failures)
        for proxy in databases:
            proxy.delay(0)


async def scaled(faults: Faults) -> None:
    """Some of the workers, but not all, drain at the same time and start again a while later."""
    workers = faults.fleet.workers
    count = faults.random.randint(1, len(workers) - 1)
    chosen = sorted(faults.random.sample(range(len(workers)), count))  # in order, as `handed_over` locks them
    seconds = faults.seconds(2, 15)
    async with AsyncExitStack() as stack:
        for index in chosen:
            await stack.enter_async_context(faults.lock_of(workers[index]))
        left = len(workers) - count
        faults.journal.fault("scaled down and up", f"from {len(workers)} to {left} workers for {seconds:.1f} s")
        for index in chosen:
            workers[index].wanted = False
        await asyncio.gather(*(workers[index].terminate(faults.journal, faults.fleet.failures) for index in chosen))
        await asyncio.sleep(seconds)
        for index in chosen:
            workers[index].wanted = True
        faults.journal.note("  scaled up")


async def worker_frozen(faults: Faults) -> None:
    """SIGSTOP for a while: the broker may close its connections, but the worker still has its unsettled deliveries."""
    worker, seconds = faults.worker(), faults.seconds(0.3, 9)
    async with faults.lock_of(worker):
        if worker.send(signal.SIGSTOP):
            faults.journal.fault("worker frozen", f"{worker.name} for {seconds:.1f} s")
            await asyncio.sleep(seconds)
            worker.send(signal.SIGCONT)


async def broker_killed(faults: Faults) -> None:
    """The broker ends at once, as in a power cut, and starts again."""
    broker = _broker(faults)
    async with faults.lock_of(broker):
        faults.journal.fault("broker killed")
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.start)
        await faults.limit()
        faults.journal.note("  broker is back")


async def broker_restarted(faults: Faults) -> None:
    """The broker stops cleanly and starts again."""
    broker = _broker(faults)
    async with faults.lock_of(broker):
        faults.journal.fault("broker restarted")
        await asyncio.to_thread(broker.restart)
        await faults.limit()
        faults.journal.note("  broker is back")


async def broker_frozen(faults: Faults) -> None:
    """The broker keeps its connections but answers nothing for a while."""
    broker, seconds = _broker(faults), faults.seconds(0.3, 9)
    async with faults.lock_of(broker):
        faults.journal.fault("broker frozen", f"for {seconds:.1f} s")
        await asyncio.to_thread(broker.pause)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(broker.resume)


async def database_killed(faults: Faults) -> None:
    """The database ends at once, as in a power cut, and recovers."""
    async with faults.lock_of(faults.database):
        faults.journal.fault("database killed")
        await asyncio.to_thread(faults.database.kill)
        await asyncio.sleep(faults.seconds(0.1, 4))
        await asyncio.to_thread(faults.database.start)


async def database_restarted(faults: Faults) -> None:
    """The database stops cleanly, which ends its sessions, and starts again."""
    async with faults.lock_of(faults.database):
        faults.journal.fault("database restarted")
        await asyncio.to_thread(faults.database.restart)


async def database_frozen(faults: Faults) -> None:
    """The database keeps its connections but answers nothing for a while."""
    seconds = faults.seconds(0.3, 9)
    async with faults.lock_of(faults.database):
        faults.journal.fault("database frozen", f"for {seconds:.1f} s")
        await asyncio.to_thread(faults.database.pause)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(faults.database.resume)


async def database_read_only(faults: Faults) -> None:
    """The database is read-only for a while, as during a failover."""
    seconds = faults.seconds(0.3, 9)
    async with faults.lock_of(faults.database):
        faults.journal.fault("database read-only", f"for {seconds:.1f} s")
        await _execute(faults, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        await asyncio.sleep(seconds)
        await _execute(faults, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")


async def database_sessions_ended(faults: Faults) -> None:
    """pg_terminate_backend for every other session, whatever it is doing."""
    async with faults.lock_of(faults.database):
        faults.journal.fault("database sessions ended")
        await _execute(
            faults,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )


async def table_locked(faults: Faults) -> None:
    """Every statement waits for the table's lock; those that wait too long time out."""
    seconds = faults.seconds(0.3, 10)
    async with faults.lock_of(faults.database):
        faults.journal.fault("table locked", f"for {seconds:.1f} s")
        with suppress(*DATABASE_ERRORS):
            connection = await asyncpg.connect(faults.database_url, timeout=5)
            try:
                async with connection.transaction():
                    await connection.execute("SET LOCAL lock_timeout = '3s'")
                    await connection.execute("LOCK TABLE task_activity_log IN SHARE MODE")
                    await asyncio.sleep(seconds)
            finally:
                await connection.close(timeout=5)


async def pooler_killed(faults: Faults) -> None:
    """pgbouncer ends at once and drops every connection, and starts again."""
    pooler = faults.pooler
    assert pooler is not None
    # pgbouncer starts only if the database answers, so no other fault may affect it meanwhile
    async with faults.lock_of(faults.database):
        faults.journal.fault("pgbouncer killed")
        await asyncio.to_thread(pooler.kill)
        await asyncio.sleep(faults.seconds(0.1, 3))
        await asyncio.to_thread(pooler.start)


async def amqp_cut(faults: Faults) -> None:
    """Both AMQP connections of one worker are reset."""
    await _on_link(faults, "AMQP cut", _amqp, lambda proxy: proxy.cut())


async def amqp_refused(faults: Faults) -> None:
    """Both AMQP connections of one worker are reset, and new ones are refused for a while."""
    await _on_link(faults, "AMQP cut and refused", _amqp, _cut_and_refuse, lambda proxy: proxy.accept(), 8)


async def amqp_half_open(faults: Faults) -> None:
    """One worker's AMQP connections pass nothing for a while, not even a FIN; then everything arrives, late."""
    await _on_link(faults, "AMQP half-open", _amqp, lambda proxy: proxy.hold(), lambda proxy: proxy.resume(), 12)


async def amqp_stranded(faults: Faults) -> None:
    """One worker's AMQP connections never pass anything again; new ones work."""
    await _on_link(faults, "AMQP stranded", _amqp, lambda proxy: proxy.strand())


async def amqp_slow(faults: Faults) -> None:
    """Every byte on one worker's AMQP connections is late."""
    await _on_link(faults, "AMQP slow", _amqp, lambda proxy: proxy.delay(0.2), lambda proxy: proxy.delay(0), 8)


async def sql_cut(faults: Faults) -> None:
    """One worker's database connections are reset, so it cannot know whether its transaction was committed."""
    await _on_link(faults, "SQL cut", _sql, lambda proxy: proxy.cut())


async def sql_half_open(faults: Faults) -> None:
    """One worker's database connections pass nothing for a while; then everything arrives, late."""
    await _on_link(faults, "SQL half-open", _sql, lambda proxy: proxy.hold(), lambda proxy: proxy.resume(), 12)


async def sql_stranded(faults: Faults) -> None:
    """One worker's database connections never pass anything again; new ones work."""
    await _on_link(faults, "SQL stranded", _sql, lambda proxy: proxy.strand())


async def sql_slow(faults: Faults) -> None:
    """Every byte on one worker's database connections is late."""
    await _on_link(faults, "SQL slow", _sql, lambda proxy: proxy.delay(0.2), lambda proxy: proxy.delay(0), 8)


def _amqp(worker: WorkerProcess) -> Proxies:
    return worker.amqp


def _sql(worker: WorkerProcess) -> Proxies:
    return worker.database


def _cut_and_refuse(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.cut()


async def _on_link(
    faults: Faults,
    kind: str,
    link: Callable[[WorkerProcess], Proxies],
    begin: Callable[[Proxy], object],
    end: Callable[[Proxy], object] | None = None,
    most: float = 0.0,
) -> None:
    worker = faults.worker()
    proxies = link(worker)
    seconds = faults.seconds(0.3, most) if end else 0.0
    async with faults.lock_of(proxies):
        faults.journal.fault(kind, f"{worker.name}" + (f" for {seconds:.1f} s" if end else ""))
        for proxy in proxies.of:
            begin(proxy)
        if end is not None:
            await asyncio.sleep(seconds)
            for proxy in proxies.of:
                end(proxy)


async def _execute(faults: Faults, *statements: str) -> None:
    """Execute statements on the server, without a proxy, and retry until they succeed: they must undo their fault."""
    while True:
        try:
            connection = await asyncpg.connect(
                faults.database_url, timeout=5, server_settings={"default_transaction_read_only": "off"}
            )
            try:
                for statement in statements:
                    await connection.execute(statement)
            finally:
                await connection.close(timeout=5)
        except DATABASE_ERRORS:
            await asyncio.sleep(0.3)
        else:
            return
