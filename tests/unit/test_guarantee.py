"""The delivery guarantee as a property: whatever goes wrong, in whatever order, the promises hold (contract, 6 and 7).

The real worker runs against a broker and a database in memory, with the product's own pacing and prefetch, on a virtual
clock. hypothesis draws the messages, what goes wrong at each call to the broker or the database, and what happens in
between: a process is killed, a connection is lost, a worker drains. When all faults have happened everything works again,
and then nothing may be missing.
"""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from itertools import compress
from types import SimpleNamespace
from unittest.mock import patch
from uuid import UUID

import structlog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from task_activity_log.message import ERROR_CODE, Delivery
from task_activity_log.pipeline import hold, parking, retrying, search
from task_activity_log.pipeline.lines import Limits
from task_activity_log.pipeline.ports import PATIENT, Patience, Settlement
from task_activity_log.pipeline.reply import Reply
from task_activity_log.pipeline.request import Request, Rules, decode
from task_activity_log.pipeline.suspects import RETURNED_BELOW, is_suspect
from task_activity_log.pipeline.worker import Worker
from task_activity_log.problem import Code, Failed, Problem, Refused, TimedOut, Unavailable
from task_activity_log.record import FIELDS, Applied, Outcome, TaskActivityLog
from task_activity_log.settings import BATCHES_IN_HAND
from task_activity_log.testing import FakeDatabase
from tests import virtual_time
from tests.effort import examples
from tests.fakes import FakeWatch, delivered
from tests.memory_broker import Loan, MemoryBroker, MemoryIntake

POISON_FROM = 10
HOLD_LIMIT_SECONDS = 20.0
DRAIN_LIMIT_SECONDS = 10.0
PARK_LIMIT_SECONDS = 30.0


class Kind(Enum):
    """What should happen to a message."""

    GOOD = auto()
    REFUSED = auto()
    """The database refuses its row."""
    BAD = auto()
    """It cannot be decoded."""
    CRASHES = auto()
    """The process that tries to store it crashes."""
    FAULTY = auto()
    """The database fails for its row, as it does when all rows are corrupt."""


class Trouble(Enum):
    """What goes wrong at one call to the broker or the database. A call ignores what cannot happen to it."""

    NONE = auto()
    AWAY = auto()
    DONE_BUT_LOST = auto()
    """The call was done, and the answer was lost."""
    HALF_DONE = auto()
    SLOW = auto()
    """A timeout, and nothing was done."""
    SLOW_BUT_DONE = auto()
    LOCKED = auto()
    """Somebody else locks a row of the wave for some seconds."""
    INSERTED = auto()
    """The same, and it cannot be seen, because the row is new and not committed."""
    LOCKED_FOR_LONG = auto()
    """Longer than messages may be parked."""
    OUT_OF_MEMORY = auto()
    """The database fails for a row of the wave for some seconds."""
    KILLED = auto()
    KILLED_AFTER = auto()
    LINK_LOST = auto()
    """The intake's connection is lost, and the call goes on."""
    RETURNED = auto()
    """The queue of the reply_to is gone."""
    REFUSES = auto()
    """The queue of the reply_to is full."""


HINDRANCES = {
    Trouble.LOCKED: 7.0,
    Trouble.INSERTED: 7.0,
    Trouble.OUT_OF_MEMORY: 7.0,
    Trouble.LOCKED_FOR_LONG: 2.5 * PARK_LIMIT_SECONDS,
}
"""For how many seconds a row cannot be written."""


class Event(Enum):
    """What happens between the calls."""

    KILL = auto()
    LOSE = auto()
    DRAIN = auto()
    PUBLISH = auto()


