"""Writes what docs/runbook.md says to do about each reason of a hold, for the console; with --check it compares instead."""

import json
import re
import sys
from collections.abc import Iterator

from tools.generated import ROOT, write_or_check

RUNBOOK = ROOT / "docs" / "runbook.md"
ROWS = ROOT / "src" / "task_activity_log" / "console" / "runbook.json"

_SECTION = re.compile(r"^## TaskActivityLogHolding\n(.*?)^## ", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\|(?:[^|]*)\|([^|]*)\|([^|]*)\|$", re.MULTILINE)
_LINK = re.compile(r"\[([^]]*)\]\(([^)#]*)[^)]*\)")


def rows() -> Iterator[tuple[str, str]]:
    """Each reason, where `…` stands for anything, and what to do. Raises `ValueError` if the section has no table."""
    section = _SECTION.search(RUNBOOK.read_text(encoding="utf-8"))
    found = _ROW.findall(section[1])[2:] if section else []  # behind the heading and the line below it
    if not found:
        raise ValueError(f"{RUNBOOK} has no table of reasons below TaskActivityLogHolding")
    for reasons, advice in found:
        for reason in re.findall(r"`([^`]+)`", reasons):
            yield reason, _LINK.sub(r"\1 (docs/\2)", advice.strip())


def text() -> str:
    """A line for each reason."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows()) + "\n]\n"


def main() -> int:
    """Rewrite the file, or check it."""
    return write_or_check({ROWS: text()})


if __name__ == "__main__":
    sys.exit(main())
