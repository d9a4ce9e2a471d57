"""Addresses that take no reply at present: which of their replies is tried when, and which is given up. No input or output.

Each address has a line of its own, in which its replies wait in order. An address is tried in one of two ways:

* apart, on a channel of its own. One reply is published, and its answer is waited for, however late it comes: a quorum
  queue without a majority answers when it has one again, and until then copies would only wait there with it. After a
  refusal the next try is a second later. After a confirmation the following replies go in growing numbers.
* together, if the broker ended a connection before it answered. It may have been any address of those published: they
  are tried again over a new connection, in halves, until each either has an answer or has ended a connection alone.

All times are seconds of a clock that stands still while the broker cannot be reached, because no address is at fault
for that.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from itertools import islice
from typing import Generic, TypeVar

from task_activity_log.rabbitmq.outgoing import Fate

T = TypeVar("T")

TOO_MANY = "too_many"
"""Why a reply is given up before its time: others could starve, because too many wait."""

PATIENCE_SECONDS = 1.5
"""How long a reply may take to be confirmed before others go on without it."""
AGAIN_SECONDS = 1.0
_AGAIN_MOST_SECONDS = 8.0
_TOGETHER_MAX = 64
_PART_MAX = 32
"""How many replies of an address are published at once. RabbitMQ's channels stop reading at 32 that a queue has not taken."""
_REMEMBERED_SECONDS = 60.0
_REMEMBERED_MAX = 1_000
_OPEN_MAX_SECONDS = 90.0
"""After this long an answer no longer comes. RabbitMQ refuses for a quorum queue without a leader after 65 s."""
_PREEMPTED_AFTER_SECONDS = 5.0
_PREEMPTED_FOR_SECONDS = 30.0
_UNTRIED_SECONDS = 30.0
_SLOW_SECONDS = 3.0
_CERTAIN_SECONDS = 0.25
"""If the broker answers this long after an address has begun to be silent, the address is at fault, and not the broker."""
_UNTRIED_FREE_SECONDS = 2.0
"""After this long, the replies of addresses that could not be tried yet count among those that must not be too many."""
_FLOODED_FREE_SECONDS = 0.5
_FLOODED_SECONDS = 30.0
"""After some of these were given up, others have less time, for this long: each wave of them delays everybody."""
_TRUSTED_MAX = 4_096


@dataclass(eq=False, slots=True)
class Waiting(Generic[T]):
    """A reply that waits in a line."""

    line: Line[T]
    number: int
    item: T
    size: int
    """Its memory in bytes."""
    since: float
    """When it joined the line."""


@dataclass(eq=False, slots=True)
class Line(Generic[T]):
    """The replies to one address, the oldest first."""

    address: str
    waiting: OrderedDict[int, Waiting[T]] = field(default_factory=OrderedDict)
    open: dict[int, Waiting[T]] = field(default_factory=dict)
    """Published and not answered. One that was given up meanwhile stays here until it is answered."""
    fate: Fate | None = None
    """Why it takes nothing; None if that is not known, or it takes replies again."""
    failed: bool = False
    """Whether it has failed since it was healthy."""
    took: bool = False
    """Whether it has taken a reply since it was remembered."""
    together: bool = False
    """Whether it may end the connection that it is tried over."""
    due: float = 0.0
    opened: float = 0.0
    failing_from: float = 0.0
    emptied: float = 0.0
    step: float = AGAIN_SECONDS
    part: int = 1


