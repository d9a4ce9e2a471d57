"""Faults of a cluster: nodes that end, are cut off, drained or short of memory, and a database that fails over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sandbox.cluster import Cluster
from sandbox.rabbitmq import RabbitMQ
from sandbox.replication import Pair
from tests.chaos.publishers import QUEUE

if TYPE_CHECKING:
    from tests.chaos.faults import Fault, Faults


async def _disturb(
    faults: Faults,
    kind: str,
    duration: tuple[float, float],
    begin: Callable[[RabbitMQ], object],
    end: Callable[[RabbitMQ], object],
) -> None:
    """Something happens to one node, and is undone after a while."""
    cluster, seconds = _cluster(faults), faults.seconds(*duration)
    async with faults.lock_of(faults.broker):
        node = faults.random.choice(cluster.present)
        faults.journal.fault(kind, f"{cluster.name_of(node)} for {seconds:.1f} s")
        await asyncio.to_thread(begin, node)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(end, node)
        faults.journal.note(f"  it has ended: {kind}")


async def _end_for_a_while(faults: Faults, nodes: Sequence[RabbitMQ], kind: str, why: str = "") -> None:
    """All nodes end at once and start again together."""
    cluster, seconds = _cluster(faults), faults.seconds(0.5, 15)
    faults.journal.fault(kind, f"{', '.join(map(cluster.name_of, nodes))}{why} for {seconds:.1f} s")
    await asyncio.gather(*(asyncio.to_thread(node.kill) for node in nodes))
    await asyncio.sleep(seconds)
    await asyncio.to_thread(cluster.ensure_running)
    faults.journal.note("  all nodes are back")


async def node_killed(faults: Faults) -> None:
    """One node ends at once and starts again."""
    async with faults.lock_of(faults.broker):
        await _end_for_a_while(faults, [faults.random.choice(_cluster(faults).present)], "node killed")


async def leader_killed(faults: Faults) -> None:
    """The node with the leader of a request queue ends at once and starts again."""
    queues = [f"{QUEUE}.{number}" for number in range(faults.plan.partitions)] or [QUEUE]
    queue = faults.random.choice(queues)
    async with faults.lock_of(faults.broker):
        leader = await asyncio.to_thread(_cluster(faults).leader, faults.amqp_url, queue)
        await _end_for_a_while(faults, [leader], "node with a leader killed", f" ({queue})")


async def majority_killed(faults: Faults) -> None:
    """All nodes but one end at once and start again."""
    async with faults.lock_of(faults.broker):
        present = _cluster(faults).present
        await _end_for_a_while(faults, faults.random.sample(present, len(present) - 1), "majority killed")


async def nodes_killed(faults: Faults) -> None:
    """All nodes end at once and start again."""
    async with faults.lock_of(faults.broker):
        await _end_for_a_while(faults, _cluster(faults).present, "all nodes killed")


async def node_gone(faults: Faults) -> None:
    """One node ends at once and never comes back. There is one such fault in a run."""
    async with faults.lock_of(faults.broker):
        cluster = _cluster(faults)
        if len(cluster.present) == len(cluster.nodes):
            node = faults.random.choice(cluster.present)
            faults.journal.fault("node gone for good", cluster.name_of(node))
            await asyncio.to_thread(cluster.lose, node)


async def node_frozen(faults: Faults) -> None:
    """One node answers nothing for a while: neither its clients nor the other nodes."""
    ensure_running = _cluster(faults).ensure_running
    await _disturb(faults, "node frozen", (0.3, 20), lambda node: node.pause(), lambda _: ensure_running())


async def node_isolated(faults: Faults) -> None:
    """One node is cut off from the others, and keeps its clients."""
    cluster = _cluster(faults)
    await _disturb(faults, "node isolated", (1, 40), cluster.isolate, lambda _: cluster.ensure_running())


async def node_drained(faults: Faults) -> None:
    """One node is drained for maintenance: it closes its connections and hands its leaders over."""
    await _disturb(
        faults,
        "node drained",
        (1, 15),
        lambda node: node.command("rabbitmq-upgrade", "drain"),
        lambda node: node.command("rabbitmq-upgrade", "revive"),
    )


async def memory_alarm(faults: Faults) -> None:
    """One node is short of memory, and all nodes block publishers."""
    command = ("rabbitmqctl", "set_vm_memory_high_watermark")
    await _disturb(
        faults,
        "memory alarm",
        (1, 12),
        lambda node: node.command(*command, "absolute", "1"),
        lambda node: node.command(*command, "0.4"),
    )


async def database_failed_over(faults: Faults) -> None:
    """The primary is killed and its standby promoted; the old primary comes back writable, and is replaced at last."""
    pair = faults.database
    assert isinstance(pair, Pair)
    async with faults.lock_of(pair):
        faults.journal.fault("database failed over")
        await asyncio.to_thread(pair.fail_over)
        await asyncio.sleep(faults.seconds(0.1, 3))
        await asyncio.to_thread(pair.return_old_primary)
        faults.journal.note("  the old primary is back, and accepts writes")
        await asyncio.sleep(faults.seconds(1, 10))
        await asyncio.to_thread(pair.rebuild_standby)
        await asyncio.to_thread(pair.wait_replicated)
        faults.journal.note("  a new standby follows")


OUTAGES: tuple[tuple[Fault, float], ...] = (
    (node_killed, 2),
    (leader_killed, 2),
    (majority_killed, 1),
    (nodes_killed, 0.5),
    (node_gone, 1),
    (node_frozen, 1.5),
    (node_isolated, 3),
    (node_drained, 2),
    (memory_alarm, 1.5),
    (database_failed_over, 5),
)
"""With their weights. They replace those of a single broker."""


def _cluster(faults: Faults) -> Cluster:
    assert isinstance(faults.broker, Cluster)
    return faults.broker
