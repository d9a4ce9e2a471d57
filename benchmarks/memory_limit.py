"""The most memory that a worker takes for the messages that cost the most of it: `python -m benchmarks.memory_limit`.

Against the services that AMQP_URL and DATABASE_URL name, whose queues and tables are emptied; `python -m sandbox -- sh -c
'task-activity-log migrate && python -m benchmarks.memory_limit'` starts some. `task-activity-log run` works off each
backlog in a memory cgroup of the size that deploy/kubernetes/base gives its container, and is started again when the
kernel kills it, as Kubernetes does. WORKER_MEMORY_LIMIT_BYTES and a third is what it may have resident.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import aio_pika
import yaml
from aio_pika.abc import AbstractChannel

from benchmarks import show
from benchmarks.load import TOPOLOGY
from benchmarks.workers import Services, resident, services
from task_activity_log.settings import load

BASE = Path(__file__).parents[1] / "deploy" / "kubernetes" / "base" / "deployment.yaml"
KIB, MIB = 2**10, 2**20
BODY = 256 * KIB
"""WORKER_BODY_LIMIT_BYTES, as it is by default."""
_POLL_SECONDS = 0.02
_PURGE_SECONDS = 0.5
_QUIET_LOOKS = 3
"""A delivery that is still arriving is not counted as in hand: the run is over when this many looks in a row found nothing."""
_STALLED_SECONDS = 120.0
_TOGETHER_BYTES = 16 * MIB
"""Bytes of messages that are published before their confirms are waited for."""
_COMMAND = (sys.executable, "-c", "from task_activity_log.cli import main; main()", "run")
_IN_HAND = re.compile(r"^task_activity_log_in_hand (\S+)$", re.MULTILINE)
_UNITS = {"Ki": KIB, "Mi": MIB, "Gi": 2**30}


@dataclass(frozen=True, slots=True)
class Backlog:
    """One case: what is there before the worker starts."""

    name: str
    messages: Callable[[], Iterable[aio_pika.Message]]
    prepare: Callable[[Services], Awaitable[None]] | None = None
    """Puts rows into the table."""


@dataclass(frozen=True, slots=True)
class Peak:
    """What a worker took for one backlog."""

    backlog: str
    resident_bytes: int
    """The most that a process of it had resident, as far as was seen: one that was killed may have had more."""
    cgroup_bytes: int
    """The most that the cgroup was charged, which includes the kernel's buffers of its sockets; 0 without a cgroup."""
    kills: int
    """How often the kernel killed it because it needed more than the cgroup has."""
    seconds: float