@dataclass(frozen=True)
class Sent:
    """One message, as hypothesis draws it."""

    record: int
    """0: keyed, without versions. 1: with versions. 2: without keys or versions. 3: anything."""
    kind: Kind = Kind.GOOD
    merges: bool = False
    version: int | None = None
    keyed: bool = True
    asks: bool = False
    """Whether it has a reply_to."""
    repeats: int | None = None
    """Not a new message, but this one of those before it once more."""

    def message(self, marker: str) -> Delivery:
        """The message. Its reply and its row contain `marker`."""
        version = (self.version or 1) if self.record == 1 else self.version if self.record == 3 else None
        keyed = self.record == 0 or (self.keyed and self.record != 2)
        headers: dict[str, object] = {"x-update-mode": "merge"} if self.merges else {}
        headers |= {} if version is None else {"x-version": version}
        part = {"description": marker} if self.merges and len(marker) % 2 else {"user_id": None}
        body = json.dumps({"id": str(UUID(int=self.record + 1)), "subject": marker, **part}).encode()
        return delivered(
            b"{" if self.kind is Kind.BAD else body,
            message_id=marker if keyed else None,
            correlation_id=marker,
            reply_to="asker" if self.asks else None,
            headers=headers,
        )


messages = st.builds(
    Sent,
    record=st.integers(0, 3),
    kind=st.sampled_from([Kind.GOOD] * 12 + [Kind.REFUSED, Kind.BAD, Kind.BAD, Kind.CRASHES, Kind.FAULTY]),
    merges=st.booleans(),
    version=st.none() | st.integers(1, 5),
    keyed=st.booleans(),
    asks=st.booleans(),
    repeats=st.none() | st.none() | st.none() | st.integers(0, 30),
)
troubles = st.sampled_from([Trouble.NONE] * 10 + list(Trouble))
events = st.tuples(
    st.sampled_from([*Event, Event.PUBLISH]),
    st.integers(0, 25),
    st.sampled_from([0.0, 0.0, 0.0, 0.4, 3.0, 25.0]),
    st.integers(0, 1),
)


@dataclass(frozen=True)
class Schedule:
    """One run."""

    sent: Sequence[Sent]
    troubles: Sequence[Trouble]
    events: Sequence[tuple[Event, int, float, int]]
    at_first: int
    """How many messages there are at the beginning. The others come with `Event.PUBLISH`, and at the end."""
    batch_max: int
    drops: bool
    """Whether the broker loses the acknowledgements that come with the end of a channel."""


schedules = st.builds(
    Schedule,
    sent=st.lists(messages, min_size=1, max_size=24),
    troubles=st.lists(troubles, max_size=50),
    events=st.lists(events, max_size=8),
    at_first=st.integers(0, 24),
    batch_max=st.sampled_from([1, 3, 10]),
    drops=st.booleans(),
)


class Ledger:
    """What was answered, dead-lettered and settled. Asserts that these come in the right order."""

    def __init__(self) -> None:
        self.answers: defaultdict[str, list[Reply]] = defaultdict(list)
        self.given_up: set[str] = set()
        self.waiting: defaultdict[str, list[Settlement[Loan]]] = defaultdict(list)
        """Those whose replies wait for their address: several of one message that is repeated."""
        self.dead: defaultdict[str, list[Problem]] = defaultdict(list)
        self.kinds: dict[str, Kind] = {}

    def answer(self, reply: Reply) -> None:
        marker = str(reply.correlation_id)
        if reply.outcome is Outcome.REJECTED:
            assert marker in self.dead, f"{marker}: the problem is published before the dead letter"
        self.answers[marker].append(reply)

    def settled(self, message: Delivery) -> None:
        marker = str(message.properties.correlation_id)
        if any(
            settlement.acknowledged for settlement in self.waiting[marker]
        ):  # its reply is lost if the worker is killed now
            assert message.properties.message_id is None, f"{marker}: acknowledged before its answer"
            self.given_up.add(marker)
        assert marker in self.answers or marker in self.given_up, f"{marker}: acknowledged without an answer"
        if self.kinds[marker] is not Kind.GOOD:
            assert marker in self.dead, f"{marker}: acknowledged without a dead letter"


