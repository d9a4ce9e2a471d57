"""Runs a service as private, unprivileged processes of this machine, which end when their owner does."""

import getpass
import json
import os
import pwd
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sandbox.service import SandboxError

STOP_LIMIT_SECONDS = 20.0
"""How long a service may take to stop by itself before it is killed."""

_CLOSE_LIMIT_SECONDS = 60.0
_GONE = "the reaper process of this service has ended, and the service with it"


def how_ended(status: int) -> str:
    """What a process has done that has this status, negative for a signal: the rest of a sentence about it."""
    if status >= 0:
        return f"ended with exit status {status}"
    return f"was ended by signal {-status} ({signal.Signals(-status).name})"


def unprivileged_user(*preferred: str) -> str | None:
    """Return the account that services run as when this process is root, else None: they run as the current user."""
    if os.geteuid() != 0:
        return None
    accounts = {account.pw_name for account in pwd.getpwall()}
    for name in (*preferred, "nobody"):
        if name in accounts:
            return name
    raise SandboxError("services do not run as root, and this machine has no account `nobody` to run them as")


def _base() -> Path:
    """Return the directory for temporary files; for root, one that other accounts can pass through."""
    chosen = Path(tempfile.gettempdir()).resolve()
    if os.geteuid() == 0 and any(
        not directory.stat().st_mode & stat.S_IXOTH for directory in (chosen, *chosen.parents)
    ):
        return Path("/tmp")  # noqa: S108  # the reaper makes its own unguessable directory below it
    return chosen


