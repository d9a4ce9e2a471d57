"""Output of all commands: tables and progress bars on a terminal, plain lines anywhere else."""

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `--help` and `run` do not load it
    from rich.progress import Progress

FEW = 20
"""At most this many records or dead letters are reported one by one."""


def say(line: str) -> None:
    """Print a line on standard error: standard output is for results."""
    print(f"task-activity-log: {printable(line)}", file=sys.stderr, flush=True)


def agreed(question: str) -> bool:
    """Ask on standard error, so that the question is not among the results; only yes is yes."""
    print(f"task-activity-log: {printable(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def printable(text: str) -> str:
    """The text with its control characters escaped: what publishers send must not control the terminal."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in "\n\t" else repr(one)[1:-1] for one in text)


def readable(body: bytes) -> str:
    """A body for people: JSON is indented, anything else is left as it is."""
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return body.decode(errors="backslashreplace")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: columns are aligned on a terminal, and separated by tabs elsewhere."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(" ".join(printable(cell).split()) for cell in row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(shown)


def progress(total: int) -> "AbstractContextManager[Progress]":
    """A progress bar with one task, on standard error. It is hidden if `total` is 0 or standard error is not a terminal."""
    from rich import progress as parts
    from rich.console import Console
    from rich.text import Text

    class Rate(parts.ProgressColumn):
        def render(self, task: parts.Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")

    shown = parts.Progress(
        parts.BarColumn(bar_width=24),
        parts.MofNCompleteColumn(),
        Rate(),
        parts.TimeRemainingColumn(),
        parts.TextColumn("{task.description}"),
        console=Console(stderr=True),
        disable=not total or not sys.stderr.isatty(),
        transient=True,
        redirect_stdout=False,  # results are not part of the bar
    )
    shown.add_task("", total=total)
    return shown
