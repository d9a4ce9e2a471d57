"""Runs the worker, and counts where its CPU time goes: `python -m benchmarks.sampler COUNTS`, started by `benchmarks.profiling`.

The kernel sends SIGPROF after each millisecond of CPU time of the process, in user mode or in the kernel. The handler looks
at the Python functions under way. What a C function takes counts for the function that called it. What the event loop does
between two callbacks, such as reading from a socket, counts for the callback that follows.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from task_activity_log.cli import main

_SECONDS = 0.001
STAGES: dict[str, tuple[str, ...]] = {
    "decode": ("pipeline/request.py:decode",),
    "store: parameters": ("postgresql/writing.py:arguments",),
    "store: driver": ("/asyncpg/",),
    "store: rows to records": ("postgresql/store.py:apply",),
    "reply": ("pipeline/settling.py",),
    "publish": (
        "rabbitmq/replies.py",
        "rabbitmq/exchange.py",
        "rabbitmq/publisher.py",
        "rabbitmq/confirms.py",
        "rabbitmq/dead_letters.py",
    ),
    "acknowledge": ("rabbitmq/intake.py:acknowledge",),
    "metrics and logs": ("/telemetry/",),
    "take in: frames to deliveries": ("rabbitmq/frames.py", "rabbitmq/headers.py", "rabbitmq/consumer.py"),
    "pipeline: batches and waves": ("/pipeline/", "rabbitmq/intake.py", "rabbitmq/queue_intake.py"),
    "RabbitMQ driver": ("/aiormq/", "/aio_pika/", "/pamqp/"),
    "event loop and sockets": ("asyncio/", "/uvloop/"),
}
"""Which functions belong to a stage, as part of `path:function`. The first stage counts that has any function under way."""
OTHER = "other"


class Sampler:
    """Counts samples by stage and by function."""

    def __init__(self) -> None:
        self.stages: Counter[str] = Counter()
        self.functions: Counter[str] = Counter()

    def sample(self, _: int, frame: FrameType | None) -> None:
        """Count where the process is. The handler of SIGPROF."""
        names: list[str] = []
        while frame is not None:
            names.append(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")
            frame = frame.f_back
        self.stages[stage_of(names)] += 1
        if names:
            self.functions["/".join(names[0].split("/")[-2:])] += 1

    def clear(self, *_: object) -> None:
        """Forget what was counted: the start is over. The handler of SIGUSR1."""
        self.stages.clear()
        self.functions.clear()


def stage_of(names: list[str]) -> str:
    """The stage to which a stack of functions belongs."""
    return next(
        (stage for stage, parts in STAGES.items() if any(part in name for part in parts for name in names)), OTHER
    )


if __name__ == "__main__":
    counts = Path(sys.argv[1])
    sampler = Sampler()
    signal.signal(signal.SIGPROF, sampler.sample)
    signal.signal(signal.SIGUSR1, sampler.clear)
    signal.setitimer(signal.ITIMER_PROF, _SECONDS, _SECONDS)
    sys.argv[1:] = ["run"]
    try:
        main()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        counts.write_text(json.dumps({"stages": sampler.stages, "functions": sampler.functions}), encoding="utf-8")
