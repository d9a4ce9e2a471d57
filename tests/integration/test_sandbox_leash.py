"""A leash ends what it holds when its owner is gone, however that went."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox import leash
from sandbox.processes import Leash, Processes
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
    """Whether a process has ended, or has but nobody has noticed yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def await_true(condition: Callable[[], bool], limit: float = 20.0) -> None:
    """Wait for what has no event: the end of a process that is not ours."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "import os; os.kill(os.getpid(), signal.SIGKILL)"])
def test_nothing_survives_the_owner(end: str) -> None:
    """Return, exception and SIGKILL of the owner end all processes, their children too, and remove the directory."""
    program = [sys.executable, "-c", OWNER + end]
    owner = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603  # the one above
    child, main, directory = owner.stdout.split()
    await_true(lambda: gone(int(child)) and gone(int(main)) and not Path(directory).parent.exists())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_nothing_survives_the_leash() -> None:
    """Should the leash itself be killed, the kernel ends what it started."""
    held = Leash()
    pid = held.ask("start", name="main", argv=["sleep", "300"], environment={}, user=None, log="/dev/null")["pid"]
    os.kill(held.pid, signal.SIGKILL)
    await_true(lambda: gone(pid))
    with pytest.raises(SandboxError, match="has gone"):
        held.ask("kill", name="main")
    held.close()


def test_kill_ends_all_below(processes: Processes) -> None:
    """A kill leaves no child behind, and the process can be started again."""
    for _ in range(2):
        processes.start()
        await_true(lambda: len(leash.descendants(processes.leash.pid)) == 3)
        below = leash.descendants(processes.leash.pid)
        processes.kill()
        assert all(map(gone, below))
        assert processes.ended() == "its process ended with status -9"


def test_stop_is_a_signal_and_kill_comes_after(processes: Processes) -> None:
    """Stopping in good order gives the process's own status."""
    processes.set_main(["sh", "-c", "trap 'exit 7' TERM; echo up; sleep 300 & wait"], processes.environment())
    processes.start()
    await_true(lambda: processes.log_tail() == "up")
    processes.stop()
    assert processes.status() == 7
    assert processes.ended() == "its process ended with status 7"


def test_the_last_command_runs_after_a_crash(tmp_path: Path) -> None:
    """What must be done at the end is done, be it by the leash or, if that was killed too, by the next one."""
    mark = tmp_path / "done"
    order = {"argv": ["touch", str(mark)], "environment": {"PATH": os.defpath}, "keep": True}
    held = Leash()
    held.ask("last", **order)
    held.close()
    assert mark.exists()

    mark.unlink()
    killed = Leash()
    killed.ask("last", **order)
    os.kill(killed.pid, signal.SIGKILL)
    killed.close()
    assert not mark.exists()
    leash.sweep(killed.directory.parent, young_seconds=0)
    assert mark.exists()
    assert not killed.directory.exists()


def test_a_sweep_spares_those_who_live() -> None:
    """Directories that somebody holds are left alone."""
    held = Leash()
    leash.sweep(held.directory.parent, young_seconds=0)
    assert held.directory.exists()
    held.close()
    assert not held.directory.exists()


def test_what_cannot_start_is_said(processes: Processes) -> None:
    """A program that is missing, and one that fails, are errors with the program's name and the end of its log."""
    with pytest.raises(SandboxError, match="no-such-program"):
        processes.run(["no-such-program"], processes.environment())
    with pytest.raises(SandboxError, match=r"sh ended with status 3\nsaid so"):
        processes.run(["sh", "-c", "echo said so; exit 3"], processes.environment())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change accounts")
def test_root_runs_services_as_somebody_else() -> None:
    """As root, a service runs as an unprivileged account, without root's groups, in a directory of its own."""
    held = Processes("a test", user="nobody", stop_signal=signal.SIGTERM)
    held.run(["sh", "-c", "id -un; id -Gn; touch mine 2>&1; cd; touch mine && ls"], held.environment())
    said = held.log_tail().splitlines()
    assert said[:2] == ["nobody", "nogroup"]
    assert "Permission denied" in said[2]
    assert "mine" in said[3:]
    held.close()


def test_a_directory_that_others_cannot_enter_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks in TMPDIR are fine; as root, a TMPDIR that the service's account cannot pass through is not used."""
    spaced = tmp_path / "with blanks in it"
    spaced.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spaced))
    held = Leash()
    passable = all(directory.stat().st_mode & 0o001 for directory in (spaced, *spaced.parents))
    assert (held.directory.parent == spaced) == (passable or os.geteuid() != 0)
    held.close()
    assert list(spaced.iterdir()) == []