class World:
    """Everything that outlives a process."""

    def __init__(self, schedule: Schedule, *, workers: int, by_position: bool, single_active: bool) -> None:
        self.ledger = Ledger()
        self.broker = MemoryBroker(
            self.ledger.settled, by_position=by_position, single_active=single_active, drops=schedule.drops
        )
        self.database = FakeDatabase()
        self.published: list[Delivery] = []
        self.batch_max = schedule.batch_max
        self.interruptions = 0
        self.hindered: dict[UUID, tuple[Trouble, float]] = {}
        """Records whose rows somebody else has locked, or that fail: how, and until when."""
        """How often a process was killed or drained or lost its connection, without those that a message has crashed."""
        self.losses = 0
        """How often a process has lost its connection, and gone on."""
        self._schedule = schedule
        self._troubles = iter(schedule.troubles)
        self._unsent = self._messages()
        self._processes = [Process(self) for _ in range(workers)]

    def trouble(self) -> Trouble:
        """What goes wrong at this call."""
        return next(self._troubles, Trouble.NONE)

    def hinder(self, wave: Sequence[Request[Delivery]], trouble: Trouble) -> None:
        """Let the first row of a wave be locked, or fail, for some time, if that is the trouble."""
        if trouble in HINDRANCES:
            if trouble is Trouble.LOCKED_FOR_LONG or any(sent.kind is Kind.CRASHES for sent in self._schedule.sent):
                # What is parked is returned meanwhile more than once, by the limit or with each crash of another message.
                # If it is the oldest one in hand, nothing tells it from what crashes the worker (docs/guarantees.md).
                self.interruptions += 2
            until = asyncio.get_running_loop().time() + HINDRANCES[trouble]
            self.hindered[wave[0].record.id] = (trouble, until)

    def hindrance(self, record: UUID) -> Trouble:
        """What prevents writing this record at present."""
        trouble, until = self.hindered.get(record, (Trouble.NONE, 0.0))
        return trouble if asyncio.get_running_loop().time() < until else Trouble.NONE

    async def run(self) -> None:
        """Run the schedule, then wait until every message is settled."""
        self._publish(self._schedule.at_first)
        for process in self._processes:
            process.start()
        for event, steps, seconds, index in self._schedule.events:
            for _ in range(steps):
                await asyncio.sleep(0)
            await asyncio.sleep(seconds)
            process = self._processes[index % len(self._processes)]
            if event is Event.KILL:
                process.kill()
            elif event is Event.LOSE:
                process.lose()
            elif event is Event.DRAIN:
                self.interruptions += 1
                if await process.drain():
                    self.restart(process)
            else:
                self._publish(3)
        self._publish(len(self._schedule.sent))
        async with asyncio.timeout(3600):
            while self.broker.unsettled:
                await asyncio.sleep(1)
        for process in self._processes:
            await process.drain()

    def restart(self, process: "Process") -> None:
        """Replace a process that has ended by a new one."""
        index = self._processes.index(process)
        self._processes[index] = new = Process(self)
        asyncio.get_running_loop().call_later(0.3, new.start)

    def _publish(self, most: int) -> None:
        for _, message in zip(range(most), self._unsent, strict=False):
            self.published.append(message)
            self.broker.publish(message)

    def _messages(self) -> Iterator[Delivery]:
        first: list[Delivery] = []
        for number, sent in enumerate(self._schedule.sent):
            if sent.repeats is not None and first:
                yield first[sent.repeats % len(first)]
                continue
            kind = sent.kind
            if kind is Kind.CRASHES and Kind.CRASHES in self.ledger.kinds.values():
                kind = Kind.GOOD  # one is enough
            marker = f"{kind.name} {number}"
            self.ledger.kinds[marker] = kind
            message = sent.message(marker)
            if kind is not Kind.CRASHES:
                first.append(message)  # one is enough: after several, the others are rejected before the broker's limit
            yield message


