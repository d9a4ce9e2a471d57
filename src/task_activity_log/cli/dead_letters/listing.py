"""Dead letters as a table, as lines of JSON, in full, or as a file that `publish` reads."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from task_activity_log.cli.dead_letters.selection import Selection
from task_activity_log.cli.terminal import readable, table
from task_activity_log.client import ClientError, exported
from task_activity_log.client.dead_letters import DeadLetter, judged
from task_activity_log.client.letters import Letter, groups, shown_headers
from task_activity_log.problem import Problem
from task_activity_log.streams import printable
from task_activity_log.wiring import rules_of


def print_each(letters: Sequence[DeadLetter], selection: Selection) -> None:
    """Print a table with a row for each."""
    table(
        ("age", "code", "publisher", "message id", "reason"),
        [(selection.age(letter), letter.code, letter.publisher, letter.name, letter.detail) for letter in letters],
        unbroken="message id",
    )


def print_groups(letters: Sequence[DeadLetter], selection: Selection) -> None:
    """Print a table with a row for each code, publisher and bad field, the largest group first."""
    rules = rules_of(selection.settings)
    rows = []
    for group in groups([Letter.of(letter, rules) for letter in letters]):
        oldest, newest = (selection.age(group.letters[place].raw) for place in (0, -1))
        counts = f"{len(group.letters)}", group.code, group.publisher, group.field, f"{group.passing}"
        rows.append((*counts, oldest, newest, group.letters[0].detail))
    table(("count", "code", "publisher", "field", "pass now", "oldest", "newest", "reason of the oldest"), rows)


def as_json(letter: DeadLetter) -> str:
    """A line of JSON, without the body."""
    members = {
        "message_id": letter.name,
        "code": letter.code,
        "detail": letter.detail,
        "publisher": letter.publisher,
        "since": letter.since and letter.since.isoformat(timespec="seconds"),
        "content_type": letter.properties.content_type,
        "bytes": len(letter.body),
    }
    return json.dumps(members, ensure_ascii=False)


def in_full(letter: DeadLetter, selection: Selection) -> str:
    """The reason, properties and headers, and the body."""
    lines = [f"message {letter.name}", f"  reason          {letter.code}: {letter.detail}"]
    lines += [f"  rejected        {letter.since:%Y-%m-%d %H:%M:%S %Z}" if letter.since else "  rejected        unknown"]
    found = judged(letter, rules_of(selection.settings))
    if isinstance(found, Problem):
        lines += [f"  if sent today   rejected: {reason}" for reason in exported.reasons(found)]
    else:
        lines.append("  if sent today   accepted by the contract")
    for name in ("content_type", "content_encoding", "correlation_id", "reply_to", "app_id", "type"):
        if (value := getattr(letter.properties, name)) is not None:
            lines.append(f"  {name:14}  {value}")
    if letter.sent is not None:
        lines.append(f"  timestamp       {letter.sent:%Y-%m-%d %H:%M:%S %Z}")
    lines += [f"  header          {name}: {value!r}" for name, value in sorted(shown_headers(letter).items())]
    # A line feed of the publisher's would make a line that looks like one of ours.
    return "\n".join([*map(_as_one_line, lines), printable(readable(letter.body, letter.properties.content_type)), ""])


def _as_one_line(text: str) -> str:
    return printable(text).replace("\n", "\\n")


def export(file: Path, letters: Sequence[DeadLetter]) -> None:
    """Write a new file, and return once it is on disk.

    Raises `ClientError` if it exists, or cannot be written: no part of it is left then, nor after Ctrl-C.
    """
    try:
        written = file.open("x", encoding="utf-8")
    except FileExistsError:
        raise ClientError(f"{file} already exists: name another file, or remove it; nothing was written") from None
    except OSError as error:
        raise ClientError(f"{file}: {error.strerror}") from None
    try:
        with written:
            written.writelines(f"{exported.letter_line(letter)}\n" for letter in letters)
            written.flush()
            os.fsync(written.fileno())
        _sync(file.parent)
    except BaseException as error:
        file.unlink(missing_ok=True)  # part of a copy would pass for one
        if isinstance(error, OSError):
            raise ClientError(f"{file}: {error.strerror}; nothing was written") from None
        raise


def _sync(folder: Path) -> None:
    """Let the name of a file in it survive a power failure, as far as the system can do that for folders."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
