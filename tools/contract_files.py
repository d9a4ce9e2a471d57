"""Writes what `task-activity-log contract` prints into docs/contract; with --check it compares instead."""

import sys
from pathlib import Path

from task_activity_log.cli.contract import FILES, describe
from tools.generated import write_or_check

CONTRACT = Path(__file__).resolve().parents[1] / "docs" / "contract"


def main() -> int:
    """Rewrite the files, or check them."""
    return write_or_check({CONTRACT / file: describe(name) for name, file in FILES.items()})


if __name__ == "__main__":
    sys.exit(main())
