"""`task-activity-log partitions`: show among how many queues the requests are divided, and change that number."""

import asyncio
from dataclasses import replace

from task_activity_log.cli.exit_codes import DONE, FAILED
from task_activity_log.cli.terminal import say, table
from task_activity_log.problem import Misconfigured, Unavailable
from task_activity_log.rabbitmq.repartition import NotEmpty, Partitions, change, look_up
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.settings import Settings
from task_activity_log.telemetry.logs import address
from task_activity_log.wiring import link_of, topology_of


def show_or_change(settings: Settings, to: int | None, *, yes: bool) -> int:
    """Show the partitions, or change their number; returns the exit code."""
    try:
        return asyncio.run(_show_or_change(settings, to, yes=yes))
    except (NotEmpty, Misconfigured) as error:
        say(str(error))
    except Unavailable as outage:
        say(f"broker {address(settings.required_amqp_url)}: {outage.reason}; run the same command again")
    return FAILED


async def _show_or_change(settings: Settings, to: int | None, *, yes: bool) -> int:
    options, topology = link_of(settings), topology_of(settings)
    partitions = await look_up(options, topology)
    if to is None:
        _show(partitions, topology)
        return DONE
    if partitions.count == to and partitions.whole:
        say(f"the requests are divided among {to} partitions already")
        return DONE
    if not yes:
        _plan(partitions, topology, to)
        return DONE
    await change(options, replace(topology, partitions=to), say)
    print(
        f"The requests are divided among {to} partitions. Start the workers with WORKER_PARTITIONS={to}, then the publishers."
    )
    return DONE


def _show(partitions: Partitions, topology: Topology) -> None:
    if not partitions.found and not partitions.exchange:
        print(f"There are no partitions: all requests go to queue {topology.requests_queue}.")
        return
    table(
        ("queue", "messages", "consumers"),
        ((each.queue, str(each.messages), str(each.consumers)) for each in partitions.found.values()),
    )
    if not partitions.whole:
        say(
            "some queues or the exchange are missing: a change was interrupted;"
            " run `task-activity-log partitions --to N --yes` again"
        )


def _plan(partitions: Partitions, topology: Topology, to: int) -> None:
    now = "an unfinished change" if not partitions.whole else f"{partitions.count} partitions"
    print(
        f"Now: {now}, {partitions.messages} messages, consumers on {partitions.consumed} queues. To change to {to}:\n"
        "1. Stop the publishers that send by record.\n"
        "2. Let the workers empty the queues, then stop all workers.\n"
        f"3. Run this command with --yes. It deletes exchange {topology.partitions_exchange}, checks again that the queues are\n"
        "   empty, deletes them and declares the new ones. If it is interrupted, run it again.\n"
        f"4. Start the workers with WORKER_PARTITIONS={to}, then the publishers.\n"
        "Nothing was changed."
    )
