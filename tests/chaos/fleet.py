"""The workers, each behind proxies of its own, kept running as Kubernetes does: what ends is started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from sandbox.leash import prctl
from sandbox.proxy import Proxy
from tests.chaos.plan import Journal

_RUN = "from task_activity_log.cli import main; main()"
_PDEATHSIG = 1
_RESTART_SECONDS = 0.2
DRAIN_LIMIT_SECONDS = 5.0
_GRACE_SECONDS = 15.0
"""After the drain limit: how late a process may end on a machine that is busy with restarting databases."""
_BEGINNING_SECONDS = 4.0
"""Until then a process may still be importing, with nothing taken and no handler for SIGTERM."""
"""After the drain limit: how late a process may end on a machine that is busy with restarting databases."""


class WorkerProcess:
    """One worker, over all its restarts."""

    def __init__(self, name: str, environment: Mapping[str, str], amqp: Proxy, database: Proxy, log: Path) -> None:
        self.name = name
        self.amqp = amqp
        self.database = database
        self.starts = 0
        self._environment = environment
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._expected: set[int] = set()
        self._started = 0.0

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; whether there was a process to send it to."""
        process = self._process
        if process is None or process.returncode is not None:
            return False
        beginning = number == signal.SIGTERM and time.monotonic() - self._started < _BEGINNING_SECONDS
        if number == signal.SIGKILL or beginning:
            self._expected.add(-number)
        process.send_signal(number)
        return True

    async def run(self, stop: asyncio.Event, journal: Journal, faults: list[str], exits: Counter[str]) -> None:
        """Start it, and start it again, until `stop` is set; then end it in good order."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                self._process = process = await self._spawn()
                self.starts += 1
                self._started = time.monotonic()
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
        """SIGTERM, and wait until it has ended; one that takes too long is killed, which is a failure."""
        process = self._process
        if not self.send(signal.SIGTERM) or process is None:
            return
        began = time.monotonic()
        try:
            async with asyncio.timeout(DRAIN_LIMIT_SECONDS + _GRACE_SECONDS):
                status = await process.wait()
        except TimeoutError:
            faults.append(f"{self.name} did not end within {DRAIN_LIMIT_SECONDS + _GRACE_SECONDS:.0f} s of SIGTERM")
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
                start_new_session=True,  # a Ctrl-C is for us
                preexec_fn=lambda: prctl(_PDEATHSIG, signal.SIGKILL),
            )


class Fleet:
    """All workers of a run."""

    def __init__(self, count: int, amqp_url: str, database_url: str, directory: Path, **settings: str) -> None:
        """`settings` are further variables of the workers' environment."""
        self._count = count
        self._urls = (amqp_url, database_url)
        self._directory = directory
        self._settings = settings
        self._proxies = AsyncExitStack()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.workers: list[WorkerProcess] = []
        self.failures: list[str] = []
        """What no worker may do: end by itself, not end in time."""
        self.exits: Counter[str] = Counter()
        """Ends of processes, by exit status."""

    async def start(self, journal: Journal) -> None:
        """Start all workers; they are not ready when this returns."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
        for index in range(self._count):
            amqp, database = [await self._proxies.enter_async_context(Proxy.to(url)) for url in self._urls]
            environment = {
                **kept,
                "AMQP_URL": amqp.url,
                "DATABASE_URL": database.url,
                "HTTP_HOST": "127.0.0.1",
                "HTTP_PORT": "0",
                "LOG_FORMAT": "json",
                # Short enough that every limit is met within a run.
                "WORKER_AMQP_HEARTBEAT_SECONDS": "2",
                "WORKER_AMQP_CONNECT_TIMEOUT_SECONDS": "4",
                "WORKER_CONFIRM_TIMEOUT_SECONDS": "5",
                "WORKER_DATABASE_CONNECT_TIMEOUT_SECONDS": "4",
                "WORKER_DATABASE_COMMAND_TIMEOUT_SECONDS": "4",
                "WORKER_HOLD_LIMIT_SECONDS": "6",
                "WORKER_REPLY_GIVE_UP_SECONDS": "3",
                "WORKER_DRAIN_LIMIT_SECONDS": f"{DRAIN_LIMIT_SECONDS:g}",
                "WORKER_BATCH_MAX": "50",
                **self._settings,
            }
            name = f"worker-{index}"
            self.workers.append(WorkerProcess(name, environment, amqp, database, self._directory / f"{name}.log"))
        self._tasks = [
            asyncio.create_task(worker.run(self._stop, journal, self.failures, self.exits)) for worker in self.workers
        ]

    async def stop(self) -> None:
        """End all workers in good order."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """End what is left, at once."""
        for task in self._tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks)
        await self._proxies.aclose()
