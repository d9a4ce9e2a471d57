"""The measured workers, and what a run of one costs: time, CPU and memory."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import asyncpg

from benchmarks import precedence
from benchmarks.load import TOPOLOGY
from benchmarks.show import Progress
from task_activity_log.pipeline.request import UpdateMode
from task_activity_log.postgresql import writing
from task_activity_log.rabbitmq.topology import Topology, declare

PEERS = Path(__file__).parent / "peers"
OURS = "task-activity-log"
PLAIN = "plain aio-pika"
_RUN = ("-c", "from task_activity_log.cli import main; main()", "run")
_SOURCES = os.pathsep.join(str(Path(__file__).parents[1] / folder) for folder in ("src", "."))
_DEBIAN_GO = Path("/usr/share/gocode")
_GO_LIBRARIES = ("rabbitmq/amqp091-go", "jackc/pgx/v4")
_GO = "Go, amqp091 and pgx"
_GO_BATCH = "Go for speed"
GO_INBOX = f"{_GO_BATCH}, with the inbox"
"""Peers in Go: as the documentation suggests, and two that an expert would write for speed."""
WORKERS_STATEMENT = writing.statement(UpdateMode.REPLACE, 8 * 2**20)
"""The statement with which this worker stores a wave of replaces."""
_GO_PACKAGES = "golang-go, golang-github-rabbitmq-amqp091-go-dev and golang-github-jackc-pgx-v4-dev"
_TICKS = os.sysconf("SC_CLK_TCK")
_POLL_SECONDS = 0.02
_STALLED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Worker:
    """How to start a worker."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    is_python: bool = False
    """Whether the command is the arguments of a Python, which is `python`."""
    python: str | None = None
    """Its Python; None: that of all workers (`Services.python`)."""


def ours(name: str = OURS, *, python: str | None = None, **environment: str) -> Worker:
    """This worker, with a Python of its own if one is given, and with additional environment variables."""
    return Worker(name, _RUN, environment, is_python=True, python=python)


def plain() -> Worker:
    """The peer that is written as the documentation of aio-pika and asyncpg suggests."""
    return Worker(PLAIN, ("-m", "benchmarks.peers.plain"), is_python=True)


def version(python: str) -> str:
    """The version of a Python, and the compiler that built it.

    Raises:
        SystemExit: it does not run, or lacks a package of requirements-dev.lock.
    """
    program = "import sys, aio_pika, asyncpg, pydantic_core, uvloop; print(' '.join(sys.version.split()))"
    try:
        found = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    except OSError as error:
        raise SystemExit(f"{python} does not run: {error}") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().rpartition("\n")[2]
        raise SystemExit(f"{python} must have the packages in requirements-dev.lock installed: {reason}") from None
    return found.stdout.strip()


def peers() -> tuple[list[Worker], dict[str, str]]:
    """The peers, built and ready to start; and the reasons why some cannot be measured, by name."""
    found = [plain(), Worker("FastStream", ("-m", "benchmarks.peers.faststream_app"), is_python=True)]
    left_out: dict[str, str] = {}
    if find_spec("faststream") is None:
        left_out[found.pop().name] = "not installed"
    if shutil.which("node") and shutil.which("npm"):
        subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=PEERS / "node", check=True)
        found.append(Worker("Node, amqplib and pg", ("node", str(PEERS / "node" / "worker.js"))))
    else:
        left_out["Node, amqplib and pg"] = "node or npm is not installed"
    if has_go():
        found.append(Worker(_GO, (_built("go"),)))
        found += [go_batch(), go_batch(GO_INBOX, UPSERT=WORKERS_STATEMENT)]
    else:
        left_out |= dict.fromkeys((_GO, _GO_BATCH, GO_INBOX), NO_GO)
    return found, left_out


NO_GO = f"it needs Debian's packages {_GO_PACKAGES}"


