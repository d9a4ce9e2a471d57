"""Output of all commands: tables and progress bars on a terminal, plain lines anywhere else."""

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from task_activity_log.streams import one_line, printable, printable_json, trusted

if TYPE_CHECKING:  # `--help` and `run` do not load it
    from rich.progress import Progress

FEW = 20
"""At most this many records or dead letters are reported one by one."""


def say(line: str) -> None:
    """Print a line on standard error: standard output is for results."""
    print(f"task-activity-log: {one_line(line)}", file=sys.stderr, flush=True)


def agreed(question: str) -> bool:
    """Ask on standard error, so that the question is not among the results; only yes is yes."""
    print(f"task-activity-log: {one_line(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def print_json(line: str) -> None:
    """Print a line of JSON: escaped on a terminal, in UTF-8 anywhere else, whatever the encoding of the locale."""
    if sys.stdout.isatty():
        print(printable_json(line))
    else:
        print_data(line)


def print_data(text: str | bytes, end: bytes = b"\n") -> None:
    """Print what other programs read: as it is and in UTF-8, except on a terminal, where it is escaped."""
    if sys.stdout.isatty():
        shown = text if isinstance(text, str) else text.decode(errors="backslashreplace")
        print(printable(shown), end=end.decode())
    else:
        sys.stdout.flush()
        # JSON can contain half of a surrogate pair as an escape; `backslashreplace` gives it back that form.
        sys.stdout.buffer.write((text.encode(errors="backslashreplace") if isinstance(text, str) else text) + end)


def readable(body: bytes) -> str:
    """A body for people: JSON is indented, and stays JSON. Anything else is left as it is, and still to be escaped."""
    try:
        return printable_json(json.dumps(json.loads(body), indent=2, ensure_ascii=False))
    except (ValueError, RecursionError):
        return body.decode(errors="backslashreplace")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: columns are aligned on a terminal, and separated by tabs elsewhere."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(map(one_line, row)))
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
    Console(file=trusted(sys.stdout)).print(shown)


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
        console=Console(file=trusted(sys.stderr)),
        disable=not total or not sys.stderr.isatty(),
        transient=True,
        redirect_stdout=False,  # results are not part of the bar
    )
    shown.add_task("", total=total)
    return shown
