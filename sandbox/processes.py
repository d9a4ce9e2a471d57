"""Runs a service as private processes of this machine, unprivileged and on a leash."""

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
"""How long a service may take to stop in good order before it is killed."""

_CLOSE_LIMIT_SECONDS = 60.0
_GONE = "the process that keeps this service has gone, and the service with it"


def unprivileged_user(*preferred: str) -> str | None:
    """Return the account that services run as when this process is root, else None (they run as ourselves)."""
    if os.geteuid() != 0:
        return None
    accounts = {account.pw_name for account in pwd.getpwall()}
    for name in (*preferred, "nobody"):
        if name in accounts:
            return name
    raise SandboxError("root does not run databases, and this machine has no account `nobody` to run them as")


def _base() -> Path:
    """Return the directory for temporary files; as root one that other accounts can pass through."""
    chosen = Path(tempfile.gettempdir()).resolve()
    if os.geteuid() == 0 and any(
        not directory.stat().st_mode & stat.S_IXOTH for directory in (chosen, *chosen.parents)
    ):
        return Path("/tmp")  # noqa: S108  # the leash makes an own, unguessable directory below it
    return chosen


class Leash:
    """The owner's end of a leash (see `sandbox.leash`): what is started here ends with this process."""

    def __init__(self) -> None:
        """Start the leash; `directory` is there and locked when this returns."""
        program = Path(__file__).with_name("leash.py")
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
        """The leash's own process."""
        return self._process.pid

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """Have the leash do one thing and return its answer; SandboxError if it could not."""
        with self._turn:
            if self._stdin.closed:
                raise SandboxError("this service is closed")
            try:
                self._stdin.write(json.dumps({"do": do, **order}) + "\n")
                self._stdin.flush()
            except BrokenPipeError:
                raise SandboxError(_GONE) from None
            answer = self._answer()
        if "error" in answer:
            raise SandboxError(answer["error"])
        return answer

    def close(self) -> None:
        """Have the leash end everything and wait until it has; safe to call twice."""
        with self._turn:
            # a leash that is gone has left what could not be written
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
    """The runner of a service that is one main process and perhaps some that serve it."""

    def __init__(self, origin: str, *, user: str | None, stop_signal: signal.Signals) -> None:
        """Make the data directory, `data`, which belongs to the service's account."""
        self.origin = origin
        self.user = user
        self._stop_signal = stop_signal
        self._argv: list[str] = []
        self._environment: dict[str, str] = {}
        self._started = False
        self.leash = Leash()
        self.data = self.leash.directory / "data"
        self.log = self.data / "log.txt"
        self.data.mkdir(mode=0o700)
        self.own(self.data)

    def own(self, path: Path) -> None:
        """Give a file or directory to the service's account."""
        if self.user is not None:
            account = pwd.getpwnam(self.user)
            os.chown(path, account.pw_uid, account.pw_gid)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the service below `data`, readable by the service alone."""
        path = self.data / name
        path.touch(mode=0o600)
        path.write_text(text)
        self.own(path)
        return path

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment for the service: nothing of ours but the search path, so nothing of ours leaks in."""
        home = str(self.data)
        user = self.user or getpass.getuser()
        path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
        return {"PATH": path, "HOME": home, "USER": user, "LOGNAME": user, "LANG": "C", "TMPDIR": home, **more}

    def run(self, argv: list[str], environment: Mapping[str, str], *, limit: float = 60.0) -> None:
        """Run a command as the service's account to its end; SandboxError with the log's tail if it fails."""
        self.leash.ask("start", **self._order("setup", argv, environment))
        status = self.leash.ask("wait", name="setup", seconds=limit)["status"]
        if status != 0:
            self.leash.ask("kill", name="setup")
            how = "took too long" if status is None else f"ended with status {status}"
            raise SandboxError(f"{argv[0]} {how}\n{self.log_tail()}")

    def serve(self, name: str, argv: list[str], environment: Mapping[str, str]) -> None:
        """Start a process that serves the main one; it ends with the leash."""
        self.leash.ask("start", **self._order(name, argv, environment))

    def set_main(self, argv: list[str], environment: Mapping[str, str]) -> None:
        """Say what `start` starts."""
        self._argv, self._environment = argv, dict(environment)

    def start(self) -> None:
        """Start the main process."""
        self.leash.ask("start", **self._order("main", self._argv, self._environment))
        self._started = True

    def stop(self) -> None:
        """Ask the main process to stop; after the limit it is killed, which is an error."""
        self.leash.ask("signal", name="main", number=self._stop_signal)
        if self.status(wait=STOP_LIMIT_SECONDS) is None:
            self.kill()
            raise SandboxError(f"did not stop within {STOP_LIMIT_SECONDS:.0f} s and was killed\n{self.log_tail()}")

    def kill(self) -> None:
        """End the main process and all below it at once."""
        self.leash.ask("kill", name="main")

    def pause(self) -> None:
        """Freeze the main process and all below it."""
        self.leash.ask("signal_all", name="main", number=signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        self.leash.ask("signal_all", name="main", number=signal.SIGCONT)

    def ended(self) -> str | None:
        """Why the main process no longer runs, or None while it does."""
        if not self._started:
            return "it was not started"
        status = self.status()
        return None if status is None else f"its process ended with status {status}"

    def status(self, *, wait: float = 0.0) -> int | None:
        """The main process's exit status, negative for a signal; None if it still runs after `wait` seconds."""
        status: int | None = self.leash.ask("wait", name="main", seconds=wait)["status"]
        return status

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def close(self) -> None:
        """End everything and remove the directory."""
        self.leash.close()

    def _order(self, name: str, argv: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
        return {
            "name": name,
            "argv": argv,
            "environment": dict(environment),
            "user": self.user,
            "log": str(self.log),
        }
