"""The permissions that a worker's user needs in RabbitMQ, and those that it has."""

import re
from collections.abc import Iterator, Mapping

from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.rabbitmq.version import number

_DEFAULT_EXCHANGE = "amq.default"
"""The name of the default exchange in permissions."""

_KINDS = ("configure", "write", "read")
_ASKING_NEEDS_ONE_FROM = (4, 3)
"""From this version on (4.3.1), a user needs any one permission on a queue or an exchange to ask whether it exists."""


def needed(topology: Topology, *, declare: bool) -> list[tuple[str, str]]:
    """The permissions that a worker needs: `configure`, `write` or `read`, and on what."""
    rights = [
        *(("read", queue) for queue in topology.request_queues),
        ("write", topology.replies_exchange),
        ("write", _DEFAULT_EXCHANGE),  # dead letters, and replies to reply_to
    ]
    if topology.partitions:
        rights += [("read", topology.workers_queue), ("read", topology.short_workers_queue)]
        rights += [("write", topology.partitions_exchange)]  # to forward what was not sent by record
    if declare:
        rights += [("configure", name) for name in (*topology.exchanges(), *topology.queues())]
        for queue, exchange, _ in topology.bindings():
            rights += [("write", queue), ("read", exchange)]
    return list(dict.fromkeys(rights))


def lacking(granted: Mapping[str, str], topology: Topology, version: str, *, declare: bool) -> Iterator[str]:
    """Which of the permissions are not granted, in words.

    Args:
        granted: a pattern for each kind of permission.
        topology: the names.
        version: that of RabbitMQ.
        declare: whether the worker declares its topology, or only asks whether it exists.
    """
    for kind, name in needed(topology, declare=declare):
        if not allows(granted.get(kind, ""), name):
            yield f"{kind} on {name}"
    if not declare and number(version) >= _ASKING_NEEDS_ONE_FROM:
        for name in dict.fromkeys((*topology.exchanges(), *topology.queues())):
            if not any(allows(granted.get(kind, ""), name) for kind in _KINDS):
                yield f"any permission on {name}"


def allows(pattern: str, name: str) -> bool:
    """Whether a permission's pattern covers a name, as RabbitMQ reads it."""
    try:
        return bool(pattern and re.search(pattern, name))  # an empty pattern allows nothing
    except re.error:
        return True  # Erlang's own syntax, which the broker understands
