"""An hour of samples in memory, and the figures made from them. Pure: whoever samples passes in the time."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from task_activity_log.record import ANSWERS
from task_activity_log.telemetry.asking import Counts, Worker

OUTCOMES: Final = tuple(map(str, ANSWERS))
KEEP_SECONDS: Final = 3600.0
_SHORTEST_CHART_SECONDS: Final = 300.0
_RECENT_SECONDS: Final = 30.0
"""Over how long a present rate is taken."""
_AGES_SECONDS: Final = 300.0
"""Over how long the ages at the answer are taken."""


@dataclass(frozen=True, slots=True)
class Depth:
    """A queue: its messages and consumers, and how many messages arrive and are settled a second; None if not known."""

    messages: int | None = None
    consumers: int | None = None
    arriving: float | None = None
    settled: float | None = None


class Sample(NamedTuple):
    """The queues at one time, and what the workers have answered since the sample before."""

    at: float
    answered: Counts
    queues: Mapping[str, Depth]


@dataclass
class History:
    """What was sampled in the last hour."""

    workers: Sequence[Worker] = ()
    """As they were found last."""
    queues: Mapping[str, Depth] = field(default_factory=dict)
    """As they were found last, by name."""
    broker_error: str = ""
    """Why the broker could not be asked last; empty if it could."""
    samples: deque[Sample] = field(default_factory=deque)
    _before: dict[str, Counts] = field(default_factory=dict)

    def add(self, at: float, workers: Sequence[Worker], queues: Mapping[str, Depth], broker_error: str = "") -> None:
        """Add a sample that was taken at this time, in seconds of any clock that never goes back."""
        answered: Counter[str | float] = Counter()
        for worker in workers:
            if not worker.counts:
                continue
            before = self._before.get(worker.address)
            if before is not None:  # what a worker has counted before it was first seen is not of this time
                restarted = any(worker.counts.get(name, 0.0) < count for name, count in before.items())
                for name, count in worker.counts.items():
                    answered[name] += count - (0.0 if restarted else before.get(name, 0.0))  # type: ignore[assignment]
            self._before[worker.address] = worker.counts
        self.samples.append(Sample(at, answered, queues))
        while self.samples[0].at < at - KEEP_SECONDS:
            self.samples.popleft()
        self.workers, self.queues, self.broker_error = workers, queues, broker_error

    @property
    def seconds(self) -> float:
        """How long the time is that charts show: an hour, or less if the console has just begun to sample."""
        seen = self.samples[-1].at - self.samples[0].at if self.samples else 0.0
        return min(KEEP_SECONDS, max(_SHORTEST_CHART_SECONDS, seen))

    def rates(self) -> dict[str, float]:
        """Messages answered per second now, by outcome."""
        recent = self._since(_RECENT_SECONDS)
        seconds = recent[-1].at - recent[0].at if recent else 0.0
        counts = {name: sum(sample.answered.get(name, 0.0) for sample in recent[1:]) for name in OUTCOMES}
        return {name: count / seconds if seconds else 0.0 for name, count in counts.items()}

    def rate_series(self, parts: int) -> dict[str, list[float]]:
        """Messages answered per second in each of this many equal parts of the time of the charts, by outcome."""
        series = {name: [0.0] * parts for name in OUTCOMES}
        for sample in self.samples:
            for name in OUTCOMES:
                series[name][self._part(sample, parts)] += sample.answered.get(name, 0.0) * parts / self.seconds
        return series

    def depth_series(self, queue: str, parts: int) -> list[float]:
        """How many messages waited at the end of each part of the time of the charts; 0 where it is not known."""
        found: dict[int, float] = {}
        for sample in self.samples:
            found[self._part(sample, parts)] = float(sample.queues.get(queue, Depth()).messages or 0)
        series = [0.0]
        for part in range(parts):
            series.append(found.get(part, series[-1]))
        return series[1:]

    def age(self, quantile: float) -> float | None:
        """The age in seconds of a message when it was answered, at this quantile of the last minutes; None: no answers.

        Between the bounds of a histogram's bucket it is interpolated, as Prometheus does.
        """
        recent = self._since(_AGES_SECONDS)[1:]
        bounds = sorted({name for sample in recent for name in sample.answered if isinstance(name, float)})
        counts = [sum(sample.answered.get(bound, 0.0) for sample in recent) for bound in bounds]
        wanted = quantile * max(counts, default=0.0)
        below, under = 0.0, 0.0
        for bound, count in zip(bounds, counts, strict=True):
            if wanted and count >= wanted:  # the last bucket has no end: its beginning counts
                return below if bound == float("inf") else below + (bound - below) * (wanted - under) / (count - under)
            below, under = bound, count
        return None

    def seconds_to_empty(self, queue: str) -> float | None:
        """How long a queue will take to become empty if it goes on as in the last half minute; None if it does not."""
        recent = self._since(_RECENT_SECONDS)
        ends = [sample.queues.get(queue, Depth()).messages for sample in (*recent[:1], *recent[-1:])]
        match ends:
            case [int(before), int(now)] if now < before:
                return now * (recent[-1].at - recent[0].at) / (before - now)
        return None

    def _since(self, seconds: float) -> list[Sample]:
        """The samples that are at most this much older than the latest, at least two; empty if there are not two."""
        if len(self.samples) < 2:  # noqa: PLR2004 - what happened between two samples
            return []
        found = [sample for sample in self.samples if sample.at >= self.samples[-1].at - seconds]
        return found if len(found) > 1 else list(self.samples)[-2:]

    def _part(self, sample: Sample, parts: int) -> int:
        """In which part of the time of the charts a sample is."""
        ago = self.samples[-1].at - sample.at
        return min(parts - 1, max(0, int(parts * (1 - ago / self.seconds))))
