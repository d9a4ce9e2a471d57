"""Dead letters as a file that `publish` reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from task_activity_log.cli import exported
from task_activity_log.client import ClientError
from task_activity_log.client.dead_letters import DeadLetter


def line(letter: DeadLetter) -> str:
    """One dead letter as a line of JSON."""
    return exported.line(
        letter.body,
        letter.properties.content_type or "",
        letter.properties.message_id,
        letter.headers,
        content_encoding=letter.properties.content_encoding,
        publisher=letter.publisher,
        since=letter.since and letter.since.isoformat(timespec="milliseconds"),
        problems=[f"{letter.code}: {letter.detail}"],
    )


def write(file: Path, letters: Sequence[DeadLetter]) -> None:
    """Write a new file, and return once it is on disk.

    Raises:
        ClientError: it exists already, or cannot be written.
    """
    try:
        with file.open("x", encoding="utf-8") as written:
            written.writelines(f"{line(letter)}\n" for letter in letters)
            written.flush()
            os.fsync(written.fileno())
    except OSError as error:
        raise ClientError(f"{file}: {error.strerror}") from None
