"""The editor in which a dead letter is corrected."""

import signal
import subprocess
from collections.abc import Sequence

import pytest

from task_activity_log.cli.dead_letters import editing
from task_activity_log.cli.exit_codes import guarded


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
