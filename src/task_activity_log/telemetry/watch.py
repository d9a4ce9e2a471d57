"""The worker's `Watch`: passes what happens on to the metrics and the log."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import structlog

from task_activity_log.message import ERROR_CODE, TRACE_PARENT
from task_activity_log.pipeline.ports import D, Settlement
from task_activity_log.problem import Unavailable
from task_activity_log.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


class Watch:
    """Counts and logs: one event per batch at level info, one per message at level debug."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._reasons: dict[str, str] = {}
        self.last_batch: dict[str, object] | None = None
        """When the last batch was answered, and its number of messages."""
        self.on_answered: Callable[[Sequence[Settlement[Any]]], None] | None = None
        """Called with each batch that was answered and settled. Must return at once."""

    def took(self, stage: Literal["decode", "store", "reply"], seconds: float) -> None:
        """A stage took this long for one batch."""
        self._metrics.histograms["task_activity_log_stage_seconds"].labels(stage).observe(seconds)

    def answered(self, settlements: Sequence[Settlement[D]]) -> None:
        """A batch was answered and settled."""
        if not settlements:
            return
        self._metrics.answered(settlements)
        if self.on_answered is not None:
            self.on_answered(settlements)
        self.last_batch = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "size": len(settlements)}
        if log.is_enabled_for(logging.DEBUG):
            for settlement in settlements:
                _log_message(settlement)
        log.info("batch", size=len(settlements), **Counter(each.reply.outcome.value for each in settlements))

    def held(self, place: str, outage: Unavailable) -> None:
        """Work failed because of an outage and will be tried again. Logged again only if the reason changes."""
        self._metrics.held(place, outage.label)
        if self._reasons.get(place) != outage.reason:
            self._reasons[place] = outage.reason
            log.warning("holding", place=place, reason=outage.reason)

    def released(self, place: str, seconds: float) -> None:
        """Work succeeded after it had been held for this long."""
        self._metrics.released(place)
        self._reasons.pop(place, None)
        log.info("hold_over", place=place, seconds=round(seconds, 3))

    def set_apart(self, suspects: Sequence[D]) -> None:
        """These deliveries will be tried alone."""
        self._metrics.counters["task_activity_log_suspects_total"].inc(len(suspects))
        log.warning("suspects_set_apart", suspects=len(suspects), attempts=suspects[0].attempts)


def _log_message(settlement: Settlement[D]) -> None:
    delivery, reply = settlement.delivery, settlement.reply
    more = {"code": reply.headers[ERROR_CODE]} if ERROR_CODE in reply.headers else {}
    if TRACE_PARENT in reply.headers:
        more["trace_id"] = reply.headers[TRACE_PARENT][3:35]
    log.debug(
        "message",
        message_id=delivery.properties.message_id,
        correlation_id=delivery.properties.correlation_id,
        outcome=reply.outcome.value,
        reply_message_id=reply.message_id,
        attempts=delivery.attempts,
        **more,
    )
