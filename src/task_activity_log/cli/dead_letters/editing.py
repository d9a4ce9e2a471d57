"""The body of a dead letter in the user's own editor."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from task_activity_log import wire
from task_activity_log.cli.dead_letters.candidates import Candidate, judged
from task_activity_log.cli.terminal import reasons, say
from task_activity_log.client import ClientError
from task_activity_log.client.dead_letters import DeadLetter
from task_activity_log.pipeline.request import Rules
from task_activity_log.problem import Problem


class Edits:
    """Dead letters that were corrected in an editor. The files are kept if something fails afterwards."""

    def __init__(self, rules: Rules) -> None:
        self.accepted: dict[tuple[str, bytes], Candidate] = {}
        """Those that the contract accepts now, by the key of the dead letter."""
        self.done = False
        """Set once the files are no longer needed."""
        self._rules = rules
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is None:
            return
        if self.accepted and not self.done:
            say(f"your edits are in {self._folder}")
        else:
            shutil.rmtree(self._folder, ignore_errors=True)

    def edit(self, letter: DeadLetter) -> None:
        """Open a dead letter in the editor, again until it would be accepted or the user gives up.

        Raises:
            ClientError: there is no editor, or it failed.
        """
        body = letter.body
        found = judged(letter, body, self._rules)
        for reason in reasons(found) if isinstance(found, Problem) else [f"{letter.code}: {letter.detail}"]:
            say(f"{letter.name}: {reason}")
        while True:
            body, before = self._in_editor(letter, body), body
            if body == before:
                say(f"{letter.name}: kept, as it was not changed")
                return
            found = judged(letter, body, self._rules)
            if not isinstance(found, Problem):
                self.accepted[letter.key] = found
                return
            for reason in reasons(found):
                say(f"{letter.name}: would be rejected again: {reason}")
            if not sys.stdin.isatty() or input("Edit it again? [Y/n] ").strip().lower() in ("n", "no"):
                return

    def applied(self, letters: Iterable[DeadLetter]) -> tuple[list[Candidate], list[str]]:
        """The edited dead letters on a later loan: all may be replayed, so that there is no reason to keep one."""
        return [replace(self.accepted[letter.key], letter=letter) for letter in letters], []

    def _in_editor(self, letter: DeadLetter, body: bytes) -> bytes:
        """The body as the editor leaves it: bytes, since editors know about encodings."""
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
        self._folder = self._folder or Path(tempfile.mkdtemp(prefix="dead-letters-"))  # readable by its owner only
        suffix = ".xml" if wire.is_xml((letter.properties.content_type or "").partition(";")[0].strip()) else ".json"
        file = self._folder / f"{re.sub('[^A-Za-z0-9-]', '_', letter.name)}{suffix}"
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
