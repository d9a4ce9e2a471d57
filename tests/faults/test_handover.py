"""A single active consumer goes away under a backlog, and the next one takes over: no write of a record ever goes back.

Every message of a record is a number higher than the one before, none has an x-version, and an audit trigger in the
database records each write. Half of the records have no message_id: there a repeat is applied again, but in order.
"""

import logging
import signal
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog

from sandbox.proxy import Proxy
from task_activity_log.service import Service
from tests import audit_trigger
from tests.asking import Connection
from tests.faults.conversation import until
from tests.numbered import backlog
from tests.processes import fleet as worker_fleet
from tests.returned import make_suspicious
from tests.serving import serving

BATCH = 100
IN_HAND = 4 * BATCH
"""The prefetch that this batch gives."""
SETTINGS: dict[str, Any] = {"WORKER_SINGLE_ACTIVE_CONSUMER": "true", "WORKER_BATCH_MAX": str(BATCH)}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """An event a batch, as a worker logs by default, and not one a message."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    yield
    structlog.reset_defaults()


async def test_sigterm_of_the_active_worker_keeps_the_order(
    amqp_url: str, database_url: str, admin: Connection, tmp_path: Path
) -> None:
    """Twice in turn, each started again, with more in hand than fits a third of the drain limit: the rest is returned.

    What is in hand takes at least four seconds. The batch under way takes one, and may take ten on a slow machine.
    """
    await audit_trigger.install(admin, seconds_per_write=0.01)
    variables = {**SETTINGS, "WORKER_DRAIN_LIMIT_SECONDS": "10"}
    async with (
        backlog(amqp_url, repeatable=10) as sent,
        worker_fleet(tmp_path, amqp_url, database_url, **variables) as workers,
    ):
        await sent.fill(3 * IN_HAND)
        for _ in range(2):
            await workers.start()
        for _ in range(2):
            await sent.written(admin, await audit_trigger.count(admin) + BATCH)
            await sent.fill(2 * IN_HAND)
            active = await workers.active()
            assert await workers.end(active) == 0
            assert active.events("drained")
            assert not active.events("drain_limit_reached")
            await workers.start()
        await audit_trigger.end_delay(admin)
        await sent.settled(workers.in_hand)
        assert await workers.end_all() == [0, 0]
        assert await sent.disorder(admin) == []
        assert await sent.dead_letters() == 0


async def test_a_killed_worker_keeps_the_order(
    amqp_url: str, database_url: str, admin: Connection, tmp_path: Path
) -> None:
    """SIGKILL, three times, each soon after the worker took over: what comes again comes in order each time."""
    await audit_trigger.install(admin, seconds_per_write=0.003)
    async with (
        backlog(amqp_url, records=4, repeatable=2) as sent,
        worker_fleet(tmp_path, amqp_url, database_url, **SETTINGS) as workers,
    ):
        await sent.fill(3 * IN_HAND)
        await make_suspicious(amqp_url, BATCH, 2 * BATCH, 2)
        for _ in range(2):
            await workers.start()
        for _ in range(3):
            await sent.written(admin, await audit_trigger.count(admin) + 20)
            await sent.fill(2 * IN_HAND)
            assert await workers.end(await workers.active(), signal.SIGKILL) == -signal.SIGKILL
            await sent.fill(IN_HAND)  # or the other one has nothing left, on a machine where a start takes seconds
            await workers.start()
        await sent.settled(workers.in_hand)
        assert await workers.end_all() == [0, 0]
        assert await sent.disorder(admin) == []
        assert await sent.dead_letters() == 0


async def test_an_outage_longer_than_the_hold_limit_keeps_the_order(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """The active worker alone loses its database, returns what it has in hand, and the other one takes over; then back."""
    await audit_trigger.install(admin, seconds_per_write=0.001)
    quick: dict[str, Any] = {"WORKER_HOLD_LIMIT_SECONDS": "0.3", "WORKER_DATABASE_CONNECT_TIMEOUT_SECONDS": "0.5"}
    async with backlog(amqp_url, repeatable=10) as sent, AsyncExitStack() as stack:
        await sent.fill(3 * IN_HAND)
        ways = [await stack.enter_async_context(Proxy.to(database_url)) for _ in range(2)]
        workers = [await stack.enter_async_context(serving(amqp_url, way.url, **SETTINGS, **quick)) for way in ways]
        for _ in range(3):
            await sent.written(admin, await audit_trigger.count(admin) + BATCH)
            await sent.fill(2 * IN_HAND)
            await until(lambda: any(worker.in_hand > BATCH for worker in workers))
            active, way = max(zip(workers, ways, strict=True), key=lambda pair: pair[0].in_hand)
            way.refuse()
            way.cut()
            await until(partial(idle, active))
            await sent.written(admin, await audit_trigger.count(admin) + BATCH)
            way.accept()
        await sent.settled(lambda: in_hand(workers))
        assert await sent.disorder(admin) == []
        assert await sent.dead_letters() == 0


async def test_lost_connections_keep_the_order(amqp_url: str, database_url: str, admin: Connection) -> None:
    """The active worker alone loses its broker, five times in turn: all that it had in hand goes to the other one.

    A worker cannot take back what it has sent to the database for a delivery that is lost meanwhile. So each message
    has a message_id here.
    """
    await audit_trigger.install(admin, seconds_per_write=0.001)
    async with backlog(amqp_url) as sent, AsyncExitStack() as stack:
        await sent.fill(3 * IN_HAND)
        ways = [await stack.enter_async_context(Proxy.to(amqp_url)) for _ in range(2)]
        workers = [await stack.enter_async_context(serving(way.url, database_url, **SETTINGS)) for way in ways]
        for number in range(5):
            await sent.written(admin, await audit_trigger.count(admin) + (10, BATCH)[number % 2])
            await sent.fill(2 * IN_HAND)
            await until(lambda: any(worker.in_hand for worker in workers))
            max(zip(workers, ways, strict=True), key=lambda pair: pair[0].in_hand)[1].cut()
        await sent.settled(lambda: in_hand(workers))
        assert await sent.disorder(admin) == []
        assert await sent.dead_letters() == 0


async def test_a_worker_that_stops_as_soon_as_it_has_begun_keeps_the_order(
    amqp_url: str, database_url: str, admin: Connection
) -> None:
    """What was in hand before was returned: whoever takes a part of it must not return that part behind the rest."""
    await audit_trigger.install(admin)
    async with backlog(amqp_url, repeatable=10) as sent:
        await sent.send(2 * IN_HAND)
        await make_suspicious(amqp_url, BATCH, IN_HAND - BATCH, 1)
        for _ in range(5):
            await sent.fill(2 * IN_HAND)
            async with serving(amqp_url, database_url, **SETTINGS) as worker:
                await until(lambda: worker.in_hand > 0)
        async with serving(amqp_url, database_url, **SETTINGS) as worker:
            await sent.settled(lambda: in_hand([worker]))
        assert await sent.disorder(admin) == []
        assert await sent.dead_letters() == 0


@pytest.mark.parametrize("deliveries", [2, 5])
async def test_suspects_keep_the_order(amqp_url: str, database_url: str, admin: Connection, deliveries: int) -> None:
    """Messages that were delivered several times come behind some that were not, in the hands of one while another stands by."""
    await audit_trigger.install(admin, seconds_per_write=0.001)
    async with backlog(amqp_url, repeatable=10) as sent:
        await sent.send(2 * IN_HAND)
        await make_suspicious(amqp_url, 3 * BATCH, BATCH, deliveries)
        async with serving(amqp_url, database_url, **SETTINGS) as one:
            await until(lambda: one.in_hand > 1)
            async with serving(amqp_url, database_url, **SETTINGS) as two:
                await sent.settled(lambda: in_hand((one, two)))
        assert await sent.disorder(admin) == []
        assert await sent.dead_letters() == 0


@pytest.mark.parametrize(
    ("hand_overs", "single_active_consumer"), [(2, False), (5, True)], ids=["two restarts", "five hand-overs"]
)
async def test_orderly_hand_overs_make_no_suspects(
    amqp_url: str, database_url: str, admin: Connection, hand_overs: int, single_active_consumer: bool
) -> None:
    """Rolling updates under a backlog: nothing is taken one by one afterwards, and nothing is rejected."""
    await audit_trigger.install(admin, seconds_per_write=0.001)
    settings = {**SETTINGS, "WORKER_SINGLE_ACTIVE_CONSUMER": str(single_active_consumer).lower()}
    queue: dict[str, Any] = {"records": 100, "repeatable": 50, "single_active_consumer": single_active_consumer}
    async with backlog(amqp_url, **queue) as sent:
        await sent.fill(3 * IN_HAND)
        async with rolling(amqp_url, database_url, settings) as update:
            for _ in range(hand_overs):
                await sent.written(admin, await audit_trigger.count(admin) + BATCH)
                await sent.fill(2 * IN_HAND)
                await update.replace()
            await sent.settled(lambda: in_hand(update.workers))
        assert await sent.disorder(admin) == []
        assert await sent.dead_letters() == 0
        assert batches(update.workers) < sent.total / 10
        # A batch of one may also be all that had arrived. So what counts is whether anything was set apart to be tried alone.
        assert suspects(update.workers) == 0


def idle(worker: Service) -> bool:
    return worker.in_hand == 0


async def in_hand(workers: Iterable[Service]) -> int:
    return sum(worker.in_hand for worker in workers)


def batches(workers: Iterable[Service]) -> float:
    """How many batches all of them have settled."""
    return counted(workers, "task_activity_log_batch_size_count")


def suspects(workers: Iterable[Service]) -> float:
    """How many messages all of them have set apart, to be tried alone."""
    return counted(workers, "task_activity_log_suspects_total")


def counted(workers: Iterable[Service], name: str) -> float:
    return sum(worker.metrics.registry.get_sample_value(name) or 0 for worker in workers)


class Rolling:
    """Workers that replace each other as a rolling update does it. `workers` has all that there were."""

    def __init__(self, amqp_url: str, database_url: str, settings: dict[str, Any]) -> None:
        self._urls = (amqp_url, database_url)
        self._settings = settings
        self._surge = settings["WORKER_SINGLE_ACTIVE_CONSUMER"] == "true"
        self._running: dict[Service, AsyncExitStack] = {}
        self.workers: list[Service] = []

    async def start(self) -> None:
        """Start one more."""
        stack = AsyncExitStack()
        worker = await stack.enter_async_context(serving(*self._urls, **self._settings))
        self._running[worker] = stack
        self.workers.append(worker)

    async def replace(self) -> None:
        """Drain the one that has messages in hand. With a single active consumer its successor stands by before that."""
        await until(lambda: any(worker.in_hand for worker in self._running))
        active = max(self._running, key=lambda worker: worker.in_hand)
        if self._surge:
            await self.start()
        await self._running.pop(active).aclose()
        if not self._surge:
            await self.start()

    async def stop(self) -> None:
        """Drain those that are left."""
        while self._running:
            await self._running.popitem()[1].aclose()


@asynccontextmanager
async def rolling(amqp_url: str, database_url: str, settings: dict[str, Any]) -> AsyncIterator[Rolling]:
    """One worker, and with a single active consumer one that stands by."""
    fleet = Rolling(amqp_url, database_url, settings)
    try:
        for _ in range(2 if settings["WORKER_SINGLE_ACTIVE_CONSUMER"] == "true" else 1):
            await fleet.start()
        yield fleet
    finally:
        await fleet.stop()
