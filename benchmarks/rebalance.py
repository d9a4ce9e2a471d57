"""How fast real workers share the partitions of a real broker after each change, and what it costs.

`python -m benchmarks.rebalance` starts a private RabbitMQ and PostgreSQL (`SANDBOX` chooses how), publishes by record all
the time, and reads /status and /metrics of the workers ten times a second. A change is over when each worker is active on its
share of the partitions and each partition is one worker's. That must last for three seconds, which do not count.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from statistics import median
from urllib.request import urlopen

import sandbox
from benchmarks.load import keep_publishing
from benchmarks.workers import ours
from sandbox.service import free_port
from task_activity_log.postgresql import migrations

_STEADY_SECONDS, _LIMIT_SECONDS = 3.0, 180.0
Figures = tuple[float, float, float, float]  # in the order of the columns that `main` prints


def counted(address: str, metric: str) -> float:
    """The sum of a metric; 0 if nobody answers."""
    with suppress(OSError), urlopen(f"http://{address}/metrics", timeout=5) as answer:
        return sum(map(float, re.findall(rf"^{metric}(?:{{.*}})? (\S+)", answer.read().decode(), re.MULTILINE)))
    return 0.0


class Worker:
    """One process."""

    hand_overs = 0.0

    def __init__(self, environment: dict[str, str]) -> None:
        """Start it."""
        port = free_port()
        self._address = f"127.0.0.1:{port}"
        variables = {**os.environ, **environment, "HTTP_PORT": str(port), "HTTP_HOST": "127.0.0.1"}
        self.process = subprocess.Popen([sys.executable, *ours().command], env=variables, stderr=subprocess.DEVNULL)

    def look(self) -> tuple[list[int], int]:
        """The partitions that it is active on, and how many workers it knows of. Also notes its hand-overs."""
        self.hand_overs = max(self.hand_overs, counted(self._address, "task_activity_log_hand_overs_total"))
        with suppress(OSError), urlopen(f"http://{self._address}/status", timeout=5) as answer:
            partitions = json.load(answer)["partitions"]
            return partitions["active"], partitions["workers"]
        return [], 0


class Group:
    """All workers, and their services."""

    def __init__(self, services: sandbox.Sandbox, partitions: int) -> None:
        """Start nothing yet."""
        self._broker, self._partitions = services.rabbitmq, partitions
        self._environment = {**services.environment, "WORKER_PARTITIONS": str(partitions), "LOG_FORMAT": "json"}
        self._running: list[Worker] = []
        self._ended: list[Worker] = []

    def _start(self, count: int) -> None:
        self._running += [Worker(self._environment) for _ in range(count)]

    def _end(self, count: int, number: signal.Signals = signal.SIGTERM) -> None:
        for worker in self._running[:count]:
            worker.process.send_signal(number)
        self._ended += self._running[:count]
        del self._running[:count]

    def _counts(self) -> tuple[float, float]:
        """Hand-overs so far, and deliveries since the broker's start that were not the first of their message."""
        again = counted(self._broker.metrics_address or "", "rabbitmq_global_messages_redelivered_total")
        return sum(each.hand_overs for each in self._running + self._ended), again

    def _balanced(self) -> tuple[float, float]:
        """Wait for the balance; when it began, and when each worker first knew how many there are (`time.monotonic`)."""
        count = len(self._running)
        smallest, largest = self._partitions // count, -(-self._partitions // count)
        limit, since, known = time.monotonic() + _LIMIT_SECONDS, 0.0, 0.0
        while not since or time.monotonic() < since + _STEADY_SECONDS:
            time.sleep(0.1)
            looks = [worker.look() for worker in self._running]
            known = known or time.monotonic() * all(workers == count for _, workers in looks)
            good = sorted(chain(*(active for active, _ in looks))) == list(range(self._partitions))
            good = good and all(smallest <= len(active) <= largest for active, _ in looks)
            since = (since or time.monotonic()) if good else 0.0
            if time.monotonic() > limit:
                raise SystemExit(f"no balance after {_LIMIT_SECONDS:.0f} s: {looks}")
        return since, known or since

    def _measure(self, change: Callable[[], None]) -> Figures:
        (hand_overs, again), began = self._counts(), time.monotonic()
        change()
        if change == self._broker.restart:
            again, began = 0.0, time.monotonic()  # the broker answers again, and counts from 0
        balanced, known = self._balanced()
        now = self._counts()
        return balanced - began, max(0, balanced - known), now[0] - hand_overs, now[1] - again

    def round(self) -> dict[str, Figures]:
        """Measure all changes, one after the other."""
        changes: dict[str, Callable[[], None]] = {
            "the first one starts": lambda: self._start(1),
            "three more start": lambda: self._start(3),
            "one more starts": lambda: self._start(1),
            "the broker restarts": self._broker.restart,
            "SIGTERM to one of 5": lambda: self._end(1),
            "`kill -9` of one of 4": lambda: self._end(1, signal.SIGKILL),
            "SIGTERM to 2 of 3": lambda: self._end(2),
            "from 1 to 5": lambda: self._start(4),
            "from 5 to 1": lambda: self._end(4),
        }
        measured = {name: self._measure(change) for name, change in changes.items()}
        self._end(len(self._running))
        _ = [worker.process.wait() for worker in self._ended]
        return measured


async def main() -> None:
    """Measure all changes as often as asked for, and print the rows of a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each change is measured (3)")
    parser.add_argument("--partitions", type=int, default=8, help="among how many queues the records are divided (8)")
    parser.add_argument("--rate", type=int, default=400, help="messages published a second (400)")
    chosen = parser.parse_args()
    with sandbox.start() as services:
        await asyncio.to_thread(migrations.migrate, services.postgresql.url)
        publisher = asyncio.create_task(keep_publishing(services.rabbitmq.url, chosen.rate))
        group = Group(services, chosen.partitions)
        rounds = [await asyncio.to_thread(group.round) for _ in range(chosen.rounds)]
        publisher.cancel()
        print(f"RabbitMQ {services.rabbitmq.version}: seconds (slowest), since known, hand-overs, again")
        for change in rounds[0]:
            seconds, known, hand_overs, again = zip(*(each[change] for each in rounds), strict=True)
            times = f"{median(seconds):.1f} ({max(seconds):.1f}) | {median(known):.1f} ({max(known):.1f})"
            print(f"| {change} | {times} | {median(hand_overs):.0f} | {median(again):.0f} |")


if __name__ == "__main__":
    asyncio.run(main())
