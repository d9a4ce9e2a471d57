"""The workers of a chaos run: which of their exit statuses are expected."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.chaos.fleet import catches


@pytest.fixture
def _handlers() -> Iterator[None]:
    """Set the handler of SIGTERM back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_handlers")
def test_a_process_that_starts_does_not_catch_sigterm_until_it_has_a_handler() -> None:
    """However long it takes to start. SIGKILL is never caught."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert not catches(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    assert catches(os.getpid(), signal.SIGTERM)
    assert not catches(os.getpid(), signal.SIGKILL)


def test_a_process_that_has_ended_catches_nothing() -> None:
    """Nobody has read its exit status yet, and then somebody has."""
    with subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not catches(process.pid, signal.SIGTERM)
    assert not catches(process.pid, signal.SIGTERM)