class Addresses(Generic[T]):
    """The lines of all addresses that take nothing at present."""

    def __init__(self, *, give_up_seconds: float, count_max: int, size_max: int) -> None:
        """No address fails yet.

        Args:
            give_up_seconds: how long a reply waits at an address that fails.
            count_max: how many replies may wait at addresses that fail; at one address half of that.
            size_max: the same in bytes, for all of them.
        """
        self._give_up_seconds = give_up_seconds
        self._count_max, self._size_max = count_max, size_max
        self._lines: dict[str, Line[T]] = {}
        self._suspects: dict[str, Line[T]] = {}  # may have ended a connection; not in a group yet
        self._groups: deque[list[Line[T]]] = deque()
        self._numbers = 0
        self._flooded_at: float | None = None  # when a reply was last given up before its address was tried
        self._trusted: OrderedDict[str, None] = OrderedDict()
        self.finished: list[tuple[Waiting[T], str | None]] = []
        """What is done, and why it was given up; None if it was confirmed. Taken out by whoever reads it."""
        self.changes: list[tuple[str, Fate | None]] = []
        """Addresses that began to fail, and why, or that are healthy again (None). Taken out by whoever reads it."""

    def __contains__(self, address: str) -> bool:
        """Whether replies to this address must join its line."""
        return address in self._lines

    def __len__(self) -> int:
        """How many replies wait."""
        return sum(len(line.waiting) for line in self._lines.values())

    @property
    def busy(self) -> bool:
        """Whether any address is remembered as failing."""
        return bool(self._lines)

    def lines(self) -> Iterator[Line[T]]:
        """The lines that have replies, those with the oldest reply first."""
        full = [line for line in self._lines.values() if line.waiting]
        return iter(sorted(full, key=lambda line: next(iter(line.waiting))))

    def trusts(self, address: str) -> bool:
        """Whether this address has confirmed a reply that was tried together with others."""
        return address in self._trusted

    # a reply joins

    def join(self, address: str, item: T, size: int, now: float) -> Waiting[T]:
        """A reply to an address that has a line, or gets one now and is tried apart."""
        line = self._lines.get(address)
        if line is None:
            line = self._lines[address] = Line(address, due=now)
        self._numbers += 1
        waiting = Waiting(line, self._numbers, item, size, now)
        line.waiting[waiting.number] = waiting
        return waiting

    def opened(self, waiting: Waiting[T], now: float) -> None:
        """This reply was published and is not confirmed in time, and only its address can be the reason."""
        line = waiting.line
        line.open[waiting.number] = waiting
        line.opened = now
        self._fails(line, Fate.UNCONFIRMED, now)

    def refused(self, waiting: Waiting[T], now: float) -> None:
        """This reply was published, and its queue has refused it."""
        self._fails(waiting.line, Fate.NACKED, now)
        waiting.line.due = now + AGAIN_SECONDS

    def suspect(self, line: Line[T]) -> None:
        """This address may have ended a connection, or might: try it together with others like it."""
        line.open.clear()
        line.part = 1
        line.together = True
        self._suspects[line.address] = line

    # a try

    def due(self, now: float) -> list[Line[T]]:
        """The lines that are to be tried apart now, those with the oldest reply first."""
        return [line for line in self.lines() if not line.together and not line.open and line.due <= now]

    def begin(self, line: Line[T], now: float) -> list[Waiting[T]]:
        """The replies of this line to be published now."""
        some = list(islice(line.waiting.values(), line.part))
        line.open = {waiting.number: waiting for waiting in some}
        line.opened = now
        return some

    def next_group(self, now: float) -> list[Line[T]]:
        """The lines that are to be tried together now; empty if there are none."""
        if self._suspects:
            # Addresses of direct reply-to are known to end connections. The others are first, and without them.
            suspects, self._suspects = [*self._suspects.values()], {}
            for direct in (True, False):
                some = [line for line in suspects if line.address.startswith("amq.rabbitmq.reply-to.") is direct]
                parts = [some[start : start + _TOGETHER_MAX] for start in range(0, len(some), _TOGETHER_MAX)]
                self._groups.extendleft(reversed(parts))
        while self._groups:
            group = [line for line in self._groups.popleft() if line.together and line.waiting]
            if group:
                return group
        lines = (line for line in self.lines() if line.together and line.due <= now and line.fate and not line.open)
        return next(([line] for line in lines), [])

    def put_back(self, group: Sequence[Line[T]]) -> None:
        """These could not be tried together, because there was no connection."""
        for line in group:
            line.open.clear()
        self._groups.appendleft(list(group))

    def not_tried(self, line: Line[T], now: float) -> None:
        """This could not be tried apart, because there was no connection or channel."""
        line.open.clear()
        line.due = now + AGAIN_SECONDS

    # the answer

    def answered(self, waiting: Waiting[T], fate: Fate, now: float) -> None:
        """What became of a reply that was published alone, or while only its address could be the reason."""
        line = waiting.line
        if not self._is_current(line):
            return  # the answer to a later copy of a reply that is done
        was_open = line.open.pop(waiting.number, None) is not None
        if fate is Fate.CONFIRMED:
            self._finish(waiting, None)
            if was_open:
                self._takes(line, now)
        elif not was_open:
            return  # the answer to an earlier copy
        elif fate is Fate.RETURNED:
            self._finish(waiting, fate.value)
            line.due, line.together = now, False
        elif fate is Fate.LOST:
            self.suspect(line)
        else:
            self._fails(line, fate, now)
            line.together = False
            line.due = now if fate is Fate.UNCONFIRMED else now + AGAIN_SECONDS
        self._drop_if_empty(line, now)

    def ended(self, group: Sequence[Line[T]], now: float) -> None:
        """The connection ended before these lines of a group, which were tried together, had an answer."""
        group = [line for line in group if self._is_current(line)]
        for line in group:
            line.open.clear()
        if len(group) > 1:
            middle = len(group) // 2
            self._groups.extendleft((list(group[middle:]), list(group[:middle])))
            return
        for line in group:
            self._fails(line, Fate.LOST, now)
            line.due = now + line.step
            line.step = min(2 * line.step, _AGAIN_MOST_SECONDS)

    def _is_current(self, line: Line[T]) -> bool:
        """Whether this line was not dropped. A reply that came later has made another one for the same address."""
        return self._lines.get(line.address) is line

    def _takes(self, line: Line[T], now: float) -> None:
        if line.together:
            self._trusted[line.address] = None
            if len(self._trusted) > _TRUSTED_MAX:
                self._trusted.popitem(last=False)
        line.together = False
        line.took = True
        line.fate = None
        line.due = now
        line.step = AGAIN_SECONDS
        if not line.open:
            line.part = min(2 * line.part, _PART_MAX)

    def _fails(self, line: Line[T], fate: Fate, now: float) -> None:
        if not line.failed:
            self.changes.append((line.address, fate))
        if line.fate is None:
            line.failing_from = now
        line.failed = True
        line.fate = fate
        line.part = 1

    # the end

    def tidy(
        self, now: float, still: Callable[[T], bool], *, answering: bool = True, answered: float | None = None
    ) -> None:
        """Give up what has waited too long or is too much, and forget what is not `still` wanted.

        A reply is given up when it has waited for the limit at an address that fails, whether or not others were taken
        meanwhile. If too many wait at addresses that fail, the oldest of the address with the most go first.

        `answering` says whether the broker has answered a publish lately. If not, it may be slow for everybody, and an
        address that is silent does not lose its replies for the first seconds. `answered` is when it last answered
        anything, by default now: an address that has begun to be silent since may only be the first to notice that the
        broker is.
        """
        for line in list(self._lines.values()):
            for waiting in [waiting for waiting in line.waiting.values() if not still(waiting.item)]:
                del line.waiting[waiting.number]
            if (
                line.fate is None
                and line.waiting
                and now - _oldest(line).since > self._give_up_seconds + _UNTRIED_SECONDS
            ):
                self._fails(line, Fate.LOST, now)  # the broker takes other replies, but no connection for this one
            if line.fate is None and line.open and not line.together and now - line.opened > PATIENCE_SECONDS:
                self._fails(line, Fate.UNCONFIRMED, now)
            if line.fate is not None:
                self._give_up(line, now)
            if line.open and now - line.opened > _OPEN_MAX_SECONDS:
                line.open.clear()
            self._drop_if_empty(line, now)
        self._make_room(now, answering, now if answered is None else answered)
        empty = [line for line in self._lines.values() if not line.waiting]
        for line in sorted(empty, key=lambda line: line.emptied)[: max(0, len(empty) - _REMEMBERED_MAX)]:
            del self._lines[line.address]

    def _give_up(self, line: Line[T], now: float) -> None:
        assert line.fate is not None  # noqa: S101 - a programming error
        while line.waiting:
            waiting = _oldest(line)
            if now - waiting.since < self._give_up_seconds:
                break
            self._finish(waiting, line.fate.value)

    def is_open(self, address: str) -> bool:
        """Whether an answer from this address is waited for."""
        return address in self._lines and bool(self._lines[address].open)

    def _make_room(self, now: float, answering: bool, answered: float) -> None:
        lines = [line for line in self._lines.values() if line.waiting]
        limited = [line for line in lines if self._is_limited(line, now, answering, answered)]
        most = self._count_max - self._count_max // 2
        for line in limited:
            while line.fate is not None and len(line.waiting) > most:
                self._finish(_oldest(line), TOO_MANY)
        count = sum(len(line.waiting) for line in limited)
        size = sum(waiting.size for line in limited for waiting in line.waiting.values())
        if count > self._count_max or size > self._size_max:
            longest = [(-len(line.waiting), line.fate is None, next(iter(line.waiting)), line) for line in limited]
            heapify(longest)
            while longest and (count > self._count_max or size > self._size_max):
                line = longest[0][-1]
                if line.fate is None:
                    self._flooded_at = now
                oldest = _oldest(line)
                self._finish(oldest, TOO_MANY)
                count, size = count - 1, size - oldest.size
                if line.waiting:
                    heapreplace(longest, (-len(line.waiting), line.fate is None, next(iter(line.waiting)), line))
                else:
                    heappop(longest)
        for line in limited:
            self._drop_if_empty(line, now)

    def _is_limited(self, line: Line[T], now: float, answering: bool, answered: float) -> bool:
        """Whether the replies of this line are among those that must not be too many."""
        if line.fate is None:
            # It was not tried in all that time, because too many others are tried.
            flooded = self._flooded_at is not None and now - self._flooded_at < _FLOODED_SECONDS
            free_seconds = _FLOODED_FREE_SECONDS if flooded else _UNTRIED_FREE_SECONDS
            return answering and not (line.took or line.open) and now - _oldest(line).since > free_seconds
        if line.fate is not Fate.UNCONFIRMED or now - line.failing_from > _SLOW_SECONDS:
            return True
        return answering and answered - line.failing_from > _CERTAIN_SECONDS

    def preempted(self, now: float) -> Line[T] | None:
        """The line that has waited longest for an answer: another one needs its channel. It is tried again much later."""
        lines = [line for line in self._lines.values() if line.open and not line.together]
        line = min(lines, key=lambda line: line.opened, default=None)
        if line is None or now - line.opened < _PREEMPTED_AFTER_SECONDS:
            return None
        line.open.clear()
        line.due = now + _PREEMPTED_FOR_SECONDS
        return line

    def _finish(self, waiting: Waiting[T], why: str | None) -> None:
        if waiting.line.waiting.pop(waiting.number, None) is not None:
            self.finished.append((waiting, why))

    def _drop_if_empty(self, line: Line[T], now: float) -> None:
        """Forget a line without replies: at once if its address takes replies, else after a minute."""
        if line.waiting:
            line.emptied = 0.0
        elif line.fate is None and not line.open:
            del self._lines[line.address]
            if line.failed:
                self.changes.append((line.address, None))
        elif not line.emptied:
            line.emptied = now
        elif now - line.emptied > _REMEMBERED_SECONDS and not line.open:
            del self._lines[line.address]


def _oldest(line: Line[T]) -> Waiting[T]:
    return next(iter(line.waiting.values()))
