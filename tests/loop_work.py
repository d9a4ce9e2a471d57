"""Counts the work that is done between two returns to the event loop, without a clock: the same on every machine.

What a loop that stands still costs depends on the machine; how much is done in one go does not. Two counts are kept, and
of each the most that was done in one iteration of the loop:

- `lines` of Python that were executed, in the product and its drivers;
- `octets`: the lengths of all texts and bodies that functions of the wire and the pipeline were called with. What a
  parser written in C does in one call is no lines, but it is called with a text. A function that is called with a message
  counts if it reads the message's body itself; one that looks at its headers alone costs the same for a body of any length.
"""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import task_activity_log

_PRODUCT = str(Path(task_activity_log.__file__).parent)
_TEXTS = tuple(f"{_PRODUCT}/{package}/" for package in ("wire", "pipeline"))
_DRIVERS = tuple(
    str(Path(import_module(name).__file__ or "").parent) for name in ("aio_pika", "aiormq", "asyncpg", "pamqp")
)
_RESUMED = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR
"""Functions that are entered again each time that they go on."""


@dataclass
class Work:
    """The most that was done in one iteration of the event loop."""

    lines: int = 0
    octets: int = 0


class _Meter:
    """Python's tracing calls it for each call of a function and for each line of those that count."""

    def __init__(self) -> None:
        self.most = Work()
        self._lines = 0
        self._octets = 0
        self._kinds: dict[CodeType, int] = {}
        self._running = True

    def start(self) -> None:
        """Count from now on; called from the loop that is measured."""
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._turn)
        sys.settrace(self._called)

    def stop(self) -> None:
        sys.settrace(None)
        self._running = False
        self._close()

    def _turn(self) -> None:
        """One iteration of the loop is over."""
        self._close()
        if self._running:
            self._loop.call_soon(self._turn)

    def _close(self) -> None:
        self.most.lines = max(self.most.lines, self._lines)
        self.most.octets = max(self.most.octets, self._octets)
        self._lines = self._octets = 0

    def _called(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        code = frame.f_code
        kind = self._kinds.get(code)
        if kind is None:
            kind = self._kinds[code] = _kind(code)
        if kind == 2:
            values = frame.f_locals
            for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
                value = values.get(name)
                body = getattr(value, "body", value) if "body" in code.co_names else value
                if isinstance(body, str | bytes):
                    self._octets += len(body)
        return self._executed if kind else None

    def _executed(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            self._lines += 1
        return self._executed


def _kind(code: CodeType) -> int:
    """0: not counted; 1: its lines are; 2: what it is called with as well."""
    name = code.co_filename
    if name.startswith(_TEXTS) and not code.co_flags & _RESUMED:
        return 2
    return 1 if name.startswith((_PRODUCT, *_DRIVERS)) else 0


@contextmanager
def counting() -> Iterator[Work]:
    """Count the work of the running loop's thread until the end of the block."""
    meter = _Meter()
    meter.start()
    try:
        yield meter.most
    finally:
        meter.stop()
