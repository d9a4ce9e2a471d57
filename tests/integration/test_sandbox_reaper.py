"""A reaper ends and removes a service when its owner is gone, however the owner ended."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox import reaper
from sandbox.processes import Processes, ReaperClient
from sandbox.service import SandboxError

TREE = ["sh", "-c", "sleep 300 & sleep 300 & wait"]
OWNER = """
import signal, sys
from sandbox.processes import Processes
processes = Processes("a test", user=None, stop_signal=signal.SIGTERM)
processes.set_main(["sh", "-c", "sleep 300 & echo $! $$; wait"], processes.environment())
processes.start()
while processes.log_tail() == "":
    pass
print(processes.log_tail(), processes.data, flush=True)
"""


@pytest.fixture
def processes() -> Iterator[Processes]:
    processes = Processes("a test", user=None, stop_signal=signal.SIGTERM)
    processes.set_main(TREE, processes.environment())
    yield processes
    processes.close()


def gone(pid: int) -> bool:
    """Whether a process has ended, even if nobody has waited for it yet (a zombie)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def await_true(condition: Callable[[], bool], limit: float = 20.0) -> None:
    """Wait for a condition that has no event to wait for, such as the end of a process that is not our child."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "import os; os.kill(os.getpid(), signal.SIGKILL)"])
def test_nothing_survives_the_owner(end: str) -> None:
    """When the owner returns, raises or is killed, all processes and their children end and the directory is removed."""
    program = [sys.executable, "-c", OWNER + end]
    owner = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603  # the one above
    child, main, directory = owner.stdout.split()
    await_true(lambda: gone(int(child)) and gone(int(main)) and not Path(directory).parent.exists())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_nothing_survives_the_reaper() -> None:
    """If the reaper itself is killed, the kernel ends the processes that it started."""
    held = ReaperClient()
    pid = held.ask("start", name="main", argv=["sleep", "300"], environment={}, user=None, log="/dev/null")["pid"]
    os.kill(held.pid, signal.SIGKILL)
    await_true(lambda: gone(pid))
    with pytest.raises(SandboxError, match="has ended"):
        held.ask("kill", name="main")
    held.close()


def test_kill_ends_all_descendants(processes: Processes) -> None:
    """A kill leaves no child behind, and the process can be started again."""
    for _ in range(2):
        processes.start()
        await_true(lambda: len(reaper.descendants(processes.reaper.pid)) == 3)
        below = reaper.descendants(processes.reaper.pid)
        processes.kill()
        assert all(map(gone, below))
        assert processes.ended() == "its process ended with status -9"


def test_stop_sends_the_signal_and_keeps_the_exit_status(processes: Processes) -> None:
    """A process that stops by itself after the signal reports its own exit status."""
    processes.set_main(["sh", "-c", "trap 'exit 7' TERM; echo up; sleep 300 & wait"], processes.environment())
    processes.start()
    await_true(lambda: processes.log_tail() == "up")
    processes.stop()
    assert processes.status() == 7
    assert processes.ended() == "its process ended with status 7"


def test_the_cleanup_command_runs_even_after_the_reaper_was_killed(tmp_path: Path) -> None:
    """The reaper runs the cleanup command at the end; if the reaper was killed, the next one runs it."""
    mark = tmp_path / "done"
    cleanup = {"argv": ["touch", str(mark)], "environment": {"PATH": os.defpath}, "save": True}
    held = ReaperClient()
    held.ask("set_cleanup", **cleanup)
    held.close()
    assert mark.exists()

    mark.unlink()
    killed = ReaperClient()
    killed.ask("set_cleanup", **cleanup)
    os.kill(killed.pid, signal.SIGKILL)
    killed.close()
    assert not mark.exists()
    reaper.sweep(killed.directory.parent, young_seconds=0)
    assert mark.exists()
    assert not killed.directory.exists()


def test_a_sweep_leaves_directories_in_use_alone() -> None:
    """A sweep does not remove the directory of a reaper that is still running."""
    held = ReaperClient()
    reaper.sweep(held.directory.parent, young_seconds=0)
    assert held.directory.exists()
    held.close()
    assert not held.directory.exists()


def test_a_program_that_cannot_start_or_fails_is_an_error(processes: Processes) -> None:
    """The error for a missing or failing program has the program's name and the end of its log."""
    with pytest.raises(SandboxError, match="no-such-program"):
        processes.run(["no-such-program"], processes.environment())
    with pytest.raises(SandboxError, match=r"sh ended with status 3\nsaid so"):
        processes.run(["sh", "-c", "echo said so; exit 3"], processes.environment())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change accounts")
def test_root_runs_services_as_an_unprivileged_user() -> None:
    """A service started by root runs as an unprivileged account, without root's groups, in its own directory."""
    held = Processes("a test", user="nobody", stop_signal=signal.SIGTERM)
    held.run(["sh", "-c", "id -un; id -Gn; touch mine 2>&1; cd; touch mine && ls"], held.environment())
    said = held.log_tail().splitlines()
    assert said[:2] == ["nobody", "nogroup"]
    assert "Permission denied" in said[2]
    assert "mine" in said[3:]
    held.close()


def test_a_directory_that_others_cannot_enter_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TMPDIR may contain blanks; root does not use a TMPDIR that the service's account cannot pass through."""
    spaced = tmp_path / "with blanks in it"
    spaced.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spaced))
    held = ReaperClient()
    passable = all(directory.stat().st_mode & 0o001 for directory in (spaced, *spaced.parents))
    assert (held.directory.parent == spaced) == (passable or os.geteuid() != 0)
    held.close()
    assert list(spaced.iterdir()) == []


def test_an_owner_that_ends_before_an_answer_gets_no_complaint_on_its_terminal(tmp_path: Path) -> None:
    """As with Ctrl-C while the services start: the answer is written to a pipe that nobody reads any more."""
    program = [sys.executable, "-m", "sandbox.reaper", str(tmp_path)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # noqa: S603 - ours
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write(b'{"do": "wait", "name": "none", "seconds": 0}\n')
        process.stdin.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["sandbox", "sandbox.run", "sandbox.demo", "sandbox.console"])
def test_ctrl_c_while_modules_are_imported_ends_a_program_without_a_traceback(module: str, tmp_path: Path) -> None:
    """One of the modules sends the signal."""
    (tmp_path / "docker.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", module], env=environment, capture_output=True, check=False)  # noqa: S603 - ours
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")
