"""How a worker process ends if it has a defect."""

import json
from typing import Any

import pytest
import structlog

from task_activity_log import service
from task_activity_log.service import Service
from task_activity_log.settings import load
from task_activity_log.telemetry import logs

URLS = {"AMQP_URL": "amqp://me:hunter2hunter2@broker:5673/v", "DATABASE_URL": "postgresql://me:hunter2hunter2@db/app"}


def test_a_defect_ends_with_1_and_without_its_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text of an error may quote a message, so only its type and place are logged."""

    async def broken(_: Service) -> None:
        raise RuntimeError("pay" + "load")

    def configure(*arguments: Any) -> None:
        really_configure(*arguments)
        structlog.configure(cache_logger_on_first_use=False)  # a cached logger would keep this test's stderr

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
