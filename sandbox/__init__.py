"""A private RabbitMQ and PostgreSQL for the demo, the tests and the benchmarks. Not part of the product.

Modules:

- `choice` decides where each of the two services comes from, and reports the decision;
- `environment`, `containers`, `processes` (with `reaper`) and `packages` (with `install.sh`) are the ways to get one;
- `rabbitmq` and `postgresql` are the services; `service` is what they have in common;
- `cluster` is a RabbitMQ of three nodes, `replication` a PostgreSQL primary with a standby that takes over;
- `sharing` lets all processes of one test run use the same two services;
- `signals` says what Ctrl-C and SIGTERM do;
- `proxy` interrupts the network between a test and a service, or all nodes of one;
- `demo` is `make demo`; `console`, with the dead letters of `letters`, is `make console`;
- `python -m sandbox` starts both services and keeps them, or runs a command against them.
"""

import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sandbox import signals
from sandbox.choice import POSTGRESQL, RABBITMQ, Choice, Say, ways
from sandbox.postgresql import PostgreSQL
from sandbox.rabbitmq import RabbitMQ
from sandbox.service import SandboxError, Service

__all__ = [
    "PostgreSQL",
    "RabbitMQ",
    "Sandbox",
    "SandboxError",
    "Service",
    "close",
    "exports",
    "in_background",
    "say_on_stderr",
    "shell_lines",
    "signals",
    "start",
]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Sandbox:
    """Both services, running."""

    rabbitmq: RabbitMQ
    postgresql: PostgreSQL

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point the worker, and another sandbox, at these services."""
        return {
            "AMQP_URL": self.rabbitmq.url,
            "MANAGEMENT_URL": self.rabbitmq.management_url,
            "DATABASE_URL": self.postgresql.url,
        }


def say_on_stderr(line: str) -> None:
    """Report progress on standard error, so that it does not mix with results on standard output."""
    print(f"sandbox: {line}", file=sys.stderr, flush=True)


@contextmanager
def start(*, durable: bool = True, say: Say = say_on_stderr) -> Iterator[Sandbox]:
    """Start both services at the same time. Both are removed when the block ends, or when this process ends.

    Args:
        durable: False makes PostgreSQL faster, at the price of losing data in a power cut. Not for benchmarks.
        say: receives lines that report where each service comes from, and the progress of slow steps.

    Raises:
        SandboxError: A service is not available; the message says what to do.
    """
    say("getting RabbitMQ and PostgreSQL ready")
    broker = in_background(lambda: Choice(RABBITMQ, ways()).start(say, durable=durable))
    database = in_background(lambda: Choice(POSTGRESQL, ways()).start(say, durable=durable))
    both: list[Future[Any]] = [broker, database]
    wait(both)
    try:
        yield Sandbox(broker.result(), database.result())
    finally:
        close(*(future.result() for future in both if future.exception() is None))


def exports(environment: Mapping[str, str]) -> list[str]:
    """Shell lines that set these variables."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def shell_lines(environment: Mapping[str, str]) -> list[str]:
    """Shell lines for another terminal: they activate the virtual environment, and set these variables."""
    activate = Path(sys.executable).with_name("activate")
    return [f". {shlex.quote(str(activate))}", *exports(environment)]


def close(*services: Service) -> None:
    """Close services, all at the same time."""
    for closed in [in_background(service.close) for service in services]:
        closed.result()


def in_background(work: Callable[[], _T]) -> Future[_T]:
    """Run `work` in a daemon thread, so that Ctrl-C need not wait for it: the reapers clean up whatever it started."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # the future passes it on to whoever waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
