"""What a worker says of itself: readiness, liveness and /status."""

import asyncio
import json
import time
from typing import Any

import pytest

from task_activity_log.aio import Backoff, SharedLock
from task_activity_log.pipeline.hold import Hold
from task_activity_log.pipeline.lines import Limits
from task_activity_log.pipeline.parking import Parking
from task_activity_log.pipeline.refusals import Refusals
from task_activity_log.pipeline.timing import Timing
from task_activity_log.rabbitmq.intake import Intake
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.replies import Replies
from task_activity_log.settings import Settings, load
from task_activity_log.status import Status
from task_activity_log.telemetry.metrics import Metrics
from task_activity_log.telemetry.watch import Watch
from task_activity_log.wiring import link_of, store_of, topology_of

URLS = {"AMQP_URL": "amqp://me:hunter2hunter2@broker:5673/v", "DATABASE_URL": "postgresql://me:hunter2hunter2@db/app"}


class Worker:
    """The parts of a worker that has not connected yet."""

    def __init__(self, **variables: str) -> None:
        settings: Settings = load({**URLS, **variables})

        async def ready() -> None:
            """Consume at once."""

        link, store = link_of(settings), store_of(settings)
        self.start_hold = Hold("start", Backoff(first=0.001))
        self.intake = Intake(
            link,
            topology_of(settings),
            prefetch=settings.prefetch,
            batch_max=settings.batch_max,
            before_consuming=ready,
        )
        self.status = Status(
            settings,
            intake=self.intake,
            publisher=Publisher(link),
            addressed=Publisher(link),
            forwards=None,
            replies=Replies(Publisher(link), Publisher(link), link, topology_of(settings)),
            store=store,
            holds=(self.start_hold, Hold("store"), Hold("reply")),
            parking=Parking(
                self.intake,
                store,
                store,
                asyncio.Queue(),
                1000,
                SharedLock(),
                "emit",
                Refusals(10),
                Timing(),
                Limits(10),
            ),
            watch=Watch(Metrics()),
        )


async def test_status_shows_connections_holds_and_settings() -> None:
    """Connections have their addresses, and holds their reasons and durations."""
    worker = Worker(WORKER_BATCH_MAX="7")
    await worker.start_hold.wait("disk full (53100)")
    worker.start_hold.since = time.monotonic() - 61
    status: dict[str, Any] = worker.status.report()
    assert status["connections"] == {
        "intake": {"address": "broker:5673/v", "connected": False},
        "replies": {"address": "broker:5673/v", "connected": False, "blocked": None},
        "reply_to": {"address": "broker:5673/v", "connected": False, "blocked": None},
        "database": {"address": "db:5432/app", "connected": False},
    }
    [hold] = status["holds"]
    assert (hold["place"], hold["reason"]) == ("start", "disk full (53100)")
    assert hold["seconds"] >= 61
    assert (status["in_hand"], status["last_batch"]) == ({"waiting": 0, "under_way": 0, "prefetch": 28}, None)
    assert status["settings"]["batch_max"] == 7
    worker.start_hold.release()
    assert worker.status.report()["holds"] == []


async def test_a_connection_that_a_worker_does_not_have_has_no_metric() -> None:
    """Without partitions nothing is forwarded: a 0 would be counted as a missing connection."""
    metrics = Metrics()
    Worker().status.show_gauges(metrics)
    lines = [
        line for line in metrics.exposition().decode().splitlines() if line.startswith("task_activity_log_connected{")
    ]
    assert sorted(lines) == [
        f'task_activity_log_connected{{link="{link}"}} 0.0' for link in ("database", "intake", "replies", "reply-to")
    ]


async def test_status_hides_the_settings_that_contain_a_password() -> None:
    """None of the URLs is shown with its password."""
    worker = Worker(MANAGEMENT_URL="http://me:hunter2hunter2@broker")
    assert "hunter2" not in json.dumps(worker.status.report(), default=str)


async def test_a_worker_is_not_ready_for_each_reason() -> None:
    """A worker that has not connected is not ready; an outage and draining are further reasons."""
    worker = Worker()
    assert worker.status.not_ready() == ["no publisher connection", "not consuming"]
    await worker.start_hold.wait("disk full (53100)")
    worker.status.draining = True
    assert worker.status.not_ready() == [
        "draining",
        "holding: disk full (53100)",
        "no publisher connection",
        "not consuming",
    ]


@pytest.mark.parametrize(
    ("idle", "holding", "draining", "alive"),
    [(59.0, False, False, True), (61.0, False, False, False), (61.0, True, False, True), (61.0, False, True, True)],
)
async def test_a_worker_that_is_connected_but_does_not_consume_is_not_alive(
    idle: float, holding: bool, draining: bool, alive: bool
) -> None:
    """It is restarted after a minute, unless it holds because of an outage or drains."""
    worker = Worker()
    worker.intake.connected_since = time.monotonic() - idle
    worker.status.draining = draining
    if holding:
        await worker.start_hold.wait("disk full (53100)")
    reasons = worker.status.not_alive()
    assert (reasons == []) is alive
    assert all(reason.startswith("connected but not consuming for 61 s") for reason in reasons)


async def test_a_worker_without_a_connection_is_alive() -> None:
    """A restart would not help against an outage."""
    assert Worker().status.not_alive() == []
