"""`make run`: the port of the worker."""

import socket

import pytest

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
