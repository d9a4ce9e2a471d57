"""Output for people: a progress bar during the run, and tables of results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import progress
from rich.console import Console
from rich.table import Table

Progress = Callable[..., None]
"""Takes the progress, from 0 to 1. If it is given several numbers, it shows the greatest."""

_on_screen = Console(stderr=True)
_results = Console(width=130)


@contextmanager
def bar(label: str) -> Iterator[Progress]:
    """A progress bar on standard error if that is a terminal; otherwise one line at the beginning."""
    if not _on_screen.is_terminal:
        _on_screen.print(label)
        yield lambda *_: None
        return
    with progress.Progress(console=_on_screen, transient=True) as shown:
        task = shown.add_task(label, total=1.0)
        yield lambda *done: shown.update(task, completed=max(done))


def say(line: str) -> None:
    """Print one line of results."""
    _results.print(line, highlight=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. The first column is text, the others are numbers."""
    shown = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left")
    for row in rows:
        shown.add_row(*row)
    _results.print(shown)
