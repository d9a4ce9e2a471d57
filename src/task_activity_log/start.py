"""Where the process of a command starts: Ctrl-C while the modules are imported ends it without a traceback."""

import os
import signal


def main() -> None:
    """Run `task-activity-log`."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # otherwise it is ignored, as a shell does for a job in the background
        # Not the default action: process 1 of a container would ignore the signal.
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    from task_activity_log import cli  # noqa: PLC0415 - as said above

    signal.signal(signal.SIGINT, before)
    cli.main()
