"""How long the event loop stands still at most while costly messages are worked on: `python -m benchmarks.loop`.

Against the services that AMQP_URL and DATABASE_URL name, whose queues and tables are emptied; `python -m sandbox -- sh -c
'task-activity-log migrate && python -m benchmarks.loop'` starts some. A worker in this process takes each kind of costly
message from a queue that is full of them. The time between two iterations of its event loop is measured all the while:
what the clock says, and what of that was CPU, which a busy machine does not change. Medians of several rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from uuid import uuid4

import aio_pika
import structlog
import uvloop
from aio_pika.abc import AbstractChannel

from benchmarks import show
from benchmarks.load import TOPOLOGY
from benchmarks.workers import Services, services
from task_activity_log.service import Service
from task_activity_log.settings import load
from tests import hostile
from tests.returned import make_suspicious

_TOGETHER = 50
"""Messages that are published before their confirms are waited for."""
_POLL_SECONDS = 0.1
_LONGEST_SECONDS = 600.0
"""One round ends after this, whatever is left."""


@dataclass
class Stretch:
    """The longest time between two iterations of the event loop."""

    seconds: float = 0.0
    """By the clock."""
    cpu_seconds: float = 0.0
    """Of the loop's thread. Not always of the same stretch."""


@dataclass(frozen=True, slots=True)
class Round:
    """What was seen while a queue was worked off."""

    longest: Stretch
    seconds: float
    """From the first message to the last acknowledgement."""
    lost_connections: float
    left: int
    """Messages that were not worked off in time."""


@contextmanager
def measuring() -> Iterator[Stretch]:
    """Time the iterations of the running loop until the end of the block."""
    loop, longest, going_on = asyncio.get_running_loop(), Stretch(), True
    clock, cpu = time.perf_counter(), time.thread_time()

    def turn() -> None:
        nonlocal clock, cpu
        now, used = time.perf_counter(), time.thread_time()
        longest.seconds = max(longest.seconds, now - clock)
        longest.cpu_seconds = max(longest.cpu_seconds, used - cpu)
        clock, cpu = now, used
        if going_on:
            loop.call_soon(turn)

    loop.call_soon(turn)
    try:
        yield longest
    finally:
        going_on = False


def innocent(reply_to: str | None = None) -> aio_pika.Message:
    """A small request of a record of its own."""
    return aio_pika.Message(b'{"id":"%s"}' % str(uuid4()).encode(), message_id=str(uuid4()), reply_to=reply_to)


def suspects(count: int) -> Iterator[aio_pika.Message]:
    """Ten small requests, `count` of 200 kB, and four times as many small ones."""
    yield from (innocent() for _ in range(10))
    yield from (hostile.text(200_000) for _ in range(count))
    yield from (innocent() for _ in range(4 * count))


def corpus(count: int) -> Mapping[str, Callable[[], Iterable[aio_pika.Message]]]:
    """What is put into the queue for each kind, by name."""

    def each(make: Callable[[], aio_pika.Message], number: int = count) -> Callable[[], Iterator[aio_pika.Message]]:
        return lambda: (make() for _ in range(number))

    return {
        "small requests": each(innocent, 100 * count),
        "long texts": each(lambda: hostile.text(hostile.LIMIT - 100)),
        "header arrays": each(hostile.header_array),
        "many headers": each(hostile.many_headers),
        "XML with references": each(hostile.references),
        "JSON of empty arrays": each(hostile.arrays),
        "XML of escapes": each(hostile.escapes),
        "returned replies": lambda: (innocent(f"gone-{number}") for number in range(25 * count)),
        "long suspects": lambda: suspects(count),
    }


async def fill(channel: AbstractChannel, messages: Iterable[aio_pika.Message]) -> int:
    """Publish; returns how many they were."""
    exchange = await channel.get_exchange(TOPOLOGY.requests_exchange, ensure=False)
    count, batch = 0, []
    for message in messages:
        count += 1
        batch.append(exchange.publish(message, "upsert", mandatory=True))
        if len(batch) == _TOGETHER:
            await asyncio.gather(*batch)
            batch = []
    await asyncio.gather(*batch)
    return count


async def work_off(channel: AbstractChannel) -> Round:
    """Let a worker empty the queue of the requests."""
    service = Service(load({**os.environ, "HTTP_HOST": "127.0.0.1", "HTTP_PORT": "0"}))
    began = time.perf_counter()
    running = asyncio.create_task(service.run())
    with measuring() as longest:
        await service.wait_consuming()
        left = 1
        while left and time.perf_counter() - began < _LONGEST_SECONDS:
            await asyncio.sleep(_POLL_SECONDS)
            queue = await channel.declare_queue(TOPOLOGY.requests_queue, passive=True)
            left = (queue.declaration_result.message_count or 0) + service.in_hand
        took = time.perf_counter() - began
    service.drain()  # it stops the loop for a moment, when nothing is left to do
    await running
    samples = [sample for metric in service.metrics.registry.collect() for sample in metric.samples]
    lost = sum(s.value for s in samples if s.name == "task_activity_log_connections_lost_total")
    return Round(longest, took, lost, left)


async def measure(to: Services, kind: str, messages: Iterable[aio_pika.Message]) -> Round:
    """One round of one kind."""
    await to.empty()
    async with await aio_pika.connect(os.environ["AMQP_URL"]) as connection:
        channel = await connection.channel(on_return_raises=True)
        with show.bar(f"filling the queue: {kind}"):
            count = await fill(channel, messages)
        if kind == "long suspects":
            await make_suspicious(os.environ["AMQP_URL"], 10, count // 5 - 2, 2)
        with show.bar(f"working off {count:,} messages: {kind}"):
            return await work_off(channel)


async def main() -> None:
    """Measure all kinds, or those that were asked for, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"which: {', '.join(corpus(1))} (all)")
    parser.add_argument("--count", type=int, default=200, help="costly messages in the queue (200)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the median counts (3)")
    options = parser.parse_args()
    kinds = corpus(options.count)
    if unknown := set(options.kinds) - set(kinds):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}; there are {', '.join(kinds)}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # as `task-activity-log run` does
    rows = []
    async with services() as to:
        for kind in options.kinds or kinds:
            rounds = [await measure(to, kind, kinds[kind]()) for _ in range(options.rounds)]
            row = (
                kind,
                f"{median(one.longest.seconds for one in rounds) * 1e3:,.0f}",
                f"{median(one.longest.cpu_seconds for one in rounds) * 1e3:,.0f}",
                f"{median(one.seconds for one in rounds):.1f}",
                f"{max(one.lost_connections for one in rounds):.0f}",
                f"{max(one.left for one in rounds):,}",
            )
            show.say(" | ".join(row))
            rows.append(row)
        await to.empty()
    columns = ("messages", "longest, ms", "of CPU, ms", "all, s", "lost connections", "left over")
    show.table("The longest time between two iterations of the event loop", columns, rows)


if __name__ == "__main__":
    uvloop.run(main())
