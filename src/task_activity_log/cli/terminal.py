"""Output of all commands: tables and progress bars on a terminal, plain lines anywhere else."""

import asyncio
import json
import math
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from task_activity_log.streams import one_line, printable, printable_json, trusted

if TYPE_CHECKING:  # `--help` and `run` do not load it
    import rich.status

FEW = 20
"""At most this many records or dead letters are reported one by one."""


_PART = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
EVERY_SECONDS = 10.0
"""How often progress is reported where there is no terminal."""


def say(line: str) -> None:
    """Print a line on standard error: standard output is for results."""
    print(f"task-activity-log: {one_line(line)}", file=sys.stderr, flush=True)


def say_unseen(queue: str, *, others: int, newer: int) -> None:
    """Say what is not seen of a queue: what other consumers have, and the newest messages if there are too many."""
    if others:
        say(f"{queue} has other consumers ({others}): what they have is not seen here")
    if newer:
        say(f"{queue} has too many messages to look at all: the newest {newer:,} are not seen here")


def counted(number: int, noun: str) -> str:
    """A number with its noun in the singular or the plural: `1 record`, `1,000 records`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


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


def readable(body: bytes, content_type: str | None = None) -> str:
    """A body for people: JSON and XML are indented. Anything else is left as it is, and still to be escaped."""
    try:
        return printable_json(json.dumps(json.loads(body), indent=2, ensure_ascii=False))
    except (ValueError, RecursionError):
        from task_activity_log.client.marking import body_text

        text = body_text(body, content_type, errors="backslashreplace")
        return _indented_xml(text) or text


def indented(body: bytes) -> bytes:
    """JSON on several lines, each value exactly as it is in the body; anything else unchanged."""
    try:
        text = body.decode()
        json.loads(text)
    except (ValueError, RecursionError):
        return body
    lines, depth = [""], 0
    parts = _PART.findall(text)
    for before, part, following in zip(["", *parts], parts, [*parts[1:], ""], strict=False):
        if part in "}]":
            depth -= 1
            if before not in ("{", "["):
                lines.append("  " * depth)
        lines[-1] += f"{part} " if part == ":" else part
        depth += part in "{["
        if part == "," or (part in "{[" and following not in ("}", "]")):
            lines.append("  " * depth)
    return "\n".join(lines).encode()


def _indented_xml(text: str) -> str | None:
    if not text.lstrip().startswith("<") or "<!DOCTYPE" in text:
        return None
    from lxml import etree

    try:
        # In UTF-8, whatever the declaration says.
        parser = etree.XMLParser(resolve_entities=False, no_network=True, encoding="utf-8")
        root = etree.fromstring(text.encode(), parser)
    except (etree.XMLSyntaxError, ValueError):
        return None
    if root.getprevious() is not None or root.getnext() is not None:
        return None  # not all of it would be shown
    etree.indent(root)
    return etree.tostring(root, encoding="unicode")


_COLUMN_MIN = 6
"""Characters of a terminal for each column: with fewer, rich leaves columns out."""
_ID_MAX = 40
"""A UUID and a little more. A column of longer ids is broken into lines like any other."""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, unbroken: str = "") -> None:
    """Print a table: columns are aligned on a terminal, and separated by tabs elsewhere and on a very narrow terminal.

    The cells of the column `unbroken` stay on one line, so that they can be copied, unless they are longer than a UUID.
    """
    rows = list(rows)
    if not sys.stdout.isatty() or shutil.get_terminal_size().columns < _COLUMN_MIN * len(columns):
        for row in (columns, *rows):
            print("\t".join(map(one_line, row)))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        fits = name == unbroken and all(len(row[index]) <= _ID_MAX for row in rows)
        shown.add_column(name, overflow="fold", no_wrap=fits)
    for row in rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    Console(file=trusted(sys.stdout)).print(shown)


class Progress(Protocol):
    """How far something has come."""

    def update(self, count: int) -> None:
        """`count` more are done."""


class _Lines:
    """A line on standard error every ten seconds, for the log of a job that has no terminal.

    The event loop prints it, also while nothing is done: an outage must not look like a program that hangs.
    """

    def __init__(self, total: int, describe: Callable[[], str], idle: Callable[[float], str]) -> None:
        self._total = total
        self._describe = describe
        self._idle = idle
        self._done = self._reported = 0
        self._loop = asyncio.get_running_loop()
        self._moved = self._loop.time()
        self._next = self._loop.call_later(EVERY_SECONDS, self._report)

    def update(self, count: int) -> None:
        self._done += count
        self._moved = self._loop.time()

    def end(self) -> None:
        """Print no more lines."""
        self._next.cancel()

    def _report(self) -> None:
        self._next = self._loop.call_later(EVERY_SECONDS, self._report)
        description = self._describe()
        line = f"{self._done:,} of {self._total:,}" + (f": {description}" if description else "")
        if self._done == self._reported:
            line += f"; {self._idle(self._loop.time() - self._moved)}"
        self._reported = self._done
        say(line)


class _Counting:
    """How many records a file has, as far as it was read: after a second on a terminal, or a line every ten seconds."""

    def __init__(self, show: Callable[[str], None], every: float) -> None:
        self._show, self._every = show, every
        self._done, self._what = 0, ""
        self._next = time.monotonic() + max(every, 1.0)

    def update(self, count: int, description: str = "") -> None:
        if description != self._what:
            self._done, self._what = 0, description
        self._done += count
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            self._show(f"{self._done:,} {description}")


class _Done:
    """How many are done, for a bar that looks at it when it is drawn: drawing takes longer than most records."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, count: int) -> None:
        self.count += count


