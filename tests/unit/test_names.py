"""The source shows the events and metrics that telemetry/names.py declares, and no others."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from task_activity_log.rabbitmq.topology import _difference
from task_activity_log.record import ANSWERS
from task_activity_log.telemetry.metrics import Metrics
from task_activity_log.telemetry.names import EVENTS, METRICS

SOURCE = Path(__file__).parents[2] / "src" / "task_activity_log"
REFUSALS = (
    "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'q': received '20' but current is '5'",
    "some other words",
)
COMPUTED = {
    "batch": {outcome.value for outcome in ANSWERS},
    "topology_differs": {field for refusal in REFUSALS for field in _difference(refusal)},
}
"""The fields that a call of `log` passes as `**function(...)`, by event."""


def logged() -> Iterator[tuple[str, str, set[str]]]:
    """Level, event and fields of every call of `log` in the source, with the fields that are computed."""
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr=level), args=[ast.Constant(value=str(event))]
                ):
                    fields = {keyword.arg for keyword in node.keywords if keyword.arg}
                    for keyword in node.keywords:
                        if keyword.arg is None:
                            fields |= spread(keyword.value, tree, event)
                    yield level, event, fields
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=attribute)):
                    assert attribute == "is_enabled_for", f"{path}:{node.lineno}: the name of an event is a literal"


def spread(value: ast.expr, module: ast.Module, event: str) -> set[str]:
    """The fields in `**value`: those of a function's result, or all that the module puts into a variable of this name."""
    if not isinstance(value, ast.Name):
        return COMPUTED[event]
    found = set[str]()
    for node in ast.walk(module):
        match node:
            case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=value.id), slice=ast.Constant(value=str(field)))]):
                found.add(field)
            case ast.Assign(targets=[ast.Name(id=value.id)]):
                keys = [key for each in ast.walk(node.value) if isinstance(each, ast.Dict) for key in each.keys]
                found |= {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
    return found


def test_every_event_is_declared_with_its_level_and_fields() -> None:
    """An operator can search the log for every event and field in the table, and for no others."""
    found = list(logged())
    assert {event: level for level, event, _ in found} == {event: EVENTS[event].level for event in EVENTS}
    fields = {event: set[str]() for event in EVENTS}
    for _, event, some in found:
        fields[event] |= some
    assert fields == {event: set(EVENTS[event].fields) for event in EVENTS}


def test_every_metric_is_shown_with_its_help_and_its_labels_from_the_start() -> None:
    """`increase()` sees the first event only if there was a 0 before."""
    metrics = Metrics()
    metrics.held("store", "disk full (53100)")
    metrics.gauge("task_activity_log_certificate_expires_timestamp_seconds", lambda: 1, "WORKER_AMQP_CA_FILE")
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
            assert seen
            if name != "task_activity_log_hold_seconds_total":  # its series are made when something is waited for
                assert seen >= {str(value) for value in values}


def test_metrics_are_named_as_prometheus_would_have_it() -> None:
    """Units in names are base units, counters end in _total."""
    for name, metric in METRICS.items():
        assert re.fullmatch(r"task_activity_log_[a-z_]+", name)
        assert name.endswith("_total") == (metric.kind == "counter")
        assert "millisecond" not in name
        assert bool(metric.buckets) == (metric.kind == "histogram")
