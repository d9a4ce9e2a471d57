"""The partitions: are all there, does a worker consume each, and is each hash slot bound to the queue of one of them?"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from task_activity_log.cli.check.finding import Finding
from task_activity_log.partitions import SLOTS, queue_of
from task_activity_log.rabbitmq.inspection import BrokerState, Hidden, Queue
from task_activity_log.rabbitmq.repartition import Partitions
from task_activity_log.rabbitmq.topology import Topology

_WHAT = "partitions"


def has_another_number(queues: Mapping[str, Queue | Hidden | None], topology: Topology) -> bool:
    """Whether the broker may have another number of partitions: it has one more, or it has some and not all.

    `queues` has all that the topology names, and the one after the last partition.
    """
    found = [queues.get(name) is not None for name in topology.partition_queues]
    one_more = queues.get(queue_of(topology.requests_queue, topology.partitions))
    return isinstance(one_more, Queue) or (any(found) and not all(found))


def has_only_an_exchange(sight: BrokerState, topology: Topology) -> bool:
    """Whether there are no partitions, but their exchange: publishers that find it send to no queue."""
    return not topology.partitions and sight.exchanges.get(topology.partitions_exchange) is True


def judge_number(partitions: Partitions, topology: Topology) -> Finding:
    """The broker has another number of partitions than the setting, or a part of them."""
    exchange, found = topology.partitions_exchange, partitions.count
    advice = "a change was interrupted, or they were deleted: run task-activity-log partitions --to with the number (0: none)"
    if found is None:
        return Finding("broken", _WHAT, "some of the queues are missing", advice)
    if not found and partitions.exchange:
        return Finding("broken", _WHAT, f"exchange {exchange} exists, but no queue of a partition", advice)
    if not topology.partitions and not partitions.exchange:
        return Finding("broken", _WHAT, f"the broker has {found}, but exchange {exchange} is missing", advice)
    if not topology.partitions:
        advice = f"all workers need it: set WORKER_PARTITIONS={found}, or remove the partitions with"
        found_ = f"the broker has {found}, but WORKER_PARTITIONS is not set"
        return Finding("broken", _WHAT, found_, f"{advice} task-activity-log partitions --to 0")
    advice = "workers refuse it: set WORKER_PARTITIONS to the number on the broker, or change that with"
    found_ = f"the broker has {found}, but WORKER_PARTITIONS is {topology.partitions}"
    return Finding("broken", _WHAT, found_, f"{advice} task-activity-log partitions --to {topology.partitions}")


def judge_consumers(queues: Mapping[str, Queue | Hidden | None], topology: Topology) -> Iterator[Finding]:
    """Each partition that nobody consumes although workers run, or one line that sums all up."""
    shown = {name: queue for name, queue in queues.items() if isinstance(queue, Queue)}
    partitions = {name: shown[name] for name in topology.partition_queues if name in shown}
    if not partitions:
        return
    workers = shown[topology.workers_queue].consumers if topology.workers_queue in shown else 0
    left = [name for name, queue in partitions.items() if not queue.consumers]
    if left and workers:
        for name in left:
            advice = "its worker logs why: see /status of the workers, then restart them one after the other"
            yield Finding("broken", f"queue {name}", f"no worker consumes it, of {workers}", advice)
        return
    waiting = sum(queue.messages for queue in partitions.values())
    yield Finding("fine", _WHAT, f"{len(partitions)} of {topology.partitions}, {waiting} waiting, {workers} workers")


def judge_slots(bindings: Iterable[Mapping[str, Any]], topology: Topology) -> Iterator[Finding]:
    """Slots that are bound to no partition, to several, or to another one than the workers bind them to.

    `bindings` are those of the exchange for requests by record, as the management API shows them. Bindings to queues that are
    no request queue are none of our business: they only get copies.
    """
    ours = re.compile(rf"{re.escape(topology.requests_queue)}(\.\d+)?")
    bound: dict[str, set[str]] = {}
    for binding in bindings:
        if binding.get("destination_type") == "queue" and ours.fullmatch(str(binding.get("destination"))):
            bound.setdefault(str(binding.get("routing_key")), set()).add(str(binding["destination"]))
    right = {slot: queue for queue, exchange, slot in topology.bindings() if exchange == topology.partitions_exchange}
    unbound = [slot for slot in right if not bound.get(slot)]
    several = [slot for slot in right if len(bound.get(slot, ())) > 1]
    wrong = [slot for slot, queue in right.items() if len(bound.get(slot, ())) == 1 and queue not in bound[slot]]
    if unbound:
        advice = "their requests are returned to the publishers: restart a worker, which binds them"
        yield Finding("broken", "hash slots", f"{_named(unbound)} bound to no partition", advice)
    if several:
        queues = ", ".join(sorted(set().union(*(bound[slot] for slot in several)))[:4])
        advice = f"each of these queues gets a copy of their requests: remove the wrong bindings ({queues})"
        yield Finding("broken", "hash slots", f"{_named(several)} bound to several queues", advice)
    if wrong:
        advice = "pause the publishers, let the workers empty the queues, remove these bindings, and restart a worker"
        yield Finding("broken", "hash slots", f"{_named(wrong)} bound to the wrong partition", advice)
    if not (unbound or several or wrong):
        yield Finding("fine", "hash slots", f"all {SLOTS} are bound, each to one partition")


def _named(slots: Sequence[str]) -> str:
    shown = ", ".join(slots[:3])
    more = f" and {len(slots) - 3} more" if len(slots) > 3 else ""  # noqa: PLR2004 - the three that are shown
    return f"{shown}{more} {'is' if len(slots) == 1 else 'are'}"
