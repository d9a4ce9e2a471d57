"""Lets all processes of one test run use the same RabbitMQ and PostgreSQL, started when the first test needs them.

The pytest process that the user started owns the services (`Owner`). The workers of pytest-xdist ask it for them over
a Unix socket (`Visitor`). So each service starts once, reports its progress on the user's terminal, and ends with that
process.
"""

import secrets
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Literal, Protocol, cast

from sandbox import in_background, postgresql, rabbitmq
from sandbox.choice import POSTGRESQL, RABBITMQ, Choice, Kind, Say, Way, ways
from sandbox.service import SandboxError, Service

Name = Literal["rabbitmq", "postgresql"]
Address = tuple[str, bytes]
"""The path of the socket, and the key that proves that a visitor belongs to this test run."""

_TRIES_MAX = 3
"""How often a service that does not start is tried. Each test that needs it tries once more, as the cause may be gone by then;
if it is not, a run must not take hours."""
_KINDS: dict[Name, Kind[Any]] = {"rabbitmq": RABBITMQ, "postgresql": POSTGRESQL}


class Source(Protocol):
    """Gives access to the services: their owner, or a visitor that asks the owner."""

    def service(self, name: Name) -> Any:
        """Return the arguments for `from_url` of the service's module; starts the service if it does not run yet."""

    def private_way(self, name: Name) -> Way:
        """Return the way to get a private service, after pulling or installing what it needs."""


class Owner:
    """Starts each service when it is first asked for, and closes them all at the end."""

    def __init__(self, say: Say) -> None:
        """`say` receives progress lines, also from other threads."""
        self._say = say
        self._lock = threading.Lock()
        self._futures: dict[tuple[str, Name], Future[Any]] = {}
        self._tries: Counter[tuple[str, Name]] = Counter()
        self._listener: Listener | None = None
        self._closed = False

    def service(self, name: Name) -> Any:
        """Start the service if it does not run yet, and return how to reach it; SandboxError if it is not available."""
        service: Service = self._once("service", name, lambda: self._start(name)).result()
        if isinstance(service, rabbitmq.RabbitMQ):
            return service.origin, service.url, service.management_url, service.version
        return service.origin, cast("postgresql.PostgreSQL", service).url, service.version

    def private_way(self, name: Name) -> Way:
        """Determine the way once for all processes; SandboxError if there is none."""
        choose = self._once("way", name, lambda: Choice(_KINDS[name], ways(private=True)).prepare(self._say))
        return cast("Way", choose.result())

    def listen(self) -> Address:
        """Start to answer other processes, and return the address and key that they need."""
        key = secrets.token_bytes(32)
        self._listener = Listener(family="AF_UNIX", authkey=key)
        threading.Thread(target=self._answer_all, args=(self._listener,), daemon=True).start()
        return str(self._listener.address), key

    def close(self) -> None:
        """Close the services that were started."""
        self._closed = True
        if self._listener is not None:
            self._listener.close()
        started = [future for (what, _), future in self._futures.items() if what == "service"]
        for closed in [in_background(f.result().close) for f in started if f.done() and f.exception() is None]:
            closed.result()

    def _start(self, name: Name) -> Service:
        # Without syncing, most tests are faster. Tests that kill services have private ones, which are durable.
        return cast("Service", Choice(_KINDS[name], ways()).start(self._say, durable=False))

    def _once(self, what: str, name: Name, work: Callable[[], Any]) -> Future[Any]:
        """The work that was begun before, or begin it: also if it has failed, unless it has failed too often."""
        key = (what, name)
        with self._lock:
            future = self._futures.get(key)
            if future is None or (_failed(future) and self._tries[key] < _TRIES_MAX):
                self._tries[key] += 1
                future = self._futures[key] = in_background(work)
            return future

    def _answer_all(self, listener: Listener) -> None:
        while True:
            try:
                visitor = listener.accept()
            except (OSError, EOFError, AuthenticationError):
                if self._closed:
                    return
                continue  # this visitor has ended before it was known; the others must have their answers
            threading.Thread(target=self._answer, args=(visitor,), daemon=True).start()

    def _answer(self, visitor: "Connection[Any, Any]") -> None:
        with visitor, suppress(OSError, EOFError):  # of a visitor that has ended
            what, name = visitor.recv()
            try:
                answer = self.service(name) if what == "service" else self.private_way(name)
            except Exception as error:  # noqa: BLE001  # whatever it is, the visitor waits for an answer
                visitor.send((False, str(error) if isinstance(error, SandboxError) else repr(error)))
            else:
                visitor.send((True, answer))


class Visitor:
    """Asks the owner for services, from another process of the same test run."""

    def __init__(self, address: Address) -> None:
        """`address` is what the owner's `listen` returned."""
        self._path, self._key = address

    def service(self, name: Name) -> Any:
        """Return how to reach the service; SandboxError if it is not available."""
        return self._ask("service", name)

    def private_way(self, name: Name) -> Way:
        """Return the way to get a private service; SandboxError if there is none."""
        return cast("Way", self._ask("way", name))

    def _ask(self, what: str, name: Name) -> Any:
        with Client(self._path, family="AF_UNIX", authkey=self._key) as owner:
            owner.send((what, name))
            found, answer = owner.recv()
        if not found:
            raise SandboxError(answer)
        return answer


def _failed(future: Future[Any]) -> bool:
    return future.done() and future.exception() is not None


def shared_rabbitmq(source: Source) -> rabbitmq.RabbitMQ:
    """Return the broker that all tests share. It cannot be stopped from here."""
    return rabbitmq.from_url(*source.service("rabbitmq"))


def shared_postgresql(source: Source) -> postgresql.PostgreSQL:
    """Return the server that all tests share. It cannot be stopped from here."""
    return postgresql.from_url(*source.service("postgresql"))


def private_rabbitmq(source: Source) -> rabbitmq.RabbitMQ:
    """Start a broker for this process alone, which tests may stop and kill."""
    return Choice(RABBITMQ, (source.private_way("rabbitmq"),)).start(_silent, durable=True)


def private_postgresql(source: Source) -> postgresql.PostgreSQL:
    """Start a server for this process alone, which tests may stop and kill; it is durable, as in production."""
    return Choice(POSTGRESQL, (source.private_way("postgresql"),)).start(_silent, durable=True)


def _silent(_line: str) -> None:
    """Report nothing: the owner has already reported where the services come from."""
