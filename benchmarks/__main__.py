"""`python -m benchmarks`: measures the worker and its peers, with the services in AMQP_URL and DATABASE_URL.

`make bench` provides services from the sandbox. Without arguments it runs all scenarios. Unless the run is a quick
one, it writes the raw figures to benchmarks/results.json and the chart to docs/performance.svg.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import chart, drain, growth, latency, limits, publishing, show
from benchmarks.workers import (
    GO_INBOX,
    OURS,
    WORKERS_STATEMENT,
    Services,
    Worker,
    go_batch,
    has_go,
    ours,
    peers,
    plain,
    services,
    version,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
CHART = ROOT / "docs" / "performance.svg"


def arguments() -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the worker and its peers in turn."
    )
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help=f"any of {', '.join(SCENARIOS)} (default: all of them)"
    )
    parser.add_argument("--quick", action="store_true", help="only drain, latency and publish, in one short round")
    parser.add_argument("--messages", type=int, default=20_000, help="messages to drain (20,000)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds; results are medians (3)")
    parser.add_argument("--seconds", type=float, default=15.0, help="time limit of one drain; a run of latency (15)")
    parser.add_argument("--waiting", type=int, default=1_000_000, help="backlog: messages in the queue (1,000,000)")
    parser.add_argument("--backlog-seconds", type=float, default=300.0, help="backlog: time limit of the drain (300)")
    parser.add_argument("--rows", type=int, default=10_000_000, help="table: rows in the big table (10,000,000)")
    parser.add_argument("--keys", type=int, default=50_000_000, help="inbox: keys in the big inbox (50,000,000)")
    parser.add_argument("--memory-seconds", type=float, default=600.0, help="memory: length of the run (600)")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="NAME=SRC",
        help="also measure the worker of another checkout's src/ directory, in drain, batch, journal and latency",
    )
    parser.add_argument(
        "--preferred",
        action="store_true",
        help="give what is measured precedence over all other programs of this machine (Linux with control groups, as root)",
    )
    parser.add_argument(
        "--python",
        default=sys.executable,
        metavar="PATH",
        help="the Python of the workers that are written in Python, this one and its peers; it must have the packages in"
        " requirements-dev.lock (default: the one that runs the benchmarks)",
    )
    parser.add_argument(
        "--against-python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="also measure this worker in another Python, in the same ones",
    )
    parser.add_argument("--only", metavar="TEXT", help="drain: only the peers with this in their names")
    chosen = parser.parse_args()
    unknown = set(chosen.scenarios) - set(SCENARIOS)
    if unknown:
        parser.error(f"unknown scenario: {', '.join(sorted(unknown))}; choose from {', '.join(SCENARIOS)}")
    if chosen.quick:
        chosen.rounds, chosen.messages, chosen.seconds = 1, 10_000, 4.0
        chosen.scenarios = chosen.scenarios or ["drain", "latency", "publish"]
    return chosen


async def drain_(to: Services, options: argparse.Namespace) -> object:
    """This worker and its peers process waiting messages."""
    others, left_out = peers()
    if options.only is not None:
        others = [peer for peer in others if options.only in peer.name]
    for name, why in left_out.items():
        show.say(f"{name} is not measured: {why}")
    costs = await drain.in_turn(
        to,
        [ours(), *_against(options), *others],
        waiting=options.messages,
        rounds=options.rounds,
        seconds=options.seconds,
    )
    medians = drain.table(f"Drain of {options.messages:,} waiting messages", costs, baseline=OURS)
    return {"medians": medians, "left_out": left_out, "rounds": _raw(costs)}


def _against(options: argparse.Namespace) -> list[Worker]:
    """This worker, of other checkouts and in other Pythons."""
    sources = (each.partition("=") for each in options.against)
    pythons = (each.partition("=") for each in options.against_python)
    return [
        *(ours(name, PYTHONPATH=path) for name, _, path in sources),
        *(ours(name, python=path) for name, _, path in pythons),
    ]


async def batch(to: Services, options: argparse.Namespace) -> object:
    """Different batch sizes, each with a prefetch of four batches."""
    sizes = [ours(f"batch_max {size}", WORKER_BATCH_MAX=str(size)) for size in (100, 250, 500, 1000, 2000)]
    costs = await drain.in_turn(
        to, [*sizes, *_against(options)], waiting=options.messages, rounds=options.rounds, seconds=options.seconds
    )
    return {"medians": drain.table("Batch sizes", costs, baseline="batch_max 500"), "rounds": _raw(costs)}


async def scale(to: Services, options: argparse.Namespace) -> object:
    """Several workers on one queue."""
    costs = await drain.several(to, waiting=options.messages * 2, rounds=options.rounds, seconds=options.seconds)
    return {"medians": drain.table("Several workers", costs, baseline=f"1 × {OURS}"), "rounds": _raw(costs)}


async def partitions(to: Services, options: argparse.Namespace) -> object:
    """Four workers with order for each record, and four without."""
    costs = await drain.partitioned(
        to, waiting=options.messages * 4, rounds=options.rounds, seconds=4 * options.seconds
    )
    return {"medians": drain.table("Four workers", costs, baseline=drain.WITHOUT_ORDER), "rounds": _raw(costs)}


async def latency_(to: Services, options: argparse.Namespace) -> object:
    """Time from publish to reply."""
    rates = (100,) if options.quick else (100, 1000, 5000)
    seconds = min(options.seconds, 5.0) if options.quick else options.seconds
    workers = [ours(), *_against(options), plain()]
    if has_go():
        workers.append(go_batch(GO_INBOX, UPSERT=WORKERS_STATEMENT))
    return await latency.in_turn(to, workers, rates=rates, rounds=options.rounds, seconds=seconds)


async def publish(to: Services, options: argparse.Namespace) -> object:
    """Publishing with publisher confirms, and with answers."""
    return await publishing.compare(to, messages=options.messages, rounds=options.rounds, seconds=options.seconds)


async def backlog(to: Services, options: argparse.Namespace) -> object:
    """A long queue."""
    costs = await growth.backlog(to, waiting=options.waiting, rounds=options.rounds, seconds=options.backlog_seconds)
    return {"medians": drain.table("A long queue", costs, baseline=next(iter(costs))), "rounds": _raw(costs)}


async def table(to: Services, options: argparse.Namespace) -> object:
    """A big table."""
    costs = await growth.table(
        to, rows=options.rows, waiting=options.messages, rounds=options.rounds, seconds=options.seconds
    )
    return {"medians": drain.table("A big table", costs, baseline="empty table"), "rounds": _raw(costs)}


async def inbox(to: Services, options: argparse.Namespace) -> object:
    """A big inbox."""
    costs = await growth.inbox(
        to, keys=options.keys, waiting=options.messages, rounds=options.rounds, seconds=options.seconds
    )
    return {"medians": drain.table("A big inbox", costs, baseline="empty inbox"), "rounds": _raw(costs)}


async def database(to: Services, options: argparse.Namespace) -> object:
    """Different settings of PostgreSQL, and different fillfactors."""
    costs = await growth.database(
        to, rows=options.rows // 50, waiting=options.messages, rounds=options.rounds, seconds=options.seconds
    )
    return {"medians": drain.table("PostgreSQL settings", costs, baseline="as shipped"), "rounds": _raw(costs)}


async def journal(to: Services, options: argparse.Namespace) -> object:
    """With and without the journal, and the space that it takes."""
    journaling = ours("with the journal", WORKER_JOURNAL="true")
    rounds, seconds = options.rounds, options.seconds
    costs = await drain.in_turn(
        to, [ours(), journaling, *_against(options)], waiting=options.messages, rounds=rounds, seconds=seconds
    )
    medians = drain.table("The journal", costs, baseline=OURS)
    await drain.once(to, journaling, waiting=options.messages, seconds=seconds)
    query = "SELECT count(*), pg_table_size(oid), pg_indexes_size(oid) FROM {0}, pg_class WHERE relname = '{0}' GROUP BY oid"
    found = await to.database.fetchrow(query.format("task_activity_log_journal"))
    assert found is not None  # noqa: S101 - there are rows, because a worker has just written them
    rows, table, indexes = found
    show.say(
        f"the journal takes {table / rows:.0f} bytes a message, and its indexes {indexes / rows:.0f}, of {rows:,} messages"
    )
    return {"medians": medians, "bytes": {"table": table / rows, "indexes": indexes / rows}, "rounds": _raw(costs)}


async def memory(to: Services, options: argparse.Namespace) -> object:
    """The worker's memory during a long run."""
    return await growth.memory(to, seconds=options.memory_seconds)


