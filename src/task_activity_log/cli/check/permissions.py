"""What the worker's user may do on the broker."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from task_activity_log.cli.check.finding import Finding
from task_activity_log.cli.check.management import Management, ManagementError
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.settings import Settings

_DEFAULT_EXCHANGE = "amq.default"
"""The name of the default exchange in permissions."""


def needed(topology: Topology, *, declare: bool) -> list[tuple[str, str]]:
    """The permissions that a worker needs: `configure`, `write` or `read`, and on what."""
    rights = [
        ("read", topology.requests_queue),
        ("write", topology.replies_exchange),
        ("write", _DEFAULT_EXCHANGE),  # dead letters, and replies to reply_to
    ]
    if declare:
        rights += [("configure", name) for name in (*topology.exchanges(), *topology.queues())]
        for queue, exchange, _ in topology.bindings():
            rights += [("write", queue), ("read", exchange)]
    return rights


def judge(management: Management, vhost: str, topology: Topology, settings: Settings) -> Finding:
    """Whether the user of AMQP_URL has what is needed."""
    user = unquote(urlsplit(settings.amqp_url.get_secret_value()).username or "guest")
    what = f"user {user}"
    try:
        granted = management.get("permissions", vhost, user)
    except ManagementError:
        advice = "only the MANAGEMENT_URL of an administrator shows them; docs/operations.md lists the ones needed"
        return Finding("unknown", what, "its permissions are not shown", advice)
    lacking = [
        f"{kind} on {name}"
        for kind, name in needed(topology, declare=settings.topology == "declare")
        if not allows((granted or {}).get(kind, ""), name)
    ]
    if lacking:
        advice = "docs/operations.md lists the permissions of a worker"
        return Finding("broken", what, f"lacks {', '.join(lacking)}", advice)
    return Finding("fine", what, "has the permissions that it needs")


def allows(pattern: str, name: str) -> bool:
    """Whether a permission's pattern covers a name, as RabbitMQ reads it."""
    try:
        return bool(pattern and re.search(pattern, name))  # an empty pattern allows nothing
    except re.error:
        return True  # Erlang's own syntax, which the broker understands
