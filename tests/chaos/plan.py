"""The plan of a run, and its journal."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field

ROWS, BODIES, ASKERS, SLOW = HOSTILE = ("rows", "bodies", "askers", "slow")
"""What can be hostile: other sessions, which lock rows; bodies and headers that cost a worker as much as they can; whoever asks
for a reply that cannot be placed; and a trigger that takes its time for some rows."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run does. The same plan makes the same messages and the same faults in the same order."""

    seconds: float
    """How long faults are injected. Recovery and the account take additional time."""
    seed: int
    workers: int
    versions: bool
    """True: requests have versions, and the newest must win. False: they have no versions, and order must be kept."""
    hostile: tuple[str, ...] = HOSTILE
    outages: bool = True
    """False: no fault but the hostile ones, and nobody else's answer may take long because of them."""
    single_active: bool = False
    partitions: int = 0
    """Among how many queues the requests are divided. Half of the publishers then send by record. 0: there is one queue."""
    pgbouncer: bool = False
    cluster: bool = False
    """Three nodes of RabbitMQ instead of one, and a PostgreSQL primary with a synchronous standby."""
    rate: float = 60.0
    """Messages a second, of all publishers together. Low enough for a machine with two cores."""
    publishers: int = 4
    """How many publishers send innocent messages. One more sends the hostile ones."""
    gap_seconds: float = 2.5
    """Mean time between two faults."""

    @property
    def in_order(self) -> bool:
        """Whether requests about one record must be applied in the order sent."""
        return not self.versions

    @property
    def one_consumer(self) -> bool:
        """Whether each request queue gives its messages to one consumer at a time, which keeps the order in all faults."""
        return self.single_active or self.partitions > 0

    @property
    def half_opens(self) -> bool:
        """Whether faults may include half-open connections. Order survives them only with a single active consumer."""
        return self.versions or self.one_consumer

    @property
    def hand_overs(self) -> bool:
        """Whether workers may hand over to each other. Without versions only a single active consumer keeps the order."""
        return self.workers > 1 and (self.versions or self.one_consumer)

    @property
    def scales(self) -> bool:
        """Whether faults may stop some of the workers for a while and start them again."""
        return self.workers > 1 and self.partitions > 0

    def sends_by_record(self, publisher: int) -> bool:
        """Whether a publisher sends by record. Each record is sent one way only: the two ways overtake each other."""
        return self.partitions > 0 and publisher % 2 == 0

    @property
    def hostile_rate(self) -> float:
        """Hostile messages a second. Each costs a worker as much as many others."""
        return self.rate / 15

    def number(self, written: int, publisher: int) -> int:
        """The number of a message, which no other message has."""
        return written * (self.publishers + 1) + publisher

    def command(self) -> str:
        """The command line that repeats this run."""
        flags = ["--versions" if self.versions else "--order"]
        flags += ["--single-active"] if self.single_active else []
        flags += [f"--partitions {self.partitions}"] if self.partitions else []
        flags += ["--pgbouncer"] if self.pgbouncer else []
        flags += ["--cluster"] if self.cluster else []
        flags += [f"--hostile {','.join(self.hostile) or 'none'}"] if self.hostile != HOSTILE else []
        flags += [] if self.outages else ["--no-outages"]
        return (
            f"python -m tests.chaos --seconds {self.seconds:g} --seed {self.seed} --workers {self.workers}"
            f" --rate {self.rate:g} --gap {self.gap_seconds:g} {' '.join(flags)}"
        )


@dataclass
class Journal:
    """The timeline of a run: each fault and each step, with its time."""

    quiet: bool = False
    lines: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    _began: float = field(default_factory=time.monotonic)

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    def note(self, line: str) -> None:
        """Record that something happened now."""
        self.lines.append(f"{self.now:8.2f}  {line}")
        if not self.quiet:
            print(self.lines[-1], file=sys.stderr, flush=True)

    def fault(self, kind: str, detail: str = "") -> None:
        """Record a fault, and count it."""
        self.faults[kind] += 1
        self.note(f"{kind} {detail}".rstrip())
