"""How fast a worker drains a queue of waiting messages, beside the plain aio-pika worker: `make bench`.

Each round fills the requests queue with persistent JSON messages of the sample's shape (half of them updates), starts
one worker process, and takes the time from the first reply to the last, and the CPU time of the process. The workers
take turns; the figures are medians.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from uuid import UUID, uuid4

import aio_pika
import asyncpg

from task_activity_log.broker.link import LinkOptions
from task_activity_log.broker.properties import Properties
from task_activity_log.broker.publisher import Outgoing, Publisher
from task_activity_log.broker.topology import Topology, declare

WORKERS = {
    "task-activity-log": [sys.executable, "-c", "from task_activity_log.cli import main; main()", "run"],
    "plain aio-pika": [sys.executable, "-m", "benchmarks.plain_worker"],
}
TOPOLOGY = Topology()
TICKS = os.sysconf("SC_CLK_TCK")


def body(identifier: UUID) -> bytes:
    """A request of the sample's shape."""
    record = {
        "id": str(identifier),
        "task_id": str(uuid4()),
        "task_activity_id": str(uuid4()),
        "user_id": str(uuid4()),
        "contact_id": str(uuid4()),
        "subject": "sample string 6",
        "description": "sample string 7",
        "due_date": "2026-01-11T20:58:34.7203833+00:00",
        "is_closed": True,
        "date_closed": "2026-01-11T20:58:34.7203833+00:00",
        "reference_back_office": "sample string 11",
        "modified_dateutc": "2026-01-11T20:58:34.7203833+00:00",
    }
    return json.dumps(record).encode()


async def fill(url: str, count: int) -> None:
    """Put `count` requests into the queue; every second one is for an id that was there before."""
    publisher = Publisher(LinkOptions(url), purpose="benchmark")
    running = asyncio.create_task(publisher.run())
    await publisher.wait_connected()
    known = [uuid4() for _ in range(count // 2)]
    identifiers = [known[number // 2] if number % 2 else uuid4() for number in range(count)]
    for start in range(0, count, 500):
        await publisher.publish(
            [
                Outgoing(
                    TOPOLOGY.requests_exchange,
                    "upsert",
                    Properties(
                        content_type="application/json",
                        message_id=str(uuid4()),
                        delivery_mode=2,
                        timestamp=int(time.time()),
                    ),
                    body(identifier),
                )
                for identifier in identifiers[start : start + 500]
            ]
        )
    running.cancel()
    await asyncio.wait({running})


async def drain(command: Sequence[str], url: str, count: int) -> tuple[float, float]:
    """Start a worker and wait for all replies. Returns messages a second and CPU microseconds a message."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(TOPOLOGY.replies_queue)
        await queue.purge()
        process = subprocess.Popen(command, env={**os.environ, "HTTP_PORT": "0", "LOG_LEVEL": "warning"})  # noqa: ASYNC220, S603 - our own worker
        try:
            first = None
            while (done := await _length(channel)) < count:
                if process.poll() is not None:
                    raise SystemExit(f"the worker ended with {process.returncode}")
                if done and first is None:
                    first, before = time.perf_counter(), done
                    cpu_before = _cpu_seconds(process.pid)
                await asyncio.sleep(0.01)
            elapsed = time.perf_counter() - (first or 0)
            cpu = _cpu_seconds(process.pid) - cpu_before
        finally:
            process.terminate()
            process.wait()
        await queue.purge()
        return (count - before) / elapsed, cpu / (count - before) * 1e6


async def _length(channel: aio_pika.abc.AbstractChannel) -> int:
    queue = await channel.declare_queue(TOPOLOGY.replies_queue, passive=True)
    return queue.declaration_result.message_count or 0


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    url = os.environ["AMQP_URL"]
    async with await aio_pika.connect(url) as connection:
        await declare(connection, TOPOLOGY)
    rates: dict[str, list[float]] = {name: [] for name in WORKERS}
    costs: dict[str, list[float]] = {name: [] for name in WORKERS}
    for number in range(arguments.rounds):
        for name, command in WORKERS.items():
            database = await asyncpg.connect(os.environ["DATABASE_URL"])
            await database.execute("TRUNCATE task_activity_log, task_activity_log_inbox")
            await database.close()
            await fill(url, arguments.messages)
            rate, cost = await drain(command, url, arguments.messages)
            rates[name].append(rate)
            costs[name].append(cost)
            print(f"round {number + 1}: {name:20} {rate:8.0f} messages/s {cost:8.0f} µs CPU a message", flush=True)
    print(f"\nmedian of {arguments.rounds} rounds of {arguments.messages} messages")
    for name in WORKERS:
        ratio = median(rates[name]) / median(rates["plain aio-pika"])
        print(f"{name:20} {median(rates[name]):8.0f} messages/s {median(costs[name]):8.0f} µs CPU  {ratio:5.1f} ×")


if __name__ == "__main__":
    asyncio.run(main())
