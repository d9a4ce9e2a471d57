"""Standard input, output and error of the process: no foreign text controls a terminal, and no failed write stops anybody.

`protect` replaces all three. On a terminal, everything that is written is escaped; `trusted` is for text that is escaped
already and has colours. Text that the encoding does not have is escaped as well, so that no write raises `UnicodeError`.
"""

import errno
import io
import json
import os
import re
import select
import shlex
import string
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

_STALLED_SECONDS = 1.0
"""How long a line of the log waits for a reader that does not read, before it is dropped."""

_PIECE = getattr(select, "PIPE_BUF", 512)
"""A pipe that is ready takes this many bytes without blocking."""

_UNUSUAL = re.compile(r"[^\x20-\x7e\n\t]")
_PLAIN = string.ascii_letters + string.digits + "-_.:/"
_JOINERS = "\u200c\u200d"
"""Persian, the scripts of India and emoji need them. They control nothing."""


class OutputLost(Exception):
    """Nothing more can be written to standard output: its reader has left (`reader_left`), or the disk is full, or the like."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror or type(error).__name__}")
        self.reader_left = error.errno == errno.EPIPE


@contextmanager
def going_on_without_reader() -> Iterator[None]:
    """Print results in this block, and go on if their reader, such as `head`, has enough: that does not change what is found."""
    try:
        yield
    except OutputLost as lost:
        if not lost.reader_left:
            raise


def printable(text: str) -> str:
    """The text with whatever can control a terminal escaped as in Python: control, C1 and bidirectional characters.

    Line feeds and tabs are kept: see `one_line`.
    """
    return _UNUSUAL.sub(lambda found: found[0] if _is_shown(found[0]) else repr(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """The text on one line and escaped, so that it cannot be taken for a line of ours."""
    return " ".join(printable(text).split())


def printable_json(text: str) -> str:
    r"""A JSON text with the same characters escaped as \\uXXXX: it means the same."""
    return _UNUSUAL.sub(lambda found: found[0] if _is_shown(found[0]) else json.dumps(found[0])[1:-1], text)


def shell_word(text: str) -> str:
    """The text as one word of a shell (Bash), on one line and escaped, so that somebody can copy it into a terminal.

    `one_line` leaves it as it is. The name of a file may have bytes that are not UTF-8: the word means the same bytes.
    """
    if text.isprintable() and "  " not in text:
        return shlex.quote(text)
    try:
        raw = text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode(errors="replace")
    escaped = (chr(byte) if chr(byte) in _PLAIN else f"\\x{byte:02x}" for byte in raw)
    return f"$'{''.join(escaped)}'"


def shell_command(words: Iterable[str]) -> str:
    """A command on one line that somebody can copy into a terminal (Bash)."""
    return " ".join(map(shell_word, words))


def _is_shown(one: str) -> bool:
    return one.isprintable() or one in _JOINERS or unicodedata.category(one) == "Zs"


def protect() -> None:
    """Replace the standard streams. Call it once, before anything is written.

    Afterwards writing to standard output raises `OutputLost` at most once, also if it was closed before, and writing to
    standard error raises nothing.
    """
    for number in range(3):  # a descriptor that is closed would be the next socket's
        try:
            os.fstat(number)
        except OSError:
            # Nobody would get the results: a command must not remove replies from a queue to print them there.
            flags = os.O_RDONLY if number == 1 else os.O_RDWR
            os.set_inheritable(os.open(os.devnull, flags), True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the life of the process
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if os.name == "nt":  # its console has streams of its own kind
        return
    encodings = [getattr(stream, "encoding", "utf-8") for stream in (sys.stdout, sys.stderr)]
    sys.stdout = _Output(io.BufferedWriter(_Results(1, "w", closefd=False)), encodings[0])
    sys.stderr = _Output(_Messages(2, "w", closefd=False), encodings[1])


def trusted(stream: TextIO) -> TextIO:
    """A stream to the same file as standard output or error, for text that is escaped already and has colours."""
    return getattr(stream, "trusted", stream)


def has_colours(stream: TextIO) -> bool:
    """Whether it is a terminal on which colours are wanted (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def drop_stalled() -> None:
    """From now on, drop what is written to standard error while its reader does not read, instead of waiting for it."""
    if isinstance(sys.stderr, _Output) and isinstance(sys.stderr.buffer, _Messages):
        sys.stderr.buffer.waits = False


def dropped() -> int:
    """How many lines on standard error were dropped."""
    messages = getattr(sys.stderr, "buffer", None)
    return messages.dropped if isinstance(messages, _Messages) else 0


class _Output(io.TextIOWrapper):
    """Escapes what is written to it on a terminal."""

    def __init__(self, file: Any, encoding: str) -> None:
        self._terminal = file.isatty()
        # Standard error gets each line in one piece. Standard output has a buffer below, which both texts share.
        pieces = (
            {"line_buffering": True}
            if isinstance(file, _Messages)
            else {"line_buffering": self._terminal, "write_through": True}
        )
        super().__init__(file, encoding, "backslashreplace", **pieces)
        self.trusted = io.TextIOWrapper(file, encoding, "backslashreplace", **pieces)

    def write(self, text: str, /) -> int:
        super().write(printable(text) if self._terminal else text)
        return len(text)


class _Results(io.FileIO):
    """Standard output. After a failure everything is discarded."""

    def write(self, data: Any, /) -> int:
        while True:
            try:
                count = cast("int | None", super().write(data))
            except OSError as error:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
                raise OutputLost(error) from None
            if count is not None:
                return count
            # A program that shares the file has made it non-blocking, as Node does, and the reader is slow.
            select.select([], [self.fileno()], [])


class _Messages(io.FileIO):
    """Standard error. A line that cannot be written is dropped, because nobody is there to be told."""

    waits = True
    """Whether a reader that does not read is waited for."""
    dropped = 0
    _stalled = _torn = False

    def write(self, data: Any, /) -> int:
        left = memoryview(b"\n" + data if self._torn else data)  # a line that was cut ends here
        size = len(left)
        try:
            while left and self._ready():
                left = left[self._put(left if self.waits else left[:_PIECE]) :]
        except OSError:
            pass
        self.dropped += bool(left)
        self._torn = bool(left) and (self._torn or len(left) < size)
        return len(data)

    def _put(self, data: memoryview) -> int:
        try:
            return os.write(self.fileno(), data)
        except BlockingIOError:  # see `_Results.write`
            select.select([], [self.fileno()], [], None if self.waits else 0)
            return 0

    def _ready(self) -> bool:
        if self.waits:
            return True
        # One that has stalled gets no more time, because the event loop would wait for it with each line.
        seconds = 0 if self._stalled else _STALLED_SECONDS
        self._stalled = not select.select([], [self.fileno()], [], seconds)[1]
        return not self._stalled
