"""Decides where RabbitMQ and PostgreSQL come from, each independently, and reports what was chosen and why.

The order: the server that the environment names, Docker, binaries on this machine, newly installed packages. The
variable SANDBOX forces one way: `environment`, `docker` or `binaries` (which may install packages). The default is
`auto`, which tries them in this order.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

from sandbox import containers, environment, packages, postgresql, rabbitmq
from sandbox.service import SandboxError, Service

Say = Callable[[str], None]
Way = Literal["environment", "docker", "binaries"]
WAYS: tuple[Way, ...] = ("environment", "docker", "binaries")

_S = TypeVar("_S", bound=Service)


@dataclass(frozen=True)
class Kind(Generic[_S]):
    """One of the two services, and how to get it each way."""

    name: str
    variable: str
    image: str
    package: str
    find_binaries: Callable[[], Path | str]
    from_environment: Callable[[], _S]
    from_container: Callable[..., _S]
    from_binaries: Callable[..., _S]


RABBITMQ = Kind(
    name="RabbitMQ",
    variable="AMQP_URL",
    image=os.environ.get("SANDBOX_RABBITMQ_IMAGE", "rabbitmq:4-management"),
    package="rabbitmq-server",
    find_binaries=rabbitmq.find_binaries,
    from_environment=environment.rabbitmq,
    from_container=rabbitmq.from_container,
    from_binaries=rabbitmq.from_binaries,
)
POSTGRESQL = Kind(
    name="PostgreSQL",
    variable="DATABASE_URL",
    image=os.environ.get("SANDBOX_POSTGRESQL_IMAGE", "postgres:17"),
    package="postgresql",
    find_binaries=postgresql.find_binaries,
    from_environment=environment.postgresql,
    from_container=postgresql.from_container,
    from_binaries=postgresql.from_binaries,
)


@dataclass
class Choice(Generic[_S]):
    """The ways that are left to try for one service, and the reasons why earlier ones did not work."""

    kind: Kind[_S]
    ways: tuple[Way, ...]
    reasons: list[str] = field(default_factory=list)

    def prepare(self, say: Say) -> Way:
        """Return the first way that is possible, after pulling or installing what it needs. Does not start anything.

        Raises:
            SandboxError: No way is possible; the message says what to do.
        """
        while self.ways:
            obstacle = self._obstacle(self.ways[0], say)
            if obstacle is None:
                return self.ways[0]
            self._give_up(obstacle)
        raise SandboxError(self._what_to_do())

    def start(self, say: Say, *, durable: bool) -> _S:
        """Start the service the first way that works.

        Raises:
            SandboxError: No way worked; the message says what to do.
        """
        while True:
            way = self.prepare(say)
            began = time.monotonic()
            try:
                service = self._start(way, durable=durable)
            except SandboxError as error:
                if way == "environment":
                    raise  # it was asked for by name, and silently using another server would hide the problem
                say(f"{self.kind.name}: {error}")
                self._give_up(f"{way}: {str(error).splitlines()[0]}")
                continue
            because = f" ({'; '.join(self.reasons)})" if self.reasons else ""
            took = f"is ready after {time.monotonic() - began:.1f} s"
            say(f"{self.kind.name} {service.version} from {service.origin} {took}{because}")
            return service

    def _obstacle(self, way: Way, say: Say) -> str | None:
        match way:
            case "environment":
                return None if os.environ.get(self.kind.variable) else f"{self.kind.variable} is not set"
            case "docker":
                return containers.missing(self.kind.image, say)
            case "binaries":
                missing = self.kind.find_binaries()
                if isinstance(missing, Path):
                    return None
                if obstacle := packages.cannot_install():
                    return f"{missing}, and {obstacle}"
                packages.install(self.kind.package, say)
                found = self.kind.find_binaries()
                return None if isinstance(found, Path) else found

    def _start(self, way: Way, *, durable: bool) -> _S:
        match way:
            case "environment":
                return self.kind.from_environment()
            case "docker":
                return self.kind.from_container(self.kind.image, durable=durable)
            case "binaries":
                return self.kind.from_binaries(self.kind.find_binaries(), durable=durable)

    def _give_up(self, reason: str) -> None:
        self.ways = self.ways[1:]
        self.reasons.append(reason)

    def _what_to_do(self) -> str:
        kind = self.kind
        return (
            f"no {kind.name} is available: {'; '.join(self.reasons)}. Do one of the following: start Docker; install "
            f"{kind.name} (Debian, Ubuntu: apt-get install {kind.package}); or set {kind.variable}"
        )


def ways(*, private: bool = False) -> tuple[Way, ...]:
    """Return the ways to try, in order. A private service may be killed, so it never comes from the environment."""
    forced = os.environ.get("SANDBOX", "auto")
    if forced == "auto":
        return WAYS[1:] if private else WAYS
    for way in WAYS:
        if way == forced:
            if private and way == "environment":
                raise SandboxError("SANDBOX=environment cannot provide a service that a test may kill")
            return (way,)
    raise SandboxError(f"SANDBOX is {forced!r}; it must be one of auto, {', '.join(WAYS)}")
