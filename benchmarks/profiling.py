"""Shows where the worker's CPU time goes while it drains a queue: `make bench-profile`.

Three tables, each of which adds up to all CPU time of the process: by stage, by function, and by library. The last one
needs `perf` (Debian's package linux-perf).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks import show
from benchmarks.load import fill
from benchmarks.workers import Services, Worker, resident, running, services, version

_TICKS = os.sysconf("SC_CLK_TCK")
_FUNCTIONS = 25


def _times(pid: int) -> tuple[float, float]:
    """The CPU seconds of a process so far, in user mode and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return int(fields[11]) / _TICKS, int(fields[12]) / _TICKS


def _table(title: str, counts: Mapping[str, float], whole: float, most: int = 1000) -> None:
    """Print shares of `whole` microseconds, largest first, what is left out as one line, and the sum."""
    total = sum(counts.values())
    largest = sorted(counts.items(), key=lambda item: -item[1])
    left_out = sum(count for _, count in largest[most:])
    rows = [*largest[:most], *([("all others", left_out)] if left_out else [])]
    show.table(
        title,
        ("", "µs a message", "%"),
        [(name, f"{count / total * whole:.1f}", f"{count / total * 100:.1f}") for name, count in rows]
        + [("sum", f"{whole:.1f}", "100")],
    )


async def _drain(to: Services, messages: int, pid: int, record: Path | None) -> tuple[int, float, float]:
    """Wait until the queue is drained; the messages measured, and their CPU seconds in user mode and in the kernel."""
    to.prefer([pid])
    await _replied(to, messages // 10)
    to.prefer([pid])
    os.kill(pid, signal.SIGUSR1)
    began, (user, system) = await to.replies(), _times(pid)
    perf = None
    if record is not None:
        command = ("perf", "record", "-q", "-F", "999", "-o", str(record), "-p", str(pid))
        perf = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    done = await _replied(to, messages - 1000)
    ended = _times(pid)
    if perf is not None:
        perf.send_signal(signal.SIGINT)
        await perf.wait()
    return done - began, ended[0] - user, ended[1] - system


async def _replied(to: Services, count: int) -> int:
    """Wait until there are `count` replies; returns how many there are."""
    while (done := await to.replies()) < count:  # noqa: ASYNC110 - the broker does not tell when
        await asyncio.sleep(0.02)
    return done


def _libraries(record: Path) -> dict[str, float]:
    """The share of each library, and of the kernel, in what `perf` has recorded."""
    command = ["perf", "report", "-i", str(record), "--no-children", "--sort", "dso", "--stdio"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return {name.strip("[]"): float(share.rstrip("%")) for share, name, *_ in rows}  # rich takes brackets for styles


async def main() -> None:
    """Drain a queue under the sampler, and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profiling", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--messages", type=int, default=40_000, help="messages to drain (40,000)")
    parser.add_argument("--preferred", action="store_true", help="as in python -m benchmarks")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="as in python -m benchmarks")
    options = parser.parse_args()
    show.say(f"the worker runs in Python {version(options.python)}")
    messages = options.messages
    with tempfile.TemporaryDirectory() as folder:
        counts, record = Path(folder) / "counts", Path(folder) / "perf.data"
        with_perf = shutil.which("perf") is not None
        async with services() as to:
            to.preferred = options.preferred
            await to.empty()
            with show.bar(f"filling the queue with {messages:,} messages") as progress:
                await fill(os.environ["AMQP_URL"], messages, progress)
            worker = Worker("sampled", ("-m", "benchmarks.sampler", str(counts)), is_python=True)
            with running(worker, options.python) as [process]:
                done, user, system = await _drain(to, messages, process.pid, record if with_perf else None)
                memory = resident(process.pid, "VmHWM")
            await to.empty()
        whole = (user + system) / done * 1e6
        show.say(
            f"{done:,} messages: {whole:.1f} µs of CPU a message, {user / done * 1e6:.1f} in user mode and"
            f" {system / done * 1e6:.1f} in the kernel; at most {memory / 2**20:.0f} MiB"
        )
        found = json.loads(counts.read_text(encoding="utf-8"))
        _table("By stage", found["stages"], whole)
        _table("By function, with the C functions that it calls", found["functions"], whole, _FUNCTIONS)
        if with_perf:
            _table("By library", _libraries(record), whole)
        else:
            show.say("Libraries are not shown: perf is not installed.")


if __name__ == "__main__":
    asyncio.run(main())
