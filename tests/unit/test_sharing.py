"""The services that all processes of a test run share: a start that fails costs one test, and not all others as well."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from sandbox import PostgreSQL, SandboxError, Service
from sandbox.service import NotOurs
from sandbox.sharing import Name, Owner, Visitor
from tests.kept import kept


class Starting:
    """In place of what starts a service: fails some times before it works."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self.count = 0

    def __call__(self, _name: Name) -> Service:
        self.count += 1
        if self._failures:
            raise self._failures.pop(0)
        server = PostgreSQL(NotOurs("here", "it is only said to run"), "postgresql://here/one")
        server.version = "1"
        return server


@contextmanager
def owning(starting: Starting, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Owner, Visitor]]:
    """The owner of the services, and another process that asks it for them."""
    owner = Owner(print)
    monkeypatch.setattr(owner, "_start", starting)
    visitor = Visitor(owner.listen())
    yield owner, visitor
    owner.close()


@pytest.mark.parametrize("failure", [SandboxError("initdb took too long"), OSError("too many open files")])
def test_a_service_that_did_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    """By the next test that asks for it, in whatever process. What runs is not started twice."""
    starting = Starting(failure)
    with owning(starting, monkeypatch) as (owner, visitor):
        with pytest.raises(SandboxError, match=str(failure)):
            visitor.service("postgresql")
        with ThreadPoolExecutor(4) as many:
            found = list(many.map(lambda _: visitor.service("postgresql"), range(4)))
        assert {*found, owner.service("postgresql")} == {("here", "postgresql://here/one", "1")}
        assert starting.count == 2


def test_a_service_that_never_starts_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start may take minutes until it fails, and hundreds of tests ask for it."""
    starting = Starting(*[SandboxError("nothing is installed")] * 10)
    with owning(starting, monkeypatch) as (_, visitor):
        for _ in range(10):
            with pytest.raises(SandboxError, match="nothing is installed"):
                visitor.service("postgresql")
    assert starting.count == 3


def test_a_visitor_that_ends_while_it_asks_takes_nothing_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of the test run may be killed at any moment, also before it has proved that it belongs to the run."""
    owner = Owner(print)
    monkeypatch.setattr(owner, "_start", Starting())
    path, key = owner.listen()
    for said in (b"", b"\x00\x00\x00\x04nope"):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(path)
            stranger.sendall(said)
    assert Visitor((path, key)).service("postgresql")[0] == "here"
    owner.close()


def test_what_a_fixture_keeps_is_entered_again_if_that_failed() -> None:
    """pytest would keep the failure for all tests of the process."""
    did: list[str] = []

    @contextmanager
    def starting() -> Iterator[str]:
        did.append("begin")
        if len(did) == 1:
            raise SandboxError("not yet")
        yield "service"
        did.append("end")

    with kept(starting) as get:
        with pytest.raises(SandboxError, match="not yet"):
            get()
        assert [get(), get()] == ["service", "service"]
    assert did == ["begin", "begin", "end"]
    with kept(starting):
        pass  # no test has asked for it
    assert did == ["begin", "begin", "end"]
