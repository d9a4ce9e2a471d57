"""Run workers under random faults, on private services, and account for every message.

The exit code is 1 if a message is not accounted for.
"""

from __future__ import annotations

import argparse
import secrets
import sys

from sandbox import SandboxError, close, cluster, in_background, say_on_stderr
from sandbox.choice import POSTGRESQL, RABBITMQ, Choice, ways
from sandbox.replication import Pair
from tests.chaos.askers import LARGEST_MESSAGE
from tests.chaos.plan import HOSTILE, Journal, Plan
from tests.chaos.run import Result, run


def main() -> int:
    """Parse the arguments, start the services, run, and print the account."""
    plan = _plan()
    if plan.cluster:
        return _on_cluster(plan)
    broker = in_background(lambda: Choice(RABBITMQ, ways(private=True)).start(say_on_stderr, durable=True))
    database = in_background(lambda: Choice(POSTGRESQL, ways(private=True)).start(say_on_stderr, durable=True))
    try:
        services = broker.result(), database.result()
    except SandboxError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    try:
        result = run(plan, *services, Journal())
    finally:
        close(*services)
    print(report(plan, result))
    return 1 if result.failures else 0


def _on_cluster(plan: Plan) -> int:
    """As `main`, with three nodes and a database that fails over."""
    database = in_background(Pair)
    try:
        with cluster.start(say=say_on_stderr, configuration=[f"max_message_size = {LARGEST_MESSAGE}"]) as broker:
            result = run(plan, broker, database.result(), Journal())
    except SandboxError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    finally:
        if database.exception() is None:
            database.result().close()
    print(report(plan, result))
    return 1 if result.failures else 0


def report(plan: Plan, result: Result) -> str:
    """The result as text: the faults, the counts, and every failure."""
    faults = result.journal.faults
    lines = [
        plan.command(),
        f"{sum(faults.values())} faults: " + ", ".join(f"{count} {kind}" for kind, count in faults.most_common()),
        *(f"{count:8} {name}" for name, count in result.figures.items()),
    ]
    if result.failures:
        lines += [
            f"FAILED with {len(result.failures)} failures (seed {plan.seed}); the workers' logs are in {result.directory}",
            *result.failures[:100],
            "Timeline:",
            *result.journal.lines,
        ]
    else:
        lines.append("PASSED: every message is accounted for")
    return "\n".join(lines)


def _plan() -> Plan:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long faults are injected (60)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10_000), help="seed of an earlier run (random)")
    parser.add_argument(
        "--workers", type=int, default=0, help="number of workers (2, but 1 with --order alone, 4 with --partitions)"
    )
    parser.add_argument("--rate", type=float, default=60, help="messages published a second (60)")
    parser.add_argument("--gap", type=float, default=2.5, help="mean seconds between two faults (2.5)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--versions", action="store_true", help="requests have versions; the newest must win (default)")
    what.add_argument("--order", action="store_true", help="requests have no versions; their order must be kept")
    parser.add_argument(
        "--single-active",
        action="store_true",
        help="single active consumer; with --order, also half-open connections, and with two workers hand-overs",
    )
    parser.add_argument(
        "--partitions",
        type=int,
        default=0,
        help="divide the requests among this number of queues; half of the publishers send by record; workers stop and start",
    )
    parser.add_argument(
        "--pgbouncer", action="store_true", help="put pgbouncer in transaction mode before the database"
    )
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="three nodes of RabbitMQ, and a PostgreSQL primary with a synchronous standby (needs PostgreSQL's binaries)",
    )
    parser.add_argument(
        "--hostile",
        type=_kinds,
        default=HOSTILE,
        metavar="KINDS",
        help=f"what is hostile, separated by commas: {', '.join(HOSTILE)} (all), or none",
    )
    parser.add_argument(
        "--no-outages",
        action="store_true",
        help="no faults but the hostile ones; everybody else must be answered within five seconds",
    )
    given = parser.parse_args()
    return Plan(
        seconds=given.seconds,
        seed=given.seed,
        workers=given.workers or (4 if given.partitions else 1 if given.order and not given.single_active else 2),
        versions=not given.order,
        hostile=given.hostile,
        outages=not given.no_outages,
        single_active=given.single_active,
        partitions=given.partitions,
        pgbouncer=given.pgbouncer,
        cluster=given.cluster,
        rate=given.rate,
        gap_seconds=given.gap,
    )


def _kinds(text: str) -> tuple[str, ...]:
    named = set(text.split(",")) - {"none"}
    if unknown := named - set(HOSTILE):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return tuple(kind for kind in HOSTILE if kind in named)


if __name__ == "__main__":
    sys.exit(main())
