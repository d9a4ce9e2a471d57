"""One run: start workers, publishers and faults; then undo all faults, wait for recovery, and make the account."""

from __future__ import annotations

import asyncio
import logging
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from sandbox import SandboxError
from sandbox.cluster import SIZE, Cluster
from sandbox.postgresql import PostgreSQL
from sandbox.rabbitmq import RabbitMQ
from sandbox.replication import Pair
from task_activity_log.postgresql import migrations
from task_activity_log.rabbitmq.topology import Topology, declare
from tests.chaos import askers, audit
from tests.chaos.account import Account
from tests.chaos.collector import DEAD_LETTERS, REPLIES, Collector
from tests.chaos.faults import Faults
from tests.chaos.fleet import Fleet, handed_over
from tests.chaos.hostile import Stranger
from tests.chaos.messages import FULL_QUEUE, REPLY_QUEUE, Author, Message
from tests.chaos.plan import Journal, Plan
from tests.chaos.pooler import Pooler
from tests.chaos.publishers import CONNECTION_ERRORS, QUEUE, Publisher, connect, disconnect
from tests.chaos.queues import totals, waiting

_SETTLE_SECONDS = 180.0
"""How long the workers may take, after the last fault, to process the remaining messages."""
_READ = (REPLIES, REPLY_QUEUE, DEAD_LETTERS)
"""The queues that the collector empties."""
_PUBLISH_SECONDS = 60.0
"""How long the publishers may take, after the last fault, to publish the remaining messages."""


@dataclass
class Result:
    """The result of a run."""

    failures: list[str]
    figures: dict[str, int]
    journal: Journal
    directory: Path
    """The directory with the workers' logs."""


def run(plan: Plan, broker: RabbitMQ | Cluster, database: PostgreSQL | Pair, journal: Journal) -> Result:
    """Run `plan` on services that may be killed, with a new virtual host and a new database."""
    for driver in ("aio_pika", "aiormq", "asyncio"):
        logging.getLogger(driver).setLevel(logging.CRITICAL)  # our own connections are lost all the time
    amqp_url, database_url = broker.create_vhost(), database.create_database()
    if isinstance(database, Pair):
        database.wait_replicated()
    migrations.migrate(_where_to_write(database, database_url))
    with _pooler(plan, database_url) as pooler, Collector(amqp_url) as collector:
        return asyncio.run(_run(plan, broker, database, journal, amqp_url, database_url, pooler, collector))


@contextmanager
def _pooler(plan: Plan, database_url: str) -> Iterator[Pooler | None]:
    if not plan.pgbouncer:
        yield None
        return
    pooler = Pooler(database_url)
    try:
        yield pooler
    finally:
        pooler.close()


async def _run(
    plan: Plan,
    broker: RabbitMQ | Cluster,
    database: PostgreSQL | Pair,
    journal: Journal,
    amqp_url: str,
    database_url: str,
    pooler: Pooler | None,
    collector: Collector,
) -> Result:
    directory = Path(tempfile.mkdtemp(prefix="task-activity-log-chaos-"))
    journal.note(f"{plan.command()}; RabbitMQ {broker.version}, PostgreSQL {database.version}; logs in {directory}")
    await audit.install(_where_to_write(database, database_url))
    topology = Topology(single_active_consumer=plan.single_active, partitions=plan.partitions)
    await _declare(topology, amqp_url)
    if isinstance(broker, Cluster):
        await asyncio.to_thread(_assert_members, broker, amqp_url)
    fleet = Fleet(plan.workers, amqp_url, pooler.url if pooler else database_url, directory, **_settings(plan))
    sent: dict[int, Message] = {}
    sent_at: dict[int, float] = {}

    def note_sent(message: Message) -> None:
        sent[message.number] = message
        sent_at.setdefault(message.number, time.monotonic())

    versions: defaultdict[UUID, int] = defaultdict(int)
    publishers = [
        Publisher(amqp_url, Author(plan, index, versions), plan.rate / plan.publishers, note_sent)
        for index in range(plan.publishers)
    ]
    stranger = Stranger(plan, plan.publishers)
    publishers.append(Publisher(amqp_url, stranger, plan.hostile_rate, note_sent))

    async def all_taken() -> bool:
        return await _all_taken(broker, amqp_url)

    faults = Faults(plan, journal, fleet, broker, database, amqp_url, database_url, pooler, stranger, all_taken)
    reading = asyncio.create_task(askers.read_slowly(amqp_url))
    publishing_over = asyncio.Event()
    try:
        await faults.limit()
        await fleet.start(journal)
        if not plan.outages:
            await _consumers(amqp_url, 1 if plan.one_consumer else plan.workers)
        publishing = [asyncio.create_task(publisher.run(publishing_over)) for publisher in publishers]
        await faults.run(plan.seconds)
        await _undo_faults(fleet, broker, database)
        publishing_over.set()
        async with asyncio.timeout(_PUBLISH_SECONDS):
            await asyncio.gather(*publishing)
        journal.note(
            f"all faults are undone; {len(sent)} messages sent, {sum(p.resent for p in publishers)} sent again"
        )
        left = await _settled(broker, amqp_url, topology)
        journal.note("not all messages are settled" if left else "all messages are settled")
        await fleet.stop()
        journal.note(
            f"workers stopped after {sum(w.starts for w in fleet.workers)} starts; exit statuses: {dict(fleet.exits)}"
        )
        over = Account(
            plan,
            sent,
            sent_at,
            faults.locks,
            collector.collected,
            *await audit.read(_where_to_write(database, database_url)),
        )
        failures = [*fleet.failures, *left, *over.failures()]
        back = sum(await totals(broker, amqp_url, topology.request_queues))
        if back and not left:
            failures.append(f"{back} messages are back in the request queues after all workers have stopped")
    finally:
        reading.cancel()
        await fleet.close()
        await faults.limit(None)
    figures = over.figures() | (handed_over(directory) if plan.partitions else {})
    return Result(failures, figures, journal, directory)