async def limits_(to: Services, options: argparse.Namespace) -> object:
    """Broker and database alone."""
    return await limits.measure(to, messages=options.messages, rounds=options.rounds, seconds=options.seconds)


SCENARIOS: dict[str, Callable[[Services, argparse.Namespace], Awaitable[object]]] = {
    "drain": drain_,
    "latency": latency_,
    "publish": publish,
    "scale": scale,
    "partitions": partitions,
    "batch": batch,
    "backlog": backlog,
    "table": table,
    "database": database,
    "memory": memory,
    "inbox": inbox,
    "journal": journal,
    "limits": limits_,
}


def _raw(costs: drain.Costs) -> dict[str, list[dict[str, float]]]:
    return {name: [asdict(cost) for cost in some] for name, some in costs.items()}


async def main() -> None:
    """Run the scenarios, and save the figures of each one as soon as it is finished."""
    options = arguments()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    python = version(options.python)
    show.say(f"workers that are written in Python run in {python}")
    for name, _, path in (each.partition("=") for each in options.against_python):
        show.say(f"{name} is Python {version(path)}")
    async with services() as to:
        to.preferred, to.python = options.preferred, options.python
        to.prefer([])
        for name in options.scenarios or SCENARIOS:
            show.say(f"\n{name}: {(SCENARIOS[name].__doc__ or '').lower()}")
            known[name] = {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
                "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {python}",
                "figures": await SCENARIOS[name](to, options),
            }
            if not options.quick:
                RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        await to.empty()
    if not options.quick and "drain" in known:
        medians = known["drain"]["figures"]["medians"]
        chart.write(
            CHART,
            "Drain of waiting messages",
            {
                "Messages per second (more is better)": {
                    name: some["messages_per_second"] for name, some in medians.items()
                },
                "CPU of the worker, µs per message (less is better)": {
                    name: some["worker_cpu_us"] for name, some in medians.items()
                },
            },
        )


if __name__ == "__main__":
    asyncio.run(main())
