"""RabbitMQ, as AMQP and the management API show it."""

import asyncio
import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from task_activity_log.cli.check.finding import Finding
from task_activity_log.cli.check.limits import Limits, judge_kept, judge_requests, number
from task_activity_log.cli.check.management import Management, ManagementError
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.inspection import BrokerState, inspect_broker
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.settings import Settings
from task_activity_log.telemetry.logs import address, is_local
from task_activity_log.wiring import link_of, topology_of

_OLDEST = (3, 10)
_DEFAULT_EXCHANGE = "amq.default"
"""The name of the default exchange in permissions."""


async def findings(settings: Settings) -> list[Finding]:
    """Connect, ask, and judge what the broker answers."""
    url = settings.required_amqp_url
    where = address(url)
    try:
        sight = await inspect_broker(link_of(settings), topology_of(settings))
    except Unavailable as error:
        advice = "check that it is running and that AMQP_URL is correct"
        if url.startswith("amqps:"):
            advice += "; a broker that requires client certificates resets connections without one that it trusts"
        return [Finding("broken", "broker", f"{where}: {error.reason}", advice)]
    shown = list(_judge_sight(sight, settings, where))
    if settings.management_url is None:
        advice = "set MANAGEMENT_URL to check them, for example http://user:password@host:15672"
        return [*shown, Finding("unknown", "limits and permissions", "not visible over AMQP", advice)]
    management = Management(settings.management_url.get_secret_value(), settings.amqp_tls)
    return shown + await asyncio.to_thread(lambda: list(_judge_management(management, sight, settings)))


def _judge_sight(sight: BrokerState, settings: Settings, where: str) -> Iterator[Finding]:
    """What AMQP shows."""
    advice = "use RabbitMQ 3.10 or newer" if number(sight.version) < _OLDEST else ""
    yield Finding("broken" if advice else "fine", "broker", f"RabbitMQ {sight.version} at {where}", advice)
    url = settings.required_amqp_url
    if not url.startswith("amqps:") and not is_local(url):
        yield Finding("warning", "broker link", "not encrypted", "use amqps:// in AMQP_URL")
    for exchange, exists in sight.exchanges.items():
        what = f"exchange {exchange}"
        yield Finding("fine", what, "exists") if exists else _missing(what, settings)
    for name, queue in sight.queues.items():
        what = f"queue {name}"
        if queue is None:
            yield _missing(what, settings)
            continue
        yield Finding("fine", what, f"{queue.messages} waiting, {queue.consumers} consumers")
        if name == settings.requests_queue and queue.consumers > 1 and not settings.single_active_consumer:
            advice = "updates may be reordered: send x-version, run one worker, or set WORKER_SINGLE_ACTIVE_CONSUMER"
            yield Finding("warning", "order per record", f"{queue.consumers} consumers", advice)


def _judge_management(management: Management, sight: BrokerState, settings: Settings) -> Iterator[Finding]:
    """What only the management API shows."""
    topology = topology_of(settings)
    vhost = unquote(urlsplit(settings.required_amqp_url).path[1:]) or "/"
    try:
        for name, queue in sight.queues.items():
            if queue is not None:
                details = management.get("queues", vhost, name) or {}
                judge = judge_requests if name == topology.requests_queue else judge_kept
                yield from judge(f"queue {name}", Limits(details, sight.version), settings)
        yield from _judge_bindings(management, vhost, sight, settings)
        yield from _judge_alarms(management)
    except ManagementError as error:
        advice = "check MANAGEMENT_URL: its user needs the tag monitoring and access to the virtual host"
        yield Finding("unknown", "management", str(error), advice)
        return
    yield _judge_permissions(management, vhost, topology, settings)


def _judge_bindings(management: Management, vhost: str, sight: BrokerState, settings: Settings) -> Iterator[Finding]:
    for queue, exchange, key in topology_of(settings).bindings():
        if sight.queues.get(queue) is None or not sight.exchanges.get(exchange):
            continue
        found = management.get("bindings", vhost, "e", exchange, "q", queue) or []
        if not any(binding.get("routing_key") == key for binding in found):
            yield _missing(f"binding {exchange} → {queue}", settings, f"bind it with the key {key}")


def _judge_alarms(management: Management) -> Iterator[Finding]:
    for node in management.get("nodes") or []:
        alarms = [word for key, word in (("mem_alarm", "memory"), ("disk_free_alarm", "disk space")) if node.get(key)]
        if alarms:
            short = " and ".join(alarms)
            advice = f"free some {short}: until then nothing is answered"
            yield Finding("broken", f"node {node.get('name')}", f"is short of {short} and blocks publishers", advice)


def _missing(what: str, settings: Settings, remedy: str = "create it") -> Finding:
    if settings.topology == "declare":
        return Finding("fine", what, "does not exist yet; the worker declares it when it starts")
    return Finding("broken", what, "does not exist", f"{remedy}, or set WORKER_TOPOLOGY=declare")


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


def _judge_permissions(management: Management, vhost: str, topology: Topology, settings: Settings) -> Finding:
    """Whether the user of AMQP_URL has what is needed."""
    user = unquote(urlsplit(settings.required_amqp_url).username or "guest")
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
