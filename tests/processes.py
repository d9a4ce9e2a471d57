"""Workers as processes of their own, which a test may signal and kill. Their logs go to files: a pipe could fill up."""

import asyncio
import json
import re
import signal
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from tests.commands import COMMAND, environment

_POLL_SECONDS = 0.02
_IN_HAND = re.compile(r"^task_activity_log_in_hand (\S+)$", re.MULTILINE)


class WorkerProcess:
    """One `task-activity-log run`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    def events(self, name: str) -> list[dict[str, Any]]:
        """Everything it has logged so far under this name, in order."""
        lines = self._log.read_text(encoding="utf-8").split("\n")[:-1]  # the last one may not be whole yet
        return [event for line in lines if (event := json.loads(line))["event"] == name]

    async def logged(self, name: str, **fields: object) -> dict[str, Any]:
        """Wait until it has logged an event of this name with these fields."""
        async with asyncio.timeout(60):
            while True:
                for event in self.events(name):
                    if fields.items() <= event.items():
                        return event
                assert self._process.returncode is None, self._log.read_text(encoding="utf-8")
                await asyncio.sleep(_POLL_SECONDS)

    async def in_hand(self) -> int:
        """How many deliveries it has not settled, by its metrics."""
        port = (await self.logged("started"))["http_port"]
        found = _IN_HAND.search(await asyncio.to_thread(_fetch, f"http://127.0.0.1:{port}/metrics"))
        assert found is not None
        return int(float(found[1]))

    async def end(self, number: signal.Signals) -> int:
        """Send it a signal and wait for its end; its exit code."""
        if self._process.returncode is None:
            self._process.send_signal(number)
        async with asyncio.timeout(60):
            return await self._process.wait()


class Fleet:
    """Workers of the same settings."""

    def __init__(self, folder: Path, stack: AsyncExitStack, variables: dict[str, str]) -> None:
        self._folder = folder
        self._stack = stack
        self._variables = variables
        self._numbers = count()
        self.workers: list[WorkerProcess] = []
        """Those that were not ended with `end`."""

    async def start(self) -> WorkerProcess:
        """Start one more, and wait until it has registered its consumer."""
        log = self._folder / f"worker-{next(self._numbers)}.log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                COMMAND, "run", env=environment(**self._variables), stderr=stderr
            )
        worker = WorkerProcess(process, log)
        self._stack.push_async_callback(worker.end, signal.SIGKILL)
        self.workers.append(worker)
        await worker.logged("broker_connected", link="intake")
        return worker

    async def active(self) -> WorkerProcess:
        """The one that has deliveries in hand: of a queue with a single active consumer at most one has."""
        async with asyncio.timeout(60):
            while True:
                for worker in self.workers:
                    if await worker.in_hand():
                        return worker
                await asyncio.sleep(_POLL_SECONDS)

    async def in_hand(self) -> int:
        """How many deliveries all of them have not settled."""
        return sum([await worker.in_hand() for worker in self.workers])

    async def end(self, worker: WorkerProcess, number: signal.Signals = signal.SIGTERM) -> int:
        """End one; its exit code."""
        self.workers.remove(worker)
        return await worker.end(number)

    async def end_all(self) -> list[int]:
        """End all that are left with SIGTERM; their exit codes."""
        return [await self.end(worker) for worker in list(self.workers)]


@asynccontextmanager
async def fleet(folder: Path, amqp_url: str, database_url: str, **variables: str) -> AsyncIterator[Fleet]:
    """A fleet without workers yet; those that are left are killed at the end.

    Args:
        folder: where the logs go.
        amqp_url: the broker of all.
        database_url: the database of all.
        variables: settings of all, by the names of their environment variables.
    """
    async with AsyncExitStack() as stack:
        yield Fleet(folder, stack, {"AMQP_URL": amqp_url, "DATABASE_URL": database_url, **variables})


def _fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - our own port
        return str(response.read().decode())