def has_go() -> bool:
    """Whether the peers in Go can be built."""
    return bool(shutil.which("go")) and all((_DEBIAN_GO / "src/github.com" / name).is_dir() for name in _GO_LIBRARIES)


def go_batch(name: str = _GO_BATCH, **environment: str) -> Worker:
    """The peer that an expert would write in Go for speed, built; `peers/go_batch/worker.go` says what it can be told."""
    return Worker(name, (_built("go_batch"),), environment)


def _built(folder: str) -> str:
    """The program in a folder of `peers`, compiled from Go."""
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(_DEBIAN_GO), "GOFLAGS": ""}
    subprocess.run(["go", "build", "-o", "worker", "worker.go"], cwd=PEERS / folder, env=environment, check=True)
    return str(PEERS / folder / "worker")


@dataclass(frozen=True, slots=True)
class Cost:
    """What it took to process messages. CPU times are in seconds."""

    messages: int
    seconds: float
    worker_cpu: float
    broker_cpu: float
    database_cpu: float
    memory_bytes: int
    """The peak resident memory of all worker processes together."""

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds

    @property
    def worker_us(self) -> float:
        """The worker's CPU time, in microseconds a message."""
        return self.worker_cpu / self.messages * 1e6

    @property
    def broker_us(self) -> float:
        """The broker's CPU time, in microseconds a message."""
        return self.broker_cpu / self.messages * 1e6

    @property
    def database_us(self) -> float:
        """The database's CPU time, in microseconds a message."""
        return self.database_cpu / self.messages * 1e6


