"""Generated text in the repository: rewritten by `make docs`, compared by `make check`.

Each generator computes what its files should contain and calls `write_or_check`. With `--check` on the command line
nothing is written: the files that are not up to date are named, and the exit status is 1.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def write_or_check(files: Mapping[Path, str]) -> int:
    """Write each file whose content differs, or with `--check` name it; returns the exit status."""
    stale = {path: text for path, text in files.items() if _read(path) != text}
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not up to date; run `make docs`", file=sys.stderr)
        return int(bool(stale))
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    return 0


def replace_between(text: str, begin: str, end: str, content: str) -> str:
    """Replace what is between two markers in a Markdown document; the markers stay.

    Raises:
        ValueError: the markers are not in the text exactly once, in this order.
    """
    before, *rest = text.split(begin)
    if len(rest) != 1 or rest[0].count(end) != 1:
        raise ValueError(f"{begin} … {end} must be there exactly once")
    return f"{before}{begin}\n\n{content}\n\n{end}{rest[0].split(end)[1]}"


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None
