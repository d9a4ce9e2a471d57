"""What `check` says of RabbitMQ: each row is a verdict, what it is about, what was found, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from task_activity_log.cli.management import Management, ManagementError
from task_activity_log.rabbitmq.inspection import BrokerState
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.settings import Settings
from task_activity_log.telemetry.logs import is_local
from task_activity_log.wiring import topology_of

Row = tuple[Any, str, str, str]

_OLDEST, _LIMITED_BY_DEFAULT = (3, 10), (4, 0)
_DEFAULT_LIMIT = 20
_KEPT_LIMIT = 1000
"""Looking at kept messages returns them, and each return counts; fewer than this are soon used up."""
_DEFAULT_EXCHANGE = "amq.default"
"""What the default exchange is called in permissions."""


def judge_sight(sight: BrokerState, settings: Settings, where: str) -> Iterator[Row]:
    """What AMQP shows."""
    found = f"RabbitMQ {sight.version} at {where}"
    if _number(sight.version) < _OLDEST:
        yield "broken", "broker", found, "use RabbitMQ 3.10 or newer"
    else:
        yield "fine", "broker", found, ""
    if not settings.amqp_url.get_secret_value().startswith("amqps:") and not is_local(
        settings.amqp_url.get_secret_value()
    ):
        yield "warning", "broker link", "not encrypted", "use amqps:// in AMQP_URL"
    for exchange, there in sight.exchanges.items():
        yield ("fine", f"exchange {exchange}", "is there", "") if there else _missing("exchange", exchange, settings)
    for name, queue in sight.queues.items():
        if queue is None:
            yield _missing("queue", name, settings)
            continue
        yield "fine", f"queue {name}", f"{queue.messages} waiting, {queue.consumers} consumers", ""
        if name == settings.requests_queue and queue.consumers > 1 and not settings.single_active_consumer:
            found = f"{queue.consumers} consumers"
            advice = (
                "a later message for a record may be applied before an earlier one unless publishers send x-version:"
                " see that they do, run one worker, or set WORKER_SINGLE_ACTIVE_CONSUMER"
            )
            yield "warning", "order per record", found, advice


def _missing(kind: str, name: str, settings: Settings) -> Row:
    if settings.topology == "declare":
        return "fine", f"{kind} {name}", "is not there; will be declared", ""
    return "broken", f"{kind} {name}", "is not there", "create it, or set WORKER_TOPOLOGY=declare"


def judge_management(management: Management, sight: BrokerState, settings: Settings) -> Iterator[Row]:
    """What the management API shows beside."""
    topology = topology_of(settings)
    vhost = unquote(urlsplit(settings.amqp_url.get_secret_value()).path[1:]) or "/"
    try:
        for name, queue in sight.queues.items():
            if queue is not None:
                details = management.get("queues", vhost, name) or {}
                judge = _judge_requests if name == topology.requests_queue else _judge_kept
                yield from judge(f"queue {name}", _Limits(details, sight.version), settings)
        yield from _judge_bindings(management, vhost, sight, settings)
        yield from _judge_alarms(management)
    except ManagementError as error:
        advice = "see MANAGEMENT_URL; its user needs the tag monitoring and access to the virtual host"
        yield "unknown", "management", str(error), advice
        return
    yield from _judge_permissions(management, vhost, topology, settings)


class _Limits:
    """The arguments of a queue, and over them its policies; the stricter of two numbers holds."""

    def __init__(self, details: Mapping[str, Any], version: str) -> None:
        self.kind = details.get("type", "unknown")
        self._arguments = details.get("arguments") or {}
        self._policy = details.get("effective_policy_definition") or {}
        self._version = version

    def get(self, name: str) -> Any:
        """The value in force; None where there is none."""
        values = [value for value in (self._arguments.get(f"x-{name}"), self._policy.get(name)) if value is not None]
        numbers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
        return min(numbers) if len(numbers) > 1 else next(iter(values), None)

    @property
    def deliveries(self) -> int | None:
        """How often a message may be delivered; None without limit."""
        limit = self.get("delivery-limit")
        if limit is None and self.kind == "quorum" and _number(self._version) >= _LIMITED_BY_DEFAULT:
            return _DEFAULT_LIMIT
        return limit if isinstance(limit, int) and limit >= 0 else None


def _judge_requests(what: str, limits: _Limits, settings: Settings) -> Iterator[Row]:
    anew = "drain and delete the queue and let it be declared anew"
    if limits.kind != "quorum":
        yield "broken", what, f"is a {limits.kind} queue", f"deliveries are counted in quorum queues alone: {anew}"
        return
    deliveries = limits.deliveries
    if deliveries is None:
        advice = "a message that kills workers would do so for ever: set a policy with delivery-limit 20"
        yield "broken", what, "has no delivery limit", advice
    elif deliveries <= settings.poison_from:
        advice = (
            f"set it above WORKER_POISON_FROM ({settings.poison_from}), or nobody is told why a message is given up"
        )
        yield "warning", what, f"delivery limit {deliveries}", advice
    else:
        yield "fine", what, f"delivery limit {deliveries}", ""
    yield _dead_lettering(what, limits, settings)
    if limits.get("overflow") in (None, "drop-head") and any(
        limits.get(name) for name in ("max-length", "max-length-bytes")
    ):
        yield (
            "broken",
            what,
            "drops requests when it is full",
            "set overflow reject-publish in the policy of its length",
        )
    if limits.get("message-ttl") is not None:
        yield "warning", what, "requests expire", "take message-ttl out of its policy: an expired request has no answer"
    if settings.single_active_consumer and not limits.get("single-active-consumer"):
        found = "WORKER_SINGLE_ACTIVE_CONSUMER is set and the queue is not so"
        yield "broken", "order per record", found, anew
    yield _consumer_timeout(limits, settings)


def _dead_lettering(what: str, limits: _Limits, settings: Settings) -> Row:
    exchange, key = limits.get("dead-letter-exchange"), limits.get("dead-letter-routing-key")
    if exchange is None:
        advice = (
            f"what exceeds the delivery limit is lost: set a policy that dead-letters to {settings.dead_letters_queue}"
        )
        return "broken", what, "does not dead-letter", advice
    if (exchange, key) != ("", settings.dead_letters_queue):
        return (
            "warning",
            what,
            f"dead-letters to {exchange or 'default'}/{key}",
            "see that somebody keeps what goes there",
        )
    if limits.get("dead-letter-strategy") != "at-least-once" or limits.get("overflow") != "reject-publish":
        advice = "set dead-letter-strategy at-least-once and overflow reject-publish, or dead letters can be lost"
        return "warning", what, "dead-letters at most once", advice
    return "fine", what, "dead-letters at least once", ""


def _consumer_timeout(limits: _Limits, settings: Settings) -> Row:
    timeout = limits.get("consumer-timeout")
    hold = f"WORKER_HOLD_LIMIT_SECONDS is {settings.hold_limit_seconds:g}"
    if timeout is None:
        return (
            "unknown",
            "consumer timeout",
            "the broker's own, 30 minutes by default",
            f"keep it above the hold limit: {hold}",
        )
    if timeout <= settings.hold_limit_seconds * 1000:
        return (
            "broken",
            "consumer timeout",
            f"{timeout / 1000:g} s",
            f"set it above the hold limit, or that lower: {hold}",
        )
    return "fine", "consumer timeout", f"{timeout / 1000:g} s", ""


def _judge_kept(what: str, limits: _Limits, _settings: Settings) -> Iterator[Row]:
    deliveries = limits.deliveries
    if limits.kind == "quorum" and deliveries is not None and deliveries < _KEPT_LIMIT:
        advice = "each look at a message counts, and then it is deleted: set a policy with delivery-limit 1000000"
        yield "warning", what, f"delivery limit {deliveries}", advice
    elif limits.kind != "quorum":
        yield "warning", what, f"is a {limits.kind} queue", "it is lost with its node: use a quorum queue"


def _judge_bindings(management: Management, vhost: str, sight: BrokerState, settings: Settings) -> Iterator[Row]:
    for queue, exchange, key in topology_of(settings).bindings():
        if sight.queues.get(queue) is None or not sight.exchanges.get(exchange):
            continue
        found = management.get("bindings", vhost, "e", exchange, "q", queue) or []
        if not any(binding.get("routing_key") == key for binding in found):
            what, advice = (
                f"binding {exchange} → {queue}",
                f"bind it with the key {key}, or set WORKER_TOPOLOGY=declare",
            )
            if settings.topology == "declare":
                yield "fine", what, "is not there; will be declared", ""
            else:
                yield "broken", what, "is not there", advice


def _judge_alarms(management: Management) -> Iterator[Row]:
    for node in management.get("nodes") or []:
        alarms = [word for key, word in (("mem_alarm", "memory"), ("disk_free_alarm", "disk")) if node.get(key)]
        if alarms:
            found = f"is short of {' and '.join(alarms)} and blocks publishers"
            yield "broken", f"node {node.get('name')}", found, "give it room: until then nothing is answered"


def _judge_permissions(management: Management, vhost: str, topology: Topology, settings: Settings) -> Iterator[Row]:
    user = unquote(urlsplit(settings.amqp_url.get_secret_value()).username or "guest")
    what = f"user {user}"
    try:
        granted = management.get("permissions", vhost, user)
    except ManagementError:
        advice = "only an administrator's MANAGEMENT_URL shows them; docs/operations.md says which are needed"
        yield "unknown", what, "its permissions are not shown", advice
        return
    lacking = [
        f"{kind} on {name}"
        for kind, name in needed(topology, declare=settings.topology == "declare")
        if not _allows((granted or {}).get(kind, ""), name)
    ]
    if lacking:
        yield "broken", what, f"lacks {', '.join(lacking)}", "see docs/operations.md for the permissions of a worker"
    else:
        yield "fine", what, "may do what is needed", ""


def _allows(pattern: str, name: str) -> bool:
    try:
        return bool(pattern and re.search(pattern, name))  # an empty one allows nothing
    except re.error:
        return True  # Erlang's own way of writing; the broker understands it


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


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