class ReaperClient:
    """Starts a reaper process (see `sandbox.reaper`) and sends it commands: what it starts ends with this process."""

    def __init__(self) -> None:
        """Start the reaper; its `directory` exists and is locked when this returns."""
        program = Path(__file__).with_name("reaper.py")
        self._process = subprocess.Popen(
            [sys.executable, "-IS", str(program), str(_base())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError  # both are pipes
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._turn = threading.Lock()
        self.directory = Path(self._answer()["directory"])

    @property
    def pid(self) -> int:
        """The process id of the reaper."""
        return self._process.pid

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send the reaper one command (a method of `sandbox.reaper.Reaper`) and return its answer.

        Raises:
            SandboxError: The command failed, or the reaper has ended.
        """
        with self._turn:
            if self._stdin.closed:
                raise SandboxError("this service is closed")
            try:
                self._stdin.write(json.dumps({"do": do, **arguments}) + "\n")
                self._stdin.flush()
            except BrokenPipeError:
                raise SandboxError(_GONE) from None
            answer = self._answer()
        if "error" in answer:
            raise SandboxError(answer["error"])
        return answer

    def close(self) -> None:
        """Have the reaper end and remove everything, and wait for it; safe to call twice."""
        with self._turn:
            # if the reaper has ended, a command that could not be written may still be in the buffer
            with suppress(BrokenPipeError):
                self._stdin.close()
            self._process.wait(_CLOSE_LIMIT_SECONDS)
            self._stdout.close()

    def _answer(self) -> dict[str, Any]:
        line = self._stdout.readline()
        if not line:
            raise SandboxError(_GONE)
        answer: dict[str, Any] = json.loads(line)
        return answer


class Processes:
    """Runs a service as one main process and, where it needs them, helper processes."""

    def __init__(
        self, origin: str, *, user: str | None, stop_signal: signal.Signals, disk_megabytes: int | None = None
    ) -> None:
        """Create the data directory, `data`, which belongs to the service's account.

        With `disk_megabytes` it is a file system of its own of that size, which a test may fill.
        """
        self.origin = origin
        self.user = user
        self._stop_signal = stop_signal
        self._argv: list[str] = []
        self._environment: dict[str, str] = {}
        self._started = False
        self.reaper = ReaperClient()
        self.data = self.reaper.directory / "data"
        self.log = self.data / "log.txt"
        self.data.mkdir(mode=0o700)
        if disk_megabytes is not None:
            try:
                self.reaper.ask("mount", path=str(self.data), megabytes=disk_megabytes)
            except SandboxError:
                self.reaper.close()
                raise
        self.own(self.data)

    def own(self, path: Path) -> None:
        """Give a file or directory to the service's account."""
        if self.user is not None:
            account = pwd.getpwnam(self.user)
            os.chown(path, account.pw_uid, account.pw_gid)

    def write(self, name: str, text: str) -> Path:
        """Write a file below `data` that only the service can read."""
        path = self.data / name
        path.touch(mode=0o600)
        path.write_text(text)
        self.own(path)
        return path

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment for the service. Of this process's environment it has the search path only."""
        home = str(self.data)
        user = self.user or getpass.getuser()
        path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
        return {"PATH": path, "HOME": home, "USER": user, "LOGNAME": user, "LANG": "C", "TMPDIR": home, **more}

    def run(self, argv: list[str], environment: Mapping[str, str], *, limit: float = 60.0) -> None:
        """Run a command to its end as the service's account; SandboxError with the end of the log if it fails."""
        self.reaper.ask("start", **self._start_command("setup", argv, environment))
        status = self.reaper.ask("wait", name="setup", seconds=limit)["status"]
        if status != 0:
            self.reaper.ask("kill", name="setup")
            how = "took too long" if status is None else f"ended with status {status}"
            raise SandboxError(f"{argv[0]} {how}\n{self.log_tail()}")

    def execute(self, argv: list[str]) -> str:
        """Run a command for the running service, as its account and with its environment, and return its output.

        Raises:
            SandboxError: it failed; the message has what it said.
        """
        # "/" is a directory that each account can enter
        done = subprocess.run(
            argv, env=self._environment, user=self.user, cwd="/", capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SandboxError(f"{argv[0]} failed: {done.stdout or done.stderr}")
        return done.stdout

    def serve(self, name: str, argv: list[str], environment: Mapping[str, str]) -> None:
        """Start a helper process of the main one; it ends with the reaper."""
        self.reaper.ask("start", **self._start_command(name, argv, environment))

    def set_main(self, argv: list[str], environment: Mapping[str, str]) -> None:
        """Set the command that `start` starts."""
        self._argv, self._environment = argv, dict(environment)

    def start(self) -> None:
        """Start the main process."""
        self.reaper.ask("start", **self._start_command("main", self._argv, self._environment))
        self._started = True

    def stop(self) -> None:
        """Ask the main process to stop; SandboxError if it does not within the limit, in which case it is killed."""
        self.reaper.ask("signal", name="main", number=self._stop_signal)
        if self.status(wait=STOP_LIMIT_SECONDS) is None:
            self.kill()
            raise SandboxError(f"it did not stop within {STOP_LIMIT_SECONDS:.0f} s and was killed\n{self.log_tail()}")

    def kill(self) -> None:
        """End the main process and all its descendants at once."""
        self.reaper.ask("kill", name="main")

    def pause(self) -> None:
        """Freeze the main process and all its descendants."""
        self.reaper.ask("signal_all", name="main", number=signal.SIGSTOP)

    def resume(self) -> None:
        """Let them continue."""
        self.reaper.ask("signal_all", name="main", number=signal.SIGCONT)

    def ended(self) -> str | None:
        """Why the main process no longer runs, or None while it does."""
        if not self._started:
            return "it was not started"
        status = self.status()
        return None if status is None else f"its process ended with status {status}"

    def status(self, *, wait: float = 0.0) -> int | None:
        """The main process's exit status, negative for a signal; None if it still runs after `wait` seconds."""
        status: int | None = self.reaper.ask("wait", name="main", seconds=wait)["status"]
        return status

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def close(self) -> None:
        """End everything and remove the directory."""
        self.reaper.close()

    def _start_command(self, name: str, argv: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
        return {
            "name": name,
            "argv": argv,
            "environment": dict(environment),
            "user": self.user,
            "log": str(self.log),
        }
