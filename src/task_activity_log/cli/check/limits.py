"""The limits of queues, by their arguments and policies: are messages kept, and given up in time?"""

from collections.abc import Iterator, Mapping
from typing import Any

from task_activity_log.cli.check.finding import Finding
from task_activity_log.rabbitmq.management import delivery_limit
from task_activity_log.rabbitmq.queues import deletes_soon
from task_activity_log.rabbitmq.version import number
from task_activity_log.settings import Settings

_KEPT_LIMIT = 1000
"""Inspecting kept messages returns them, and each return counts: a smaller delivery limit is soon reached."""

_PRIORITIES_FROM = (4, 0)
"""From this version on, quorum queues deliver messages of a higher priority first."""

_DECLARE_AGAIN = "drain the queue, delete it, and let the worker declare it again"


class Limits:
    """The arguments and policies of a queue. Of two numbers for one limit, RabbitMQ applies the smaller."""

    def __init__(self, details: Mapping[str, Any], version: str) -> None:
        self.kind = details.get("type", "unknown")
        self.waiting_by_priority = _waiting_by_priority(details)
        """How many messages wait, by priority; empty if that is not shown."""
        self._arguments = details.get("arguments") or {}
        self._policy = details.get("effective_policy_definition") or {}
        self._version = version
        self.delivery_limit_in_force = delivery_limit(details, version)
        """The limit that an argument or a policy sets, or the broker's default; None without a limit."""

    def get(self, name: str) -> Any:
        """The value in force; None if there is none."""
        both = self._arguments.get(f"x-{name}"), self._policy.get(name)
        values = [value for value in both if value is not None]
        if self.kind == "quorum" and name == "overflow":
            values.reverse()  # only here a policy comes before the argument (`rabbit_quorum_queue`; seen on 3.10 and 4.3)
        numbers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
        return min(numbers) if len(numbers) > 1 else next(iter(values), None)

    @property
    def deliveries(self) -> int | None:
        """How often a message may be delivered; None without a limit."""
        limit = self.delivery_limit_in_force
        return limit.limit if limit is not None and limit.limit >= 0 else None

    def is_soon_reached(self, limit: int) -> bool:
        """Whether messages that are looked at would soon reach this delivery limit."""
        return 0 <= limit < _KEPT_LIMIT or deletes_soon(limit, self._version)

    @property
    def delays_retries(self) -> bool:
        """Whether messages that are returned are delivered after a delay (since RabbitMQ 4.3)."""
        return self.get("delayed-retry-type") not in (None, "disabled")

    @property
    def has_priorities(self) -> bool:
        """Whether messages of a higher priority are delivered first."""
        return self.kind == "quorum" and number(self._version) >= _PRIORITIES_FROM

    @property
    def drops_when_full(self) -> bool:
        """Whether a limit of its length makes it drop its oldest messages."""
        limited = any(self.get(name) is not None for name in ("max-length", "max-length-bytes"))
        return limited and self.get("overflow") not in _REFUSES


_REFUSES = ("reject-publish", "reject-publish-dlx")


def judge_requests(what: str, limits: Limits, settings: Settings) -> Iterator[Finding]:
    """The queue of the requests."""
    if limits.kind != "quorum":
        yield wrong_type(what, limits.kind)
        return
    yield _delivery_limit(what, limits, settings)
    yield _dead_lettering(what, limits, settings)
    if limits.drops_when_full:
        advice = "set overflow reject-publish in the policy that limits its length"
        yield Finding("broken", what, "drops requests when it is full", advice)
    if limits.get("message-ttl") is not None:
        advice = "remove message-ttl from its policy: an expired request is never answered"
        yield Finding("warning", what, "requests expire", advice)
    yield from _deleted_when_unused(what, limits)
    is_single_active = settings.single_active_consumer or settings.partitions > 0
    if is_single_active and not limits.get("single-active-consumer"):
        found = "WORKER_SINGLE_ACTIVE_CONSUMER is set, but the queue was declared without it"
        if settings.partitions:
            found = f"WORKER_PARTITIONS is set, but {what} was declared without a single active consumer"
        yield Finding("broken", "order per record", found, _DECLARE_AGAIN)
    if limits.get("single-active-consumer") and not is_single_active:
        found = "the queue has a single active consumer, but WORKER_SINGLE_ACTIVE_CONSUMER is not set"
        advice = (
            "set it for all workers, or WORKER_PARTITIONS if they share partitions: a hand-over may reorder updates"
        )
        yield Finding("warning", "order per record", found, advice)
    yield from _order(limits)
    yield _consumer_timeout(limits, settings)


def judge_kept(what: str, limits: Limits, settings: Settings) -> Iterator[Finding]:
    """A queue of replies or dead letters, which people inspect."""
    limit = limits.delivery_limit_in_force
    if limits.kind == "quorum" and limit is not None and limits.is_soon_reached(limit.limit):
        advice = f"each inspection can count, and beyond the limit the broker deletes: {limit.remedy}"
        yield Finding("warning", what, f"delivery limit {limit.limit}", advice)
    elif limits.kind == "stream" and what == f"queue {settings.dead_letters_queue}":
        advice = "RabbitMQ fails to store some messages in it: name a quorum queue in WORKER_DEAD_LETTERS_QUEUE"
        yield Finding("broken", what, "is a stream", advice)
    elif limits.kind == "stream":
        advice = "the commands that inspect it need a quorum queue"
        yield Finding("warning", what, "is a stream", advice)
    elif limits.kind != "quorum":
        advice = "its messages are lost with its node: use a quorum queue"
        yield Finding("warning", what, f"is a {limits.kind} queue", advice)
    if what == f"queue {settings.dead_letters_queue}":
        if limits.drops_when_full:
            advice = "remove max-length from the policy that limits it, or set overflow reject-publish: workers then hold instead"
            yield Finding("warning", what, "loses the oldest dead letters when it is full", advice)
        if limits.get("message-ttl") is not None:
            yield Finding(
                "warning", what, "dead letters expire", "remove message-ttl from its policy: they are lost then"
            )
    yield from _deleted_when_unused(what, limits)
    if limits.delays_retries:
        advice = "each inspection hides messages for a while: exclude the queue from the policy with delayed-retry-type"
        yield Finding("warning", what, "delays what is returned", advice)


