"""`task-activity-log partitions`: show among how many queues the requests are divided, and change that number."""

import asyncio
from dataclasses import replace

from task_activity_log.cli.exit_codes import DONE, FAILED
from task_activity_log.cli.terminal import counted, say, table
from task_activity_log.problem import Misconfigured, Unavailable
from task_activity_log.rabbitmq.link import OutageKind
from task_activity_log.rabbitmq.repartition import NotEmpty, Partitions, change, declare_missing, look_up, refuse
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.settings import Settings
from task_activity_log.telemetry.logs import address
from task_activity_log.wiring import link_of, topology_of

_OF_THE_URL = (OutageKind.LOGIN_REFUSED, OutageKind.VHOST_REFUSED, OutageKind.NO_SUCH_HOST)
"""Outages that do not pass."""


def show_or_change(settings: Settings, to: int | None, *, yes: bool) -> int:
    """Show the partitions, or change their number; returns the exit code."""
    try:
        return asyncio.run(_show_or_change(settings, to, yes=yes))
    except (NotEmpty, Misconfigured) as error:
        say(str(error))
    except Unavailable as outage:
        advice = "run the same command again"
        if "ACCESS_REFUSED" in outage.reason:
            advice = "use a user with the permissions of a worker (docs/operations.md, Permissions in RabbitMQ)"
        elif any(kind.value in outage.reason for kind in _OF_THE_URL):
            advice = "correct AMQP_URL"
        say(f"broker {address(settings.required_amqp_url)}: {outage.reason}; {advice}")
    return FAILED


async def _show_or_change(settings: Settings, to: int | None, *, yes: bool) -> int:
    options, topology = link_of(settings), topology_of(settings)
    partitions = await look_up(options, topology)
    if to is None:
        _show(partitions, topology)
        return DONE
    wanted = replace(topology, partitions=to)
    if partitions.count == to and partitions.whole:
        if yes and to:
            await declare_missing(options, wanted)
        say(f"the requests are divided among {to} partitions already" if to else "there are no partitions already")
        return DONE
    if not yes:
        print(plan(partitions, wanted), flush=True)  # what follows on standard error belongs below it
        await refuse(options, wanted, partitions)
        return DONE
    await change(options, wanted, say)
    if to:
        print(f"The requests are divided among {to} partitions.", _start(to))
    else:
        print(f"There are no partitions: all requests go to queue {topology.requests_queue}.", _start(to))
    return DONE


_WITHOUT = (
    "without WORKER_PARTITIONS, and with WORKER_SINGLE_ACTIVE_CONSUMER=true because the queue keeps its single active"
    " consumer"
)


def _start(to: int) -> str:
    setting = f"with WORKER_PARTITIONS={to}" if to else _WITHOUT
    return f"Start the workers {setting}, then the publishers."


def _show(partitions: Partitions, topology: Topology) -> None:
    if not partitions.found and not partitions.exchange:
        missing = "" if partitions.requests else ", which does not exist: a worker declares it when it starts"
        print(f"There are no partitions: all requests go to queue {topology.requests_queue}{missing}.")
        return
    if partitions.found:
        table(
            ("queue", "messages", "consumers"),
            ((each.queue, str(each.messages), str(each.consumers)) for each in partitions.found.values()),
        )
    if not partitions.whole:
        missing = "some queues or the exchange are missing"
        if not partitions.found:
            missing = f"exchange {topology.partitions_exchange} exists without queues, so publishers that find it fail"
        say(
            f"{missing}: a change was interrupted; run `task-activity-log partitions --to N --yes` again,"
            " or with --to 0 to remove the partitions"
        )


def plan(partitions: Partitions, wanted: Topology) -> str:
    """What there is, and the steps of the change to `wanted.partitions`: only those that apply."""
    to = wanted.partitions
    now = "an unfinished change" if not partitions.whole else counted(partitions.count or 0, "partition")
    has = f"{counted(partitions.messages, 'message')}, consumers on {counted(partitions.consumed, 'queue')}"
    run = ["Run this command with --yes."]
    if partitions.exchange:
        run.append(f"It deletes exchange {wanted.partitions_exchange}.")
    if partitions.found:
        run.append("It checks again that the queues are empty, and deletes them.")
    if to:
        run.append(f"It declares {to} queues and their exchange.")
    run.append("If it is interrupted, run it again.")
    steps = [" ".join(run)]
    if partitions.found or to:
        publishers = "the publishers that send by record" if partitions.found else "the publishers"
        queues = "the queues" if partitions.found else f"queue {wanted.requests_queue}"
        empty = f"Let the workers empty {queues}, then stop all workers."
        if partitions.requests and not partitions.found:
            condition = f"If it is said below that queue {wanted.requests_queue} has no single active consumer"
            steps.insert(0, f"{condition}, delete the queue once it is empty. It is declared again in the next step.")
        steps = [f"Stop {publishers}.", empty, *steps, _start(to)]
    return "\n".join(
        [
            f"Now: {now}, {has}. To change to {to}:",
            *(f"{number}. {step}" for number, step in enumerate(steps, 1)),
            "Nothing was changed.",
        ]
    )
