"""Every metric and log event, with its meaning. The tables in docs/telemetry.md are generated from here.

`Metrics` creates its metrics from `METRICS`. A test compares `EVENTS` with what the code logs.
"""

from dataclasses import dataclass, field
from typing import Literal

from task_activity_log.problem import Code
from task_activity_log.record import ANSWERS

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_AGES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True, slots=True)
class Metric:
    """A Prometheus metric."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Each label with all its values, which are shown as 0 from the start; empty if they are not known in advance."""
    buckets: tuple[float, ...] = ()


METRICS = {
    # outcomes of messages
    "task_activity_log_messages_total": Metric(
        "counter", "Messages that were answered and acknowledged, by outcome.", {"outcome": ANSWERS}
    ),
    "task_activity_log_rejected_total": Metric(
        "counter", "Messages that were answered with a problem, by its code.", {"code": tuple(Code)}
    ),
    "task_activity_log_age_seconds": Metric(
        "histogram",
        "Time from the timestamp that the publisher set (often in whole seconds) to the acknowledgement. Messages"
        " without a timestamp are not measured.",
        buckets=_AGES,
    ),
    "task_activity_log_late_settlements_total": Metric(
        "counter",
        "Messages that were answered, but could not be acknowledged because the connection was lost: they are"
        " redelivered.",
    ),
    "task_activity_log_replies_given_up_total": Metric(
        "counter",
        "Replies that were not delivered to their reply_to: the queue does not exist (returned), the queue kept refusing"
        " them (refused), the broker did not confirm them (unconfirmed) or ended the connection (lost), too many were"
        " waiting (too_many), or the address is not allowed (not_allowed: the reply went to the replies exchange).",
        {"why": ("returned", "refused", "unconfirmed", "lost", "too_many", "not_allowed")},
    ),
    "task_activity_log_subscriber_replies_not_taken_total": Metric(
        "counter",
        "Replies to the replies exchange that the replies queue has taken, and another queue that is bound to the exchange"
        " has refused (refused) or not confirmed in time (unconfirmed). They are not sent to that queue again.",
        {"why": ("refused", "unconfirmed")},
    ),
    "task_activity_log_suspects_total": Metric(
        "counter", "Messages that may have crashed a worker and are therefore tried alone."
    ),
    # where the time goes
    "task_activity_log_batch_size": Metric("histogram", "Messages in one batch.", buckets=_SIZES),
    "task_activity_log_stage_seconds": Metric(
        "histogram",
        "Time that one batch spent in a stage, including time spent waiting out outages.",
        {"stage": ("decode", "store", "reply")},
        _SECONDS,
    ),
    "task_activity_log_in_hand": Metric("gauge", "Deliveries that are not settled yet."),
    "task_activity_log_parked": Metric(
        "gauge", "Deliveries that wait for a row that is locked, slow or fails for now. They are in hand too."
    ),
    "task_activity_log_parked_age_seconds": Metric(
        "gauge", "How long the oldest of them has been waiting; 0 if there is none."
    ),
    "task_activity_log_replies_waiting": Metric(
        "gauge", "Replies whose reply_to takes nothing at present; their deliveries are not settled."
    ),
    "task_activity_log_partitions_active": Metric(
        "gauge", "Partitions that have given this worker messages: it is their active consumer. 0 without partitions."
    ),
    "task_activity_log_workers": Metric(
        "gauge", "Workers that consume the partitions, as the broker counts them. 0 without partitions."
    ),
    "task_activity_log_hand_overs_total": Metric(
        "counter", "Partitions that were handed over to other workers, so that all have the same share."
    ),
    "task_activity_log_forwarded_total": Metric(
        "counter", "Requests that were not sent by record and were forwarded to their partition."
    ),
    "task_activity_log_prefetch": Metric("gauge", "Maximum number of deliveries in hand."),
    # state
    "task_activity_log_consuming": Metric("gauge", "1 while a consumer is registered."),
    "task_activity_log_connected": Metric(
        "gauge",
        "1 while the connection is open. `forwards` only with partitions.",
        {"link": ("intake", "replies", "reply-to", "forwards", "database")},
    ),
    "task_activity_log_publisher_blocked": Metric(
        "gauge", "1 while the broker blocks publishers because it is short of memory or disk space."
    ),
    "task_activity_log_holding": Metric("gauge", "1 while the worker waits out an outage."),
    "task_activity_log_hold_age_seconds": Metric(
        "gauge",
        "How long the worker has been waiting out the current outage; 0 without an outage. When a message has to be stored, "
        "the time is counted from that moment.",
    ),
    "task_activity_log_draining": Metric("gauge", "1 while the worker is stopping."),
    "task_activity_log_certificate_expires_timestamp_seconds": Metric(
        "gauge",
        "When the first certificate in a file expires, in seconds since 1970, by the setting that names the file. Only for files"
        " that are set.",
        {"setting": ()},
    ),
    # outages
    "task_activity_log_hold_seconds_total": Metric(
        "counter",
        "Time spent waiting out outages, including the current one, by what is waiting and why.",
        {"place": ("start", "idle", "store", "forward", "reply"), "reason": ()},
    ),
    "task_activity_log_retries_total": Metric(
        "counter",
        "Attempts that failed because the database or the broker was unavailable.",
        {"place": ("start", "idle", "store", "forward", "reply")},
    ),
    "task_activity_log_connections_lost_total": Metric(
        "counter",
        "Broker connections that were lost. The worker reconnects after each.",
        {"link": ("intake", "replies", "reply-to", "forwards")},
    ),
    # housekeeping
    "task_activity_log_inbox_trimmed_total": Metric("counter", "Old requests that were deleted from the inbox."),
    "task_activity_log_inbox_age_seconds": Metric(
        "gauge",
        "Age of the oldest request in the inbox, as seen once a minute after old ones were deleted; 0 if the inbox is empty.",
    ),
    "task_activity_log_inbox_keep_seconds": Metric(
        "gauge", "WORKER_INBOX_KEEP_SECONDS: requests that are older than this are deleted from the inbox."
    ),
    "task_activity_log_journal_rows_lost_total": Metric(
        "counter", "Answers that are missing in the journal because it could not be written. Only with WORKER_JOURNAL."
    ),
    "task_activity_log_build_info": Metric("gauge", "Always 1; the label is the running version.", {"version": ()}),
}
"""By the name that Prometheus shows. The Prometheus client adds process_*, python_info and python_gc_*."""


