"""Writes the table of settings into docs/settings.md; with --check it compares instead."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any, get_args

from task_activity_log.settings import Settings, load, variable
from tools.generated import replace_between, write_or_check

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
BEGIN, END = "<!-- settings: begin (make docs) -->", "<!-- settings: end -->"


def table() -> str:
    """The settings as a Markdown table."""
    required = inspect.signature(load).parameters["needed"].default
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "(required)" if name in required else "" if field.default is None else f"`{_shown(field.default)}`"
        choices = ", ".join(f"`{choice}`" for choice in get_args(field.annotation) if isinstance(choice, str))
        text = " ".join((field.description or "").split()) + (f" One of {choices}." if choices else "")
        rows.append(f"| `{variable(name)}` | {default} | {text} |")
    return "\n".join(rows)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def main() -> int:
    """Rewrite the table, or check it."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return write_or_check({DOCUMENT: replace_between(text, BEGIN, END, table())})


if __name__ == "__main__":
    sys.exit(main())
