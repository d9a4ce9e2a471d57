"""Gives processes precedence over all others of the machine: a control group with the largest share of the CPU (Linux, root).

Without a group of their own, the kernel divides the CPU among sessions first (autogroups), and each process of PostgreSQL is
a session. With 30 other sessions that want a core, even the highest priority of a session leaves a third of the CPU to them.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_NAME = "task-activity-log-benchmark"
_CONTROLLERS = (
    (Path("/sys/fs/cgroup/cpu"), "cpu.shares", "262144"),
    (Path("/sys/fs/cgroup"), "cpu.weight", "10000"),
)
"""Where groups are, the file with their share, and the largest share: in version 1 of control groups, and in version 2."""


def give(pids: Iterable[int]) -> None:
    """Give these processes precedence.

    Raises:
        SystemExit: it is not possible here.
    """
    group = _group()
    for pid in pids:
        with suppress(ProcessLookupError):  # a process of the database that has ended
            (group / "cgroup.procs").write_text(str(pid))


def end() -> None:
    """Take the precedence back."""
    for parent, _, _ in _CONTROLLERS:
        group = parent / _NAME
        with suppress(FileNotFoundError):
            for pid in (group / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    (parent / "cgroup.procs").write_text(pid)
            group.rmdir()


def _group() -> Path:
    for parent, name, share in _CONTROLLERS:
        group = parent / _NAME
        try:
            group.mkdir(exist_ok=True)
            # A new file would be made where the controller is missing.
            with (group / name).open("r+") as file:
                file.write(share)
        except OSError:
            with suppress(OSError):
                group.rmdir()
        else:
            return group
    raise SystemExit("--preferred needs root, and Linux with the cpu controller of control groups")