def _deleted_when_unused(what: str, limits: Limits) -> Iterator[Finding]:
    if limits.get("expires") is not None:
        advice = "remove expires from its policy: without consumers, RabbitMQ deletes the queue and its messages"
        yield Finding("broken", what, "is deleted when nobody uses it", advice)


def judge_length(what: str, details: Mapping[str, Any], limits: Limits, effect: str) -> Iterator[Finding]:
    """Whether a queue is full, so that it refuses what is published; `effect` says what follows."""
    if limits.get("overflow") not in _REFUSES:
        return
    for limit, held, unit in (("max-length", "messages", "messages"), ("max-length-bytes", "message_bytes", "bytes")):
        most, found = limits.get(limit), details.get(held)
        if isinstance(most, int) and isinstance(found, int) and found >= most:
            advice = f"{effect}: have it read, or raise {limit} in the policy that limits it"
            yield Finding("broken", what, f"is full: {found:,} of {most:,} {unit}", advice)


def wrong_type(what: str, kind: str) -> Finding:
    """The requests queue is no quorum queue."""
    if kind == "stream":
        advice = "workers refuse it: it keeps what was acknowledged, and a worker that starts skips what is in it"
        return Finding("broken", what, "is a stream", f"{advice}; name a quorum queue in WORKER_REQUESTS_QUEUE")
    advice = f"only quorum queues count deliveries, so a message that crashes workers comes again without end: {_DECLARE_AGAIN}"
    return Finding("broken", what, f"is a {kind} queue", advice)


def _delivery_limit(what: str, limits: Limits, settings: Settings) -> Finding:
    deliveries = limits.deliveries
    if deliveries is None:
        advice = "a message that crashes workers would be delivered without end: set a policy with delivery-limit 20"
        return Finding("broken", what, "has no delivery limit", advice)
    if deliveries <= settings.poison_from:
        advice = f"set it above WORKER_POISON_FROM ({settings.poison_from}), or the broker gives up before a worker can reject it"
        return Finding("warning", what, f"delivery limit {deliveries}", advice)
    return Finding("fine", what, f"delivery limit {deliveries}")


def _dead_lettering(what: str, limits: Limits, settings: Settings) -> Finding:
    exchange, key = limits.get("dead-letter-exchange"), limits.get("dead-letter-routing-key")
    if exchange is None:
        advice = f"messages beyond the delivery limit are lost: set a policy that dead-letters to {settings.dead_letters_queue}"
        return Finding("broken", what, "does not dead-letter", advice)
    if (exchange, key) != ("", settings.dead_letters_queue):
        found = f"dead-letters to {exchange or 'default'}/{key}"
        return Finding("warning", what, found, "make sure that messages sent there are kept")
    if limits.get("dead-letter-strategy") != "at-least-once" or limits.get("overflow") != "reject-publish":
        advice = "set dead-letter-strategy at-least-once and overflow reject-publish, or dead letters can be lost"
        return Finding("warning", what, "dead-letters each message at most once", advice)
    return Finding("fine", what, "dead-letters each message at least once")


def _waiting_by_priority(details: Mapping[str, Any]) -> dict[str, int]:
    """By priority on 4.3. Before, by the two that there are: up to 4 is normal, above is high."""
    shown: dict[str, int] = details.get("messages_by_priority") or {
        name: details.get(f"messages_ready_{name}") or 0 for name in ("normal", "high")
    }
    return {priority: waiting for priority, waiting in shown.items() if waiting}


def _order(limits: Limits) -> Iterator[Finding]:
    if limits.has_priorities and len(limits.waiting_by_priority) > 1:
        found = f"requests of {len(limits.waiting_by_priority)} priorities are waiting"
        advice = "higher ones overtake: let all publishers send x-version, or the same priority (none is the same as 4)"
        yield Finding("warning", "order per record", found, advice)
    if limits.delays_retries:
        advice = "what is returned comes after later requests: exclude the queue from that policy, or send x-version"
        yield Finding("warning", "order per record", "a policy with delayed-retry-type applies to the queue", advice)


def _consumer_timeout(limits: Limits, settings: Settings) -> Finding:
    timeout = limits.get("consumer-timeout")
    name, seconds = max(
        ("WORKER_HOLD_LIMIT_SECONDS", settings.hold_limit_seconds),
        ("WORKER_PARK_LIMIT_SECONDS", settings.park_limit_seconds),
        key=lambda limit: limit[1],
    )
    longest = f"{name} is {seconds:g}"
    if timeout is None:
        found, advice = "that of the broker, 30 minutes by default", f"keep it above the worker's limits: {longest}"
        return Finding("unknown", "consumer timeout", found, advice)
    if timeout <= seconds * 1000:
        advice = f"raise it above the worker's limits, or lower those: {longest}"
        return Finding("broken", "consumer timeout", f"{timeout / 1000:g} s", advice)
    return Finding("fine", "consumer timeout", f"{timeout / 1000:g} s")