@contextmanager
def running(worker: Worker, python: str, count: int = 1) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run `count` processes of a worker, in `python` unless it has one of its own, and stop them at the end."""
    # Another Python than that of .venv does not have the product installed.
    environment = {**os.environ, "HTTP_PORT": "0", "LOG_FORMAT": "json", "PYTHONPATH": _SOURCES, **worker.environment}
    command = [worker.python or python, *worker.command] if worker.is_python else worker.command
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes += [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(count)]
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


class Services:
    """The broker and the database in AMQP_URL and DATABASE_URL."""

    python = sys.executable
    """The Python in which workers are run that are written in Python."""
    preferred = False
    """Whether they and the workers have precedence while they are measured; see `prefer`."""

    def __init__(self, channel: aio_pika.abc.AbstractChannel, database: asyncpg.Connection[asyncpg.Record]) -> None:
        self._channel = channel
        self.database = database
        self._broker = _listener(os.environ["AMQP_URL"], 5672, "beam.smp")
        self._postmaster = _listener(os.environ["DATABASE_URL"], 5432, "postgres")

    async def replies(self) -> int:
        """The number of replies in their queue."""
        queue = await self._channel.declare_queue(TOPOLOGY.replies_queue, passive=True)
        return queue.declaration_result.message_count or 0

    async def empty(self, *, tables: bool = True) -> None:
        """Empty the queues and, with `tables`, the tables."""
        for name in (TOPOLOGY.requests_queue, TOPOLOGY.replies_queue, TOPOLOGY.dead_letters_queue):
            await (await self._channel.get_queue(name)).purge()
        if tables:
            await self.database.execute(
                "TRUNCATE task_activity_log, task_activity_log_inbox, task_activity_log_journal"
            )
        await self.database.execute("CHECKPOINT")

    async def declare(self, topology: Topology) -> None:
        """Declare queues other than those of the default topology, and empty the partitions."""
        async with await aio_pika.connect(os.environ["AMQP_URL"]) as connection:
            await declare(connection, topology)
        for name in topology.partition_queues:
            await (await self._channel.get_queue(name)).purge()

    async def take_replies(self) -> None:
        """Discard all replies in the queue."""
        await (await self._channel.get_queue(TOPOLOGY.replies_queue)).purge()

    def prefer(self, workers: Sequence[int]) -> None:
        """Give workers and services precedence over everything else on the machine, if this was asked for."""
        if self.preferred:
            services = [self._broker, self._postmaster, *_children(self._postmaster)]
            precedence.give([os.getpid(), *workers, *filter(None, services)])

    def cpu(self) -> tuple[float, float]:
        """The CPU seconds that broker and database have used; 0 for one that is not a process of this machine."""
        broker = _cpu([self._broker]) if self._broker else 0.0
        return broker, _cpu([self._postmaster, *_children(self._postmaster)]) if self._postmaster else 0.0


@asynccontextmanager
async def services() -> AsyncIterator[Services]:
    """Connect to both services, and declare the queues. The tables must exist already."""
    database = await asyncpg.connect(os.environ["DATABASE_URL"], command_timeout=3600)
    try:
        async with await aio_pika.connect(os.environ["AMQP_URL"]) as connection:
            await declare(connection, TOPOLOGY)
            yield Services(await connection.channel(), database)
    finally:
        precedence.end()
        await database.close()


async def measure(
    services: Services, worker: Worker, waiting: int, *, seconds: float, processes: int = 1, progress: Progress
) -> Cost:
    """Let a worker process the waiting messages, for at most `seconds`.

    Timing starts after the first 2,000 replies or the first 5 % of them, whichever are fewer, so that it does not
    include the start of the worker. Messages that the worker does not reach in time stay in the queue.
    """
    after = min(waiting // 20, 2000)
    with running(worker, services.python, processes) as started:
        pids = [process.pid for process in started]
        services.prefer(pids)
        done, moved = 0, time.perf_counter()
        while done < after:
            done, moved = await _progressed(services, done, moved, started)
        services.prefer(pids)  # also what has connected to the database since
        began, began_at, cpu_at, services_at = done, time.perf_counter(), _cpu(pids), services.cpu()
        until = began_at + seconds
        while done < waiting and time.perf_counter() < until:
            progress((done - began) / (waiting - began), (time.perf_counter() - began_at) / seconds)
            done, moved = await _progressed(services, done, moved, started)
        took, cpu, services_cpu = time.perf_counter() - began_at, _cpu(pids) - cpu_at, services.cpu()
        return Cost(
            messages=done - began,
            seconds=took,
            worker_cpu=cpu,
            broker_cpu=services_cpu[0] - services_at[0],
            database_cpu=services_cpu[1] - services_at[1],
            memory_bytes=sum(resident(pid, "VmHWM") for pid in pids),
        )


async def _progressed(
    services: Services, done: int, moved: float, started: Sequence[subprocess.Popen[bytes]]
) -> tuple[int, float]:
    """The number of replies now, and the time of the last increase."""
    await asyncio.sleep(_POLL_SECONDS)
    now = await services.replies()
    if now > done:
        return now, time.perf_counter()
    for process in started:
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} exited with status {process.returncode} while it was measured")
    if time.perf_counter() - moved > _STALLED_SECONDS:
        raise SystemExit(f"{started[0].args!r} has published no reply for {_STALLED_SECONDS:.0f} s")
    return now, moved


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _cpu(pids: Iterable[int]) -> float:
    """The CPU seconds that processes have used, including children that have ended."""
    return sum(sum(map(int, _stat(pid)[11:15])) for pid in pids) / _TICKS


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(_stat(int(path.name))[1]) == parent:
                found.append(int(path.name))
    return found


def resident(pid: int, line_name: str = "VmRSS") -> int:
    """The resident memory of a process in bytes; with `VmHWM`, its peak."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{line_name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _listener(url: str, default: int, program: str) -> int:
    """The pid of `program` if it listens on a URL's port; 0 if it runs on another machine or in a container."""
    port = f":{urlsplit(url).port or default:04X}"
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(port) and row[3] == "0A"}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            name = (process / "comm").read_text().strip()
            if name == program and any(str(link.readlink()) in sockets for link in (process / "fd").iterdir()):
                return int(process.name)
    return 0
