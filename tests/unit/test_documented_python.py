"""Python in the commands of the documents runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SNIPPETS = [
    pytest.param(code, id=page.name)
    for page in sorted(DOCS.rglob("*.md"))
    for code in re.findall(r"python -c '([^']+)'", page.read_text())
]


def test_there_are_some() -> None:
    """Otherwise the test below tests nothing."""
    assert SNIPPETS


@pytest.mark.parametrize("code", SNIPPETS)
def test_it_runs_and_names_a_file(code: str) -> None:
    """psql is given what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603 - our own
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).is_file()
