"""`task-activity-log check`: is everything in place that a worker needs, and is it safe? It changes nothing.

finding       one line of the table
broker        RabbitMQ, as AMQP and the management API show it
limits        the limits of its queues, by arguments and policies
partitions    their number, their consumers, and the bindings of the hash slots
members       the leaders and majorities of its queues
permissions   what the worker's user needs, and what it has
certificates  the certificates in files: how long they are valid
database      PostgreSQL: server, schema, privileges
worker        the worker with the same settings, as its /status shows it
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

from task_activity_log.aio import in_thread
from task_activity_log.cli.check import broker, certificates, database, worker
from task_activity_log.cli.check.finding import Finding, Verdict
from task_activity_log.cli.settings_list import misspelled
from task_activity_log.cli.terminal import counted
from task_activity_log.settings import Settings
from task_activity_log.streams import going_on_without_reader, has_colours, one_line, trusted
from task_activity_log.telemetry.logs import Redaction
from task_activity_log.wiring import secrets_of


def check(settings: Settings, *, strict: bool) -> int:
    """Check everything, print the table, and return the exit code: 1 if something is broken, otherwise 0.

    With `strict`, also 1 for a warning.
    """
    found = asyncio.run(findings(settings))
    redaction = Redaction(secrets_of(settings))
    with going_on_without_reader():
        for line in table(found):
            print(_coloured(redaction.text(line)), file=trusted(sys.stdout))
        sys.stdout.flush()
    bad: set[Verdict] = {"broken", "warning"} if strict else {"broken"}
    return int(any(finding.verdict in bad for finding in found))


_COLOURS = {"fine": "32", "unknown": "33", "warning": "33", "broken": "31"}


def _coloured(line: str) -> str:
    """The line, on a terminal with its verdict in colour."""
    verdict = line.partition(" ")[0]
    if verdict not in _COLOURS or not has_colours(sys.stdout):
        return line
    return f"\033[{_COLOURS[verdict]}m{verdict}\033[0m{line[len(verdict) :]}"


def table(findings: Sequence[Finding]) -> Iterator[str]:
    """The findings in columns, each with its advice below it, and a line that sums them up.

    Each is on one line, whatever the broker, the database or a worker has told.
    """
    width = max(len(one_line(finding.what)) for finding in findings)
    for finding in findings:
        yield f"{finding.verdict:<8} {one_line(finding.what):<{width}}  {one_line(finding.found)}"
        if finding.advice:
            yield f"{'':<8} {'':<{width}}  → {one_line(finding.advice)}"
    counts = Counter(finding.verdict for finding in findings)
    bad = [f"{counts['broken']} broken"] if counts["broken"] else []
    bad += [counted(counts["warning"], "warning")] if counts["warning"] else []
    bad += [f"{counts['unknown']} unknown"] if counts["unknown"] else []
    yield ", ".join(bad) or "all fine"


async def findings(settings: Settings, *, patient: bool = True, as_worker: bool = True) -> list[Finding]:
    """What is found, the broker first.

    Args:
        settings: the environment.
        patient: whether to wait some seconds for the figures of queues that are new.
        as_worker: whether the user and the role are those of the workers. Otherwise what they lack is no fault.
    """
    of_database, of_broker, of_worker = await asyncio.gather(
        database.findings(settings, as_worker=as_worker),
        broker.findings(settings, patient=patient, as_worker=as_worker),
        in_thread(partial(worker.findings, settings)),
    )
    odd = [
        Finding("warning", name, "is set, and is not a setting", f"did you mean {meant}?")
        for name, meant in misspelled().items()
    ]
    return [*of_broker, *of_database, *certificates.findings(settings), *of_worker, *odd]
