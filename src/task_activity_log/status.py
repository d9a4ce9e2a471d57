"""The state of a worker process: readiness, liveness, /status and the gauges."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from task_activity_log import __version__
from task_activity_log.pipeline.hold import Hold
from task_activity_log.postgresql.store import Store
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.intake import Intake
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.replies import Replies
from task_activity_log.settings import SECRETS, Settings
from task_activity_log.telemetry.logs import address
from task_activity_log.telemetry.metrics import Metrics
from task_activity_log.telemetry.watch import Watch

_NOT_CONSUMING_SECONDS = 60.0
"""A worker that is connected but does not consume for longer than this must be restarted."""


class Status:
    """Reads the parts of one worker process. It changes none of them."""

    def __init__(
        self,
        settings: Settings,
        *,
        intake: Intake,
        publisher: Publisher,
        addressed: Publisher,
        replies: Replies[RabbitDelivery],
        store: Store,
        holds: Sequence[Hold],
        watch: Watch,
    ) -> None:
        self._settings = settings
        self._intake = intake
        self._publisher = publisher
        self._addressed = addressed
        self._replies = replies
        self._store = store
        self._holds = holds
        self._watch = watch
        self._started = datetime.now(UTC)
        self.draining = False
        """Set by the service when it starts to stop."""

    @property
    def hold_reason(self) -> str | None:
        """Why the worker waits; None if it does not."""
        blocked = self._publisher.blocked or self._addressed.blocked
        reasons = [hold.reason for hold in self._holds if hold.reason is not None]
        if blocked is not None:
            reasons.append(f"the broker blocks publishers: {blocked}")
        return reasons[0] if reasons else None

    def not_ready(self) -> list[str]:
        """Why the worker does not take messages at present; empty if it does."""
        reasons = []
        if self.draining:
            reasons.append("draining")
        if self.hold_reason:
            reasons.append(f"holding: {self.hold_reason}")
        if not self._publisher.connected:
            reasons.append("no publisher connection")
        if not self._intake.consuming:
            reasons.append("not consuming")
        return reasons

    def not_alive(self) -> list[str]:
        """Why the process must be restarted; empty if it need not be."""
        since = self._intake.connected_since
        idle = 0.0 if since is None or self._intake.consuming else time.monotonic() - since
        if idle > _NOT_CONSUMING_SECONDS and not self.draining and self.hold_reason is None:
            return [f"connected but not consuming for {idle:.0f} s"]
        return []

    def report(self) -> dict[str, object]:
        """The body of /status. It contains no payloads, and no settings that contain a password."""
        settings = self._settings
        broker, waiting = address(settings.required_amqp_url), self._intake.waiting
        publisher = {"address": broker, "connected": self._publisher.connected, "blocked": self._publisher.blocked}
        database = address(settings.required_database_url)
        return {
            "version": __version__,
            "started": self._started.isoformat(timespec="seconds"),
            "not_ready": self.not_ready(),
            "not_alive": self.not_alive(),
            "connections": {
                "intake": {"address": broker, "connected": self._intake.connected_since is not None},
                "replies": publisher,
                "reply_to": {
                    "address": broker,
                    "connected": self._addressed.connected,
                    "blocked": self._addressed.blocked,
                },
                "database": {"address": database, "connected": self._store.connected},
            },
            "consuming": self._intake.consuming,
            "in_hand": {"waiting": waiting, "under_way": self._intake.in_hand - waiting, "prefetch": settings.prefetch},
            "last_batch": self._watch.last_batch,
            "holds": [
                {"place": hold.place, "reason": hold.reason, "seconds": round(hold.seconds, 1)}
                for hold in self._holds
                if hold.reason is not None
            ],
            "failing_addresses": self._failing_addresses(),
            "draining": self.draining,
            "settings": settings.model_dump(mode="json", exclude=set(SECRETS)),
        }

    def _failing_addresses(self) -> list[dict[str, object]]:
        """The addresses at which replies wait, those with the oldest first."""
        return [
            {
                "reply_to": one.address,
                "waiting": one.waiting,
                "oldest_seconds": round(one.oldest_seconds, 1),
                "reason": None if one.fate is None else one.fate.value,
            }
            for one in self._replies.failing
        ]

    def show_gauges(self, metrics: Metrics) -> None:
        """Let each gauge read its value here when the metrics are scraped."""
        intake, publisher, show = self._intake, self._publisher, metrics.gauge
        show("task_activity_log_consuming", lambda: intake.consuming)
        show("task_activity_log_in_hand", lambda: intake.in_hand)
        show("task_activity_log_replies_waiting", lambda: self._replies.waiting)
        show("task_activity_log_prefetch", lambda: self._settings.prefetch)
        show("task_activity_log_connected", lambda: intake.connected_since is not None, "intake")
        show("task_activity_log_connected", lambda: publisher.connected, "replies")
        show("task_activity_log_connected", lambda: self._addressed.connected, "reply-to")
        show("task_activity_log_connected", lambda: self._store.connected, "database")
        show(
            "task_activity_log_publisher_blocked",
            lambda: publisher.blocked is not None or self._addressed.blocked is not None,
        )
        show("task_activity_log_holding", lambda: self.hold_reason is not None)
        show("task_activity_log_hold_age_seconds", lambda: max(hold.seconds for hold in self._holds))
        show("task_activity_log_draining", lambda: self.draining)
        show("task_activity_log_build_info", lambda: 1, __version__)
