"""Keeps one service on a leash: when its owner is gone, so is the service.

Run as a program of its own, beside the owner and in a session of its own, so that a Ctrl-C meant for the owner
does not reach it. The owner sends one JSON object a line and reads one back. The end of input, which the
system brings about however the owner ended (return, exception, SIGTERM, SIGKILL), makes the leash kill all that it
started, run the last command it was given, and remove its directory. It is the only way out, so the ordinary
end and the crash are cleaned up by the same code.

Only the standard library, and little of it: every service costs one such process.
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
_LAST_COMMAND = "last-command.json"
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
    """Return the children of every process of this machine that can be seen."""
    found: dict[int, list[int]] = {}
    if Path("/proc/self/stat").exists():
        for entry in os.listdir("/proc"):  # noqa: PTH208  # Path.iterdir makes an object for each of hundreds
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    # the name in parentheses may hold blanks and parentheses itself
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
    """Return the children of a process, theirs, and so on; not the process itself."""
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


class Leash:
    """The processes that were started, by name, and what to do at the end."""

    def __init__(self, base: Path) -> None:
        """Make the directory under `base` and lock it for as long as this process lives."""
        self.directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        # services that run as another user must be able to pass through
        self.directory.chmod(0o711)
        self._lock = os.open(self.directory, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._last: tuple[list[str], dict[str, str]] | None = None

    # what the owner can ask for

    def start(self, name: str, argv: list[str], environment: Mapping[str, str], user: str | None, log: str) -> Answer:
        """Start a process, as another user if asked; `{"pid": …}`."""
        account = pwd.getpwnam(user) if user else None
        with Path(log).open("ab") as output:
            self._processes[name] = subprocess.Popen(  # it outlives this block, under its name
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
                # should even this process be killed, the kernel ends the service
                preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509  # no threads here
            )
        return {"pid": self._processes[name].pid}

    def signal(self, name: str, number: int) -> Answer:
        """Send a signal to one process, not to its children."""
        if self._ended(name) is None:
            self._processes[name].send_signal(number)
        return {}

    def signal_all(self, name: str, number: int) -> Answer:
        """Send a signal to a process and to all below it: PostgreSQL's backends sleep only if told themselves."""
        if self._ended(name) is None:
            pid = self._processes[name].pid
            _send([pid, *descendants(pid)], signal.Signals(number))
        return {}

    def kill(self, name: str) -> Answer:
        """End a process and all below it at once; they are gone when this returns."""
        if self._ended(name) is None:
            pid = self._processes[name].pid
            self._end([pid, *descendants(pid)])
        return {}

    def wait(self, name: str, seconds: float) -> Answer:
        """Wait for a process to end; `{"status": code}`, or null if it still runs."""
        deadline = time.monotonic() + seconds
        while (status := self._ended(name)) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return {"status": status}

    def last(self, argv: list[str], environment: dict[str, str], *, keep: bool) -> Answer:
        """Set the command to run at the end; `keep` writes it down in case this process is killed."""
        self._last = (argv, environment)
        if keep:
            note = self.directory / _LAST_COMMAND
            note.touch(mode=0o600)
            note.write_text(json.dumps(self._last))
        return {}

    def finish(self) -> None:
        """Kill, clean up, remove: the owner is gone or has had enough."""
        for _ in range(3):  # what was being forked while we looked is found the next time
            if below := descendants(os.getpid()):
                self._end(below)
        if self._last:
            argv, environment = self._last
            subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, check=False, timeout=60)
        shutil.rmtree(self.directory, ignore_errors=True)

    # how

    def _ended(self, name: str) -> int | None:
        self._reap()
        return self._processes[name].returncode

    def _reap(self) -> None:
        """Collect every child that ended, also those that were left to us by parents that died first."""
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
            self._reap()
            if not any(map(_exists, pids)) or time.monotonic() > deadline:
                return
            time.sleep(0.01)


def sweep(base: Path, *, young_seconds: float = 60.0) -> None:
    """Remove what leashes left behind that were killed themselves: directories of ours that nobody has locked.

    One younger than `young_seconds` is left alone: it may be between being made and being locked.
    """
    for directory in base.glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            about = directory.stat()
            if about.st_uid != os.geteuid() or time.time() - about.st_ctime < young_seconds:
                continue
            lock = os.open(directory, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                note = directory / _LAST_COMMAND
                if note.exists():
                    argv, environment = json.loads(note.read_text())
                    subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, check=False, timeout=60)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(lock)


def main() -> None:
    """Obey the owner until the end of input."""
    base = Path(sys.argv[1])
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # only the end of input ends a leash; a terminal that goes away ends the owner, and so the input
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the services would inherit
    leash = Leash(base)
    try:
        print(json.dumps({"directory": str(leash.directory)}), flush=True)
        sweep(base)
        for line in sys.stdin:
            order = json.loads(line)
            try:
                answer = getattr(leash, order.pop("do"))(**order)
            except (OSError, KeyError, subprocess.SubprocessError) as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)
    except BrokenPipeError:
        pass  # the owner went while we were answering
    finally:
        leash.finish()


if __name__ == "__main__":
    main()