class Cgroup:
    """A memory cgroup for one child of this process at a time, of version 1 or 2, whichever the machine has."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._version_2 = (folder / "memory.max").exists()
        (folder / ("memory.max" if self._version_2 else "memory.limit_in_bytes")).write_text(str(limit_bytes))
        with suppress(OSError):  # a kernel without swap accounting
            swap = "memory.swap.max" if self._version_2 else "memory.memsw.limit_in_bytes"
            (folder / swap).write_text("0" if self._version_2 else str(limit_bytes))

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that runs in it."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._folder / "cgroup.procs"), *command]

    def peak(self) -> int:
        """The most bytes that were charged to it so far."""
        with suppress(OSError):
            name = "memory.peak" if self._version_2 else "memory.max_usage_in_bytes"
            return int((self._folder / name).read_text())
        return 0  # memory.peak is there since Linux 5.19


@contextmanager
def cgroup(limit_bytes: int) -> Iterator[Cgroup | None]:
    """A memory cgroup that may hold `limit_bytes`; None, with the reason on the screen, where there can be none."""
    root = Path("/sys/fs/cgroup")
    parent = root / "memory" if (root / "memory").is_dir() else root
    folder = parent / f"task-activity-log-benchmark-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        show.say(f"without a memory cgroup, so that nothing limits the worker: {folder}: {error.strerror}")
        yield None
        return
    try:
        yield Cgroup(folder, limit_bytes)
    except OSError as error:
        show.say(f"the memory cgroup cannot be used: {error}")
        raise
    finally:
        folder.rmdir()


def manifest_limit() -> int:
    """Bytes that the container of the worker may have."""
    [container] = yaml.safe_load(BASE.read_text(encoding="utf-8"))["spec"]["template"]["spec"]["containers"]
    amount = container["resources"]["limits"]["memory"]
    return int(amount[:-2]) * _UNITS[amount[-2:]]


def request(body: bytes, **headers: str) -> aio_pika.Message:
    """A persistent request."""
    mode = aio_pika.DeliveryMode.PERSISTENT
    return aio_pika.Message(body, message_id=str(uuid4()), delivery_mode=mode, headers=dict(headers))


def long_body(length: int = BODY, character: str = "") -> bytes:
    """A request of `length` bytes, nearly all of them one text, which has `character` in it."""
    start, end = f'{{"id":"{uuid4()}","description":"{character}'.encode(), b'"}'
    return start + b"a" * (length - len(start) - len(end)) + end


def backlogs(scale: float) -> list[Backlog]:
    """The cases, of `scale` times as many messages as usual."""
    rows = [uuid4() for _ in range(int(1000 * scale))]

    async def long_rows(to: Services) -> None:
        await fill_rows(to, rows)

    return [
        Backlog("256 KiB, ASCII", lambda: (request(long_body()) for _ in range(int(2000 * scale)))),
        Backlog("256 KiB, one emoji", lambda: (request(long_body(character="😀")) for _ in range(int(2000 * scale)))),
        Backlog("merges of 3 x 256 KiB", lambda: map(merge, rows), long_rows),
        Backlog("15 MiB, above the limit", lambda: (request(long_body(15 * MIB)) for _ in range(int(60 * scale)))),
    ]


def merge(row: UUID) -> aio_pika.Message:
    """A small request that changes one field of a row."""
    return request(b'{"id":"%s","is_closed":true}' % str(row).encode(), **{"x-update-mode": "merge"})


async def fill_rows(to: Services, rows: Sequence[UUID]) -> None:
    """Put rows into the table whose three texts have 256 KiB each."""
    await to.database.execute(
        """
        INSERT INTO task_activity_log (id, subject, description, reference_back_office)
        SELECT id, repeat('s', $2), repeat('d', $2), repeat('r', $2) FROM unnest($1::uuid[]) AS id
        """,
        rows,
        BODY,
    )


async def fill(channel: AbstractChannel, messages: Iterable[aio_pika.Message]) -> int:
    """Publish; returns how many they were."""
    exchange = await channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
    count, size, batch = 0, 0, []
    for message in messages:
        count, size = count + 1, size + len(message.body) + KIB
        batch.append(exchange.publish(message, "upsert", mandatory=True))
        if size > _TOGETHER_BYTES:
            await asyncio.gather(*batch)
            size, batch = 0, []
    await asyncio.gather(*batch)
    return count


class Run:
    """A worker that is started again each time that the kernel kills it."""

    def __init__(self, within: Cgroup | None) -> None:
        self._within = within
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.kills = 0
        self.resident_bytes = 0
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        variables = {"HTTP_HOST": "127.0.0.1", "HTTP_PORT": str(self._port), "LOG_FORMAT": "json"}
        command = list(_COMMAND) if self._within is None else self._within.command(_COMMAND)
        return subprocess.Popen(command, env={**os.environ, **variables}, stderr=subprocess.DEVNULL)

    def watch(self) -> None:
        """Look how much it has resident, and start it again if it was killed."""
        with suppress(OSError):
            self.resident_bytes = max(self.resident_bytes, resident(self._process.pid, "VmHWM"))
        ended = self._process.poll()
        if ended == -signal.SIGKILL:
            self.kills += 1
            self._process = self._start()
        elif ended is not None:
            raise SystemExit(f"the worker ended with {ended}")

    def in_hand(self) -> int | None:
        """How many deliveries it has not settled; None while it does not answer."""
        with suppress(OSError, urllib.error.URLError):
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as page:
                found = _IN_HAND.search(page.read().decode())
            return None if found is None else int(float(found[1]))
        return None

    def end(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait()


async def work_off(channel: AbstractChannel, run: Run, count: int) -> None:
    """Return once `count` replies were given, the queue is empty and nothing is in hand. The replies are thrown away."""
    answered, quiet = 0, 0
    purged = moved = time.monotonic()
    before: tuple[int, int | None, int, int] | None = None
    while quiet < _QUIET_LOOKS:
        run.watch()
        await asyncio.sleep(_POLL_SECONDS)
        if time.monotonic() - purged < _PURGE_SECONDS:
            continue
        purged = time.monotonic()
        await _purge(channel, TOPOLOGY.dead_letters_queue)
        answered += await _purge(channel, TOPOLOGY.replies_queue)
        queue = await channel.declare_queue(TOPOLOGY.requests_queue, passive=True)
        now = (queue.declaration_result.message_count or 0, await asyncio.to_thread(run.in_hand), answered, run.kills)
        quiet = quiet + 1 if now[:2] == (0, 0) and answered >= count else 0
        if now != before:
            before, moved = now, purged
        elif purged - moved > _STALLED_SECONDS:
            raise SystemExit(f"nothing has moved for {_STALLED_SECONDS:.0f} s: {now[0]} waiting, {now[1]} in hand")


async def _purge(channel: AbstractChannel, queue: str) -> int:
    """Throw away what is in a queue; returns how many messages that was."""
    return (await (await channel.get_queue(queue, ensure=False)).purge()).message_count or 0


async def measure(to: Services, backlog: Backlog, limit_bytes: int) -> Peak:
    """Let a worker work off one backlog."""
    await to.empty()
    if backlog.prepare is not None:
        await backlog.prepare(to)
    async with await aio_pika.connect(os.environ["AMQP_URL"]) as connection:
        channel = await connection.channel(on_return_raises=True)
        with show.bar(f"filling the queue: {backlog.name}"):
            count = await fill(channel, backlog.messages())
        with show.bar(f"working off {count:,} messages: {backlog.name}"), cgroup(limit_bytes) as within:
            began, run = time.perf_counter(), Run(within)
            try:
                await work_off(channel, run, count)
            finally:
                run.watch()
                run.end()
            charged = 0 if within is None else within.peak()
            return Peak(backlog.name, run.resident_bytes, charged, run.kills, time.perf_counter() - began)


async def memory_limit(to: Services, *, limit_bytes: int, scale: float = 1.0, only: Sequence[str] = ()) -> list[Peak]:
    """Measure the backlogs, or those in `only`, and print a table.

    Args:
        to: the services.
        limit_bytes: size of the memory cgroup.
        scale: how many times as many messages as usual.
        only: names of backlogs; none means all.
    """
    promised = load(os.environ).memory_limit_bytes * 4 // 3
    peaks = []
    for backlog in backlogs(scale):
        if not only or backlog.name in only:
            peaks.append(await measure(to, backlog, limit_bytes))
            show.say(str(peaks[-1]))
    await to.empty()
    rows = [
        (
            peak.backlog,
            f"{peak.resident_bytes / MIB:,.0f}",
            f"{peak.resident_bytes / promised:.0%}",
            f"{peak.cgroup_bytes / MIB:,.0f}",
            str(peak.kills),
            f"{peak.seconds:.0f}",
        )
        for peak in peaks
    ]
    show.table(
        f"Peak memory of a worker that may have {promised / MIB:,.0f} MiB, in a cgroup of {limit_bytes / MIB:,.0f} MiB",
        ("backlog", "resident, MiB", "of what it may have", "cgroup, MiB", "kills", "seconds"),
        rows,
    )
    return peaks


async def main() -> None:
    """Measure and print; ends with 1 if the worker was killed or took more than it may."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory_limit", description=(__doc__ or "").partition("\n")[0]
    )
    names = [backlog.name for backlog in backlogs(0)]
    parser.add_argument("backlogs", nargs="*", metavar="BACKLOG", help=f"which: {', '.join(names)} (all)")
    parser.add_argument("--scale", type=float, default=1.0, help="how many times as many messages as usual (1)")
    parser.add_argument("--cgroup-bytes", type=int, default=manifest_limit(), help="size of the memory cgroup")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, too")
    options = parser.parse_args()
    if unknown := set(options.backlogs) - set(names):
        parser.error(f"no such backlog: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    async with services() as to:
        peaks = await memory_limit(to, limit_bytes=options.cgroup_bytes, scale=options.scale, only=options.backlogs)
    if options.json:
        print(json.dumps([{name: getattr(peak, name) for name in Peak.__slots__} for peak in peaks]))
    promised = load(os.environ).memory_limit_bytes * 4 // 3
    if any(peak.kills or peak.resident_bytes > promised for peak in peaks):
        raise SystemExit(1)


if __name__ == "__main__":
    asyncio.run(main())
