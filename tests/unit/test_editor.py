"""The editor in which a dead letter is corrected."""

import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from task_activity_log.cli.dead_letters import editing
from task_activity_log.cli.exit_codes import guarded
from task_activity_log.client import ClientError
from task_activity_log.client.dead_letters import DeadLetter
from task_activity_log.message import Properties
from task_activity_log.rabbitmq.headers import received
from task_activity_log.settings import load


def edit_with(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> Path:
    """Make this shell script the editor, and return its file."""
    editor = folder / "editor"
    editor.write_text(f"#!/bin/sh\n{script}")
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    monkeypatch.delenv("VISUAL", raising=False)
    return editor


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_editor_is_ended_if_the_command_is_told_to_end_while_it_starts(
    monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    """The editor runs before this command knows its process."""
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def told_to_end(words: Sequence[str]) -> subprocess.Popen[bytes]:
        started.append(start(words))
        signal.raise_signal(number)
        return started[0]

    before = {one: signal.signal(one, signal.SIG_DFL) for one in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(subprocess, "Popen", told_to_end)
    try:
        assert guarded(lambda: editing._run(["sleep", "600"])) == code
        assert started[0].poll() == -signal.SIGTERM
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        started[0].kill()
        started[0].wait()


def test_headers_that_are_no_json_can_be_corrected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The editor opens them again as somebody has written them, and not as they were before."""
    edit_with(
        monkeypatch,
        tmp_path,
        'if grep -q text/odd "$1"; then sed -i "s#text/odd.*#application/json, #" "$1"\n'
        'else sed -i "s#json, #json\\",#" "$1"; fi\n',
    )
    monkeypatch.setattr(editing, "_again", iter([True, False]).__next__)
    body = b'{"id": "9652e68c-7b6d-4598-bbbd-4e933126c994"}'
    letter = DeadLetter(body, Properties(message_id="m", content_type="text/odd"), cast("Any", None))
    with editing.edited([letter], load({}, needed=())) as edits:
        edits.replayed = True
    assert [request.restored(None).content_type for _, request in edits.requests] == ["application/json"]
    said = capsys.readouterr().err
    assert "cannot be sent: it is not JSON" in said
    assert "your edits" not in said


def test_headers_that_are_invalid_are_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No body can correct a MessageId that is too long, or too many headers."""
    edit_with(monkeypatch, tmp_path, "sed -i '/MessageId/d' \"$1\"\nsed -i 's/: 1,$/: 1/' \"$1\"\n")
    body = b'{"id": "9652e68c-7b6d-4598-bbbd-4e933126c994"}'
    properties = received(Properties(headers={"kept": 1, "MessageId": "x" * 1_025}))
    letter = DeadLetter(body, properties, cast("Any", None))
    with editing.edited([letter], load({}, needed=())) as edits:
        edits.replayed = True
    assert [request.headers for _, request in edits.requests] == [{"kept": 1}]


@pytest.mark.parametrize("body", [b"\n\n<task_activity_log>", b"\r\n\n<a/>\n\n", b"\n", b"{\n", b""])
@pytest.mark.parametrize("content_type", ["application/xml", "application/json"])
def test_a_body_that_is_not_changed_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: bytes, content_type: str
) -> None:
    """Also if it begins with empty lines, as the lines above it end with one; and without all or some of these lines."""
    letter = DeadLetter(body, Properties(message_id="m", content_type=content_type), cast("Any", None))
    monkeypatch.delenv("VISUAL", raising=False)
    for editor in ("true", "sed -i 1d", "sed -i 1,2d", "sed -i 1,3d"):
        monkeypatch.setenv("EDITOR", editor)
        assert editing._body_in_editor(letter, ["invalid_uuid: Send id."], tmp_path / "m", {}) is None
    monkeypatch.setenv("EDITOR", r"sed -i 's/$/\r/'")
    changed = editing._body_in_editor(
        replace(letter, body=b"<a>\n</a>"), ["invalid_uuid: Send id."], tmp_path / "m", {}
    )
    assert changed is not None
    assert changed.body == b"<a>\r\n</a>\r"


def test_an_editor_that_leaves_no_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever is in its place."""
    editor = edit_with(monkeypatch, tmp_path, 'rm "$1"; mkdir "$1"\n')
    letter = DeadLetter(b'{"id": "no"}', Properties(message_id="m", content_type="application/json"), cast("Any", None))
    with pytest.raises(ClientError, match=f"Is a directory after {editor}; nothing was replayed"):
        with editing.edited([letter], load({}, needed=())):
            pass
