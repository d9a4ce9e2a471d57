"""The body of a dead letter in the person's own editor."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from task_activity_log import wire
from task_activity_log.cli.terminal import say
from task_activity_log.client import ClientError
from task_activity_log.client.dead_letters import DeadLetter


class Edits:
    """Bodies as a person left them in an editor; their files are kept if something goes wrong afterwards."""

    def __init__(self) -> None:
        self.bodies: dict[tuple[str, bytes], bytes] = {}
        self.done = False
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is None:
            return
        if self.bodies and not self.done:
            say(f"your edits are in {self._folder}")
        else:
            shutil.rmtree(self._folder, ignore_errors=True)

    def edited(self, letter: DeadLetter, body: bytes) -> bytes:
        """The body as the editor leaves it: bytes, as editors know their encodings.

        Raises:
            ClientError: there is no editor, or it failed.
        """
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
        self._folder = self._folder or Path(tempfile.mkdtemp(prefix="dead-letters-"))  # for its owner alone
        suffix = ".xml" if wire.is_xml((letter.properties.content_type or "").partition(";")[0].strip()) else ".json"
        file = self._folder / f"{re.sub('[^A-Za-z0-9-]', '_', letter.name)}{suffix}"
        file.write_bytes(body)
        before = signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is the editor's
        try:
            status = subprocess.run([*shlex.split(editor), str(file)], check=False).returncode  # noqa: S603 - theirs
        except OSError as error:
            raise ClientError(f"cannot run {editor}: {error.strerror}; set EDITOR") from None
        finally:
            signal.signal(signal.SIGINT, before)
        if status != 0:
            raise ClientError(f"{editor} ended with status {status}; nothing was replayed")
        changed = file.read_bytes()
        return changed if body.endswith(b"\n") else changed.removesuffix(b"\n")  # which editors add
