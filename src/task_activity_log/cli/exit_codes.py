"""How a command ends: its exit code, and a line on standard error for whatever went wrong."""

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from task_activity_log.cli.terminal import say
from task_activity_log.settings import Settings, SettingsError, load
from task_activity_log.streams import OutputLost

DONE, FAILED, WRONG_USE, SOME_REJECTED, INTERRUPTED = 0, 1, 2, 3, 130


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Print a message, which may have several lines, and exit."""
    for line in message.splitlines():
        say(line)
    raise SystemExit(code)


def settings_or_exit(*needed: str) -> Settings:
    """The settings; exit if one is wrong, or one of the URLs in `needed` is not set."""
    try:
        return load(needed=needed)
    except SettingsError as error:
        fail(str(error), WRONG_USE)


def guarded(command: Callable[[], int], interrupted: Callable[[], str] | None = None) -> int:
    """Run a command and return its exit code. An error becomes one line, as does Ctrl-C.

    With `interrupted`, which gives the line for Ctrl-C, the command does something besides printing: it fails if its output
    is lost.
    """
    from task_activity_log.client import ClientError
    from task_activity_log.telemetry.logs import quiet_drivers

    quiet_drivers()
    stopped, code = _stop_on_signals(), DONE
    try:
        code = command()
        sys.stdout.flush()
    except ClientError as error:
        say(str(error))
        return FAILED
    except KeyboardInterrupt:
        _leave_the_rest()
        say(interrupted() if interrupted else "interrupted")
        return 128 + stopped[0] if stopped else INTERRUPTED
    except OutputLost as lost:
        if interrupted is None:
            return output_lost(lost, code)
        say(f"{lost}: {interrupted()}")
        return FAILED
    return code


def output_lost(lost: OutputLost, code: int = DONE) -> int:
    """The exit code when results cannot be printed: `code` if their reader, such as `head`, has enough."""
    if lost.reader_left:
        return code
    say(str(lost))
    return FAILED


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Ctrl-C does nothing here meanwhile: it is meant for another program. SIGTERM and SIGHUP end the command all the same."""
    before = signal.signal(signal.SIGINT, _ignore)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def holding_back_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP take effect when this ends: an exception in between would lose what is being started."""
    held: list[int] = []
    before = {number: signal.signal(number, lambda number, _: held.append(number)) for number in _ending()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)


def _leave_the_rest() -> None:
    """Print nothing about what is left of the tasks: a second signal ends the event loop in the middle of their end."""
    if threading.current_thread() is threading.main_thread():
        sys.unraisablehook = lambda _: None


def _ignore(_: int, __: object) -> None:
    pass


def _ending() -> list[int]:
    """SIGTERM and SIGHUP, as far as they end this command. Windows has no SIGHUP, and `nohup` ignores it."""
    numbers = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
    return [number for number in numbers if number is not None and signal.getsignal(number) is not signal.SIG_IGN]


def _stop_on_signals() -> list[int]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does; returns a list that then has the signal."""
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        # A job that a shell started in the background, or Ctrl-C is meant for another program.
        if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None, _ignore):
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)  # asyncio has a handler for it

    if threading.current_thread() is threading.main_thread():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)  # see `_leave_the_rest`
        for number in _ending():
            signal.signal(number, stop)
    return stopped
