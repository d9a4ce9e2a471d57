"""What is shown is what is declared, and the other way round."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from task_activity_log.telemetry.metrics import Metrics
from task_activity_log.telemetry.names import EVENTS, METRICS

SOURCE = Path(__file__).parents[2] / "src" / "task_activity_log"


def logged() -> Iterator[tuple[str, str, list[str]]]:
    """Level, event and fields of every call of `log` in the source."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr=level), args=[ast.Constant(value=str(event))]
                ):
                    yield level, event, [keyword.arg for keyword in node.keywords if keyword.arg]
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=attribute)):
                    assert attribute == "is_enabled_for", f"{path}:{node.lineno}: the name of an event is a literal"


def test_every_event_is_declared_with_its_level_and_fields() -> None:
    """What an operator may search the log for stands in the table, and nothing else does."""
    found = list(logged())
    assert {event for _, event, _ in found} == set(EVENTS)
    for level, event, fields in found:
        assert level == EVENTS[event].level, event
        assert set(fields) <= set(EVENTS[event].fields), event


def test_every_metric_is_shown_with_its_help_and_its_labels_from_the_start() -> None:
    """`increase()` sees the first event only if there was a 0 before."""
    metrics = Metrics()
    metrics.held("store", "disk full (53100)")
    metrics.gauge("task_activity_log_build_info", lambda: 1, "1.2.3")
    shown = list(text_string_to_metric_families(metrics.exposition().decode()))
    ours = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in shown
        if family.name.startswith("task_activity_log_")
    }
    assert set(ours) == set(METRICS)
    for name, family in ours.items():
        assert (family.type, family.documentation) == (METRICS[name].kind, METRICS[name].help)
        for label, values in METRICS[name].labels.items():
            seen = {sample.labels[label] for sample in family.samples}
            assert seen >= {str(value) for value in values} if name != "task_activity_log_hold_seconds_total" else seen


def test_metrics_are_named_as_prometheus_would_have_it() -> None:
    """Units in names are base units, counters end in _total."""
    for name, metric in METRICS.items():
        assert re.fullmatch(r"task_activity_log_[a-z_]+", name)
        assert name.endswith("_total") == (metric.kind == "counter")
        assert "millisecond" not in name
        assert bool(metric.buckets) == (metric.kind == "histogram")
