"""A private RabbitMQ and PostgreSQL for the demo, the tests and the benchmarks. Not part of the product.

The map:

- `choice` decides where each of the two comes from and says so;
- `environment`, `containers`, `processes` with `leash`, and `packages` with `install.sh` are the ways;
- `rabbitmq` and `postgresql` are the services, `service` what they have in common;
- `sharing` lets all processes of one test run use the same two;
- `proxy` cuts the network between a test and a service;
- `demo` is `make demo`; `python -m sandbox` starts both services and keeps them, or runs a command against them.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

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
    "in_background",
    "say_on_stderr",
    "start",
]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Sandbox:
    """The two services, running."""

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
    """Tell people how far it is, where it does not mix with results."""
    print(f"sandbox: {line}", file=sys.stderr, flush=True)


@contextmanager
def start(*, durable: bool = True, say: Say = say_on_stderr) -> Iterator[Sandbox]:
    """Start both services at the same time; both are gone when the block, or this process, ends.

    Args:
        durable: False trades PostgreSQL's safety from power cuts for speed. Not for benchmarks.
        say: is told where each service comes from, and what takes long.

    Raises:
        SandboxError: one cannot be had; the message says what to do.
    """
    broker = in_background(lambda: Choice(RABBITMQ, ways()).start(say, durable=durable))
    database = in_background(lambda: Choice(POSTGRESQL, ways()).start(say, durable=durable))
    both: list[Future[Any]] = [broker, database]
    wait(both)
    try:
        yield Sandbox(broker.result(), database.result())
    finally:
        close(*(future.result() for future in both if future.exception() is None))


def close(*services: Service) -> None:
    """Close services, all at the same time."""
    for closed in [in_background(service.close) for service in services]:
        closed.result()


def in_background(work: Callable[[], _T]) -> Future[_T]:
    """Do something in a thread that a Ctrl-C need not wait for: the process ends, and the leashes the rest."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # the future hands it to whoever waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
