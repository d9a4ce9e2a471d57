"""What the sandbox's RabbitMQ and PostgreSQL have in common, in whatever way they run."""

import atexit
import random
import socket
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

READY_LIMIT_SECONDS = 180.0
"""How long a service may take, after its process has started, until it answers."""

_PORTS_RESERVED = 200
_reserved: deque[socket.socket] = deque()
"""UDP sockets on the ports that this process was given last. Nothing else uses UDP there."""


@atexit.register
def _release() -> None:
    for reservation in _reserved:
        reservation.close()


class SandboxError(Exception):
    """The sandbox cannot do what was asked; the message says why, and what to do about it."""


class NotReadyError(Exception):
    """A service does not answer yet; the message says what happened instead."""


class Runner(Protocol):
    """Runs one service: as processes, as a container, or not at all if the service belongs to somebody else."""

    origin: str
    """Where the service comes from, as people read it, for example "the Docker image postgres:17"."""

    def start(self) -> None:
        """Start the service's process, without waiting until it is ready."""

    def stop(self) -> None:
        """Ask the service to stop and wait until it has."""

    def kill(self) -> None:
        """End the service at once, as a power cut would, and wait until it is gone."""

    def pause(self) -> None:
        """Freeze the service: its connections stay open and nothing answers."""

    def resume(self) -> None:
        """Let a frozen service continue."""

    def ended(self) -> str | None:
        """Why the service no longer runs, or None while it runs."""

    def log_tail(self) -> str:
        """Return the last lines of the service's log."""

    def execute(self, argv: list[str]) -> str:
        """Run a command where the service runs, and return its output; SandboxError if it fails."""

    def close(self) -> None:
        """Stop the service for good and remove its data."""


@dataclass(frozen=True)
class ServerTls:
    """The certificate and key of a service, and the CA that its clients' certificates must be signed by; all PEM."""

    ca: str
    certificate: str
    key: str


class Service(ABC):
    """One running service.

    The methods block until they are done; a test on an event loop calls them with `asyncio.to_thread`.
    Port and data survive `stop`, `kill` and `restart`.
    """

    name: str
    version: str = ""

    def __init__(self, runner: Runner) -> None:
        """Take the runner; the service is not started yet."""
        self._runner = runner
        self._paused = False

    @property
    def origin(self) -> str:
        """Where the service comes from, as people read it."""
        return self._runner.origin

    @abstractmethod
    def check(self) -> None:
        """Talk to the service as a client would and learn its version; raise `NotReadyError` if it does not answer."""

    def start(self) -> None:
        """Start the service and wait until it answers; SandboxError with the end of its log if it does not."""
        self._runner.start()
        self.wait_until_ready()

    def stop(self) -> None:
        """Stop the service cleanly; its clients' connections are closed."""
        self.resume()
        self._runner.stop()

    def kill(self) -> None:
        """End the service at once, as a power cut would."""
        self._runner.kill()
        self._paused = False

    def restart(self) -> None:
        """Stop the service cleanly and start it again."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the service: connections stay open, nothing answers (SIGSTOP, docker pause)."""
        self._runner.pause()
        self._paused = True

    def resume(self) -> None:
        """Let a frozen service continue; does nothing if the service is not frozen."""
        if self._paused:
            self._runner.resume()
            self._paused = False

    @property
    def is_running(self) -> bool:
        """Whether its process runs and is not frozen."""
        return not self._paused and self._runner.ended() is None

    def ensure_running(self) -> None:
        """Resume or start the service if a test left it paused, stopped or killed."""
        self.resume()
        if self._runner.ended() is not None:
            self.start()

    def close(self) -> None:
        """Stop the service for good and remove its data; safe to call twice."""
        self._runner.close()

    def wait_until_ready(self, limit: float = READY_LIMIT_SECONDS) -> None:
        """Wait until the service answers, at most `limit` seconds.

        Raises:
            SandboxError: It ended or did not answer in time; the message has the end of its log.
        """
        deadline = time.monotonic() + limit
        while True:
            try:
                self.check()
            except NotReadyError as error:
                ended = self._runner.ended()
                if ended is None and time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                what = ended or f"it did not answer within {limit:.0f} s ({error})"
                raise SandboxError(f"{self.name} did not start: {what}\n{self._runner.log_tail()}") from None
            return

    def __enter__(self) -> Self:
        """Start the service if it does not run yet."""
        self.ensure_running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the service for good."""
        self.close()


class NotOurs:
    """The runner of a service that this process may use but must not stop."""

    def __init__(self, origin: str, reason: str) -> None:
        """`reason` completes the error message "cannot be stopped from here: …"."""
        self.origin = origin
        self._reason = reason

    def _refuse(self) -> None:
        raise SandboxError(f"cannot be stopped from here: {self._reason}")

    start = stop = kill = pause = resume = _refuse

    def execute(self, argv: list[str]) -> str:
        """Refuse: there may be no way to run anything there."""
        raise SandboxError(f"{argv[0]} cannot be run from here: {self._reason}")

    def ended(self) -> str | None:
        """Return None: the process is not ours, so its state is unknown."""
        return None

    def log_tail(self) -> str:
        """Return nothing: the log is not ours either."""
        return ""

    def close(self) -> None:
        """Leave the service as it is."""


def free_port() -> int:
    """Return a loopback port that nobody listens on.

    The port is below the range for outgoing connections (from 32768 on Linux). The system could assign a port of that
    range to somebody else while a test has its service stopped, and a client that keeps reconnecting to such a port
    can even connect to itself.

    A service listens some seconds later, and not while a test has it stopped. Until this process ends, or has asked
    for some hundred more, no other call returns the port, in any process: its UDP port is taken.
    """
    numbers = random.SystemRandom()
    for _ in range(200):
        port = numbers.randrange(20_000, 32_000)
        reservation = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with closing(socket.socket()) as candidate:
            try:
                reservation.bind(("127.0.0.1", port))
                candidate.bind(("127.0.0.1", port))
            except OSError:
                reservation.close()
                continue
        _reserved.append(reservation)
        if len(_reserved) > _PORTS_RESERVED:
            _reserved.popleft().close()
        return port
    raise SandboxError("there is no free loopback port between 20000 and 32000")
