"""The body of a dead letter in the user's own editor."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from task_activity_log import wire
from task_activity_log.cli.dead_letters.selection import judged
from task_activity_log.cli.exported import reasons
from task_activity_log.cli.terminal import say
from task_activity_log.client import ClientError
from task_activity_log.client.dead_letters import DeadLetter
from task_activity_log.pipeline.request import Rules
from task_activity_log.problem import Problem
from task_activity_log.settings import Settings
from task_activity_log.wiring import rules_of


@contextmanager
def edited(letters: Iterable[DeadLetter], settings: Settings) -> Iterator[dict[str, bytes]]:
    """Open each dead letter in the editor: the bodies that the contract accepts now, by `DeadLetter.key`.

    The files are kept if something fails afterwards. Raises `ClientError` if the editor does not run, or fails.
    """
    folder = Path(tempfile.mkdtemp(prefix="dead-letters-"))  # readable by its owner only
    bodies: dict[str, bytes] = {}
    keep = True
    try:
        for letter in letters:
            if (body := _edited(letter, rules_of(settings), folder)) is not None:
                bodies[letter.key] = body
        yield bodies
        keep = False
    finally:
        if bodies and keep:
            say(f"your edits are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _edited(letter: DeadLetter, rules: Rules, folder: Path) -> bytes | None:
    """The body once it would be accepted; None if the user leaves it as it is or gives up."""
    body = letter.body
    found = judged(letter, body, rules)
    for reason in reasons(found) if isinstance(found, Problem) else [f"{letter.code}: {letter.detail}"]:
        say(f"{letter.name}: {reason}")
    while True:
        body, before = _in_editor(letter, body, folder), body
        if body == before:
            say(f"{letter.name}: kept, as it was not changed")
            return None
        found = judged(letter, body, rules)
        if not isinstance(found, Problem):
            return body
        for reason in reasons(found):
            say(f"{letter.name}: would be rejected again: {reason}")
        if not sys.stdin.isatty() or input("Edit it again? [Y/n] ").strip().lower() in ("n", "no"):
            return None


def _in_editor(letter: DeadLetter, body: bytes, folder: Path) -> bytes:
    """The body as the editor leaves it: bytes, since editors know about encodings."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    suffix = ".xml" if wire.is_xml((letter.properties.content_type or "").partition(";")[0].strip()) else ".json"
    file = folder / f"{re.sub('[^A-Za-z0-9-]', '_', letter.name)}{suffix}"
    file.write_bytes(body)
    before = signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is meant for the editor
    try:
        status = subprocess.run([*shlex.split(editor), str(file)], check=False).returncode  # noqa: S603 - the user's own
    except OSError as error:
        raise ClientError(f"cannot run {editor}: {error.strerror}; set EDITOR") from None
    finally:
        signal.signal(signal.SIGINT, before)
    if status != 0:
        raise ClientError(f"{editor} exited with status {status}; nothing was replayed")
    changed = file.read_bytes()
    return changed if body.endswith(b"\n") else changed.removesuffix(b"\n")  # which editors add