class Process:
    """One worker process, with its connections to the broker and the database."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.intake = MemoryIntake(
            world.broker,
            BATCHES_IN_HAND * world.batch_max,
            world.batch_max,
            self._until_probed,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._ended = False
        self._replies = _Replies(self)
        self._worker: Worker[Loan] = Worker(
            intake=self.intake,
            store=self,
            dead_letters=self,
            replies=self._replies,
            watch=FakeWatch([]),
            rules=Rules(poison_from=POISON_FROM),
            batch_max=world.batch_max,
            hold_limit_seconds=HOLD_LIMIT_SECONDS,
            parked_store=_ParkedStore(self),
            park=Limits(max(1, BATCHES_IN_HAND * world.batch_max // 2), seconds=PARK_LIMIT_SECONDS),
        )

    def start(self) -> None:
        """Start the worker and its intake."""
        if not self._ended:
            self._tasks = [asyncio.create_task(self._worker.run()), asyncio.create_task(self.intake.run())]

    def kill(self) -> None:
        """End at once, wherever the process is. Another one is started."""
        if not self._ended:
            self.world.interruptions += 1
            self._end()
            self.world.restart(self)

    def lose(self) -> None:
        """Lose the intake's connection, and go on."""
        self.world.interruptions += 1
        self.world.losses += 1
        self.intake.lose()

    async def drain(self) -> bool:
        """Drain as the service does at SIGTERM; False if the process was killed before the drain ended."""
        if self._tasks and not self._ended:
            async with asyncio.timeout(DRAIN_LIMIT_SECONDS):
                self._worker.drain()
                await self.intake.stop(DRAIN_LIMIT_SECONDS / 3)
                await asyncio.wait(self._tasks[:1])
            if not self._ended:
                self._tasks[0].result()
                await self.intake.requeue()
                await self._worker.trials.drained()
        if self._ended:
            return False
        self._end()
        return True

    def _end(self) -> None:
        self._ended = True
        for task in self._tasks:
            task.cancel()
        self.intake.lose()

    async def stumble(self, trouble: Trouble) -> None:
        """Be killed here, or lose the connection here, if that is the trouble."""
        await asyncio.sleep(0)
        if trouble is Trouble.LINK_LOST:
            self.lose()
        if trouble is Trouble.KILLED:
            self.kill()
            await asyncio.Event().wait()  # cancelled

    async def _until_probed(self) -> None:
        while True:
            try:
                await self.probe()
            except Unavailable:
                await asyncio.sleep(1)
            else:
                return

    # the store

    async def probe(self) -> None:
        trouble = self.world.trouble()
        await self.stumble(trouble)
        if trouble in (Trouble.AWAY, Trouble.SLOW):
            raise Unavailable("connection lost")

    async def try_own_rows(self, like: TaskActivityLog | None) -> list[Failed]:  # noqa: ARG002 - the values do not matter
        await self.probe()
        return []

    async def survives(self) -> bool:
        return True

    async def time_own_rows(self, count: int) -> float:
        await self.probe()
        return 0.0001 * count

    async def marked(self, marks: Sequence[UUID]) -> set[UUID]:
        await self.probe()
        return self.world.database.inbox.intersection(marks)

    async def mark(self, marks: Sequence[UUID]) -> None:
        await self.probe()
        self.world.database.inbox |= set(marks)

    async def unmark(self, marks: Sequence[UUID]) -> None:
        await self.probe()
        self.world.database.inbox -= set(marks)

    async def apply(self, wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        self._check_suspects(wave)
        return await self.write(wave, patience)

    async def write(self, wave: Sequence[Request[Delivery]], patience: Patience) -> list[Applied]:
        trouble = self.world.trouble()
        await self.stumble(trouble)
        if any(self._kind(request) is Kind.CRASHES for request in wave):
            self.world.interruptions -= 1
            await self.stumble(Trouble.KILLED)
        if trouble is Trouble.AWAY:
            raise Unavailable("connection lost")
        if trouble is Trouble.SLOW:
            raise TimedOut
        await self._lock(wave, trouble, patience)
        if any(self._kind(request) is Kind.REFUSED for request in wave):
            raise Refused("23514")
        applied = self.world.database.apply(wave)
        await self.stumble(Trouble.KILLED if trouble is Trouble.KILLED_AFTER else Trouble.NONE)
        if trouble in (Trouble.DONE_BUT_LOST, Trouble.HALF_DONE):
            raise Unavailable("connection lost")
        if trouble is Trouble.SLOW_BUT_DONE:
            raise TimedOut
        return applied

    async def _lock(self, wave: Sequence[Request[Delivery]], trouble: Trouble, patience: Patience) -> None:
        """Lock all rows of a wave, as the statement does before it writes any of them."""
        self.world.hinder(wave, trouble)
        for request in sorted(wave, key=lambda request: request.record.id):
            if self.world.hindrance(request.record.id) is Trouble.OUT_OF_MEMORY:
                raise Failed("out of resources (53200)", "53200")
            if self.world.hindrance(request.record.id) is not Trouble.NONE:
                await asyncio.sleep(patience.lock_seconds)
            if self.world.hindrance(request.record.id) is not Trouble.NONE:
                raise TimedOut(locked=True)
        if any(self._kind(request) is Kind.FAULTY for request in wave):
            raise Failed("database error (XX001)", "XX001", lasting=True)

    async def locked(self, ids: Sequence[UUID]) -> set[UUID]:
        trouble = self.world.trouble()
        await self.stumble(trouble)
        if trouble in (Trouble.AWAY, Trouble.SLOW):
            raise Unavailable("connection lost")
        seen = (Trouble.LOCKED, Trouble.LOCKED_FOR_LONG)
        return {identifier for identifier in ids if self.world.hindrance(identifier) in seen}

    async def close(self) -> None:
        """Nothing is open."""

    async def read(self, request: Request[Delivery], outcome: Outcome) -> Applied:
        return Applied(outcome, self.world.database.rows.get(request.record.id))

    def _kind(self, request: Request[Delivery]) -> Kind:
        return self.world.ledger.kinds[str(request.delivery.properties.correlation_id)]

    def _check_suspects(self, wave: Sequence[Request[Delivery]]) -> None:
        for request in wave:
            loan = request.delivery
            assert isinstance(loan, Loan)
            assert loan.attempts < POISON_FROM or not loan.crashed, "poison was tried"
            if self._must_be_alone(loan) and self.intake.has(loan):
                assert len(wave) == 1, "a suspect was tried among others"
                self._check_alone(loan)

    def _must_be_alone(self, loan: Loan) -> bool:
        """Because of its marks, or, without a single active consumer, because of its attempts."""
        return loan.suspect if self.world.broker.single_active else is_suspect(loan)

    def _check_alone(self, suspect: Loan) -> None:
        if self.world.broker.single_active:
            older = {tag for tag in self.intake.unsettled if tag < suspect.tag}
            assert older <= self.intake.proved, "a suspect was tried while older messages were unsettled"
        elif suspect.attempts < RETURNED_BELOW:
            parked = self._worker.parking.messages
            assert self.intake.in_hand_when_tried - parked <= 1, "a suspect was tried with others in hand"

    # the dead letters

    async def keep(self, rejected: Sequence[tuple[Loan, Problem]]) -> None:
        trouble = self.world.trouble()
        await self.stumble(trouble)
        if trouble in (Trouble.AWAY, Trouble.SLOW):
            raise Unavailable("no publisher connection")
        done = rejected[: len(rejected) // 2] if trouble is Trouble.HALF_DONE else rejected
        for loan, problem in done:
            self.world.ledger.dead[str(loan.properties.correlation_id)].append(problem)
        await self.stumble(Trouble.KILLED if trouble is Trouble.KILLED_AFTER else Trouble.NONE)
        if trouble in (Trouble.HALF_DONE, Trouble.DONE_BUT_LOST, Trouble.SLOW_BUT_DONE):
            raise Unavailable("replies not confirmed in time")


class _ParkedStore:
    """The same store, for what is parked. Suspects were tried alone before they were parked."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.probe, self.locked, self.read, self.close = process.probe, process.locked, process.read, process.close
        self.try_own_rows, self.time_own_rows = process.try_own_rows, process.time_own_rows
        self.marked, self.mark, self.unmark = process.marked, process.mark, process.unmark
        self.survives = process.survives

    async def apply(self, wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        return await self._process.write(wave, patience)


class _Replies:
    def __init__(self, process: Process) -> None:
        self._process = process
        self.refused: list[Settlement[Loan]] = []

    async def publish(self, settlements: Sequence[Settlement[Loan]]) -> list[bool]:
        world = self._process.world
        replies = [settlement.reply for settlement in settlements]
        trouble = world.trouble()
        await self._process.stumble(trouble)
        if trouble in (Trouble.AWAY, Trouble.SLOW):
            raise Unavailable("no publisher connection")
        placed = [not (reply.reply_to and trouble is Trouble.REFUSES) for reply in replies]
        done = len(replies) // 2 if trouble is Trouble.HALF_DONE else len(replies)
        for reply in compress(replies[:done], placed):
            if reply.reply_to and trouble is Trouble.RETURNED:
                world.ledger.given_up.add(str(reply.correlation_id))
            else:
                world.ledger.answer(reply)
        await self._process.stumble(Trouble.KILLED if trouble is Trouble.KILLED_AFTER else Trouble.NONE)
        if trouble in (Trouble.HALF_DONE, Trouble.DONE_BUT_LOST, Trouble.SLOW_BUT_DONE):
            raise Unavailable("replies not confirmed in time")
        refused = [each for each, done in zip(settlements, placed, strict=True) if not done]
        for each in refused:
            world.ledger.waiting[str(each.reply.correlation_id)].append(each)
        self.refused += refused
        return placed

    async def settled(self) -> list[Settlement[Loan]]:
        """Take what was refused after a second, unless its delivery is not in hand any more."""
        while True:
            await asyncio.sleep(1)
            refused, self.refused = self.refused, []
            done = [each for each in refused if each.acknowledged or self._process.intake.has(each.delivery)]
            for settlement in done:
                self._process.world.ledger.answer(settlement.reply)
            if done:
                return done


@contextmanager
def _silent_and_timeless() -> Iterator[None]:
    """Measure holds on the loop's clock, and log nothing."""
    clock = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    with ExitStack() as patched, structlog.testing.capture_logs():
        for module in (hold, parking, retrying, search):
            patched.enter_context(patch.object(module, "time", clock))
        yield


def play(schedule: Schedule, *, workers: int, by_position: bool, single_active: bool = False) -> World:
    """Run a schedule, and check what must hold whatever happens."""

    async def act() -> World:
        world = World(schedule, workers=workers, by_position=by_position, single_active=single_active)
        await world.run()
        return world

    with _silent_and_timeless():
        world = virtual_time.run(act())
    check_answers(world)
    check_applied_once(world)
    check_versions(world)
    return world


def poisoned(world: World) -> set[str]:
    """The messages that were rejected after too many deliveries."""
    return {m for m, problems in world.ledger.dead.items() if any(p.code == "poison_message" for p in problems)} | {
        str(message.properties.correlation_id) for message in world.broker.dead
    }


def check_answers(world: World) -> None:
    """Each message is answered as it should be, always in the same way, and repeats have the same message_id."""
    poison = poisoned(world)
    # The broker's limit is twice the worker's.
    assert not world.broker.dead, "the broker dead-lettered what the worker should have rejected"
    for message in world.published:
        marker = str(message.properties.correlation_id)
        kind, answers = world.ledger.kinds[marker], world.ledger.answers[marker]
        assert answers or marker in world.ledger.given_up, f"{marker}: never answered"
        rejected = [reply for reply in answers if reply.outcome is Outcome.REJECTED]
        if kind is not Kind.GOOD:
            assert rejected == answers, f"{marker}: answered as stored"
        elif marker not in poison:
            assert not rejected, f"{marker}: rejected, because of its neighbours"
            assert marker not in world.ledger.dead, f"{marker}: dead-lettered, because of its neighbours"
        if message.properties.message_id is not None:
            poison_replies = [reply for reply in rejected if reply.headers[ERROR_CODE] == Code.POISON_MESSAGE]
            refusals = [reply for reply in rejected if reply not in poison_replies]
            for same in (poison_replies, refusals, [reply for reply in answers if reply not in rejected]):
                assert len({reply.message_id for reply in same}) <= 1, f"{marker}: repeats with different message_ids"
        for reply in answers:
            if reply.outcome in (Outcome.INSERTED, Outcome.UPDATED):
                assert json.loads(reply.body)["subject"] == marker, f"{marker}: answered with another record"
    assert {world.ledger.kinds[marker] for marker in poison} <= {Kind.CRASHES}, "others were rejected with it"


def check_applied_once(world: World) -> None:
    """A request with a key is written once, however often it is delivered."""
    writes = Counter(request.key for request in world.database.writes if request.key is not None)
    assert max(writes.values(), default=1) == 1, "applied twice"
    for message in world.published:
        marker = str(message.properties.correlation_id)
        if world.ledger.kinds[marker] is Kind.GOOD and marker not in poisoned(world):
            outcomes = {reply.outcome for reply in world.ledger.answers[marker]}
            written = any(request.record.subject == marker for request in world.database.writes)
            assert written or not outcomes & {Outcome.INSERTED, Outcome.UPDATED}, f"{marker}: answered and not stored"


def check_versions(world: World) -> None:
    """No version replaces a higher or equal one, and the highest is stored."""
    highest: dict[UUID, int] = {}
    for request in world.database.writes:
        if request.version is not None:
            assert request.version > highest.get(request.record.id, 0), "older over newer"
            highest[request.record.id] = request.version
    for request in good_requests(world):
        if request.version is not None:
            assert highest[request.record.id] >= request.version, "the newest was lost"


def good_requests(world: World) -> list[Request[Delivery]]:
    """What should be stored, in the order published."""
    poison = poisoned(world)
    return [
        decode(message, Rules())
        for message in world.published
        if world.ledger.kinds[str(message.properties.correlation_id)] is Kind.GOOD
        and message.properties.correlation_id not in poison
    ]


def check_order(world: World, *, unkeyed: bool = True) -> None:
    """Records without versions end as if each message had come once, in the order published.

    Messages without a key are left out with `unkeyed=False`.
    """
    if poisoned(world) - {m for m, kind in world.ledger.kinds.items() if kind is Kind.CRASHES}:
        return
    expected = FakeDatabase()
    for request in good_requests(world):
        expected.apply([request])
    for identifier in (UUID(int=1), UUID(int=3))[: 1 + unkeyed]:
        row, wanted = world.database.rows.get(identifier), expected.rows.get(identifier)
        assert (row is None) == (wanted is None)
        if row is not None and wanted is not None:
            assert [getattr(row, name) for name in FIELDS] == [getattr(wanted, name) for name in FIELDS]
    keyed = [request.key for request in world.database.writes if request.record.id == UUID(int=1)]
    assert keyed == [request.key for request in expected.writes if request.record.id == UUID(int=1)]


lots = settings(max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.too_slow])


OVERTAKEN = Schedule(
    sent=[Sent(2, keyed=False, asks=True), Sent(2, keyed=False)],
    troubles=[Trouble.NONE, Trouble.REFUSES],
    events=[(Event.KILL, 0, 0.4, 0)],
    at_first=2,
    batch_max=1,
    drops=False,
)
"""The first reply waits for its address, and the next request of the record is answered. Then the worker is killed."""


@lots
@given(schedules)
@example(OVERTAKEN)
def test_one_worker_loses_nothing_and_keeps_the_order(schedule: Schedule) -> None:
    """One consumer, and what is requeued comes again in its place: every promise holds, including order per record."""
    check_order(play(schedule, workers=1, by_position=True))


@lots
@given(schedules)
def test_several_workers_lose_nothing_and_versions_win(schedule: Schedule) -> None:
    """Two workers, and what is requeued comes again as from a quorum queue: every promise holds except order."""
    play(schedule, workers=2, by_position=False)


REPEATED = Schedule(
    sent=[Sent(2, keyed=False, asks=True), Sent(2, keyed=False), Sent(0, repeats=0)],
    troubles=[*[Trouble.NONE] * 5, Trouble.REFUSES],
    events=[],
    at_first=0,
    batch_max=10,
    drops=False,
)
"""A message without a key comes twice in one batch, and both replies wait for their address. That in between is answered."""


@lots
@given(schedules)
@example(REPEATED)
def test_a_single_active_consumer_and_one_that_stands_by_keep_the_order(schedule: Schedule) -> None:
    """Two workers, and what is requeued comes again as from a quorum queue: every promise holds, including order per record.

    A worker that loses its connection while it writes cannot take the write back. It may come after those of the other
    worker, which does no harm to messages with a key alone.
    """
    world = play(schedule, workers=2, by_position=False, single_active=True)
    check_order(world, unkeyed=not world.losses)