@dataclass(frozen=True, slots=True)
class Event:
    """A log event."""

    level: Literal["debug", "info", "warning", "critical"]
    meaning: str
    fields: tuple[str, ...] = ()


EVENTS = {
    # life cycle
    "started": Event(
        "info", "The process has started and is connecting.", ("version", "http_port", "prefetch", "batch_max")
    ),
    "prefetch_reduced": Event(
        "warning", "The prefetch is smaller than four batches, to stay within the memory limit.", ("prefetch", "why")
    ),
    "draining": Event(
        "info", "SIGTERM or SIGINT was received: the worker takes no more messages.", ("in_hand", "limit_seconds")
    ),
    "drained": Event("info", "The batches under way are finished; the rest was requeued.", ("given_back",)),
    "drain_limit_reached": Event(
        "warning",
        "The batches under way were not finished in time; their messages are redelivered.",
        ("in_hand", "what_is_in_hand"),
    ),
    "stopped": Event("info", "The process is exiting."),
    "crashed": Event(
        "critical", "The worker crashed because of a defect. Unsettled messages are redelivered.", ("exception",)
    ),
    # messages
    "batch": Event(
        "info",
        "A batch was answered and acknowledged: its size, and the number of messages for each outcome.",
        ("size", *ANSWERS),
    ),
    "message": Event(
        "debug",
        "A message was answered and acknowledged.",
        ("message_id", "correlation_id", "outcome", "code", "reply_message_id", "attempts", "trace_id"),
    ),
    "reply_given_up": Event(
        "warning",
        "Replies could not be delivered to their reply_to and were given up; their records are stored. At most ten of this"
        " event are logged in a minute; `omitted` is the number of replies that no event has named since the last one.",
        ("reply_to", "why", "count", "omitted"),
    ),
    "reply_to_failing": Event(
        "warning",
        "An address takes no replies: they wait, and are tried again without delaying others. At most ten of this event and"
        " the next are logged in a minute.",
        ("reply_to", "why"),
    ),
    "reply_to_recovered": Event("info", "An address takes replies again.", ("reply_to",)),
    "dead_lettered_by_broker": Event(
        "warning",
        "Rejected messages are larger than the broker takes now: it dead-letters them itself, without x-error-code.",
        ("count",),
    ),
    "subscriber_takes_nothing": Event(
        "warning",
        "A queue that is bound to the replies exchange, in addition to the replies queue, refuses replies or does not confirm"
        " them. They are in the replies queue. Logged at most once a minute.",
        ("exchange", "why"),
    ),
    "settled_late": Event(
        "info", "The connection was lost before these messages were acknowledged: they are redelivered.", ("count",)
    ),
    "parked": Event(
        "warning",
        "Messages wait for rows that are locked, slow or fail for now. Other records are not delayed. `records` has at most 20"
        " ids.",
        ("records", "count", "reason", "parked"),
    ),
    "unparked": Event(
        "info", "Nothing of these records waits any more. `records` has at most 20 ids.", ("records", "count")
    ),
    "parked_too_long": Event(
        "warning",
        "Messages waited longer than the park limit: all unsettled messages were requeued.",
        ("given_back", "seconds", "reason"),
    ),
    "suspects_set_apart": Event(
        "warning",
        "Messages that may have crashed a worker are set aside, to be tried alone.",
        ("suspects", "attempts"),
    ),
    "partition_handed_over": Event(
        "info",
        "This worker had more than its share of the partitions and has left one to another worker.",
        ("queue", "given_back", "workers"),
    ),
    "queue_isolated": Event(
        "warning",
        "RabbitMQ has failed twice when it delivered a message (`INTERNAL_ERROR`). Its messages are taken one at a time over a"
        " connection of its own, until RabbitMQ has dead-lettered the message that it cannot deliver.",
        ("queue",),
    ),
    "partition_unavailable": Event(
        "warning",
        "A partition takes no consumer, for example because its queue has no leader. Others are not affected; it is tried again.",
        ("queue", "reason", "retry_in_seconds"),
    ),
    # the broker
    "broker_connected": Event("info", "A connection was established.", ("link",)),
    "broker_unavailable": Event(
        "warning",
        "A connection was lost or refused; the worker tries again. Logged for each new reason, and once a minute.",
        ("link", "reason", "retry_in_seconds"),
    ),
    "topology_differs": Event(
        "warning",
        "A queue or exchange exists with different arguments; it is used as it is.",
        ("what", "argument", "wanted", "found", "refusal", "advice"),
    ),
    "other_consumers": Event(
        "warning",
        "There are other consumers on the queue: keeping the order per record then requires x-version.",
        ("count", "advice"),
    ),
    # outages
    "holding": Event("warning", "The worker waits out an outage.", ("place", "reason")),
    "hold_over": Event(
        "info", "Nothing waits there: the outage is over, or `store` waits in place of `idle`.", ("place", "seconds")
    ),
    "stood_down": Event(
        "warning",
        "The outage lasted longer than the hold limit: all unsettled messages were requeued.",
        ("place", "given_back"),
    ),
    "batch_abandoned": Event(
        "info", "The worker is draining during an outage and gave up: unsettled messages are redelivered.", ("stage",)
    ),
    "journal_failing": Event(
        "warning",
        "The journal cannot be written. It is tried again, except what the database refuses; messages are answered meanwhile.",
        ("reason",),
    ),
    "journal_recovered": Event("info", "The journal is written again."),
    "journal_rows_lost": Event(
        "warning",
        "The worker has ended, and the last answers could not be written into the journal.",
        ("rows", "reason"),
    ),
    "trim_failing": Event(
        "warning", "Old requests cannot be deleted from the inbox, although the database answers.", ("reason",)
    ),
    # the console
    "console_action_begun": Event(
        "info",
        "A user of the console has begun to replay or discard dead letters: who, how many, and why.",
        ("action", "kind", "user", "why", "count"),
    ),
    "console_action_ended": Event(
        "info",
        "It has ended: how many were sent, discarded, kept for a reason, or gone before; and why it ended early, if it did.",
        ("action", "kind", "user", "why", "count", "sent", "discarded", "kept", "gone", "problem"),
    ),
    "console_action_stopped": Event("info", "A user of the console has stopped an action.", ("action", "user")),
    "console_message_sent": Event(
        "info", "A user of the console has sent a message of their own.", ("user", "why", "message_id")
    ),
    "console_snapshot_sent": Event(
        "info", "A user of the console has sent a row to its subscribers again.", ("user", "why", "record")
    ),
    # tracing
    "tracing": Event("info", "Traces are exported.", ("endpoint",)),
    "tracing_unavailable": Event(
        "warning", "Traces are configured, but the packages for them are not installed.", ("advice",)
    ),
    "traces_not_exported": Event(
        "warning", "The collector of traces is unavailable or refuses them; they are dropped.", ("reason",)
    ),
}
"""By name. Each also has `timestamp`, `level` and `event`; none ever contains a payload or a secret."""
