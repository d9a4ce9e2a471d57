"""Programs on a terminal of their own, and text that would control one."""

import os
import pty
import signal
import unicodedata
from pathlib import Path

from tests.commands import environment

HOSTILE = "\x1b]0;title\x07 \x1b[2J\x1b[35;7m \x9b31m \x85 \r\b\x7f \u202e \u2066 \u200f \u061c \u2028 \u2029 \ufeff \U000e0041"
"""Escape sequences, C1, what goes back, bidirectional marks, separators, a byte order mark, a tag."""

SHOWN = "Société\u00a0: 5\u00a0€, 日本語\u3000。 👩\u200d👩\u200d👧 م\u200cخ Ω ß\n\tx"
"""Text that a terminal has to show as it is."""

_KINDS = ("Cc", "Cf", "Cs", "Zl", "Zp")


def controls(text: str) -> list[str]:
    """What is left in a text that could control a terminal. Line feeds, tabs and joiners may be."""
    return [one for one in text if unicodedata.category(one) in _KINDS and one not in "\n\t\u200c\u200d"]


def on_a_terminal(
    arguments: list[str], *, answer: str = "", until: str = "", folder: Path | None = None, **variables: str
) -> str:
    """What a program shows on a terminal of its own, both streams together.

    `answer` is typed when it asks [y/N]. It is told to end (SIGTERM) once it has shown the text `until`.
    """
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder or ".")
        os.execve(arguments[0], arguments, environment(**{"TERM": "xterm", **variables}))  # noqa: S606 - our own program
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
            if b"[y/N]" in part:
                os.write(terminal, f"{answer}\n".encode())
            if until and until.encode() in shown:
                os.kill(child, signal.SIGTERM)
                until = ""
    except OSError:
        pass  # reading a closed pseudo-terminal fails with EIO
    os.waitpid(child, 0)
    os.close(terminal)
    return shown.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