class Speed:
    """How many are done per second, in the last ten seconds: an outage is seen as such."""

    def __init__(self) -> None:
        self._noted: deque[tuple[float, int]] = deque()

    def note(self, now: float, count: int) -> None:
        """`count` are done now. Times are in seconds."""
        self._noted.append((now, count))
        while len(self._noted) > 2 and self._noted[1][0] <= now - EVERY_SECONDS:  # noqa: PLR2004 - a beginning and an end
            self._noted.popleft()

    @property
    def per_second(self) -> float:
        """0 before two moments are noted."""
        if not self._noted:
            return 0.0
        (began, before), (now, count) = self._noted[0], self._noted[-1]
        return (count - before) / (now - began) if now > began else 0.0

    def seconds_for(self, count: float) -> float | None:
        """How long this many more take; None if nothing is being done."""
        return count / self.per_second if self.per_second else None


@contextmanager
def counting(*, quiet: bool) -> Iterator["_Counting"]:
    """Progress of which the end is not known, on standard error."""
    if quiet or not sys.stderr.isatty():
        yield _Counting((lambda _: None) if quiet else say, EVERY_SECONDS)
        return
    from rich.console import Console

    with ExitStack() as stack:
        shown: list[rich.status.Status] = []

        def show(text: str) -> None:
            if not shown:
                shown.append(stack.enter_context(Console(file=trusted(sys.stderr)).status(text)))
            shown[0].update(text)

        yield _Counting(show, 0.2)


@contextmanager
def progress(
    total: int,
    describe: Callable[[], str] = lambda: "",
    idle: Callable[[float], str] = lambda seconds: f"no progress for {seconds:.0f} s",
) -> Iterator[Progress]:
    """A progress bar on standard error, or without a terminal a line every ten seconds; nothing if `total` is 0.

    Args:
        total: how many there are.
        describe: says more about what is done, for the end of the line. It may be the text of others.
        idle: says that for this many seconds nothing was done, where there is no bar, whose rate shows it.
    """
    if not total:
        yield _Done()
        return
    if not sys.stderr.isatty():
        lines = _Lines(total, describe, idle)
        try:
            yield lines
        finally:
            lines.end()
        return
    from rich import progress as parts
    from rich.console import Console, RenderableType
    from rich.text import Text

    speed, done = Speed(), _Done()

    class Rate(parts.ProgressColumn):
        def render(self, _: parts.Task) -> Text:
            return Text(f"{speed.per_second:,.0f}/s")

    class Count(parts.ProgressColumn):
        def render(self, task: parts.Task) -> Text:
            return Text(f"{task.completed:,.0f} of {task.total or 0:,.0f}")

    class Left(parts.ProgressColumn):
        def render(self, task: parts.Task) -> Text:
            seconds = speed.seconds_for((task.total or 0) - task.completed)
            return Text(f"{'-:--:--' if seconds is None else timedelta(seconds=math.ceil(seconds))} left")

    class Bar(parts.Progress):
        def get_renderables(self) -> Iterable[RenderableType]:
            speed.note(time.monotonic(), done.count)
            for task in self.task_ids:
                self.update(task, completed=done.count, description=one_line(describe()))
            yield from super().get_renderables()

    with Bar(
        parts.BarColumn(bar_width=24),
        Count(),
        Rate(),
        Left(),
        parts.TextColumn("{task.description}", markup=False),
        console=Console(file=trusted(sys.stderr)),
        transient=True,
        redirect_stdout=False,  # results are not part of the bar
    ) as bar:
        bar.add_task("", total=total)
        yield done
