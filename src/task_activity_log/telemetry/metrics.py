"""Metrics for Prometheus, as `names` declares them."""

import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from task_activity_log.message import ERROR_CODE
from task_activity_log.pipeline.ports import D, Settlement
from task_activity_log.record import Outcome
from task_activity_log.telemetry.names import METRICS

_LABELS_MAX, _LABEL_LENGTH = 50, 60
M = TypeVar("M", Counter, Gauge, Histogram)


class Metrics:
    """Everything that is counted and measured. `counters` and `histograms` are by name."""

    def __init__(self, redact: Callable[[str], str] = str) -> None:
        """Create all of them. `redact` removes secrets from labels that have a driver's words."""
        self._redact = redact
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no types
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.counters = self._make("counter", Counter)
        self.histograms = self._make("histogram", Histogram)
        self._gauges = self._make("gauge", Gauge)
        self._hold_labels: set[tuple[str, str]] = set()
        self._holds: dict[str, Counter] = {}  # the current ones, by place
        self._holds_counted_until = 0.0
        self._holds_lock = threading.Lock()

    def _make(self, kind: str, of: type[M]) -> dict[str, M]:
        made: dict[str, M] = {}
        for name, metric in METRICS.items():
            if metric.kind == kind:
                buckets: dict[str, Any] = {"buckets": metric.buckets} if metric.buckets else {}
                made[name] = of(name, metric.help, tuple(metric.labels), registry=self.registry, **buckets)
                for values in product(*metric.labels.values()) if metric.labels else ():
                    made[name].labels(*values)
        return made

    def gauge(self, name: str, read: Callable[[], float], *labels: str) -> None:
        """Set a gauge to what `read` returns each time the metrics are scraped."""
        gauge = self._gauges[name]
        (gauge.labels(*labels) if labels else gauge).set_function(read)

    def without(self, name: str, *labels: str) -> None:
        """Do not show a gauge with these labels: there is nothing that it could measure."""
        self._gauges[name].remove(*labels)

    def answered(self, settlements: Sequence[Settlement[D]]) -> None:
        """A batch was answered and settled."""
        self.histograms["task_activity_log_batch_size"].observe(len(settlements))
        tally = Tally(each.reply.outcome for each in settlements)
        for outcome, count in tally.items():
            self.counters["task_activity_log_messages_total"].labels(outcome).inc(count)
        if Outcome.REJECTED in tally:
            for code, count in Tally(each.reply.headers.get(ERROR_CODE) for each in settlements).items():
                if code is not None:
                    self.counters["task_activity_log_rejected_total"].labels(code).inc(count)
        now, age = time.time(), self.histograms["task_activity_log_age_seconds"]
        for each in settlements:
            sent = each.delivery.properties.sent
            if sent is not None:
                age.observe(max(0.0, now - sent))

    def held(self, place: str, label: str) -> None:
        """Work failed because of an outage and will be tried again.

        The outage's label is bounded in length and in number, because some have a driver's words.
        """
        self.counters["task_activity_log_retries_total"].labels(place).inc()
        self._count_holds()
        label = self._redact(label)[:_LABEL_LENGTH]
        if (place, label) not in self._hold_labels and len(self._hold_labels) >= _LABELS_MAX:
            label = "other"
        self._hold_labels.add((place, label))
        self._holds[place] = self.counters["task_activity_log_hold_seconds_total"].labels(place, label)

    def released(self, place: str) -> None:
        """Work that was held succeeded."""
        self._count_holds()
        self._holds.pop(place, None)

    def _count_holds(self) -> None:
        with self._holds_lock:  # a scrape comes from another thread
            before, self._holds_counted_until = self._holds_counted_until, time.monotonic()
            for seconds in tuple(self._holds.values()):
                seconds.inc(self._holds_counted_until - before)

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format. Holds are counted up to this moment."""
        self._count_holds()
        return generate_latest(self.registry)
