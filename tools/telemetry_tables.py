"""Writes the tables of docs/telemetry.md, between their markers; with --check it compares instead."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from task_activity_log.telemetry.names import EVENTS, METRICS
from tools.generated import replace_between, write_or_check

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "telemetry.md"


def metrics() -> Iterator[str]:
    """The metrics as a Markdown table."""
    yield from ("| metric | kind | labels | meaning |", "| --- | --- | --- | --- |")
    for name, metric in METRICS.items():
        labels = "; ".join(
            f"`{label}`: {', '.join(values)}" if values else f"`{label}`" for label, values in metric.labels.items()
        )
        yield f"| `{name}` | {metric.kind} | {labels} | {metric.help} |"


def events() -> Iterator[str]:
    """The log events as a Markdown table."""
    yield from ("| event | level | fields | meaning |", "| --- | --- | --- | --- |")
    for name, event in EVENTS.items():
        yield f"| `{name}` | {event.level} | {', '.join(f'`{field}`' for field in event.fields)} | {event.meaning} |"


def main() -> int:
    """Rewrite the tables, or check them."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for table in (metrics, events):
        begin, end = f"<!-- {table.__name__}: begin (make docs) -->", f"<!-- {table.__name__}: end -->"
        text = replace_between(text, begin, end, "\n".join(table()))
    return write_or_check({DOCUMENT: text})


if __name__ == "__main__":
    sys.exit(main())