def _where_to_write(database: PostgreSQL | Pair, url: str) -> str:
    """The DSN of the server that accepts writes, for the database of the DSN that workers have."""
    return database.primary_url(url) if isinstance(database, Pair) else url


def _assert_members(cluster: Cluster, amqp_url: str) -> None:
    """Every quorum queue has a member on each node. A queue with fewer would end with one of them."""
    queues = cluster.nodes[0].api("GET", f"/queues/{urlsplit(amqp_url).path[1:]}?columns=name,type,members")
    few = [queue["name"] for queue in queues if queue.get("type") == "quorum" and len(queue["members"]) != SIZE]
    assert queues, "the management API does not know the queues yet"
    assert not few, f"fewer than {SIZE} members: {few}"


def _settings(plan: Plan) -> dict[str, str]:
    return {
        **({"WORKER_SINGLE_ACTIVE_CONSUMER": "true"} if plan.single_active else {}),
        **({"WORKER_PARTITIONS": str(plan.partitions)} if plan.partitions else {}),
        **({"WORKER_DATABASE_STATEMENT_CACHE": "0"} if plan.pgbouncer else {}),
        # Without outages a statement has the usual time. If it had less, it would end each wait for a lock.
        **({} if plan.outages else {"WORKER_DATABASE_COMMAND_TIMEOUT_SECONDS": "30"}),
    }


async def _declare(topology: Topology, amqp_url: str) -> None:
    connection = await connect(amqp_url)
    try:
        await declare(connection, topology)
        async with connection.channel() as channel:
            await channel.declare_queue(REPLY_QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
            full: dict[str, Any] = {"x-queue-type": "quorum", "x-max-length": 0, "x-overflow": "reject-publish"}
            await channel.declare_queue(FULL_QUEUE, durable=True, arguments=full)
            await askers.declare(channel)
    finally:
        await disconnect(connection)


async def _undo_faults(fleet: Fleet, broker: RabbitMQ | Cluster, database: PostgreSQL | Pair) -> None:
    await asyncio.to_thread(broker.ensure_running)
    await asyncio.to_thread(database.ensure_running)
    for worker in fleet.workers:
        worker.send(signal.SIGCONT)
        for proxy in (*worker.amqp.of, *worker.database.of):
            proxy.delay(0)
            proxy.resume()
            proxy.accept()


async def _settled(broker: RabbitMQ | Cluster, amqp_url: str, topology: Topology) -> list[str]:
    """Wait until all requests are settled and all answers are read; return a failure if that takes too long.

    The queues are looked at in this order at one moment each, and nothing is published to the requests queue any more:
    what is there is forwarded to the partitions, if there are any. So a single look that finds all of them empty is
    enough: nothing can come back.
    """
    names = (topology.requests_queue, *topology.partition_queues, *_READ)
    left: object = None
    try:
        async with asyncio.timeout(_SETTLE_SECONDS):
            while True:
                try:
                    left = await totals(broker, amqp_url, names)
                except SandboxError as error:
                    left = error
                if left == [0] * len(names):
                    return []
                await asyncio.sleep(0.2)
    except TimeoutError:
        return [f"{_SETTLE_SECONDS:.0f} s after the last fault {', '.join(names)} still have {left}"]


async def _consumers(amqp_url: str, count: int) -> None:
    """Wait until the requests queue has as many consumers."""
    connection = await connect(amqp_url)
    try:
        channel = await connection.channel()
        async with asyncio.timeout(60):
            while (await channel.declare_queue(QUEUE, passive=True)).declaration_result.consumer_count != count:
                await asyncio.sleep(0.05)
    finally:
        await disconnect(connection)


async def _all_taken(broker: RabbitMQ | Cluster, amqp_url: str) -> bool:
    """Whether no message waits. The declaration is a cheap first look; it says zero, too, if the queue has no leader."""
    try:
        return await _count(amqp_url, QUEUE) == 0 and await waiting(broker, amqp_url, QUEUE) == 0
    except (*CONNECTION_ERRORS, SandboxError):
        return False


async def _count(amqp_url: str, name: str) -> int:
    connection = await connect(amqp_url)
    try:
        async with connection.channel() as channel:
            queue = await channel.declare_queue(name, passive=True)
            return queue.declaration_result.message_count or 0
    finally:
        await disconnect(connection)
