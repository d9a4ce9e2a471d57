"""Writes the table of settings into docs/settings.md; with --check it only reports whether the table is current."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_args

from task_activity_log.settings import Settings, load, variable

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
    block = f"{BEGIN}\n\n{table()}\n\n{END}"
    fresh = re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", block.replace("\\", r"\\"), text, flags=re.DOTALL)
    if "--check" in sys.argv:
        if fresh != text:
            sys.stderr.write("docs/settings.md: the table of settings is not current; run `make docs`\n")
        return int(fresh != text)
    DOCUMENT.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
