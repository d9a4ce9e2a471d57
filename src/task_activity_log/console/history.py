"""An hour of samples in memory, and the figures made from them. Pure: whoever samples passes in the time."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from task_activity_log.record import ANSWERS

OUTCOMES: Final = tuple(map(str, ANSWERS))
KEEP_SECONDS: Final = 3600.0
_RECENT_SECONDS: Final = 30.0
"""Over how long a present rate is taken."""
_AGES_SECONDS: Final = 300.0
"""Over how long the ages at the answer are taken."""
_SHORTEST_CHART_SECONDS: Final = 120.0
_UNLIMITED: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Figures:
    """What /metrics of one worker says at one time."""

    outcomes: Mapping[str, float]
    """Messages answered since it started, by outcome."""
    ages: Mapping[float, float]
    """How many of them were at most this many seconds old when they were answered (a cumulative histogram)."""
    in_hand: float = 0.0


def figures(exposition: str) -> Figures:
    """The figures in a text of /metrics. Raises `ValueError` if it is not one."""
    outcomes, ages, in_hand = dict[str, float](), dict[float, float](), 0.0
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == "task_activity_log_messages_total":
                outcomes[sample.labels["outcome"]] = sample.value
            elif sample.name == "task_activity_log_age_seconds_bucket":
                ages[float(sample.labels["le"])] = sample.value
            elif sample.name == "task_activity_log_in_hand":
                in_hand = sample.value
    return Figures(outcomes, ages, in_hand)


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker as it was found: what /status and /metrics say, or why there is no answer."""

    address: str
    status: Mapping[str, Any] | None = None
    figures: Figures | None = None
    error: str = ""

    @property
    def consumes(self) -> bool:
        """Whether it takes messages."""
        return bool(self.status and self.status.get("consuming")) and not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why it takes none, in its own words."""
        return list(map(str, (self.status or {}).get("not_ready", ()))) if self.status else [self.error]

    @property
    def holds(self) -> list[Mapping[str, Any]]:
        """What it waits out: `place`, `reason`, `seconds`."""
        return list((self.status or {}).get("holds", ()))

    @property
    def partitions(self) -> list[Any]:
        """The partitions that it consumes."""
        return list(((self.status or {}).get("partitions") or {}).get("active", ()))


@dataclass(frozen=True, slots=True)
class Depth:
    """A queue: how many messages wait, and how many consumers it has; None if that is not known."""

    messages: int | None = None
    consumers: int | None = None


@dataclass(frozen=True, slots=True)
class _Point:
    """Totals over all workers, which never go back, and the queues, at one time."""

    at: float
    outcomes: Mapping[str, float]
    ages: Mapping[float, float]
    depths: Mapping[str, int | None]


@dataclass
class History:
    """What was sampled in the last hour."""

    workers: Sequence[Worker] = ()
    """As they were found last."""
    queues: Mapping[str, Depth] = field(default_factory=dict)
    """As they were found last, by name."""
    broker_error: str = ""
    """Why the broker could not be asked last; empty if it could."""
    _points: deque[_Point] = field(default_factory=deque)
    _before: dict[str, Figures] = field(default_factory=dict)

    def add(self, at: float, workers: Sequence[Worker], queues: Mapping[str, Depth], broker_error: str = "") -> None:
        """Add a sample that was taken at this time, in seconds of any clock that never goes back."""
        last = self._points[-1] if self._points else _Point(at, {}, {}, {})
        outcomes, ages = dict(last.outcomes), dict(last.ages)
        for worker in workers:
            if worker.figures is None:
                continue
            before = self._before.get(worker.address)
            if before is not None:  # what a worker has counted before it was first seen is not of this time
                _grow(outcomes, before.outcomes, worker.figures.outcomes)
                _grow(ages, before.ages, worker.figures.ages)
            self._before[worker.address] = worker.figures
        self._points.append(_Point(at, outcomes, ages, {name: depth.messages for name, depth in queues.items()}))
        while self._points[0].at < at - KEEP_SECONDS:
            self._points.popleft()
        self.workers, self.queues, self.broker_error = workers, queues, broker_error

    @property
    def seconds(self) -> float:
        """How long the time is that charts show: an hour, or less if the console has just begun to sample."""
        seen = self._points[-1].at - self._points[0].at if self._points else 0.0
        return min(KEEP_SECONDS, max(_SHORTEST_CHART_SECONDS, seen))

    def rates(self) -> dict[str, float]:
        """Messages answered per second now, by outcome."""
        first, last = self._span(_RECENT_SECONDS)
        return _rates(first, last) if first is not None and last is not None else dict.fromkeys(OUTCOMES, 0.0)

    def rate_series(self, parts: int) -> dict[str, list[float]]:
        """Messages answered per second in each of this many equal parts of the time of the charts, by outcome."""
        series: dict[str, list[float]] = {outcome: [] for outcome in OUTCOMES}
        for first, last in pairwise(self._edges(parts)):
            rates = _rates(first, last) if first and last and last.at > first.at else dict.fromkeys(OUTCOMES, 0.0)
            for outcome in OUTCOMES:
                series[outcome].append(rates[outcome])
        return series

    def depth_series(self, queue: str, parts: int) -> list[float]:
        """How many messages waited at the end of each part of the time of the charts; 0 where it is not known."""
        return [float((edge and edge.depths.get(queue)) or 0) for edge in self._edges(parts)[1:]]

    def age(self, quantile: float) -> float | None:
        """The age in seconds of a message when it was answered, at this quantile of the last minutes; None: no answers.

        Between the bounds of a histogram's bucket it is interpolated, as Prometheus does.
        """
        first, last = self._span(_AGES_SECONDS)
        if first is None or last is None:
            return None
        counts = {le: last.ages[le] - first.ages.get(le, 0.0) for le in sorted(last.ages)}
        wanted = quantile * max(counts.values(), default=0.0)
        below, under = 0.0, 0.0
        for le, count in counts.items():
            if wanted and count >= wanted:
                return below if le == _UNLIMITED else below + (le - below) * (wanted - under) / (count - under)
            below, under = (le, count) if le != _UNLIMITED else (below, under)
        return None

    def seconds_to_empty(self, queue: str) -> float | None:
        """How long a queue will take to become empty if it goes on as in the last half minute; None if it does not."""
        first, last = self._span(_RECENT_SECONDS)
        before, now = (point.depths.get(queue) if point else None for point in (first, last))
        if not first or not last or before is None or now is None or now >= before:
            return None
        return now * (last.at - first.at) / (before - now)

    def _span(self, seconds: float) -> tuple[_Point | None, _Point | None]:
        """The latest point and the first one that is at most this much older; None if there are not two."""
        if len(self._points) < 2:  # noqa: PLR2004 - two points make a span
            return None, None
        last = self._points[-1]
        first = next(point for point in self._points if point.at >= last.at - seconds)
        return (first, last) if first.at < last.at else (self._points[-2], last)

    def _edges(self, parts: int) -> list[_Point | None]:
        """The last point at the beginning of the time and at the end of each part; None: there was no sample yet."""
        edges: list[_Point | None] = []
        points, found = iter(self._points), None
        now = self._points[-1].at if self._points else 0.0
        coming = next(points, None)
        for number in range(parts + 1):
            end = now - self.seconds * (parts - number) / parts
            while coming is not None and coming.at <= end:
                found, coming = coming, next(points, None)
            edges.append(found)
        return edges


def _grow(totals: dict[Any, float], before: Mapping[Any, float], now: Mapping[Any, float]) -> None:
    """Add what was counted in between. A count that went back is that of a worker that has started again."""
    restarted = any(now.get(name, 0.0) < count for name, count in before.items())
    for name, count in now.items():
        totals[name] = totals.get(name, 0.0) + count - (0.0 if restarted else before.get(name, 0.0))


def _rates(first: _Point, last: _Point) -> dict[str, float]:
    seconds = last.at - first.at
    return {name: (last.outcomes.get(name, 0.0) - first.outcomes.get(name, 0.0)) / seconds for name in OUTCOMES}
