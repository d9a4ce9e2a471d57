"""Alerts and runbook know each other."""

import re
from pathlib import Path

from task_activity_log.telemetry.names import EVENTS, METRICS

ROOT = Path(__file__).parents[2]


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    """The link that an alert carries leads to what to do about it."""
    rules = read("deploy/prometheus/rules.yaml")
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert alerts
    assert sorted(re.findall(r"^## (\w+)$", read("docs/runbook.md"), re.MULTILINE)) == sorted(alerts)
    assert re.findall(r"runbook_url: .*docs/runbook\.md#(\w+)", rules) == [alert.lower() for alert in alerts]
    assert re.findall(r"runbook\.md#(\w+)", read("docs/operations.md")) == [alert.lower() for alert in alerts]


def test_the_runbook_speaks_of_metrics_and_events_that_are_there() -> None:
    """A name that was changed must be changed here, too."""
    text = read("docs/runbook.md") + read("docs/operations.md")
    for name in re.findall(r"task_activity_log_[a-z_]+", text):
        assert name in METRICS or name in ("task_activity_log_inbox", "task_activity_log_worker"), name
    for event in re.findall(r"event `([a-z_]+)`", text):
        assert event in EVENTS, event
