"""Ends and removes one service when its owner is gone, as the resource reaper of testcontainers does.

It runs as a separate program next to the owner, in its own session, so that a Ctrl-C meant for the owner does not
reach it. The owner writes commands to its standard input, one JSON object a line, and reads one answer a line. The
operating system closes that input however the owner ends (return, exception, SIGTERM or SIGKILL). Then the reaper
kills all processes that it started, runs the cleanup command if it has one, and removes its directory. There is no
other way to end it, so the same code cleans up after a normal end and after a crash.

It uses the standard library only, and little of that: each service needs one such process.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PREFIX = "task-activity-log-sandbox-"
_CLEANUP = "cleanup.json"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_GONE_LIMIT_SECONDS = 20.0

Answer = dict[str, Any]


def _prctl() -> Callable[[int, int], int]:
    if sys.platform != "linux":
        return lambda _option, _value: 0
    libc = ctypes.CDLL(None, use_errno=True)
    return lambda option, value: int(libc.prctl(option, value, 0, 0, 0))


prctl = _prctl()


def children() -> dict[int, list[int]]:
    """Return the child pids of every process of this machine that is visible to this one."""
    found: dict[int, list[int]] = {}
    if Path("/proc/self/stat").exists():
        for entry in os.listdir("/proc"):  # noqa: PTH208  # Path.iterdir makes an object for each of hundreds
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    # the command name is in parentheses, and may itself contain blanks and parentheses
                    fields = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()
                    if fields[0] != "Z":
                        found.setdefault(int(fields[1]), []).append(int(entry))
    else:
        listing = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True)
        for line in listing.stdout.splitlines():
            pid, parent = map(int, line.split())
            found.setdefault(parent, []).append(pid)
    return found


def descendants(pid: int) -> list[int]:
    """Return the children of a process, their children, and so on, without the process itself."""
    tree, found = children(), list[int]()
    pending = [pid]
    while pending:
        below = tree.get(pending.pop(), [])
        found += below
        pending += below
    return found


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Reaper:
    """The started processes by name, and what to do at the end. The owner calls the public methods."""

    def __init__(self, base: Path) -> None:
        """Create the directory under `base`, and lock it for the lifetime of this process."""
        self.directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        # a service that runs as another user must be able to pass through
        self.directory.chmod(0o711)
        self._lock = os.open(self.directory, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._cleanup: tuple[list[str], dict[str, str]] | None = None

    # commands of the owner

    def start(self, name: str, argv: list[str], environment: Mapping[str, str], user: str | None, log: str) -> Answer:
        """Start a process, as `user` if that is given; answers `{"pid": …}`."""
        account = pwd.getpwnam(user) if user else None
        with Path(log).open("ab") as output:
            self._processes[name] = subprocess.Popen(  # not a `with` block: it runs on after this call
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=dict(environment),
                start_new_session=True,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
                # if this process is killed too, the kernel ends the service
                preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509  # no threads here
            )
        return {"pid": self._processes[name].pid}

    def signal(self, name: str, number: int) -> Answer:
        """Send a signal to one process, not to its children."""
        if self._ended(name) is None:
            self._processes[name].send_signal(number)
        return {}

    def signal_all(self, name: str, number: int) -> Answer:
        """Send a signal to a process and its descendants: SIGSTOP must reach each of PostgreSQL's backends."""
        if self._ended(name) is None:
            pid = self._processes[name].pid
            _send([pid, *descendants(pid)], signal.Signals(number))
        return {}

    def kill(self, name: str) -> Answer:
        """End a process and its descendants at once, and wait until they are gone."""
        if self._ended(name) is None:
            pid = self._processes[name].pid
            self._end([pid, *descendants(pid)])
        return {}

    def wait(self, name: str, seconds: float) -> Answer:
        """Wait for a process to end; answers `{"status": code}`, with null if it still runs."""
        deadline = time.monotonic() + seconds
        while (status := self._ended(name)) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return {"status": status}

    def mount(self, path: str, megabytes: int) -> Answer:
        """Put a file system in memory of that size onto a directory directly below ours; needs root."""
        options = f"size={megabytes}m,mode=0700"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True, check=False
        )
        return {} if done.returncode == 0 else {"error": f"no file system of its own: {done.stderr.strip()}"}

    def set_cleanup(self, argv: list[str], environment: dict[str, str], *, save: bool) -> Answer:
        """Set the command to run at the end. `save` writes it to a file, for `sweep` in case this process is killed."""
        self._cleanup = (argv, environment)
        if save:
            file = self.directory / _CLEANUP
            file.touch(mode=0o600)
            file.write_text(json.dumps(self._cleanup))
        return {}

    # the end, and how the commands work

    def finish(self) -> None:
        """Kill all processes, run the cleanup command and remove the directory: the owner is gone or has closed us."""
        for _ in range(3):  # a process that was being forked during one pass is found in the next
            if below := descendants(os.getpid()):
                self._end(below)
        if self._cleanup:
            argv, environment = self._cleanup
            subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, check=False, timeout=60)
        _remove(self.directory)

    def _ended(self, name: str) -> int | None:
        self._collect()
        return self._processes[name].returncode

    def _collect(self) -> None:
        """Wait for every child that has ended, including orphans whose own parent ended first."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                for process in self._processes.values():
                    if process.pid == pid:
                        process.returncode = os.waitstatus_to_exitcode(status)

    def _end(self, pids: list[int]) -> None:
        _send(pids, signal.SIGKILL)
        deadline = time.monotonic() + _GONE_LIMIT_SECONDS
        while True:
            self._collect()
            if not any(map(_exists, pids)) or time.monotonic() > deadline:
                return
            time.sleep(0.01)


def _remove(directory: Path) -> None:
    for below in directory.iterdir():
        if below.is_mount():
            subprocess.run(["umount", "--lazy", str(below)], check=False)
    shutil.rmtree(directory, ignore_errors=True)


def sweep(base: Path, *, young_seconds: float = 60.0) -> None:
    """Remove what killed reapers have left behind: directories of ours that no process has locked.

    Does not touch a directory younger than `young_seconds`, because its reaper may not have locked it yet.
    """
    for directory in base.glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            about = directory.stat()
            if about.st_uid != os.geteuid() or time.time() - about.st_ctime < young_seconds:
                continue
            lock = os.open(directory, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file = directory / _CLEANUP
                if file.exists():
                    argv, environment = json.loads(file.read_text())
                    subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, check=False, timeout=60)
                _remove(directory)
            finally:
                os.close(lock)


def main() -> None:
    """Carry out the owner's commands until the end of input."""
    base = Path(sys.argv[1])
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # Only the end of input ends a reaper. A closed terminal ends the owner, which closes the input.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the services would inherit
    reaper = Reaper(base)
    try:
        print(json.dumps({"directory": str(reaper.directory)}), flush=True)
        sweep(base)
        for line in sys.stdin:
            command = json.loads(line)
            try:
                answer = getattr(reaper, command.pop("do"))(**command)
            except (OSError, KeyError, subprocess.SubprocessError) as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)
    except BrokenPipeError:
        # The owner ended before it had read our answer. Python would complain that it cannot flush it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        reaper.finish()


if __name__ == "__main__":
    main()
