"""The worker's `Watch`: what it is told goes to the metrics and to the log."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import structlog

from task_activity_log.pipeline.ports import Answer, D
from task_activity_log.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


class Watch:
    """Counts and tells: one event a batch at info, one a message at debug."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._reasons: dict[str, str] = {}
        self.last_batch: dict[str, object] | None = None
        """When the last batch was answered, and of how many messages it was."""

    def took(self, stage: Literal["decode", "store", "reply"], seconds: float) -> None:
        """A stage of one batch took this long."""
        self._metrics.took(stage, seconds)

    def answered(self, answers: Sequence[Answer[D]]) -> None:
        """A batch was answered and settled."""
        if not answers:
            return
        self._metrics.answered(answers)
        self.last_batch = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "size": len(answers)}
        if log.is_enabled_for(logging.DEBUG):
            for answer in answers:
                _tell(answer)
        log.info("batch", size=len(answers), **Counter(answer.reply.outcome.value for answer in answers))

    def held(self, place: str, reason: str) -> None:
        """Work failed because the outside is away, and will be tried again. Told once for each reason in turn."""
        self._metrics.held(place, reason)
        if self._reasons.get(place) != reason:
            self._reasons[place] = reason
            log.warning("holding", place=place, reason=reason)

    def released(self, place: str, seconds: float) -> None:
        """Work passed, after it was held for so long."""
        self._metrics.released(place)
        self._reasons.pop(place, None)
        log.info("hold_over", place=place, seconds=round(seconds, 3))

    def set_apart(self, suspects: Sequence[D]) -> None:
        """These go back to be tried alone."""
        self._metrics.suspects(len(suspects))
        log.warning("suspects_set_apart", suspects=len(suspects), attempts=suspects[0].attempts)


def _tell(answer: Answer[D]) -> None:
    headers = answer.reply.headers
    more = {"code": headers["x-error-code"]} if "x-error-code" in headers else {}
    if "traceparent" in headers:
        more["trace_id"] = headers["traceparent"][3:35]
    log.debug(
        "message",
        message_id=answer.delivery.properties.message_id,
        correlation_id=answer.delivery.properties.correlation_id,
        outcome=answer.reply.outcome.value,
        reply_message_id=answer.reply.message_id,
        attempts=answer.delivery.attempts,
        **more,
    )
