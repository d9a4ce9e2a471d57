"""Every metric, log event and span there is, with what it means. Nothing else is shown; docs/telemetry.md is made of it.

`Metrics` makes its metrics from `METRICS`; a test holds `EVENTS` and `SPANS` against what the code logs and traces.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from task_activity_log.problem import Code
from task_activity_log.record import Outcome

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_AGES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True, slots=True)
class Metric:
    """A Prometheus metric."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Each label with all its values, which are shown as 0 from the start; none where they are not known before."""
    buckets: tuple[float, ...] = ()


METRICS = {
    # what became of messages
    "task_activity_log_messages_total": Metric(
        "counter", "Messages answered and acknowledged, by outcome.", {"outcome": tuple(Outcome)}
    ),
    "task_activity_log_rejected_total": Metric(
        "counter", "Messages answered with a problem, by its code.", {"code": tuple(Code)}
    ),
    "task_activity_log_age_seconds": Metric(
        "histogram",
        "From the timestamp that the publisher set (whole seconds, often) to the acknowledgement; messages without"
        " one are not measured.",
        buckets=_AGES,
    ),
    "task_activity_log_late_settlements_total": Metric(
        "counter", "Messages that were answered but acknowledged too late, after a lost connection: they come again."
    ),
    "task_activity_log_replies_given_up_total": Metric(
        "counter",
        "Replies that did not go to their reply_to: no such queue (returned), a queue that went on refusing (refused),"
        " or an address that is not allowed (not_allowed; the reply went to the replies exchange).",
        {"why": ("returned", "refused", "not_allowed")},
    ),
    "task_activity_log_suspects_total": Metric(
        "counter", "Messages given back to be tried alone, as workers may have died of them."
    ),
    # where the time goes
    "task_activity_log_batch_size": Metric("histogram", "Messages in one batch.", buckets=_SIZES),
    "task_activity_log_stage_seconds": Metric(
        "histogram",
        "Time of one batch in a stage, waiting for an outage included.",
        {"stage": ("decode", "store", "reply")},
        _SECONDS,
    ),
    "task_activity_log_in_hand": Metric("gauge", "Deliveries that are not settled."),
    "task_activity_log_prefetch": Metric("gauge", "The most deliveries that may be in hand."),
    # how it is
    "task_activity_log_consuming": Metric("gauge", "1 while a consumer is registered."),
    "task_activity_log_connected": Metric(
        "gauge", "1 while there is a connection.", {"link": ("intake", "replies", "database")}
    ),
    "task_activity_log_publisher_blocked": Metric(
        "gauge", "1 while the broker blocks publishers, for want of memory or disk."
    ),
    "task_activity_log_holding": Metric("gauge", "1 while an outage is waited out."),
    "task_activity_log_hold_age_seconds": Metric("gauge", "How long the present outage is waited out; 0 without one."),
    "task_activity_log_draining": Metric("gauge", "1 from the signal to stop on."),
    # what went wrong outside
    "task_activity_log_hold_seconds_total": Metric(
        "counter",
        "Time spent waiting out outages, the present one included, by what waits and why.",
        {"place": ("start", "store", "reply"), "reason": ()},
    ),
    "task_activity_log_retries_total": Metric(
        "counter",
        "Attempts that failed because the database or the broker was away.",
        {"place": ("start", "store", "reply")},
    ),
    "task_activity_log_connections_lost_total": Metric(
        "counter", "Broker connections lost, after each of which it connects again.", {"link": ("intake", "replies")}
    ),
    # housekeeping
    "task_activity_log_inbox_trimmed_total": Metric("counter", "Requests forgotten, as they were taken long ago."),
    "task_activity_log_build_info": Metric("gauge", "Always 1; which version runs.", {"version": ()}),
}
"""By the name that Prometheus shows. The client's own process_*, python_info and python_gc_* come with them."""


@dataclass(frozen=True, slots=True)
class Event:
    """A log event."""

    level: Literal["debug", "info", "warning", "critical"]
    meaning: str
    fields: tuple[str, ...] = ()


EVENTS = {
    # the worker's life
    "started": Event("info", "The process is up and connects.", ("version", "http_port", "prefetch", "batch_max")),
    "prefetch_reduced": Event(
        "warning", "Fewer messages than two batches may be in hand, so that memory suffices.", ("prefetch", "why")
    ),
    "draining": Event("info", "SIGTERM or SIGINT: nothing more is taken.", ("in_hand", "limit_seconds")),
    "drained": Event("info", "What was under way is finished, the rest given back.", ("given_back",)),
    "drain_limit_reached": Event(
        "warning", "What was under way is not finished; it comes again.", ("in_hand", "what_is_in_hand")
    ),
    "stopped": Event("info", "The process ends."),
    "crashed": Event("critical", "A defect of the worker. What was in hand comes again.", ("exception",)),
    # messages
    "batch": Event(
        "info", "A batch was answered and acknowledged: how many, and how many of each outcome.", ("size", *Outcome)
    ),
    "message": Event(
        "debug",
        "A message was answered and acknowledged.",
        ("message_id", "correlation_id", "outcome", "code", "reply_message_id", "attempts", "trace_id"),
    ),
    "reply_given_up": Event(
        "warning", "A reply did not go to its reply_to; its record is stored.", ("reply_to", "why")
    ),
    "settled_late": Event(
        "info", "The connection was lost before these were acknowledged: they come again.", ("count",)
    ),
    "suspects_set_apart": Event(
        "warning",
        "Messages of which workers may have died are given back, to be tried alone.",
        ("suspects", "attempts"),
    ),
    # the broker
    "broker_connected": Event("info", "A connection is established.", ("link",)),
    "broker_unavailable": Event(
        "warning", "A connection was lost or refused; it is tried again.", ("link", "reason", "retry_in_seconds")
    ),
    "topology_differs": Event(
        "warning",
        "A queue or exchange exists with another argument; it is used as it is.",
        ("what", "argument", "wanted", "found", "refusal", "advice"),
    ),
    "other_consumers": Event(
        "warning", "Others consume the same queue: order per record then needs x-version.", ("count", "advice")
    ),
    # outages
    "holding": Event("warning", "An outage is waited out, with messages in hand.", ("place", "reason")),
    "hold_over": Event("info", "The outage is over.", ("place", "seconds")),
    "stood_down": Event(
        "warning",
        "The outage lasts longer than the hold limit: what was in hand is given back.",
        ("place", "given_back"),
    ),
    "batch_abandoned": Event("info", "Draining, and the outage lasts: what is in hand comes again.", ("stage",)),
    # tracing
    "tracing": Event("info", "Traces are exported.", ("endpoint",)),
    "tracing_unavailable": Event("warning", "Traces are asked for, but the packages are not installed.", ("advice",)),
    "traces_not_exported": Event(
        "warning", "The receiver of traces is away or refuses; they are dropped.", ("reason",)
    ),
}
"""By name. Each has `timestamp`, `level` and `event` too; none ever holds a payload or a secret."""


@dataclass(frozen=True, slots=True)
class Span:
    """A span of a trace; its attributes follow the semantic conventions for messaging and databases."""

    kind: Literal["consumer", "client", "producer"]
    meaning: str


SPANS = {
    "process {requests queue}": Span(
        "consumer", "One message, from its delivery to its acknowledgement; a child of its publisher's span."
    ),
    "INSERT task_activity_log": Span("client", "One wave in the database; links to the spans of its messages."),
    "send {replies exchange}": Span("producer", "The replies of one batch; links to the spans of their messages."),
}
