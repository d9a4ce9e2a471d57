"""What a worker that has connected to nothing yet says of itself, and how it ends when it is broken."""

import json
from typing import Any

import pytest
import structlog

from task_activity_log import service
from task_activity_log.service import Service
from task_activity_log.settings import load
from task_activity_log.telemetry import logs

URLS = {"AMQP_URL": "amqp://me:hunter2hunter2@broker:5673/v", "DATABASE_URL": "postgresql://me:hunter2hunter2@db/app"}


async def test_status_says_what_it_waits_for_and_hides_what_is_secret() -> None:
    """Connections with their addresses, holds with reason and duration, settings without those that hold passwords."""
    worker = Service(load({**URLS, "MANAGEMENT_URL": "http://me:hunter2hunter2@broker", "WORKER_BATCH_MAX": "7"}))
    worker._start_hold.reason, worker._start_hold.since = "disk full (53100)", 0.0
    status: dict[str, Any] = worker.status.report()
    assert status["connections"] == {
        "intake": {"address": "broker:5673/v", "connected": False},
        "replies": {"address": "broker:5673/v", "connected": False, "blocked": None},
        "database": {"address": "db/app", "connected": False},
    }
    [hold] = status["holds"]
    assert (hold["place"], hold["reason"]) == ("start", "disk full (53100)")
    assert hold["seconds"] > 0
    assert "holding: disk full (53100)" in status["not_ready"]
    assert (status["in_hand"], status["last_batch"]) == ({"waiting": 0, "under_way": 0, "prefetch": 28}, None)
    assert status["settings"]["batch_max"] == 7
    assert "hunter2" not in json.dumps(status, default=str)


def test_a_defect_ends_with_1_and_without_its_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text of an error may quote a message; where it happened is told."""

    async def broken(_: Service) -> None:
        raise RuntimeError("pay" + "load")

    def configure(*arguments: Any) -> None:
        really_configure(*arguments)
        structlog.configure(cache_logger_on_first_use=False)  # what is kept would write into this test's own stderr

    really_configure = logs.configure
    monkeypatch.setattr(logs, "configure", configure)
    monkeypatch.setattr(Service, "run", broken)
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.setattr("gc.set_threshold", lambda *_: None)
    try:
        with pytest.raises(SystemExit) as ended:
            service.run(load({**URLS, "LOG_FORMAT": "json"}))
    finally:
        structlog.reset_defaults()
    assert ended.value.code == 1
    told = capsys.readouterr()
    event = json.loads(told.err)
    assert (event["event"], event["level"]) == ("crashed", "critical")
    assert event["exception"].endswith("RuntimeError")
    assert "payload" not in told.err + told.out
