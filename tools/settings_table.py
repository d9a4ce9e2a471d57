"""Writes the tables of settings into docs/settings.md and docs/console.md; with --check it compares instead."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from task_activity_log.console import settings as console
from task_activity_log.settings import Settings, load, variable
from tools.generated import replace_between, write_or_check

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- settings: begin (make docs) -->", "<!-- settings: end -->"


def table() -> str:
    """The settings as a Markdown table."""
    required = inspect.signature(load).parameters["needed"].default
    return _rows(Settings.model_fields, variable, required)


def console_table() -> str:
    """The settings of the console as a Markdown table."""
    return _rows(console.ConsoleSettings.model_fields, console.variable, ())


def _rows(fields: Mapping[str, FieldInfo], variable: Callable[[str], str], required: Collection[str]) -> str:
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in fields.items():
        default = "(required)" if name in required else _shown(field.default)
        choices = ", ".join(f"`{choice}`" for choice in get_args(field.annotation) if isinstance(choice, str))
        text = " ".join((field.description or "").split()) + (f" One of {choices}." if choices else "")
        rows.append(f"| `{variable(name)}` | {default} | {text} |")
    return "\n".join(rows)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        value = ",".join(value)
    if value is None or value == "":
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def main() -> int:
    """Rewrite the table, or check it."""
    tables = {DOCS / "settings.md": table(), DOCS / "console.md": console_table()}
    texts = {path: path.read_text(encoding="utf-8") for path in tables}
    return write_or_check({path: replace_between(texts[path], BEGIN, END, tables[path]) for path in tables})


if __name__ == "__main__":
    sys.exit(main())
