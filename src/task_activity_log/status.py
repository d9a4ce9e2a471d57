"""The state of a worker process: readiness, liveness, /status and the gauges."""

import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from functools import partial
from math import nan
from pathlib import Path

from task_activity_log import __version__
from task_activity_log.pipeline.hold import Hold
from task_activity_log.pipeline.parking import Parking
from task_activity_log.postgresql.store import Store
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.intake import Intake
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.replies import Replies
from task_activity_log.settings import Settings, variable
from task_activity_log.telemetry.logs import address
from task_activity_log.telemetry.metrics import Metrics
from task_activity_log.telemetry.watch import Watch
from task_activity_log.tls import CERTIFICATE_SETTINGS, expires

_NOT_CONSUMING_SECONDS = 60.0
"""A worker that is connected but does not consume for longer than this must be restarted."""


@dataclass
class Status:
    """Reads the parts of one worker process. It changes none of them."""

    settings: Settings
    _: KW_ONLY
    intake: Intake
    publisher: Publisher
    addressed: Publisher
    forwards: Publisher | None
    """Of requests that were not sent by record; None without partitions."""
    replies: Replies[RabbitDelivery]
    store: Store
    holds: Sequence[Hold]
    parking: Parking[RabbitDelivery]
    watch: Watch
    started: datetime = field(default_factory=partial(datetime.now, UTC))
    draining: bool = False
    """Set by the service when it starts to stop."""

    def __post_init__(self) -> None:
        self._database = self.settings.database_target.addresses

    @property
    def _publishers(self) -> dict[str, Publisher]:
        forwards = {} if self.forwards is None else {"forwards": self.forwards}
        return {"replies": self.publisher, "reply_to": self.addressed, **forwards}

    @property
    def hold_reason(self) -> str | None:
        """Why the worker waits; None if it does not."""
        for hold in self.holds:
            if hold.reason is not None:
                return hold.reason
        blocked = next((each.blocked for each in self._publishers.values() if each.blocked is not None), None)
        return None if blocked is None else f"the broker blocks publishers: {blocked}"

    def not_ready(self) -> list[str]:
        """Why the worker does not take messages at present; empty if it does."""
        hold_reason, outage = self.hold_reason, self.intake.outage
        reasons = {
            "draining": self.draining,
            f"holding: {hold_reason}": hold_reason is not None,
            "no publisher connection": not self.publisher.connected,
            "not consuming" + (f": {outage}" if outage else ""): not self.intake.consuming,
        }
        return [reason for reason, applies in reasons.items() if applies]

    def not_alive(self) -> list[str]:
        """Why the process must be restarted; empty if it is alive."""
        since = self.intake.connected_since
        idle = 0.0 if since is None or self.intake.consuming_some else time.monotonic() - since
        if idle > _NOT_CONSUMING_SECONDS and not self.draining and self.hold_reason is None:
            return [f"connected but not consuming for {idle:.0f} s"]
        return []

    def report(self) -> dict[str, object]:
        """The body of /status. It contains no payloads, and no settings that contain a password."""
        settings = self.settings
        broker, waiting = address(settings.required_amqp_url), self.intake.waiting
        return {
            "version": __version__,
            "started": self.started.isoformat(timespec="seconds"),
            "not_ready": self.not_ready(),
            "not_alive": self.not_alive(),
            "connections": {
                "intake": {"address": broker, "connected": self.intake.connected_since is not None},
                **{
                    name: {"address": broker, "connected": publisher.connected, "blocked": publisher.blocked}
                    for name, publisher in self._publishers.items()
                },
                "database": {"address": self._database, "connected": self.store.connected},
            },
            "consuming": self.intake.consuming,
            "in_hand": {"waiting": waiting, "under_way": self.intake.in_hand - waiting, "prefetch": settings.prefetch},
            "partitions": self._partitions(),
            "last_batch": self.watch.last_batch,
            "parked": self.parking.report(),
            "holds": [
                {"place": hold.place, "reason": hold.reason, "seconds": round(hold.seconds, 1)}
                for hold in self.holds
                if hold.reason is not None
            ],
            "failing_addresses": self._failing_addresses(),
            "draining": self.draining,
            "settings": settings.model_dump(mode="json"),
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
            for one in self.replies.failing
        ]

    def _partitions(self) -> dict[str, object] | None:
        """The partitions that have given this worker messages; None without partitions."""
        balancing = self.intake.balancing
        if balancing is None:
            return None
        return {"count": self.settings.partitions, "active": sorted(balancing.active), "workers": balancing.workers}

    def show_gauges(self, metrics: Metrics) -> None:
        """Let each gauge read its value here when the metrics are scraped."""
        intake, show = self.intake, metrics.gauge
        show("task_activity_log_consuming", lambda: intake.consuming)
        show("task_activity_log_in_hand", lambda: intake.in_hand)
        show("task_activity_log_replies_waiting", lambda: self.replies.waiting)
        if (balancing := intake.balancing) is not None:
            show("task_activity_log_partitions_active", lambda: len(balancing.active))
            show("task_activity_log_workers", lambda: balancing.workers)
        show("task_activity_log_parked", lambda: self.parking.messages)
        show("task_activity_log_parked_age_seconds", lambda: self.parking.oldest_seconds)
        show("task_activity_log_prefetch", lambda: self.settings.prefetch)
        show("task_activity_log_connected", lambda: intake.connected_since is not None, "intake")
        for name, publisher in self._publishers.items():
            show("task_activity_log_connected", partial(_is_connected, publisher), name.replace("_", "-"))
        if self.forwards is None:
            metrics.without("task_activity_log_connected", "forwards")
        show("task_activity_log_connected", lambda: self.store.connected, "database")
        show(
            "task_activity_log_publisher_blocked",
            lambda: any(publisher.blocked is not None for publisher in self._publishers.values()),
        )
        show("task_activity_log_holding", lambda: self.hold_reason is not None)
        show("task_activity_log_hold_age_seconds", lambda: max(hold.seconds for hold in self.holds))
        show("task_activity_log_draining", lambda: self.draining)
        for name in CERTIFICATE_SETTINGS:
            if (path := getattr(self.settings, name)) is not None:
                show("task_activity_log_certificate_expires_timestamp_seconds", partial(_expires, path), variable(name))
        show("task_activity_log_build_info", lambda: 1, __version__)


def _is_connected(publisher: Publisher) -> bool:
    return publisher.connected


def _expires(path: Path) -> float:
    """When the first certificate in a file expires, in seconds since 1970; NaN if that cannot be read."""
    try:
        until = expires(path.read_text(encoding="ascii", errors="replace"))
    except (OSError, ValueError):
        until = None
    return nan if until is None else until.timestamp()
