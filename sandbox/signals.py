"""Ctrl-C and SIGTERM in the programs of this package: they end without a traceback, also while modules are imported."""

import signal
import sys

_PACKAGE = __name__.partition(".")[0]


def _is_main() -> bool:
    """Whether this process is `python -m sandbox` or one of its modules."""
    words = sys.orig_argv
    return "-m" in words[:-1] and words[words.index("-m") + 1].partition(".")[0] == _PACKAGE


if _is_main() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # otherwise it is ignored, as a shell does for a job in the background
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_in_order() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt and SIGTERM SystemExit, so that whatever was started is removed."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
