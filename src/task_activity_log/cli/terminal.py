"""What all commands print with: tables and bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from task_activity_log.client import ClientError

if TYPE_CHECKING:
    from rich.progress import Progress

DONE, FAILED, WRONG_USE, SOME_REJECTED, INTERRUPTED = 0, 1, 2, 3, 130


def say(line: str) -> None:
    """Tell the person, on standard error: standard output is for results."""
    print(f"task-activity-log: {printable(line)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text with control characters spelt out: what publishers send must not steer a terminal."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in "\n\t" else repr(one)[1:-1] for one in text)


def readable(body: bytes) -> str:
    """A body for people: JSON over several lines, anything else as it is."""
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return body.decode(errors="backslashreplace")


def guarded(command: Callable[[], int], interrupted: Callable[[], str] = lambda: "interrupted") -> int:
    """Carry out a command and return its exit code. What it raises is said in one line."""
    from task_activity_log.telemetry.logs import quiet_drivers

    quiet_drivers()
    try:
        code = command()
        sys.stdout.flush()
    except ClientError as error:
        say(str(error))
        return FAILED
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        say(interrupted())
        return INTERRUPTED
    return code


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: with columns aligned on a terminal, separated by tabs elsewhere."""
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


def progress(total: int) -> AbstractContextManager[Progress]:
    """A bar with count and rate, and one task, on standard error; unseen for no total, or where that is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")

    shown = Progress(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        disable=not total or not sys.stderr.isatty(),
        transient=True,
        redirect_stdout=False,  # results go where the person sends them
    )
    shown.add_task("", total=total)
    return shown
