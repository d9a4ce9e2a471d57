"""Measures how fast, and at what cost, workers process waiting messages: this one, its peers, and several of this one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from statistics import median

from benchmarks import show
from benchmarks.load import PARTITIONED, fill
from benchmarks.workers import OURS, Cost, Services, Worker, measure, ours

Costs = dict[str, list[Cost]]

WITHOUT_ORDER = "without order"


async def in_turn(services: Services, workers: Sequence[Worker], *, waiting: int, rounds: int, seconds: float) -> Costs:
    """Measure the workers in turn. In each round each worker drains a queue of `waiting` messages."""
    costs: Costs = {worker.name: [] for worker in workers}
    for number in range(rounds):
        # Every second round runs in reverse order, so that slow changes of the machine affect all workers alike.
        for worker in workers if number % 2 == 0 else reversed(workers):
            costs[worker.name].append(await once(services, worker, waiting=waiting, seconds=seconds))
    return costs


async def several(services: Services, *, waiting: int, rounds: int, seconds: float) -> Costs:
    """Measure one, two and four processes of this worker on one queue."""
    costs: Costs = {f"{number} × {OURS}": [] for number in (1, 2, 4)}
    for _ in range(rounds):
        for number, some in zip((1, 2, 4), costs.values(), strict=True):
            some.append(await once(services, ours(), waiting=waiting, seconds=seconds, processes=number))
    return costs


async def partitioned(services: Services, *, waiting: int, rounds: int, seconds: float) -> Costs:
    """Measure four processes on one queue, where order is not kept, and four on eight partitions, in turn."""
    await services.declare(PARTITIONED)
    in_order = ours(
        "on 8 partitions",
        WORKER_PARTITIONS=str(PARTITIONED.partitions),
        WORKER_REQUESTS_QUEUE=PARTITIONED.requests_queue,
        WORKER_REQUESTS_EXCHANGE=PARTITIONED.requests_exchange,
    )
    workers = [ours(WITHOUT_ORDER), in_order]
    costs: Costs = {worker.name: [] for worker in workers}
    for number in range(rounds):
        for worker in workers if number % 2 == 0 else reversed(workers):
            by_record = worker is in_order
            cost = await once(services, worker, waiting=waiting, seconds=seconds, processes=4, by_record=by_record)
            costs[worker.name].append(cost)
    return costs


async def once(
    services: Services,
    worker: Worker,
    *,
    waiting: int,
    seconds: float,
    processes: int = 1,
    rows: int | None = None,
    by_record: bool = False,
) -> Cost:
    """Fill the queue and drain it once. The tables are emptied first, unless `rows` is set: then updates are of them."""
    await services.empty(tables=rows is None)
    name = worker.name if processes == 1 else f"{processes} × {worker.name}"
    with show.bar(f"filling the queue with {waiting:,} messages") as progress:
        await fill(os.environ["AMQP_URL"], waiting, progress, rows=rows or 0, by_record=by_record)
    with show.bar(f"{name} drains {waiting:,} messages") as progress:
        cost = await measure(services, worker, waiting, seconds=seconds, processes=processes, progress=progress)
    show.say(
        f"{name:24} {cost.rate:7.0f} messages/s; CPU µs/message: {cost.worker_us:5.0f} worker,"
        f" {cost.broker_us:4.0f} broker, {cost.database_us:4.0f} database; {cost.memory_bytes / 2**20:4.0f} MiB"
    )
    return cost


def summary(costs: Costs) -> dict[str, dict[str, float]]:
    """The medians of all rounds, by worker."""
    return {
        name: {
            "messages_per_second": median(cost.rate for cost in some),
            "worker_cpu_us": median(cost.worker_us for cost in some),
            "broker_cpu_us": median(cost.broker_us for cost in some),
            "database_cpu_us": median(cost.database_us for cost in some),
            "memory_mib": median(cost.memory_bytes / 2**20 for cost in some),
        }
        for name, some in costs.items()
    }


def table(title: str, costs: Costs, *, baseline: str) -> dict[str, dict[str, float]]:
    """Print the medians and compare each worker with the one named `baseline`: its speed and its CPU. Return the medians."""
    medians = summary(costs)
    first = medians[baseline]
    show.table(
        f"{title} (µs: CPU time a message)",
        ("", "messages/s", f"{baseline} is", "worker µs", f"{baseline} needs", "broker µs", "database µs", "MiB"),
        [
            (
                name,
                f"{some['messages_per_second']:,.0f}",
                f"{first['messages_per_second'] / some['messages_per_second']:.1f} ×",
                f"{some['worker_cpu_us']:,.0f}",
                f"1/{some['worker_cpu_us'] / first['worker_cpu_us']:.1f}",
                f"{some['broker_cpu_us']:,.0f}",
                f"{some['database_cpu_us']:,.0f}",
                f"{some['memory_mib']:.0f}",
            )
            for name, some in medians.items()
        ],
    )
    return medians
