"""The body or the headers of a dead letter in the user's own editor."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from task_activity_log import wire
from task_activity_log.cli.exit_codes import holding_back_signals, ignoring_interrupts
from task_activity_log.cli.sources import SYNTAX
from task_activity_log.cli.terminal import indented, say
from task_activity_log.client import ClientError
from task_activity_log.client.dead_letters import DeadLetter, judged
from task_activity_log.client.exported import OF_THE_HEADER, corrected, header_text, reasons
from task_activity_log.pipeline.request import Rules
from task_activity_log.problem import Code, Problem
from task_activity_log.settings import Settings
from task_activity_log.wiring import rules_of

_EDITOR_SECONDS = 5.0
"""How long an editor that is told to end may take."""


@dataclass
class Edits:
    """What somebody has corrected."""

    requests: list[tuple[str, DeadLetter]] = field(default_factory=list)
    """Those that the contract accepts now, each with the key of the rejected one."""
    replayed: bool = False
    """Whether all of them were replayed, so that their files are needed no more."""
    opened: dict[Path, bytes] = field(default_factory=dict)
    """The files of the letters that are not among `requests`, and what was in each before it was edited."""

    @property
    def needed(self) -> bool:
        """Whether a file has something that somebody has written and that was not replayed."""
        return (bool(self.requests) and not self.replayed) or any(
            file.is_file() and _saved(file, before) != before for file, before in self.opened.items()
        )


@contextmanager
def edited(letters: Iterable[DeadLetter], settings: Settings) -> Iterator[Edits]:
    """Open each dead letter in the editor.

    The files are kept unless all that was changed is `replayed`, also if the command is told to end meanwhile. Raises
    `ClientError` if the editor does not run, or fails.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="dead-letters-"))  # readable by its owner only
    except OSError as error:
        raise ClientError(
            f"no folder for a file to edit: {error.strerror}; set TMPDIR to one that can be written"
        ) from None
    edits, interrupted = Edits(), False
    copies: Counter[str] = Counter()
    try:
        for letter in letters:
            copies[letter.key] += 1
            before = dict(edits.opened)
            request = _edited(letter, rules_of(settings), _place(letter, copies[letter.key], folder), edits.opened)
            if request is not None:
                edits.requests.append((letter.key, request))
                edits.opened = before
        yield edits
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        if edits.needed or (interrupted and any(folder.iterdir())):
            say(f"your edits are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _edited(letter: DeadLetter, rules: Rules, place: Path, opened: dict[Path, bytes]) -> DeadLetter | None:
    """The dead letter once it would be accepted; None if the user leaves it as it is or gives up."""
    found, again, draft = judged(letter, rules), "", None
    notes = reasons(found) if isinstance(found, Problem) else [f"{letter.code}: {letter.detail}"]
    for reason in notes:
        say(f"{letter.name}: rejected before the edit: {reason}")
    while True:
        of_the_header = isinstance(found, Problem) and found.code in OF_THE_HEADER
        try:
            changed = (
                _header_in_editor(letter, place, opened, draft)
                if of_the_header
                else _body_in_editor(letter, notes, place, opened)
            )
        except _NotSendable as error:
            say(f"{letter.name}: cannot be sent: {error}")
            draft = error.text
        else:
            if changed is None:
                say(f"{letter.name}: kept, as it was not changed{again}")
                return None
            letter, draft, again = changed, None, " again"
            found = judged(letter, rules)
            if not isinstance(found, Problem):
                return letter
            notes = reasons(found)
            for reason in [*notes, *_syntax_errors(found, letter.body)]:
                say(f"{letter.name}: would be rejected again: {reason}")
        if not _again():
            return None


def _syntax_errors(found: Problem, body: bytes) -> Iterator[str]:
    """Where the body is not JSON, and why: lines and columns as the editor shows them below the notes."""
    if found.code is Code.MALFORMED_JSON:
        try:
            json.loads(body)
        except json.JSONDecodeError as error:
            yield f"line {error.lineno}, column {error.colno} of the body: {SYNTAX.get(error.msg, error.msg)}"
        except (ValueError, RecursionError):
            pass  # not UTF-8, or nested too deeply


def _again() -> bool:
    """Ask whether to edit it again. The end of the input means no."""
    if not sys.stdin.isatty():
        return False
    print("Edit it again? [Y/n] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    return answer.strip().lower() not in ("n", "no") if answer else False


class _NotSendable(ValueError):
    """Headers, as somebody has written them, that cannot be sent."""

    def __init__(self, why: str, text: bytes) -> None:
        super().__init__(why)
        self.text = text


def _body_in_editor(
    letter: DeadLetter, reasons: Sequence[str], place: Path, opened: dict[Path, bytes]
) -> DeadLetter | None:
    is_xml = wire.is_xml((letter.properties.content_type or "").partition(";")[0].strip())
    shown = letter.body if is_xml else indented(letter.body)
    notes = [f"# {letter.name}: {reason}".replace("\n", " ").encode() for reason in reasons]
    notes = (
        [*notes, b"# These lines are removed. A body that is not changed is not sent.", b""] if _is_text(shown) else []
    )
    file = place.with_name(place.name + (".xml" if is_xml else ".json"))
    edited = _in_editor(b"\n".join([*notes, shown]), file, opened)
    body = _without(notes, edited)
    return None if shown in (body, edited) else replace(letter, body=body)


def _without(notes: Sequence[bytes], edited: bytes) -> bytes:
    """What somebody has edited without the notes above it. The body can begin with empty lines of its own, which stay."""
    lines = edited.split(b"\n")
    removed = 0
    for note in notes:
        if removed < len(lines) and lines[removed].rstrip(b"\r") == note:
            removed += 1
    return b"\n".join(lines[removed:])


def _is_text(body: bytes) -> bool:
    """Whether lines can be put before it: a body in UTF-16 would be broken by them."""
    try:
        return "\0" not in body.decode()
    except UnicodeDecodeError:
        return False


def _header_in_editor(
    letter: DeadLetter, place: Path, opened: dict[Path, bytes], draft: bytes | None
) -> DeadLetter | None:
    """Correct content type, content encoding and headers, as JSON, or go on with a `draft` of it.

    Raises `_NotSendable` if they cannot be sent.
    """
    request = letter.restored(None)
    before = header_text(request).encode()
    after = _in_editor(before if draft is None else draft, place.with_name(f"{place.name}.header.json"), opened)
    if after == before:
        return None
    try:
        return replace(letter, corrected=corrected(request, after))
    except RecursionError:
        raise _NotSendable("it is nested too deeply", after) from None
    except ValueError as error:
        raise _NotSendable(str(error), after) from None


def _in_editor(content: bytes, file: Path, opened: dict[Path, bytes]) -> bytes:
    """The content as the editor leaves it: bytes, since editors know about encodings. `opened` gets the file."""
    editor = (os.environ.get("VISUAL", "").strip() or os.environ.get("EDITOR", "")).strip()
    if not editor and not sys.stdin.isatty():
        raise ClientError(
            "there is no terminal for an editor: set EDITOR to a program that needs none; nothing was replayed"
        )
    editor = editor or "vi"
    try:
        file.write_bytes(content)
    except OSError as error:
        raise ClientError(f"{file}: {error.strerror}; nothing was replayed") from None
    opened.setdefault(file, content)
    try:
        status = _run([*shlex.split(editor), str(file)])
    except OSError as error:
        raise ClientError(f"cannot run {editor}: {error.strerror}; set EDITOR") from None
    except ValueError:
        raise ClientError(f"cannot run {editor}: its quotes do not end; set EDITOR") from None
    if status != 0:
        how = f"exited with status {status}" if status > 0 else f"was ended by signal {-status}"
        raise ClientError(f"{editor} {how}; nothing was replayed")
    try:
        return _saved(file, content)
    except OSError as error:
        raise ClientError(f"{file}: {error.strerror} after {editor}; nothing was replayed") from None


def _saved(file: Path, before: bytes) -> bytes:
    """What an editor has left in a file, without the line feed at its end that editors add."""
    saved = file.read_bytes()
    return saved if before.endswith(b"\n") else saved.removesuffix(b"\n")


def _place(letter: DeadLetter, copy: int, folder: Path) -> Path:
    """The file to edit it in, without its suffix. Each letter has its own, also an exact copy, so that all edits are kept."""
    name = re.sub("[^A-Za-z0-9-]", "_", letter.name)[:100]
    digest = letter.key.rpartition(" ")[2][:8]
    return folder / (f"{name}.{digest}" if copy == 1 else f"{name}.{digest}.{copy}")


def _run(words: Sequence[str]) -> int:
    """Run the editor and return its status. If this command is told to end meanwhile, the editor is told as well."""
    process: subprocess.Popen[bytes] | None = None
    with ignoring_interrupts():
        try:
            with holding_back_signals():
                process = subprocess.Popen(words)  # noqa: S603 - the user's own
            return process.wait()
        except KeyboardInterrupt:
            if process is not None:
                _end(process)
            raise


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_EDITOR_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
