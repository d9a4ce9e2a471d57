"""`make run`: the port of the worker, and how it ends."""

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

import sandbox
from sandbox import run
from sandbox.demo import DemoError


def test_a_port_that_is_taken_is_replaced_or_named_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without HTTP_PORT a free one is taken; one that was asked for is not replaced."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        monkeypatch.delenv("HTTP_PORT", raising=False)
        monkeypatch.setattr(run, "_PORT", taken)
        assert run._port() != taken
        monkeypatch.setenv("HTTP_PORT", str(taken))
        with pytest.raises(DemoError, match=f"cannot listen on port {taken}: .*; set HTTP_PORT to a free port"):
            run._port()


@pytest.fixture
def _signals() -> Iterator[None]:
    """The handlers of this process, which `main` replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run_worker(program: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run `main` with this Python program for the worker, and without services; returns its exit status."""
    limited = f"import os, signal, sys; signal.alarm(60); {program}"
    monkeypatch.setattr(sandbox, "start", lambda: nullcontext(SimpleNamespace(environment={})))
    monkeypatch.setattr(run, "finish", lambda *_, **__: ())
    monkeypatch.setattr(run, "command", lambda *_: [sys.executable, "-c", limited])
    return run.main()


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize(
    ("program", "status", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "the worker was ended by signal 9 (SIGKILL), so "),
        ("sys.exit(2)", 2, "the worker ended with exit status 2, so "),
    ],
)
def test_a_worker_that_dies_is_why_its_services_are_removed(
    program: str, status: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, with what became of the data."""
    assert run_worker(program, monkeypatch) == status
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith(f"run: {words}")
    assert said.endswith("were stopped and removed, with their data")


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_make_run_alone_ends_the_worker(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `kill -INT` with the process id sends it: a terminal sends Ctrl-C to both. A worker drains then, and ends with 0."""
    drains = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))"
    asks = f"os.kill(os.getppid(), {number:d})"
    assert run_worker(f"{drains}; {asks}; {asks}; signal.pause()", monkeypatch) == 0
    assert capsys.readouterr().err == ""
