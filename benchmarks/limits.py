"""Measures broker and database alone, each on the same messages: what they take, whatever the worker does.

The broker: the Go peer takes the messages, publishes replies of the same size, and acknowledges, without a database. The
database: the worker's own statement, one batch after the other, with parameters that were prepared before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from statistics import median
from typing import TypedDict

from benchmarks import show
from benchmarks.drain import once
from benchmarks.load import properties_of, requests
from benchmarks.workers import NO_GO, WORKERS_STATEMENT, Services, go_batch, has_go
from task_activity_log.message import Delivery
from task_activity_log.pipeline.request import Rules, UpdateMode, decode
from task_activity_log.postgresql import writing

BATCH = 500


class Alone(TypedDict):
    """What one of the two does by itself: messages a second, and its CPU in microseconds a message."""

    messages_per_second: float
    cpu_us: float


async def measure(services: Services, *, messages: int, rounds: int, seconds: float) -> dict[str, object]:
    """Measure both in turn, and print the limits that follow."""
    if not has_go():
        raise SystemExit(f"the broker cannot be measured alone: {NO_GO}")
    rounds_of: dict[str, list[Alone]] = {"broker": [], "database": []}
    for _ in range(rounds):
        cost = await once(
            services, go_batch("the broker alone", WITHOUT_DATABASE="1"), waiting=messages, seconds=seconds
        )
        rounds_of["broker"].append({"messages_per_second": cost.rate, "cpu_us": cost.broker_us})
        rounds_of["database"].append(await _database(services, messages))
    rates = {name: median(one["messages_per_second"] for one in some) for name, some in rounds_of.items()}
    cpu = {name: median(one["cpu_us"] for one in some) for name, some in rounds_of.items()}
    cores = os.cpu_count() or 1
    limits = {
        "one after the other": 1 / sum(1 / rate for rate in rates.values()),
        "all cores busy, and a worker that needs nothing": cores * 1e6 / sum(cpu.values()),
    }
    show.table(
        "Broker and database alone",
        ("", "messages/s", "CPU µs a message"),
        [(name, f"{rates[name]:,.0f}", f"{cpu[name]:.0f}") for name in rates]
        + [(name, f"{limit:,.0f}", "") for name, limit in limits.items()],
    )
    return {"rounds": rounds_of, "limits": limits}


async def _database(services: Services, messages: int) -> Alone:
    """Store these messages without a broker."""
    await services.empty()
    prepared = list(_batches(messages))
    statement = await services.database.prepare(WORKERS_STATEMENT)
    began, cpu_at = time.perf_counter(), services.cpu()[1]
    for arguments in prepared:
        await statement.fetch(*arguments)
    took = time.perf_counter() - began
    cpu = services.cpu()[1] - cpu_at
    show.say(f"{'the database alone':24} {messages / took:7.0f} messages/s; CPU µs/message: {cpu / messages * 1e6:.0f}")
    return {"messages_per_second": messages / took, "cpu_us": cpu / messages * 1e6}


def _batches(messages: int) -> Iterator[list[object]]:
    """The parameters of the statement for each batch."""
    rules = Rules()
    decoded = [decode(Delivery(each.body, properties_of(each)), rules) for each in requests(messages)]
    for start in range(0, messages, BATCH):
        yield writing.arguments(decoded[start : start + BATCH], UpdateMode.REPLACE, 1.0)
