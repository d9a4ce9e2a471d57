"""`make console`: how it ends when one of its processes does."""

import signal
from types import SimpleNamespace
from typing import Any

from sandbox import console


def process(status: int | None) -> Any:
    """A process with this status and a log of one line."""
    return SimpleNamespace(status=lambda: status, log_tail=lambda: "the last line")


def test_the_process_that_has_ended_is_named_with_how() -> None:
    """The last lines of its log alone would not say that it was killed."""
    assert console._gone({"console": process(None), "worker": process(None)}) is None
    said = console._gone({"console": process(None), "worker": process(-signal.SIGKILL)})
    words = "the worker was ended by signal 9 (SIGKILL), so everything is stopped and removed"
    assert said == f"{words}; its log ended with\nthe last line"
