"""The workers, each behind its own proxies. A worker that ends is started again, as Kubernetes would do."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from sandbox.proxy import Proxies
from sandbox.reaper import prctl
from tests.chaos.plan import Journal

_RUN = "from task_activity_log.cli import main; main()"
_PDEATHSIG = 1
_HANDED_OVER = '"partition_handed_over"'
_PARKED = '"event": "parked"'
_RESTART_SECONDS = 0.2
DRAIN_LIMIT_SECONDS = 5.0
_GRACE_SECONDS = 15.0
"""How long after the drain limit a process may still end, on a machine that is busy restarting databases."""
_CAUGHT = re.compile(r"^SigCgt:\s*([0-9a-f]+)$", re.MULTILINE)


class WorkerProcess:
    """One worker, across all its restarts."""

    def __init__(self, name: str, environment: Mapping[str, str], amqp: Proxies, database: Proxies, log: Path) -> None:
        self.name = name
        self.amqp = amqp
        self.database = database
        self.starts = 0
        self.wanted = True
        """Whether it is started again when it has ended."""
        self._environment = environment
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._expected: set[int] = set()

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; return whether there was a process to send it to.

        A process may end of a signal that it does not catch. SIGTERM is one until the worker has set its handler, which is
        before it takes any message.
        """
        process = self._process
        if process is None or process.returncode is not None:
            return False
        if not catches(process.pid, number):
            self._expected.add(-number)
        process.send_signal(number)
        return True

    async def run(self, stop: asyncio.Event, journal: Journal, faults: list[str], exits: Counter[str]) -> None:
        """Start the worker, and restart it whenever it ends, until `stop` is set; then terminate it."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                if not self.wanted:
                    await asyncio.sleep(_RESTART_SECONDS)
                    continue
                self._process = process = await self._spawn()
                self.starts += 1
                ended = asyncio.create_task(process.wait())
                await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not ended.done():
                    await self.terminate(journal, faults)
                status = await ended
                exits[str(status)] += 1
                if status != 0 and status not in self._expected:
                    faults.append(f"{self.name} ended by itself with status {status}; its log is {self._log}")
                    journal.note(f"{self.name} ended by itself with status {status}")
                self._expected.clear()
                await asyncio.sleep(_RESTART_SECONDS)
        finally:
            stopping.cancel()
            self.send(signal.SIGKILL)

    async def terminate(self, journal: Journal, faults: list[str]) -> None:
        """Send SIGTERM and wait until the worker has ended. If it takes too long, kill it and record a failure."""
        process = self._process
        if not self.send(signal.SIGTERM) or process is None:
            return
        began = time.monotonic()
        try:
            async with asyncio.timeout(DRAIN_LIMIT_SECONDS + _GRACE_SECONDS):
                status = await process.wait()
        except TimeoutError:
            faults.append(f"{self.name} did not end within {DRAIN_LIMIT_SECONDS + _GRACE_SECONDS:.0f} s after SIGTERM")
            self.send(signal.SIGKILL)
            return
        journal.note(f"  {self.name} drained in {time.monotonic() - began:.1f} s, exit {status}")

    async def _spawn(self) -> asyncio.subprocess.Process:
        with self._log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _RUN,
                "run",
                env=dict(self._environment),
                stderr=log,
                start_new_session=True,  # so that Ctrl-C does not reach it
                preexec_fn=lambda: prctl(_PDEATHSIG, signal.SIGKILL),
            )


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal. One that has ended has none."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    found = _CAUGHT.search(status)
    return found is not None and bool(int(found[1], 16) >> number - 1 & 1)


def handed_over(directory: Path) -> dict[str, int]:
    """How many partitions workers handed over to each other, and how many messages they returned then, from their logs."""
    events = [json.loads(line) for log in directory.glob("*.log") for line in log.open() if _HANDED_OVER in line]
    return {
        "partitions handed over": len(events),
        "messages returned when partitions were handed over": sum(event["given_back"] for event in events),
    }


class Fleet:
    """All workers of a run."""

    def __init__(self, count: int, amqp_url: str, database_url: str, directory: Path, **settings: str) -> None:
        """`settings` are additional environment variables for the workers."""
        self._count = count
        self._urls = (amqp_url, database_url)
        self._directory = directory
        self._settings = settings
        self._proxies = AsyncExitStack()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.workers: list[WorkerProcess] = []
        self.failures: list[str] = []
        """What no worker may do: end by itself, or not end in time."""
        self.exits: Counter[str] = Counter()
        """How many processes ended with each exit status."""

    def parked(self) -> set[str]:
        """The ids of records that a worker has parked so far, from their logs."""
        texts = [log.read_text() for log in self._directory.glob("*.log")]
        lines = [line for text in texts for line in text.splitlines(keepends=True) if _PARKED in line]
        return {record for line in lines if line.endswith("\n") for record in json.loads(line)["records"]}

    async def start(self, journal: Journal) -> None:
        """Start all workers, without waiting until they are ready."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
        for index in range(self._count):
            amqp, database = [await self._proxies.enter_async_context(Proxies(url)) for url in self._urls]
            environment = {
                **kept,
                "AMQP_URL": amqp.url,
                "DATABASE_URL": database.url,
                "HTTP_HOST": "127.0.0.1",
                "HTTP_PORT": "0",
                "LOG_FORMAT": "json",
                # Short enough that a run reaches every limit.
                "WORKER_AMQP_HEARTBEAT_SECONDS": "2",
                "WORKER_AMQP_CONNECT_TIMEOUT_SECONDS": "4",
                "WORKER_CONFIRM_TIMEOUT_SECONDS": "5",
                "WORKER_DATABASE_CONNECT_TIMEOUT_SECONDS": "4",
                "WORKER_DATABASE_COMMAND_TIMEOUT_SECONDS": "4",
                "WORKER_HOLD_LIMIT_SECONDS": "6",
                "WORKER_REPLY_GIVE_UP_SECONDS": "3",
                "WORKER_DRAIN_LIMIT_SECONDS": f"{DRAIN_LIMIT_SECONDS:g}",
                "WORKER_BATCH_MAX": "100",
                **self._settings,
            }
            name = f"worker-{index}"
            self.workers.append(WorkerProcess(name, environment, amqp, database, self._directory / f"{name}.log"))
        self._tasks = [
            asyncio.create_task(worker.run(self._stop, journal, self.failures, self.exits)) for worker in self.workers
        ]

    async def stop(self) -> None:
        """Terminate all workers and wait until they have ended."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Kill the workers that still run, and close the proxies."""
        for task in self._tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks)
        await self._proxies.aclose()
