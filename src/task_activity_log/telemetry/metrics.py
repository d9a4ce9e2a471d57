"""Metrics for Prometheus, as `names` declares them."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from task_activity_log.message import ERROR_CODE
from task_activity_log.pipeline.ports import D, Settlement
from task_activity_log.record import Outcome
from task_activity_log.telemetry.names import METRICS

_HOLD_SECONDS = "task_activity_log_hold_seconds_total"
_LABELS_MAX, _LABEL_LENGTH = 50, 60
_KINDS = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class Metrics:
    """Everything that is counted and measured."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no types
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._all = {name: self._make(name) for name in METRICS if name != _HOLD_SECONDS}
        self._holds = HoldSeconds()
        self.registry.register(self._holds)
        self._answered = self._counter("task_activity_log_messages_total")
        self._rejected = self._counter("task_activity_log_rejected_total")
        self._retries = self._counter("task_activity_log_retries_total")
        self._age = self._histogram("task_activity_log_age_seconds")
        self._batch_size = self._histogram("task_activity_log_batch_size")
        self._stage = self._histogram("task_activity_log_stage_seconds")

    def _make(self, name: str) -> MetricWrapperBase:
        metric = METRICS[name]
        buckets = {"buckets": metric.buckets} if metric.buckets else {}
        made: MetricWrapperBase = _KINDS[metric.kind](
            name, metric.help, tuple(metric.labels), registry=self.registry, **buckets
        )
        if metric.labels:
            for values in product(*metric.labels.values()):
                made.labels(*values)
        return made

    def _counter(self, name: str) -> Counter:
        made = self._all[name]
        assert isinstance(made, Counter), name  # noqa: S101 - a programming error
        return made

    def _histogram(self, name: str) -> Histogram:
        made = self._all[name]
        assert isinstance(made, Histogram), name  # noqa: S101 - a programming error
        return made

    def gauge(self, name: str, read: Callable[[], float], *labels: str) -> None:
        """Set a gauge to what `read` returns each time the metrics are scraped."""
        made = self._all[name]
        assert isinstance(made, Gauge), name  # noqa: S101 - a programming error
        (made.labels(*labels) if labels else made).set_function(read)

    def took(self, stage: str, seconds: float) -> None:
        """A stage took this long for one batch."""
        self._stage.labels(stage).observe(seconds)

    def answered(self, settlements: Sequence[Settlement[D]]) -> None:
        """A batch was answered and settled."""
        self._batch_size.observe(len(settlements))
        for outcome, count in Tally(each.reply.outcome for each in settlements).items():
            self._answered.labels(outcome).inc(count)
            if outcome is Outcome.REJECTED:
                for code, rejected in Tally(each.reply.headers.get(ERROR_CODE) for each in settlements).items():
                    if code is not None:
                        self._rejected.labels(code).inc(rejected)
        now = time.time()
        for each in settlements:
            sent = each.delivery.properties.sent
            if sent is not None:
                self._age.observe(max(0.0, now - sent))

    def held(self, place: str, label: str) -> None:
        """Work failed because of an outage and will be tried again. `label` is that of the outage."""
        self._retries.labels(place).inc()
        self._holds.held(place, label)

    def released(self, place: str) -> None:
        """Work that was held succeeded."""
        self._holds.released(place)

    def suspects(self, count: int) -> None:
        """This number of messages will be tried alone."""
        self._counter("task_activity_log_suspects_total").inc(count)

    def connection_lost(self, link: str) -> None:
        """An established connection to the broker was lost."""
        self._counter("task_activity_log_connections_lost_total").labels(link).inc()

    def settled_late(self, count: int) -> None:
        """This number of messages was acknowledged too late."""
        self._counter("task_activity_log_late_settlements_total").inc(count)

    def reply_given_up(self, why: str) -> None:
        """A reply was not sent to the address that its request asked for."""
        self._counter("task_activity_log_replies_given_up_total").labels(why).inc()

    def subscriber_took_nothing(self, why: str, count: int) -> None:
        """This number of replies was not taken by another queue that is bound to the replies exchange."""
        self._counter("task_activity_log_subscriber_replies_not_taken_total").labels(why).inc(count)

    def inbox_trimmed(self, count: int) -> None:
        """This number of requests was forgotten."""
        self._counter("task_activity_log_inbox_trimmed_total").inc(count)

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class HoldSeconds(Collector):
    """Time spent in holds, exact at each scrape: the current hold is included."""

    def __init__(self) -> None:
        self._spent: dict[tuple[str, str], float] = {}
        self._present: dict[str, tuple[str, float]] = {}  # by place: the label and the start

    def held(self, place: str, label: str) -> None:
        """A hold starts or continues. Labels are bounded in number and length, since some have a driver's words."""
        self.released(place)
        label = label[:_LABEL_LENGTH]
        if (place, label) not in self._spent and len(self._spent) >= _LABELS_MAX:
            label = "other"
        self._spent.setdefault((place, label), 0.0)
        self._present[place] = (label, time.monotonic())

    def released(self, place: str) -> None:
        """The hold is over."""
        if place in self._present:
            label, since = self._present.pop(place)
            self._spent[place, label] += time.monotonic() - since

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The totals. Called from the thread of the HTTP server."""
        metric = METRICS[_HOLD_SECONDS]
        family = CounterMetricFamily(_HOLD_SECONDS, metric.help, labels=tuple(metric.labels))
        spent, now = dict(self._spent), time.monotonic()
        for place, (label, since) in tuple(self._present.items()):
            spent[place, label] = spent.get((place, label), 0.0) + now - since
        for labels, seconds in spent.items():
            family.add_metric(labels, seconds)
        yield family

    def describe(self) -> Iterable[CounterMetricFamily]:
        """Nothing: the registry then does not collect while it registers this."""
        return ()
