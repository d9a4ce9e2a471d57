"""The editor in which a dead letter is corrected."""

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from task_activity_log.cli.dead_letters import editing
from task_activity_log.cli.exit_codes import guarded
from task_activity_log.client.dead_letters import DeadLetter
from task_activity_log.message import Properties
from task_activity_log.settings import load


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
    editor = tmp_path / "editor"
    editor.write_text(
        '#!/bin/sh\nif grep -q text/odd "$1"; then sed -i "s#text/odd.*#application/json, #" "$1"\n'
        'else sed -i "s#json, #json\\",#" "$1"; fi\n'
    )
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setattr(editing, "_again", iter([True, False]).__next__)
    body = b'{"id": "9652e68c-7b6d-4598-bbbd-4e933126c994"}'
    letter = DeadLetter(body, Properties(message_id="m", content_type="text/odd"), cast("Any", None))
    with editing.edited([letter], load({}, needed=())) as edits:
        edits.replayed = True
    assert [request.restored(None).content_type for _, request in edits.requests] == ["application/json"]
    said = capsys.readouterr().err
    assert "cannot be sent: it is not JSON" in said
    assert "your edits" not in said
