"""Writes what `task-activity-log contract` prints into docs/contract; with --check only says whether it is current."""

from __future__ import annotations

import sys
from pathlib import Path

from task_activity_log.cli.contract import FILES, describe

CONTRACT = Path(__file__).resolve().parents[1] / "docs" / "contract"


def main() -> int:
    """Rewrite the files, or check them."""
    stale = {file: describe(name) for name, file in FILES.items() if _read(CONTRACT / file) != describe(name)}
    if "--check" in sys.argv:
        for file in stale:
            sys.stderr.write(f"docs/contract/{file} is not current; run `make docs`\n")
        return int(bool(stale))
    for file, text in stale.items():
        (CONTRACT / file).write_text(text, encoding="utf-8")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
