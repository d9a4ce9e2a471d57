"""How fast workers share the partitions: the product's `Balance` against a model of the broker, without a network.

    python -m benchmarks.balance                      a table for several numbers of partitions and workers
    python -m benchmarks.balance --chart FILE.svg     100 workers, 256 partitions: a day of updates, crashes and scaling

The model has what matters: each partition is a line of consumers, the first one is active; whoever closes and consumes again
goes to the end; a worker decides once a second, or three times as often while it has too much, with jitter. All partitions
have messages all the time, which is the worst case.
"""

from __future__ import annotations

import argparse
import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

from task_activity_log.rabbitmq.balance import Balance

_TICK_SECONDS = 1.0
_HURRY_SECONDS = 0.3


@dataclass
class Model:
    """The broker's lines and the workers' clocks."""

    partitions: int
    seed: int
    now: float = 0.0
    handed_over: int = 0
    rejoined: int = 0
    lines: list[list[int]] = field(init=False)
    chance: Random = field(init=False)
    workers: dict[int, Balance] = field(default_factory=dict)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        """Nobody consumes yet."""
        self.chance = Random(self.seed)  # noqa: S311 - chance that can be repeated
        self.lines = [[] for _ in range(self.partitions)]

    def start(self) -> int:
        """A worker joins the end of every line."""
        worker = next(self._numbers)
        self.workers[worker] = Balance(self.partitions, self.chance)
        for line in self.lines:
            line.append(worker)
        self._after(self.chance.uniform(0.2, 1.0), lambda: self._decide(worker))
        return worker

    def stop(self, worker: int) -> None:
        """A worker leaves every line: it was stopped or killed."""
        del self.workers[worker]
        for line in self.lines:
            line.remove(worker)

    def _after(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), do))

    def _decide(self, worker: int) -> None:
        if worker not in self.workers:
            return
        balance = self.workers[worker]
        active = {number for number, line in enumerate(self.lines) if line[0] == worker}
        moves = balance.decide(active, len(self.workers), sum(each.short for each in self.workers.values()))
        for number in (*moves.hand_over, *moves.rejoin):
            self.handed_over += self.lines[number][0] == worker
            self.rejoined += self.lines[number][0] != worker
            self.lines[number].remove(worker)
            self.lines[number].append(worker)
        pause = _HURRY_SECONDS if balance.over(active - moves.hand_over) else _TICK_SECONDS
        self._after(pause * self.chance.uniform(0.7, 1.3), lambda: self._decide(worker))

    def loads(self) -> list[int]:
        """The number of partitions of each worker, in order."""
        active = Counter(line[0] for line in self.lines if line)
        return sorted(active[worker] for worker in self.workers)

    def unfair(self) -> int:
        """How many partitions are not where they should be."""
        smallest, largest = self.partitions // len(self.workers), -(-self.partitions // len(self.workers))
        loads = self.loads()
        return max(sum(max(0, load - largest) for load in loads), sum(max(0, smallest - load) for load in loads))

    def step(self) -> None:
        """Go to the next event."""
        self.now, _, do = heapq.heappop(self._events)
        do()

    def seconds_to_balance(self, limit: float = 600.0) -> float:
        """Run until every worker has its share; in seconds."""
        began = self.now
        while self.unfair() and self.now < began + limit:
            self.step()
        return self.now - began

    def run(self, seconds: float) -> None:
        """Run for this long."""
        until = self.now + seconds
        while self._events[0][0] < until:
            self.step()
        self.now = until


def table(seeds: int) -> None:
    """Print the medians for several sizes and changes."""
    print("partitions workers  change            seconds  hand-overs  rejoined   (medians; slowest run in brackets)")
    for partitions, workers in ((8, 4), (16, 4), (16, 5), (64, 10), (256, 20), (256, 100)):
        rows: dict[str, list[tuple[float, int, int]]] = {}
        for seed in range(seeds):
            model = Model(partitions, seed)
            for change, act in _changes(model, workers):
                before = (model.handed_over, model.rejoined)
                act()
                seconds = model.seconds_to_balance()
                rows.setdefault(change, []).append((seconds, model.handed_over - before[0], model.rejoined - before[1]))
                model.run(30)
        for change, found in rows.items():
            middle = [sorted(column)[len(column) // 2] for column in zip(*found, strict=True)]
            slowest = max(seconds for seconds, _, _ in found)
            print(
                f"{partitions:10} {workers:7}  {change:16} {middle[0]:8.1f} [{slowest:5.1f}] {middle[1]:8} {middle[2]:9}"
            )


def _changes(model: Model, workers: int) -> list[tuple[str, Callable[[], None]]]:
    def start(number: int) -> None:
        for _ in range(number):
            model.start()

    def stop(number: int) -> None:
        for worker in model.chance.sample(sorted(model.workers), number):
            model.stop(worker)

    return [
        ("first worker", lambda: start(1)),
        ("all others start", lambda: start(workers - 1)),
        ("one more", lambda: start(1)),
        ("one killed", lambda: stop(1)),
        ("half stopped", lambda: stop(workers // 2)),
        ("half back", lambda: start(workers // 2)),
    ]


def chart(path: Path) -> None:
    """Draw how many partitions are not where they should be, while 100 workers of 256 partitions come and go."""
    model = Model(256, seed=1)
    points: list[tuple[float, int]] = []

    def watch(seconds: float) -> None:
        for _ in range(int(seconds)):
            model.run(1)
            points.append((model.now, model.unfair()))

    for _ in range(50):  # Kubernetes starts one every two seconds
        for _ in range(2):
            model.start()
        watch(2)
    watch(60)
    marks = [(0, "100 start"), (model.now, "rolling update")]
    for worker in sorted(model.workers):
        model.start()
        model.stop(worker)
        watch(2)
    watch(60)
    marks.append((model.now, "20 crash"))
    for worker in model.chance.sample(sorted(model.workers), 20):
        model.stop(worker)
    watch(60)
    _draw(path, points, marks)
    print(f"{path}: {model.handed_over} hand-overs, {model.rejoined} times to the end of a line, in {model.now:.0f} s")


def _draw(path: Path, points: list[tuple[float, int]], marks: list[tuple[float, str]]) -> None:
    end, most = points[-1][0], max(1, *(unfair for _, unfair in points))
    line = " ".join(f"{40 + x / end * 670:.1f},{190 - y / most * 160:.1f}" for x, y in points)
    texts = "".join(f'<text x="{42 + x / end * 670:.0f}" y="20">{text} ({x:.0f} s)</text>' for x, text in marks)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 220" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/><polyline points="{line}" fill="none" stroke="#06c"/>{texts}'
        f'<text x="2" y="194">0</text><text x="2" y="34">{most}</text>'
        f'<text x="40" y="212">partitions that are not where they should be, by time in seconds</text></svg>\n'
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs for each row of the table")
    parser.add_argument("--chart", type=Path, help="draw the chart into this file instead")
    chosen = parser.parse_args()
    if chosen.chart:
        chart(chosen.chart)
    else:
        table(chosen.seeds)
