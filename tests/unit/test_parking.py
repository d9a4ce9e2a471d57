"""What is parked, tried again, refused, settled and returned, on a virtual clock; and the search for rows at fault."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count, cycle
from math import inf
from types import SimpleNamespace
from unittest.mock import patch
from uuid import UUID, uuid4

import pytest

from task_activity_log.aio import SharedLock, Slices
from task_activity_log.message import Delivery
from task_activity_log.pipeline import parking, retrying, search
from task_activity_log.pipeline.lines import Limits
from task_activity_log.pipeline.parking import Parking
from task_activity_log.pipeline.ports import OWN_ROWS_SECONDS, PATIENT, Patience, Stored
from task_activity_log.pipeline.refusals import TRY_AGAIN_SECONDS, Refusals
from task_activity_log.pipeline.request import Request, Rules, UpdateMode, decode
from task_activity_log.pipeline.retrying import CRASHES_MAX
from task_activity_log.pipeline.search import Search
from task_activity_log.pipeline.timing import Timing
from task_activity_log.problem import Failed, Refused, TimedOut, Unavailable
from task_activity_log.record import Applied, Outcome, TaskActivityLog, Unread
from tests import virtual_time
from tests.fakes import FakeIntake, FakeStore, upsert

PASSING = Failed("out of resources (53200)", "53200")
LASTING = Failed("database error (XX001)", "XX001", lasting=True)
CONNECTION_LOST = Failed("connection lost", "08006")


class LaterStore(FakeStore):
    """Records when each subject was tried, and waits for locks as PostgreSQL does."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[tuple[float, str | None]] = []
        self.patiences: list[Patience] = []
        self.closed = 0
        self.probes = 0

    async def apply(self, wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        self.times.append((asyncio.get_running_loop().time(), wave[0].record.subject))
        self.patiences.append(patience)
        if {request.record.subject for request in wave} & self.locks:
            await asyncio.sleep(patience.lock_seconds)
        return await super().apply(wave, patience)

    async def probe(self) -> None:
        self.probes += 1
        await super().probe()

    async def close(self) -> None:
        self.closed += 1


class CrashingServer:
    """A database server that crashes when one row is written, which ends all connections, and takes a second to recover."""

    def __init__(self, bench: "Bench", most: int, crashes_at: Callable[[int], bool] = lambda _: True) -> None:
        """Crash at most `most` times, at those tries of the row, counted from 1; at others one connection is lost."""
        self.crashes = self.tries = 0
        self.recovered_at = 0.0
        self._most, self._crashes_at = most, crashes_at
        self._apply = bench.store.apply
        self._witnessed = 0  # how many crashes there had been when the other connection was used last
        bench.store.apply = self._write  # type: ignore[method-assign]
        bench.store.probe = self._ask  # type: ignore[method-assign]
        bench.slow_store.probe = self._witness  # type: ignore[method-assign]
        bench.slow_store.survives = self._survives  # type: ignore[method-assign]

    async def _ask(self) -> None:
        if asyncio.get_running_loop().time() < self.recovered_at:
            raise Unavailable("shutting down or starting up (57P03)")

    async def _witness(self) -> None:
        await self._ask()
        self._witnessed = self.crashes

    async def _survives(self) -> bool:
        return self._witnessed == self.crashes

    async def _write(self, wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        await self._ask()
        if self.crashes < self._most:
            self.tries += 1
            if self._crashes_at(self.tries):
                self.crashes += 1
                self.recovered_at = asyncio.get_running_loop().time() + 1
            raise CONNECTION_LOST
        return await self._apply(wave, patience)


class Bench:
    """Parking, and what it has of the world."""

    def __init__(self, most: int = 100, limit_seconds: float = 600.0, stored_max: int = 0, weight: float = inf) -> None:
        self.intake, self.store, self.slow_store = FakeIntake(), LaterStore(), LaterStore()
        self.slow_store.database = self.store.database
        self.stored: Stored[Delivery] = asyncio.Queue(stored_max)
        self.parking: Parking[Delivery] = Parking(
            self.intake,
            self.store,
            self.slow_store,
            self.stored,
            2**20,
            SharedLock(),
            "emit",
            Refusals(10),
            Timing(),
            Limits(most, weight, limit_seconds),
        )
        for lane in (self.parking._quick, self.parking._slow):
            lane.parts.slices = Slices(inf)  # real time, which a busy machine takes from the test
        self.outages: list[str] = []
        self.answers = 0
        self.parking.on_outage = lambda cause: self.outages.append(cause.label)
        self.parking.on_answer = self._answered

    def _answered(self) -> None:
        self.answers += 1

    def request(self, record: UUID | None = None, subject: str = "good") -> Request[Delivery]:
        """A request whose delivery is in hand."""
        delivery = upsert(record, subject=subject)
        self.intake.unsettled.append(delivery)
        return decode(delivery, Rules())

    async def admit(self, wave: Sequence[Request[Delivery]]) -> Sequence[Request[Delivery]]:
        """What is admitted of a wave. Nothing was stored before that had to be passed on."""

        async def pass_on() -> None:
            pass

        return await self.parking.admit(wave, pass_on)

    async def settled(self, count: int) -> list[str]:
        """The outcomes of the next `count` settlements, with the subject or the error code, in order."""
        found: list[str] = []
        while len(found) < count:
            for each in await self.stored.get() or []:
                code = each.reply.headers.get("x-error-code")
                subject = decode(each.delivery, Rules()).record.subject
                found.append(f"{subject}: {code or each.reply.outcome}")
                self.intake.unsettled.remove(each.delivery)
            self.stored.task_done()
        return found

    async def until(self, seconds: float) -> None:
        """Sleep until this time since the beginning."""
        await asyncio.sleep(seconds - asyncio.get_running_loop().time())


def run(act: Callable[[Bench], Awaitable[None]], **options: float) -> Bench:
    """Run `act` while the parking's task runs, on a virtual clock that begins at 0."""

    async def main() -> Bench:
        bench = Bench(**options)  # type: ignore[arg-type]
        task = asyncio.create_task(bench.parking.run())
        try:
            await act(bench)
        finally:
            await bench.parking.stop()
        await asyncio.wait({task}, timeout=2)
        assert task.cancelled() or task.exception() is None
        return bench

    clock = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    with (
        patch.object(parking, "time", clock),
        patch.object(retrying, "time", clock),
        patch.object(search, "time", clock),
    ):
        return virtual_time.run(main())


class TestParking:
    """One record, several records, and the ways in which they leave."""

    def test_a_record_is_tried_about_once_a_second_until_it_passes(self) -> None:
        """While it is the only one, most of the time is spent waiting in the queue for its lock."""

        async def act(bench: Bench) -> None:
            bench.store.locks = {"locked"}
            await bench.parking.park([bench.request(subject="locked")], TimedOut(), 0)
            await bench.until(6.5)
            bench.store.locks = set()
            assert await bench.settled(1) == ["locked: inserted"]
            assert bench.parking.messages == 0

        bench = run(act)
        assert [time for time, _ in bench.store.times] == [0, 2, 4, 6]
        assert bench.answers == 1

    def test_requests_of_a_parked_record_join_and_keep_their_order(self) -> None:
        """Those of other records go on, in their order."""

        async def act(bench: Bench) -> None:
            record = uuid4()
            bench.store.fails = {"0"}
            await bench.parking.park([bench.request(record, "0")], PASSING, 0)
            for subject in "123":
                others = [bench.request(subject=subject) for _ in range(2)]
                wave = [others[0], bench.request(record, subject), others[1]]
                assert list(await bench.admit(wave)) == others
            assert bench.parking.messages == 4
            bench.store.fails = set()
            assert await bench.settled(4) == ["0: inserted", "1: updated", "2: updated", "3: updated"]
            after = [bench.request(record, "4")]
            assert await bench.admit(after) == after

        run(act)

    def test_a_record_stays_parked_until_its_settlements_are_passed_on(self) -> None:
        """A later request must not be answered before an earlier one."""

        async def act(bench: Bench) -> None:
            await bench.stored.put([])
            record = uuid4()
            await bench.parking.park([bench.request(record, "0")], PASSING, 0)
            await bench.until(1)
            assert bench.store.rows
            assert await bench.admit([bench.request(record, "1")]) == []
            assert await bench.settled(2) == ["0: inserted", "1: updated"]

        run(act, stored_max=1)

    def test_the_connection_is_not_closed_while_it_is_used(self) -> None:
        """Nothing is parked, and a row is refused: rows of the worker's own are tried over the connection for what is parked.

        If that were interrupted, it would look like an outage, and the row would be parked for it.
        """

        async def act(bench: Bench) -> None:
            asked = bench.store.probe

            async def probe() -> None:
                closed = bench.store.closed
                await asyncio.sleep(0.1)
                if bench.store.closed > closed:
                    raise Unavailable("connection lost")
                await asked()

            bench.store.probe = probe  # type: ignore[method-assign]
            refused = bench.request(subject="refused")
            bench.parking.refusals.accepted = refused.record
            assert await bench.parking.is_at_fault(refused, Refused("23514"), 0)
            bench.parking.reject(refused, Refused("23514"))
            assert bench.store.own_tried == 1
            assert (bench.parking.messages, len(bench.parking.rejected())) == (0, 1)
            closed = bench.store.closed
            await asyncio.sleep(1)
            assert bench.store.closed > closed

        run(act)

    def test_what_is_parked_proves_the_consumer(self) -> None:
        """A new consumer delivers one message at first. If that one's row is locked, others must come nevertheless."""

        async def act(bench: Bench) -> None:
            first, second = bench.request(UUID(int=1)), bench.request(UUID(int=1))
            bench.store.fails = {"good"}
            await bench.parking.park([first], PASSING, 0)
            await bench.admit([second])
            assert bench.intake.proved == [first.delivery, second.delivery]

        run(act)

    @pytest.mark.parametrize(("records", "lock_seconds"), [(1, 1.0), (4, 0.25), (500, 0.01)])
    def test_trying_all_records_takes_about_a_second(self, records: int, lock_seconds: float) -> None:
        """However many there are, the wait for each lock is shorter the more there are, and each is tried in turn."""

        async def act(bench: Bench) -> None:
            bench.store.locks = {str(number) for number in range(records)}
            await bench.parking.park([bench.request(subject=str(number)) for number in range(records)], TimedOut(), 0)
            while len(bench.store.times) < 2 * records:
                await asyncio.sleep(0.01)

        bench = run(act)
        assert {patience.lock_seconds for patience in bench.store.patiences} == {lock_seconds}
        subjects = [subject for _, subject in bench.store.times]
        assert set(subjects[:records]) == set(subjects[records : 2 * records]) == bench.store.locks

    def test_a_slow_row_is_tried_apart_with_all_the_time_it_takes(self) -> None:
        """After one try with little time, over a connection of its own: other parked records do not wait for it."""

        async def act(bench: Bench) -> None:
            done = asyncio.Event()
            apply = bench.slow_store.apply

            async def slowly(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
                await done.wait()
                return await apply(wave, patience)

            bench.slow_store.apply = slowly  # type: ignore[method-assign]
            bench.store.delays, bench.store.locks = {"slow"}, {"locked"}
            record = uuid4()
            await bench.parking.park([bench.request(record, "slow"), bench.request(record, "later")], TimedOut(), 0)
            await bench.parking.park([bench.request(subject="locked")], TimedOut(locked=True), 0)
            await bench.until(20)
            assert bench.parking.has_slow
            bench.store.locks = set()
            assert await bench.settled(1) == ["locked: inserted"]
            assert bench.parking.messages == 2
            done.set()
            assert await bench.settled(2) == ["slow: inserted", "later: updated"]
            assert not bench.parking.has_slow

        bench = run(act)
        assert [patience.seconds for patience in bench.slow_store.patiences] == [None]
        assert [subject for _, subject in bench.store.times].count("slow") == 1
        assert bench.slow_store.closed > 1

    def test_who_requeues_does_not_wait_for_a_slow_statement(self) -> None:
        """It is cancelled, and is tried again later. Nobody writes meanwhile."""

        async def act(bench: Bench) -> None:
            ended: list[str] = []

            async def slowly(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
                try:
                    return await asyncio.Future()
                finally:
                    ended.append(f"{wave[0].record.subject}, {patience.seconds}")

            bench.store.delays = {"slow"}
            bench.slow_store.apply = slowly  # type: ignore[method-assign]
            await bench.parking.park([bench.request(subject="slow")], TimedOut(), 0)
            await bench.until(10)
            assert ended == []
            closed = bench.slow_store.closed
            async with bench.parking.writes.alone():
                assert ended == ["slow, None"]
                assert bench.slow_store.closed == closed + 1  # which waits until the server has cancelled it
                assert asyncio.get_running_loop().time() == 10
            assert bench.parking.messages == 1

        run(act)

    def test_a_slow_statement_is_ended_when_others_wait_for_a_lock_on_no_row_of_theirs(self) -> None:
        """It may hold that lock. It is tried again, and not so soon that it stops them most of the time."""

        async def act(bench: Bench) -> None:
            begun, ended = list[float](), list[float]()
            now = asyncio.get_running_loop().time

            async def slowly(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
                assert [one.record.subject for one in wave] == ["slow"]
                assert patience.seconds is None
                begun.append(now())
                try:
                    return await asyncio.Future()
                finally:
                    ended.append(now())

            bench.store.delays = {"slow"}
            bench.slow_store.apply = slowly  # type: ignore[method-assign]
            await bench.parking.park([bench.request(subject="slow")], TimedOut(), 0)
            await bench.until(10)
            for _ in range(5):
                await bench.parking.locked([bench.request()])
                await bench.until(now() + 40)
            assert [round(again - end) for again, end in zip(begun[1:], ended, strict=False)] == [4, 8, 16, 30, 30]

        run(act)

    def test_a_record_with_many_requests_does_not_keep_others_waiting(self) -> None:
        """After its share of a second, others are tried."""

        async def act(bench: Bench) -> None:
            apply = bench.store.apply

            async def slowly(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
                await asyncio.sleep(0.4)
                return await apply(wave, patience)

            bench.store.apply = slowly  # type: ignore[method-assign]
            record = uuid4()
            many = [bench.request(record, str(number)) for number in range(9)]
            await bench.parking.park(many, TimedOut(), 0)
            await bench.parking.park([bench.request(subject="other")], TimedOut(), 0)
            settled = await bench.settled(10)
            assert settled.index("other: inserted") == 2
            assert [each[0] for each in settled if each[0] != "o"] == list("012345678")

        run(act)

    def test_hundreds_of_locked_rows_do_not_keep_others_waiting(self) -> None:
        """Trying them takes longer than a second, so all are due all the time. What was not tried yet is tried before them."""

        async def act(bench: Bench) -> None:
            locked = [str(number) for number in range(500)]
            bench.store.locks = set(locked)
            await bench.parking.park([bench.request(subject=subject) for subject in locked], TimedOut(), 0)
            await bench.until(10)
            record = uuid4()
            await bench.parking.park([bench.request(record)], TimedOut(), 0)
            assert await bench.settled(1) == ["good: inserted"]
            await bench.parking.park_untried([[bench.request(), bench.request(record, "a")]], TimedOut(), 0)
            assert await bench.admit([bench.request(record, "b")]) == []
            assert sorted(await bench.settled(3)) == ["a: updated", "b: updated", "good: inserted"]
            assert asyncio.get_running_loop().time() < 11

        run(act, most=1000)

    def test_a_row_that_the_database_refuses_meanwhile_is_rejected(self) -> None:
        """The requests behind it go on."""

        async def act(bench: Bench) -> None:
            record = uuid4()
            bench.store.refuses = {"bad"}
            bench.store.fails = {"bad"}
            await bench.parking.park([bench.request(record, "bad")], PASSING, 0)
            await bench.admit([bench.request(record, "later")])
            bench.store.fails = set()
            assert await bench.settled(2) == ["bad: refused_by_database", "later: inserted"]

        run(act)

    def test_an_outage_is_waited_out(self) -> None:
        """Nothing is refused or dropped while the database is away."""

        async def act(bench: Bench) -> None:
            bench.store.away = "connection lost"
            await bench.parking.park([bench.request(subject="parked")], PASSING, 0)
            await bench.until(10.5)
            bench.store.away = None
            assert await bench.settled(1) == ["parked: inserted"]

        run(act)

    def test_what_was_requeued_is_not_tried_for_the_lost_delivery(self) -> None:
        """Another worker may have stored later requests. What comes again joins behind, and is stored in its order."""

        async def act(bench: Bench) -> None:
            record = uuid4()
            bench.store.fails = {"0"}
            await bench.parking.park([bench.request(record, "0")], PASSING, 0)
            await bench.admit([bench.request(record, "1")])
            await bench.until(0.5)
            await bench.intake.requeue()
            assert bench.parking.messages == 0
            bench.store.fails = set()
            assert await bench.admit([bench.request(record, "1 again"), bench.request(record, "2")]) == []
            assert await bench.settled(2) == ["1 again: inserted", "2: updated"]

        run(act)

    def test_it_is_full_at_half_of_the_prefetch_and_says_why(self) -> None:
        """The reason names how much is parked and the causes."""

        async def act(bench: Bench) -> None:
            bench.store.locks, bench.store.fails = {"locked"}, {"failing"}
            record = uuid4()
            await bench.parking.park([bench.request(record, "locked")], TimedOut(), 0)
            await bench.parking.park([bench.request(subject="failing")], PASSING, 0)
            assert not bench.parking.full()
            await bench.admit([bench.request(record, "later")])
            assert bench.parking.full()
            assert (
                bench.parking.reason
                == "3 messages of 2 records wait for their rows (out of resources (53200), timeout)"
            )
            await bench.until(7)
            report = bench.parking.report()
            assert (report["messages"], report["records"], report["oldest_seconds"]) == (3, 2, 7.0)
            assert {"id": str(record), "reason": "timeout"} in report["some"]  # type: ignore[operator]

        run(act, most=3)

    @pytest.mark.parametrize("count", [1, 3])
    def test_why_they_cannot_be_tried_is_named(self, count: int) -> None:
        """As while there are too many connections. Otherwise a lock is looked for that nobody holds any more."""

        async def act(bench: Bench) -> None:
            bench.store.locks = {"locked"}
            await bench.parking.park([bench.request(subject="locked") for _ in range(count)], TimedOut(), 0)
            await bench.until(2)
            assert "(timeout)" in bench.parking.reason
            bench.store.locks, apply = set(), bench.store.apply

            async def refused(*_: object) -> list[Applied]:
                raise Unavailable("too many connections (53300)", "database d")

            bench.store.apply = refused  # type: ignore[assignment, method-assign]
            await bench.until(10)
            assert "(too many connections (53300))" in bench.parking.reason
            found = bench.parking.report()["some"]
            assert {each["reason"] for each in found} == {"too many connections (53300): database d"}  # type: ignore[attr-defined]
            bench.store.apply = apply  # type: ignore[method-assign]
            assert await bench.settled(count) == ["locked: inserted"] * count

        run(act)

    def test_nothing_that_is_parked_has_no_age(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not a negative one because the clock was read twice: /status had -0.0."""

        async def act(bench: Bench) -> None:
            with monkeypatch.context() as patched:
                patched.setattr("task_activity_log.pipeline.retrying.time", SimpleNamespace(monotonic=count().__next__))
                assert bench.parking.report()["oldest_seconds"] == 0

        run(act)

    def test_it_is_full_when_what_is_parked_takes_half_of_the_memory(self) -> None:
        """The broker is not read when too much is in hand. Others would wait without a reason that anybody sees."""

        async def act(bench: Bench) -> None:
            bench.store.locks = {"locked"}
            requests = [bench.request(subject="locked") for _ in range(3)]
            for one in requests:
                one.delivery.weight = 400
            await bench.parking.park(requests[:2], TimedOut(locked=True), 0)
            assert not bench.parking.full()
            await bench.parking.park(requests[2:], TimedOut(locked=True), 0)
            assert bench.parking.full()
            await bench.intake.requeue()
            assert not bench.parking.full()

        run(act, weight=1000)

    def test_after_the_limit_everything_in_hand_is_returned_once_what_is_stored_is_settled(self) -> None:
        """The worker takes nothing new meanwhile, and nothing is parked afterwards."""

        async def act(bench: Bench) -> None:
            bench.store.locks = {"locked"}
            parked, other = bench.request(subject="locked"), bench.request(subject="other")
            await bench.parking.park([parked], TimedOut(), 0)
            await bench.stored.put([])
            await bench.until(11)
            assert bench.intake.paused_by == {"parked"}
            assert bench.intake.requeued == []
            await bench.stored.get()
            bench.stored.task_done()
            await bench.intake.resumed.wait()
            assert bench.intake.requeued == [parked.delivery, other.delivery]
            assert (bench.intake.paused_by, bench.parking.messages) == (set(), 0)

        run(act, limit_seconds=10.0)

    def test_nothing_is_returned_while_a_write_is_under_way(self) -> None:
        """It could come after those of the worker that gets the messages next."""

        async def act(bench: Bench) -> None:
            bench.store.locks = {"locked"}
            await bench.parking.park([bench.request(subject="locked")], TimedOut(), 0)
            async with bench.parking.writes.shared():
                await bench.until(20)
                assert bench.intake.requeued == []
            await bench.intake.resumed.wait()
            assert len(bench.intake.requeued) == 1

        run(act, limit_seconds=10.0)

    def test_the_connection_is_open_only_while_something_is_parked(self) -> None:
        """Otherwise each worker would have one more connection for ever."""

        async def act(bench: Bench) -> None:
            await bench.until(1)
            before = bench.store.closed
            await bench.parking.park([bench.request()], PASSING, 0)
            await bench.settled(1)
            await bench.until(2)
            assert bench.store.closed == before + 1

        run(act)

    def test_stopping_leaves_what_is_parked(self) -> None:
        """It waits a second for the statement under way, and not for the lock."""

        async def act(bench: Bench) -> None:
            bench.store.locks = {"locked"}
            await bench.parking.park([bench.request(subject="locked")], TimedOut(), 0)
            await bench.until(0.5)
            await bench.parking.stop()
            assert asyncio.get_running_loop().time() <= 1.5
            assert bench.parking.messages == 1
            assert bench.stored.empty()

        run(act)


OWN = Failed("every row is refused (42501)", "42501", lasting=True)
"""What rows of our own meet when `FakeStore.doubts` is everybody's fault."""
OTHER = Failed("every row is refused (23514)", "23514", name="other", lasting=True)


class TestCostlyRecords:
    """Records whose requests take too long in a batch are parked, although each of them passes."""

    def admit(
        self,
        records: int,
        seconds: float,
        waves: int = 6,
        *,
        probe: float = 0.002,
        looks: Sequence[bool] = (False, False),
    ) -> list[int]:
        """How many requests are admitted of each of some waves of the same records, each of which takes some seconds.

        `looks` says for the looks at their rows, which repeat, whether another session has one locked.
        """
        admitted: list[int] = []

        async def act(bench: Bench) -> None:
            look = cycle(looks)

            async def slow_probe() -> None:
                await asyncio.sleep(probe)

            async def locked(ids: Sequence[UUID]) -> set[UUID]:
                assert sorted(ids) == sorted(identifiers)
                return {ids[-1]} if next(look) else set()

            bench.store.probe = slow_probe  # type: ignore[method-assign]
            bench.store.locked = locked  # type: ignore[method-assign]
            identifiers = [uuid4() for _ in range(records)]
            for _ in range(waves):
                free = await bench.admit([bench.request(identifier) for identifier in identifiers])
                admitted.append(len(free))
                await asyncio.sleep(seconds)
            bench.parking.begin()
            other = [bench.request()]
            assert await bench.admit(other) == other

        assert run(act).outages == []
        return admitted

    @pytest.mark.parametrize("records", [1, 17, 60])
    def test_after_two_seconds_in_a_batch_the_rest_is_parked(self, records: int) -> None:
        """Others would wait for all of its requests. In the next batch, records that are not parked have their time again."""
        assert self.admit(records, 0.9) == [records] * 4 + [0] * 2

    def test_a_record_that_is_not_costly_is_stored_with_the_batch(self) -> None:
        """However often it occurs. Parked, its requests would take longer, and soon fill the prefetch."""
        assert self.admit(1, 0.01, waves=400) == [1] * 400

    @pytest.mark.parametrize("records", [1, 17])
    def test_records_are_not_parked_because_the_database_is_slow(self, records: int) -> None:
        """Parked, each would be stored by itself, which takes longer. A probe takes as long as they do."""
        assert self.admit(records, 0.9, probe=0.85) == [records] * 6

    @pytest.mark.parametrize("looks", [(True,), (False, True)])
    def test_records_are_not_parked_because_another_worker_writes_them(self, looks: Sequence[bool]) -> None:
        """Each wave waits for one of its waves. Parked, each of their requests would wait for one by itself."""
        assert self.admit(17, 0.9, looks=looks) == [17] * 6

    def test_it_is_asked_every_two_seconds_whether_records_are_costly(self) -> None:
        """The question takes longer than a wave. Three waves in vain, and three more."""
        assert self.admit(17, 0.9, 9, looks=(True, False, False, False, False)) == [17] * 7 + [0] * 2

    def test_the_first_waves_of_a_batch_have_everybodys_records(self) -> None:
        """One of each update mode. A database that takes long for these is not at the fault of any of them."""

        async def act(bench: Bench) -> None:
            for mode in ("replace", "merge"):
                wave = [bench.request() for _ in range(3)]
                for one in wave:
                    one.mode = UpdateMode(mode)
                assert await bench.admit(wave) == wave
                await asyncio.sleep(60)
            assert await bench.admit(wave) == wave

        run(act)


class TestFailuresThatLast:
    """A row is refused only if the database is not the cause."""

    def test_a_row_is_refused_after_one_more_try_if_others_pass(self) -> None:
        """Otherwise a corrupt row would wait for ever. No row of our own need be tried."""

        async def act(bench: Bench) -> None:
            bench.store.doubts = {"corrupt"}
            bench.parking.refusals.passes = 1
            cause = Failed("not permitted (42501)", "42501", lasting=True)
            await bench.parking.park([bench.request(subject="corrupt")], cause, 0)
            assert await bench.settled(1) == ["corrupt: refused_by_database"]
            assert (len(bench.store.times), bench.store.own_tried) == (2, 0)

        run(act)

    def test_a_failure_that_was_fixed_before_our_own_rows_are_tried_is_not_held_against_the_row(self) -> None:
        """It is stored."""

        async def act(bench: Bench) -> None:
            async def try_own_rows(like: TaskActivityLog | None) -> list[Failed]:  # noqa: ARG001
                bench.store.doubts = set()
                return []

            bench.store.doubts = {"once"}
            bench.store.try_own_rows = try_own_rows  # type: ignore[method-assign]
            await bench.parking.park([bench.request(subject="once")], LASTING, 0)
            assert await bench.settled(1) == ["once: inserted"]

        run(act)

    def test_a_row_is_refused_if_our_own_pass(self) -> None:
        """Also if it is the only one, and one after the other."""

        async def act(bench: Bench) -> None:
            bench.store.doubts = {"bad"}
            for _ in range(3):
                await bench.parking.park([bench.request(subject="bad")], LASTING, 0)
                assert await bench.settled(1) == ["bad: refused_by_database"]
            assert bench.store.own_tried == 6

        run(act)

    def test_a_row_is_refused_if_our_own_are_refused_for_other_reasons(self) -> None:
        """A rule that none of our own rows satisfies need not be what refuses this one."""

        async def act(bench: Bench) -> None:
            bench.store.doubts, bench.store.own = {"bad"}, [OTHER]
            await bench.parking.park([bench.request(subject="bad")], LASTING, 0)
            assert await bench.settled(1) == ["bad: refused_by_database"]

        run(act)

    def test_a_request_that_has_joined_is_judged_by_what_passes_after_it_was_tried(self) -> None:
        """Not by what has passed while earlier requests of its record were stored: since then the database may have changed."""

        async def act(bench: Bench) -> None:
            async def apply(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
                await asyncio.sleep(1)  # so that the records take turns
                return await FakeStore.apply(bench.store, wave, patience)

            bench.store.apply = apply  # type: ignore[method-assign]
            bench.store.refuses = {"second"}
            bench.store.own = [Failed("every row is refused (23514)", "23514", lasting=True)]
            record = uuid4()
            await bench.parking.park([bench.request(record, "first"), bench.request(subject="other")], PASSING, 0)
            assert await bench.admit([bench.request(record, "second")]) == []
            assert await bench.settled(2) == ["first: inserted", "other: inserted"]
            await bench.until(30)
            assert bench.stored.empty()
            bench.store.refuses = set()
            assert await bench.settled(1) == ["second: updated"]

        run(act)

    def test_what_waits_is_stored_soon_after_the_database_was_fixed(self) -> None:
        """However long it has waited, and so however seldom it is tried by then: rows of our own are tried every few seconds."""

        async def act(bench: Bench) -> None:
            bench.store.doubts, bench.store.own = {"good"}, [OWN]
            await bench.parking.park([bench.request() for _ in range(3)], LASTING, 0)
            await bench.until(300)
            assert bench.stored.empty()
            bench.store.doubts, bench.store.own = set(), []
            await bench.until(300 + TRY_AGAIN_SECONDS + 1)
            assert await bench.settled(3) == ["good: inserted"] * 3

        run(act)

    def test_rows_wait_while_our_own_are_refused_too(self) -> None:
        """A trigger that fails for each row must not make dead letters of all messages. They are tried less and less often."""

        async def act(bench: Bench) -> None:
            bench.store.doubts, bench.store.own = {"good"}, [OTHER, OWN]
            await bench.parking.park([bench.request() for _ in range(20)], LASTING, 0)
            await bench.until(599)
            assert bench.stored.empty()
            assert bench.outages[0] == "database error (XX001)"
            assert set(bench.outages[1:]) == {OWN.label}
            assert 20 * 20 < len(bench.store.times) < 20 * 30
            bench.store.doubts = set()
            answers = bench.answers
            await bench.parking.park([bench.request()], LASTING, 0)
            assert await bench.settled(21) == ["good: inserted"] * 21
            assert bench.answers > answers

        run(act)

    def test_once_one_passes_the_others_are_refused_at_once(self) -> None:
        """It was their fault."""

        async def act(bench: Bench) -> None:
            bench.store.doubts, bench.store.own = {"bad"}, [OWN]
            await bench.parking.park([bench.request(subject="bad") for _ in range(20)], LASTING, 0)
            await bench.until(100)
            assert bench.stored.empty()
            await bench.parking.park([bench.request(subject="good")], OWN, 0)
            settled = await bench.settled(21)
            assert sorted(settled) == ["bad: refused_by_database"] * 20 + ["good: inserted"]
            assert asyncio.get_running_loop().time() < 102

        run(act)

    def test_they_are_refused_when_our_own_pass_again(self) -> None:
        """Which is tried every ten seconds."""

        async def act(bench: Bench) -> None:
            bench.store.doubts, bench.store.own = {"bad"}, [OWN]
            await bench.parking.park([bench.request(subject="bad") for _ in range(3)], LASTING, 0)
            await bench.until(100)
            bench.store.own = []
            assert await bench.settled(3) == ["bad: refused_by_database"] * 3
            assert asyncio.get_running_loop().time() < 165

        run(act)

    def test_after_the_limit_nothing_is_taken_until_our_own_pass(self) -> None:
        """Everything is returned once. If it came again each time, that would count as deliveries."""

        async def act(bench: Bench) -> None:
            bench.store.doubts, bench.store.own = {"good"}, [OWN]
            await bench.parking.park([bench.request(), bench.request()], LASTING, 0)
            await bench.until(3000)
            assert len(bench.intake.requeued) == 2
            assert bench.intake.paused_by == {"parked"}
            assert bench.parking.refusals.everybodys is not None
            bench.store.own = []
            await bench.intake.resumed.wait()
            assert bench.intake.paused_by == set()

        run(act)

    def test_stopping_ends_that(self) -> None:
        """Within a second."""

        async def act(bench: Bench) -> None:
            bench.store.doubts, bench.store.own = {"good"}, [OWN]
            await bench.parking.park([bench.request()], LASTING, 0)
            await bench.until(700)
            await bench.parking.stop()
            assert asyncio.get_running_loop().time() <= 701

        run(act)

    def test_a_failing_probe_is_an_outage(self) -> None:
        """Nobody is refused then."""

        async def act(bench: Bench) -> None:
            bench.store.doubts, bench.store.unwritable = {"good"}, True
            await bench.parking.park([bench.request()], LASTING, 0)
            await bench.until(100)
            assert bench.stored.empty()
            assert bench.parking.reason.endswith("(not permitted)")

        run(act)

    def test_a_row_with_which_the_connection_is_lost_is_tried_less_and_less_often(self) -> None:
        """It may crash the server, and each time everybody waits until the server has recovered."""

        async def act(bench: Bench) -> None:
            async def lose(*_: object) -> list[Applied]:
                bench.store.times.append((asyncio.get_running_loop().time(), None))
                raise Failed("connection lost (08003)", "08003")

            bench.store.apply = lose  # type: ignore[assignment, method-assign]
            await bench.parking.park([bench.request()], Failed("connection lost (08003)", "08003"), 0)
            await bench.until(125)
            assert [round(time) for time, _ in bench.store.times] == [0, 2, 6, 14, 30, 60, 90, 120]
            assert bench.stored.empty()  # the server has not crashed: a trigger may ask another one

        run(act)

    @pytest.mark.parametrize("crashes", [CRASHES_MAX - 1, CRASHES_MAX])
    def test_a_row_that_crashes_the_server_again_and_again_is_rejected(self, crashes: int) -> None:
        """Alone, after rows of the worker's own have passed each time. One that passes later is stored."""

        async def act(bench: Bench) -> None:
            server = CrashingServer(bench, crashes)
            await bench.parking.park([bench.request(subject="crash")], CONNECTION_LOST, 0)
            outcome = "refused_by_database" if crashes == CRASHES_MAX else "inserted"
            assert await bench.settled(1) == [f"crash: {outcome}"]
            assert server.crashes == crashes
            assert bench.slow_store.own_tried == min(crashes + 1, CRASHES_MAX)

        run(act)

    def test_a_row_that_is_tried_while_the_server_is_away_is_not_rejected(self) -> None:
        """The server crashes for another reason: the row is not tried before rows of the worker's own pass."""

        async def act(bench: Bench) -> None:
            server = CrashingServer(bench, CRASHES_MAX - 1)
            await bench.parking.park([bench.request(subject="crash")], CONNECTION_LOST, 0)
            await bench.until(1)
            assert server.crashes == 1
            server.recovered_at = 100.0
            await bench.until(99)
            assert server.crashes == 1
            bench.slow_store.own = [Failed("out of resources (53200)", "53200")]
            await bench.until(150)
            assert server.crashes == 1
            bench.slow_store.own = []
            assert await bench.settled(1) == ["crash: inserted"]
            assert server.crashes == CRASHES_MAX - 1

        run(act)

    def test_crashes_with_another_failure_between_them_reject_nothing(self) -> None:
        """The row was tried, and the server has not crashed."""

        async def act(bench: Bench) -> None:
            server = CrashingServer(bench, 100, crashes_at=lambda tries: tries % CRASHES_MAX != 0)
            await bench.parking.park([bench.request(subject="crash")], CONNECTION_LOST, 0)
            await bench.until(600)
            assert server.crashes > 2 * CRASHES_MAX
            assert bench.stored.empty()

        run(act, limit_seconds=1e6)

    @pytest.mark.parametrize(
        ("cause", "passes", "shown"),
        [(PASSING, 0, True), (LASTING, 0, True), (PASSING, 1, False), (LASTING, 1, False), (TimedOut(), 0, False)],
    )
    def test_an_outage_is_shown_if_nothing_passes(self, cause: Failed, passes: int, shown: bool) -> None:
        """A lock is somebody else's; any other failure may be the database's, until a request passes."""

        async def act(bench: Bench) -> None:
            bench.parking.refusals.passes = passes
            await bench.parking.park([bench.request()], cause, 0)

        assert run(act).outages == [cause.label] * shown


def unable_twice(bench: Bench) -> list[UUID]:
    """Let the first two reads of a record fail. Returns the records whose reads were tried, as they are."""
    read, tried = bench.store.read, list[UUID]()

    async def unable(request: Request[Delivery], outcome: Outcome) -> Applied:
        tried.append(request.record.id)
        if len(tried) <= 2:
            raise Unavailable("connection lost")
        return await read(request, outcome)

    bench.store.read = bench.slow_store.read = unable  # type: ignore[method-assign]
    return tried


async def search_all(
    bench: Bench, wave: Sequence[Request[Delivery]], store: FakeStore
) -> list[Sequence[Request[Delivery]]]:
    """Search a wave as the worker does. Returns the parts that passed."""
    looking: Search[Delivery] = Search(wave, bench.parking)
    passed = []
    while part := await looking.next():
        try:
            await looking.write(store, part)
        except Unavailable as failure:
            assert isinstance(failure, Failed)
            await looking.probe(store, failure)
            await looking.failed(part, failure)
        else:
            looking.passed(part)
            passed.append(part)
    return passed


class TestSearch:
    """Which parts of a wave are tried, in which order, and what is parked. `apply` plays the database."""

    async def search(self, bench: Bench, subjects: str, *, seconds: float = 0.0) -> tuple[list[str], list[str]]:
        """The parts that were tried, and those that passed. Each try takes some seconds."""
        tried: list[str] = []
        self.patiences: list[Patience] = []
        patiences = self.patiences

        class Store(FakeStore):
            async def apply(self, wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
                await asyncio.sleep(seconds)
                tried.append(text(wave))
                patiences.append(patience)
                return await FakeStore.apply(bench.store, wave, patience)

        def text(part: Sequence[Request[Delivery]]) -> str:
            return "".join(str(request.record.subject) for request in part)

        passed = await search_all(bench, [bench.request(subject=subject) for subject in subjects], Store())
        return tried, [text(part) for part in passed]

    def test_a_wave_that_passes_is_one_part(self) -> None:
        """It is tried with patience."""

        async def act(bench: Bench) -> None:
            assert await self.search(bench, "abc") == (["abc"], ["abc"])
            assert self.patiences == [Patience(lock_seconds=0.5, seconds=1.0)]

        run(act)

    def test_locked_rows_are_parked_at_once_and_the_others_are_tried_together(self) -> None:
        """Two statements for any number of locked rows."""

        async def act(bench: Bench) -> None:
            bench.store.locks = {"x", "y"}
            assert await self.search(bench, "axbycd") == (["axbycd", "abcd"], ["abcd"])
            assert bench.parking.messages == 2

        run(act)

    def test_while_rows_are_parked_a_wave_does_not_wait_long_for_another_lock(self) -> None:
        """Whoever locks one row after the other would otherwise take a second from everybody each time."""

        async def act(bench: Bench) -> None:
            await bench.parking.park([bench.request()], TimedOut(), 0)
            await self.search(bench, "ab")
            assert self.patiences == [Patience(lock_seconds=0.1, seconds=1.0)]

        run(act)

    def test_only_locked_rows(self) -> None:
        """Nothing is left to try."""

        async def act(bench: Bench) -> None:
            bench.store.locks = {"x"}
            assert await self.search(bench, "xxx") == (["xxx"], [])
            assert bench.parking.messages == 3

        run(act)

    def test_a_lock_that_cannot_be_seen_is_found_by_dividing(self) -> None:
        """A new row of a transaction that has not committed, or a request key. Its parts get less patience."""

        async def act(bench: Bench) -> None:
            bench.store.delays = bench.slow_store.delays = {"x"}
            tried, passed = await self.search(bench, "abcxefgh")
            assert tried == ["abcxefgh", *"abcxefgh"]
            assert passed == list("abcefgh")
            assert bench.parking.messages == 1
            assert self.patiences == [Patience(0.5, 1.0), *[Patience(0.1, 0.01)] * 8]

        run(act)

    def test_whether_a_lock_is_on_a_row_is_not_asked_for_each_row(self) -> None:
        """Hundreds of rows wait for one value that somebody has not committed, and the question would take as long as a try."""

        async def act(bench: Bench) -> None:
            asked: list[int] = []

            async def locked(ids: Sequence[UUID]) -> set[UUID]:
                asked.append(len(ids))
                return set()

            bench.store.locks = bench.slow_store.locks = {"x"}
            bench.store.locked = locked  # type: ignore[method-assign]
            wave = [bench.request(subject=subject) for subject in ["x"] * 300 + ["a", "b"]]
            await bench.parking.park_untried([wave], TimedOut(), 0)
            assert sorted(await bench.settled(2)) == ["a: inserted", "b: inserted"]
            assert min(asked) > 1

        run(act, most=1000)

    def test_while_a_row_is_slow_a_wave_has_less_time(self) -> None:
        """Somebody writes slow rows, and may write more: each would cost the others a second."""

        async def act(bench: Bench) -> None:
            bench.store.delays = bench.slow_store.delays = {"x"}
            await bench.parking.park_untried([[bench.request(subject="x")]], TimedOut(), 0)
            await self.search(bench, "ab")
            await bench.until(1)
            await self.search(bench, "ab")
            assert self.patiences == [Patience(0.1, 0.25)]
            assert bench.parking.messages == 1

        run(act)

    def test_a_failure_of_a_row_is_found_by_halving(self) -> None:
        """The row is parked with its cause, and others pass, so that no outage is shown in the end."""

        async def act(bench: Bench) -> None:
            bench.store.fails = {"x"}
            assert (await self.search(bench, "abxd"))[0] == ["abxd", "ab", "xd", "x", "d"]
            assert bench.outages == []
            assert bench.parking.reason.endswith("(out of resources (53200))")

        run(act)

    def test_a_search_that_takes_too_long_ends(self) -> None:
        """What is left is parked, in the parts that were to be tried next."""

        async def act(bench: Bench) -> None:
            bench.store.delays = bench.slow_store.delays = {"x"}
            tried, _ = await self.search(bench, "xxxxxxxx", seconds=0.2)
            assert tried == ["xxxxxxxx", "x", "x", "x"]
            assert bench.parking.messages == 8

        run(act)

    def test_after_the_search_has_ended_the_rest_passes_if_nothing_is_wrong_with_it(self) -> None:
        """Most of it was never tried. It is tried at once where it is parked, in few statements, and nothing is tried alone."""

        async def act(bench: Bench) -> None:
            bench.store.delays = bench.slow_store.delays = {"x"}
            subjects = "x" + "abcdefgh" * 10
            tried, passed = await self.search(bench, subjects, seconds=0.4)
            assert tried == [subjects, subjects[:10], subjects[10:20]]
            assert passed == [subjects[10:20]]
            assert sorted(await bench.settled(70)) == sorted(
                f"{subject}: inserted" for subject in subjects[1:10] + subjects[20:]
            )
            assert bench.parking.messages == 1
            assert len(bench.store.waves) + len(bench.slow_store.waves) < 40

        run(act, most=1000)

    def test_what_is_left_of_a_search_is_halved_if_it_is_refused(self) -> None:
        """As in the search. A row that is refused alone is rejected, and one that fails waits alone."""

        async def act(bench: Bench) -> None:
            for store in (bench.store, bench.slow_store):
                store.refuses, store.fails, store.locks = {"r"}, {"f"}, {"l"}
            wave = [bench.request(subject=subject) for subject in "abcrdefghl"]
            await bench.parking.park_untried([wave[:6], wave[6:]], TimedOut(), 0)
            expected = {f"{subject}: inserted" for subject in "abcdegh"} | {"r: refused_by_database"}
            assert set(await bench.settled(8)) == expected
            assert bench.parking.messages == 2

        run(act)

    def test_requests_of_records_that_wait_for_a_trial_keep_their_order(self) -> None:
        """Later ones join. What was requeued meanwhile is not stored for the lost delivery."""

        async def act(bench: Bench) -> None:
            record, lost = uuid4(), uuid4()
            bench.store.away = bench.slow_store.away = "connection lost"
            await bench.parking.park_untried([[bench.request(record, "0"), bench.request(lost, "lost")]], TimedOut(), 0)
            assert await bench.admit([bench.request(record, "1"), bench.request(record, "2")]) == []
            await bench.until(2)
            bench.intake.lose(*[one for one in bench.intake.unsettled if b"lost" in one.body])
            bench.store.away = bench.slow_store.away = None
            assert await bench.settled(3) == ["0: inserted", "1: updated", "2: updated"]
            await asyncio.sleep(1)
            assert bench.parking.records == 0
            assert lost not in bench.store.rows

        run(act)

    def test_what_is_stored_together_is_answered_although_its_record_was_left_unread(self) -> None:
        """It is read by itself, again and again while that is not possible."""

        async def act(bench: Bench) -> None:
            bench.store.leaves_unread = bench.slow_store.leaves_unread = True
            for store in (bench.store, bench.slow_store):
                store.database = bench.store.database
            reads = unable_twice(bench)
            await bench.parking.park_untried([[bench.request(subject=subject) for subject in "abc"]], TimedOut(), 0)
            assert await bench.settled(3) == ["a: inserted", "b: inserted", "c: inserted"]
            assert len(reads) == 4

        run(act)

    def test_a_row_whose_record_is_left_unread_when_it_is_written_alone_is_read_and_not_written_again(self) -> None:
        """A trigger may have made it long. While it cannot be read, the request waits with its outcome."""

        async def act(bench: Bench) -> None:
            apply, reads = bench.store.apply, unable_twice(bench)

            async def unread(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
                return [Unread(each.outcome, None) for each in await apply(wave, patience)]

            bench.store.apply = unread  # type: ignore[method-assign]
            await bench.parking.park([bench.request(subject="a")], TimedOut(), 0)
            assert await bench.settled(1) == ["a: inserted"]
            assert (bench.store.waves, len(reads)) == ([["a"]], 3)

        run(act)

    def test_a_row_that_crashes_the_server_is_found(self) -> None:
        """Each time the connection is lost, and the probe fails until the server has recovered. Each part crashes it once."""

        async def act(bench: Bench) -> None:
            crashes: list[int] = []
            recovering = 0

            class Crashing(FakeStore):
                async def apply(self, wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
                    nonlocal recovering
                    if "crash" in {request.record.subject for request in wave}:
                        crashes.append(len(wave))
                        recovering = 3
                        raise Failed("connection lost (08003)", "08003")
                    return await super().apply(wave, patience)

                async def probe(self) -> None:
                    nonlocal recovering
                    recovering -= 1
                    if recovering >= 0:
                        raise Unavailable("shutting down or starting up (57P03)")

            store, guilty = Crashing(), bench.request(subject="crash")
            wave = [*(bench.request() for _ in range(31)), guilty]
            looking: Search[Delivery] = Search(wave, bench.parking)
            part = await looking.next()
            while part:
                try:
                    await looking.write(store, part)
                except Failed as failure:
                    try:
                        await looking.probe(store, failure)
                    except Unavailable:
                        continue  # the worker holds, and writes the same part again
                    await looking.failed(part, failure)
                else:
                    looking.passed(part)
                part = await looking.next()
            assert crashes == [32, 32, 16, 8, 4, 2, 1]
            assert len(store.rows) == 31
            assert bench.parking.messages == 1

        run(act)

    @pytest.mark.parametrize("full", [True, False])
    def test_a_full_disk_is_an_outage_if_own_rows_do_not_pass_either(self, full: bool) -> None:
        """A probe that writes nothing passes on a full disk. A trigger of one row may say that the disk of another server is."""

        async def act(bench: Bench) -> None:
            class Full(FakeStore):
                async def try_own_rows(self, like: TaskActivityLog | None) -> list[Failed]:
                    if full:
                        raise Failed("disk full (53100)", "53100")
                    return await super().try_own_rows(like)

            looking: Search[Delivery] = Search([bench.request()], bench.parking)
            part = await looking.next()
            try:
                await looking.probe(Full(), Failed("disk full (53100)", "53100"))
            except Unavailable as outage:
                assert (full, outage.label) == (True, "disk full (53100)")
            else:
                assert not full
                await looking.failed(part, Failed("disk full (53100)", "53100"))
                assert bench.parking.messages == 1

        run(act)

    def test_without_the_list_of_locked_rows_it_divides(self) -> None:
        """The connection for what is parked may not be possible: too many connections."""

        async def act(bench: Bench) -> None:
            async def locked(_: object) -> set[UUID]:
                raise Unavailable("too many connections (53300)")

            bench.store.locks = {"x"}
            bench.store.locked = locked  # type: ignore[assignment, method-assign]
            assert (await self.search(bench, "axbc"))[1] == ["a", "b", "c"]
            assert bench.parking.messages == 1

        run(act)


class TimedStore(LaterStore):
    """Takes time, on the virtual clock: for each statement, for each row, and more for the subjects in `slow`."""

    CANCEL_SECONDS = 0.003

    def __init__(self, fixed: float, per_row: float, slow: dict[str | None, float] | None = None) -> None:
        super().__init__()
        self.fixed, self.per_row, self.slow = fixed, per_row, slow or {}
        self.timed_out = 0
        self.stored_at: dict[UUID, float] = {}

    async def apply(self, wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        needed = self.fixed + sum(self.per_row + self.slow.get(request.record.subject, 0.0) for request in wave)
        limit = 30.0 if patience.seconds is None else min(30.0, patience.seconds)
        await asyncio.sleep(min(needed, limit))
        if needed > limit:
            self.timed_out += 1
            await asyncio.sleep(self.CANCEL_SECONDS)
            raise TimedOut
        now = asyncio.get_running_loop().time()
        self.stored_at |= {request.record.id: now for request in wave}
        return self.database.apply(wave)

    async def probe(self) -> None:
        await asyncio.sleep(min(self.fixed, 5.0))
        if self.fixed > 5.0:
            raise Unavailable("commit not confirmed")

    async def time_own_rows(self, count: int) -> float:
        took = min(0.002 + count * self.per_row, OWN_ROWS_SECONDS)
        await asyncio.sleep(took)
        return took


class TestSlowRows:
    """A row that is slow delays its own record alone, and a database that is slow for all rows parks none."""

    def store(self, bench: Bench, store: TimedStore, waves: Sequence[Sequence[Request[Delivery]]]) -> Awaitable[None]:
        """Store waves as the worker does, also what is parked, through stores that take as long as this one."""
        for lane in (store, bench.store, bench.slow_store):
            lane.database = store.database
        bench.parking._quick.store = bench.parking._slow.store = store

        async def work() -> None:
            for wave in waves:
                bench.parking.begin()
                left = list(await bench.admit(wave))
                for one in wave:
                    store.stored_at.pop(one.record.id, None)
                while left:
                    with suppress(Unavailable):  # the worker tries again what an outage has interrupted
                        await search_all(bench, left, store)
                    left = [one for one in left if one.record.id not in store.stored_at and not is_parked(bench, one)]

        return work()

    def test_a_slow_row_delays_others_by_less_than_five_seconds(self) -> None:
        """Among few and many rows, and whatever is known of the database. Its own record passes in its own time."""
        for rows, known in ((2, 0), (500, 0), (500, 20), (10, 20)):
            store = TimedStore(0.005, 0.000_2, {"slow": 20.0})

            async def act(bench: Bench, rows: int = rows, known: int = known, store: TimedStore = store) -> None:
                before = [[bench.request() for _ in range(rows)] for _ in range(known)]
                wave = [bench.request() for _ in range(rows - 1)]
                wave.insert(rows // 3, bench.request(subject="slow"))
                await self.store(bench, store, before)
                began = asyncio.get_running_loop().time()
                await self.store(bench, store, [wave])
                others = [one.record.id for one in wave if one.record.subject != "slow"]
                assert max(store.stored_at[identifier] for identifier in others) - began < 4
                assert len(await bench.settled(1)) == 1
                assert store.stored_at[wave[rows // 3].record.id] - began < 30

            run(act)

    def test_a_new_slow_row_in_each_wave_costs_others_little(self) -> None:
        """While one is parked, the next is looked for sooner."""
        store = TimedStore(0.005, 0.000_2, {"slow": 20.0})

        async def act(bench: Bench) -> None:
            for number in range(20):
                began = asyncio.get_running_loop().time()
                wave = [*(bench.request() for _ in range(100)), bench.request(subject="slow")]
                await self.store(bench, store, [wave])
                took = asyncio.get_running_loop().time() - began
                assert took < (4 if number == 0 else 2)

        run(act)

    @pytest.mark.parametrize("cost", [0.1, 0.4, 1.5, 10.0])
    @pytest.mark.parametrize("slow", [1, 30, 60, 300])
    def test_many_slow_rows_in_a_wave(self, slow: int, cost: float) -> None:
        """Others pass within five seconds, of this clock; the next wave is not kept waiting for all of them."""
        store = TimedStore(0.002, 0.000_2, {"slow": cost})

        async def act(bench: Bench) -> None:
            await self.store(bench, store, [[bench.request() for _ in range(100)]] * 3)
            began = asyncio.get_running_loop().time()
            slow_ones = {number * 480 // slow for number in range(slow)}
            wave = [bench.request(subject="slow" if number in slow_ones else "good") for number in range(480)]
            await self.store(bench, store, [wave])
            if cost * slow > 1:
                assert asyncio.get_running_loop().time() - began < 2
                await self.store(bench, store, [[bench.request() for _ in range(100)]])
                assert asyncio.get_running_loop().time() - began < 2.1
            others = [one.record.id for one in wave if one.record.subject == "good"]
            while not all(identifier in store.stored_at for identifier in others):
                await asyncio.sleep(0.01)
            assert asyncio.get_running_loop().time() - began < 5
            await bench.settled(bench.parking.messages)
            assert len(store.stored_at) >= len(wave)
            trials = store.timed_out - slow * 7  # each is tried alone, for longer and longer
            assert trials < 0.5 * slow + 20

        run(act, most=1000, limit_seconds=100_000)

    def test_rows_that_are_slow_only_once_pass_soon(self) -> None:
        """They are tried again with short limits, before they wait for what is slow each time."""
        store = TimedStore(0.002, 0.000_2, {"slow": 10.0, "once": 10.0})

        async def act(bench: Bench) -> None:
            wave = [bench.request(subject=("slow", "once", "good")[number % 3]) for number in range(90)]
            await self.store(bench, store, [wave])
            del store.slow["once"]
            once = [one.record.id for one in wave if one.record.subject == "once"]
            while not all(identifier in store.stored_at for identifier in once):
                await asyncio.sleep(0.01)
            assert asyncio.get_running_loop().time() < 8

        run(act, most=1000)

    @pytest.mark.parametrize("per_row", [0.005, 0.02, 0.05, 0.4, 1.5])
    def test_a_database_that_becomes_slow_for_all_rows_parks_none(self, per_row: float) -> None:
        """Rows of the worker's own show it. Nothing is searched, and hardly any time is lost."""
        store = TimedStore(0.005, 0.000_1)

        async def act(bench: Bench) -> None:
            await self.store(bench, store, [[bench.request() for _ in range(500)]] * 20)
            store.per_row = per_row
            began = asyncio.get_running_loop().time()
            await self.store(bench, store, [[bench.request() for _ in range(500)]] * 3)
            assert bench.parking.messages == 0
            assert asyncio.get_running_loop().time() - began < 1.05 * 1500 * per_row + 8
            assert store.timed_out < 5

        run(act, most=100_000)

    @pytest.mark.parametrize(
        ("fixed", "per_row"),
        [
            (0.01, 0.0),
            (1.5, 0.0),
            (3.0, 0.0),
            (4.9, 0.0),
            (6.0, 0.0),
            (0.005, 0.005),
            (0.005, 0.02),
            (0.005, 0.05),
            (1.0, 0.02),
        ],
    )
    @pytest.mark.parametrize("known", [None, (0.005, 0.000_1)])
    def test_a_slow_database_is_no_slow_row(
        self, fixed: float, per_row: float, known: tuple[float, float] | None
    ) -> None:
        """Slow commits (a standby, a disk), and rows that all take long (a trigger), from the start or all of a sudden:
        nothing is parked, and soon nothing is tried twice.
        """
        store = TimedStore(*(known or (fixed, per_row)))

        async def act(bench: Bench) -> None:
            requests = [bench.request() for _ in range(300)]
            waves = [requests[:size] for size in (1, 1, 2, 5, 20, 100, *[300] * 20)]
            if known:
                await self.store(bench, store, waves)
            store.fixed, store.per_row = fixed, per_row
            await self.store(bench, store, waves)
            assert bench.parking.messages == 0
            assert store.timed_out < 10
            before = store.timed_out
            await self.store(bench, store, [requests] * 10)
            assert store.timed_out == before

        run(act, most=100_000)

    def test_a_stall_parks_nothing(self) -> None:
        """A checkpoint, or an autovacuum: one statement takes long, and the probe after it as well."""
        store = TimedStore(0.005, 0.000_1)

        async def act(bench: Bench) -> None:
            waves = [[bench.request() for _ in range(300)]] * 20
            for stall in (2.5, 4.5, 8.0, 40.0):
                await self.store(bench, store, waves)
                store.fixed = stall
                asyncio.get_running_loop().call_later(stall, setattr, store, "fixed", 0.005)
                await self.store(bench, store, waves)
                assert bench.parking.messages == 0

        run(act, most=100_000)


def is_parked(bench: Bench, request: Request[Delivery]) -> bool:
    """Whether this request is parked."""
    return request.record.id in bench.parking._lines
