"""Metrics, for Prometheus."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_AGES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_MILLISECONDS_FROM = 2**32
"""A timestamp property from here on is in milliseconds: as seconds it would be later than the year 2106."""


class Metrics:
    """Everything that is counted and timed; the worker's `Watch`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._messages = Counter(
            "task_activity_log_messages",
            "Messages answered and acknowledged.",
            ["outcome"],
            registry=self.registry,
        )
        self._rejected = Counter(
            "task_activity_log_rejected",
            "Messages rejected, by error code.",
            ["code"],
            registry=self.registry,
        )
        self._batch_size = Histogram(
            "task_activity_log_batch_size", "Messages in one batch.", buckets=_SIZES, registry=self.registry
        )
        self._stage = Histogram(
            "task_activity_log_stage_seconds",
            "Time of one batch in a stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._age = Histogram(
            "task_activity_log_age_seconds",
            "From the timestamp that the publisher set to the acknowledgement.",
            buckets=_AGES,
            registry=self.registry,
        )
        self._retries = Counter(
            "task_activity_log_retries",
            "Attempts that failed because the database or the broker was away.",
            ["place"],
            registry=self.registry,
        )
        self._lost = Counter(
            "task_activity_log_connections_lost", "Broker connections lost.", ["link"], registry=self.registry
        )
        self._late = Counter(
            "task_activity_log_late_settlements",
            "Messages whose acknowledgement came too late: they come again.",
            registry=self.registry,
        )
        self._given_up = Counter(
            "task_activity_log_replies_given_up",
            "Replies whose reply_to was gone, refused them, or was not allowed.",
            ["why"],
            registry=self.registry,
        )

    def gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Show what `read` returns whenever the metrics are scraped."""
        Gauge(f"task_activity_log_{name}", description, registry=self.registry).set_function(read)

    def took(self, stage: Literal["decode", "store", "reply"], seconds: float) -> None:
        """A stage of one batch took this long."""
        self._stage.labels(stage).observe(seconds)

    def answered(self, answers: Sequence[Any]) -> None:
        """A batch was answered and settled."""
        self._batch_size.observe(len(answers))
        for outcome, count in Tally(answer.reply.outcome for answer in answers).items():
            self._messages.labels(outcome).inc(count)
        now = time.time()
        for answer in answers:
            if answer.problem is not None:
                self._rejected.labels(answer.problem.code).inc()
            sent = answer.delivery.timestamp
            if sent is not None:
                self._age.observe(max(0.0, now - (sent / 1000 if sent >= _MILLISECONDS_FROM else sent)))

    def held(self, place: str, _reason: str) -> None:
        """Work failed because the outside is away, and will be tried again."""
        self._retries.labels(place).inc()

    def connection_lost(self, link: str) -> None:
        """A broker connection that was established is gone."""
        self._lost.labels(link).inc()

    def settled_late(self, count: int) -> None:
        """These acknowledgements came too late."""
        self._late.inc(count)

    def reply_given_up(self, why: str) -> None:
        """A reply did not go where its request asked."""
        self._given_up.labels(why).inc()

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
