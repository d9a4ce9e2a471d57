"""The runbook has a section for each alert, and names only what exists."""

import re
from pathlib import Path

from task_activity_log.telemetry.names import EVENTS, METRICS

ROOT = Path(__file__).parents[2]


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_the_runbook_has_one_section_for_each_alert() -> None:
    """The link in an alert leads to its section, and docs/operations.md links to the sections in the same order."""
    rules = read("deploy/prometheus/rules.yaml")
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert alerts
    assert sorted(re.findall(r"^## (\w+)$", read("docs/runbook.md"), re.MULTILINE)) == sorted(alerts)
    assert re.findall(r"runbook_url: .*docs/runbook\.md#(\w+)", rules) == [alert.lower() for alert in alerts]
    assert re.findall(r"runbook\.md#(\w+)", read("docs/operations.md")) == [alert.lower() for alert in alerts]


def test_the_runbook_names_metrics_and_events_that_exist() -> None:
    """So does docs/operations.md: a name that changes must change there too."""
    text = read("docs/runbook.md") + read("docs/operations.md")
    for name in re.findall(r"task_activity_log_[a-z_]+", text):
        assert name in METRICS or name.removeprefix("task_activity_log_") in (
            "alembic_version",
            "inbox",
            "journal",
            "modified",
            "worker",
        ), name
    for event in re.findall(r"event `([a-z_]+)`", text):
        assert event in EVENTS, event
