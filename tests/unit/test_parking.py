"""What is parked, tried again, refused, settled and returned, on a virtual clock; and the search for rows at fault."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from unittest.mock import patch
from uuid import UUID, uuid4

import pytest

from task_activity_log.aio import SharedLock
from task_activity_log.message import Delivery
from task_activity_log.pipeline import parking, search
from task_activity_log.pipeline.batches import Parts
from task_activity_log.pipeline.parking import Parking
from task_activity_log.pipeline.ports import PATIENT, Patience, Stored
from task_activity_log.pipeline.refusals import Refusals
from task_activity_log.pipeline.request import Request, Rules, decode
from task_activity_log.pipeline.search import Search
from task_activity_log.problem import Failed, TimedOut, Unavailable
from task_activity_log.record import Applied, TaskActivityLog
from tests import virtual_time
from tests.fakes import FakeIntake, FakeStore, upsert

PASSING = Failed("out of resources (53200)", "53200")
LASTING = Failed("database error (XX001)", "XX001", lasting=True)


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


class Bench:
    """Parking, and what it has of the world."""

    def __init__(self, most: int = 100, limit_seconds: float = 600.0) -> None:
        self.intake, self.store = FakeIntake(), LaterStore()
        self.stored: Stored[Delivery] = asyncio.Queue()
        self.parking: Parking[Delivery] = Parking(
            self.intake,
            self.store,
            Parts(self.stored, 2**20),
            SharedLock(),
            "emit",
            Refusals(10),
            most=most,
            limit_seconds=limit_seconds,
        )
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
    with patch.object(parking, "time", clock), patch.object(search, "time", clock):
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
            bench.stored = asyncio.Queue(maxsize=1)
            bench.parking.parts = Parts(bench.stored, 2**20)
            await bench.stored.put([])
            record = uuid4()
            await bench.parking.park([bench.request(record, "0")], PASSING, 0)
            await bench.until(1)
            assert bench.store.rows
            assert await bench.admit([bench.request(record, "1")]) == []
            assert await bench.settled(2) == ["0: inserted", "1: updated"]

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

    def test_a_slow_row_gets_more_time_at_each_try(self) -> None:
        """At first little, so that it does not delay other records; in the end what any statement may take."""

        async def act(bench: Bench) -> None:
            bench.store.delays = {"slow"}
            await bench.parking.park([bench.request(subject="slow")], TimedOut(), 0)
            await bench.until(5.5)

        assert [patience.seconds for patience in run(act).store.patiences] == [2.0, 4.0, 8.0, None, None, None]

    def test_a_record_with_many_requests_does_not_keep_others_waiting(self) -> None:
        """After a second of one record's requests, others are tried."""

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
            assert settled.index("other: inserted") == 3
            assert [each[0] for each in settled if each[0] != "o"] == list("012345678")

        run(act)

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
    """A record whose requests take too long in a batch is parked, although each of them passes."""

    def admit(self, records: int, seconds: float, waves: int = 5) -> list[int]:
        """How many requests are admitted of each of some waves of the same records, each of which takes some seconds."""
        admitted: list[int] = []

        async def act(bench: Bench) -> None:
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

    def test_after_two_seconds_in_a_batch_the_rest_is_parked(self) -> None:
        """Others would wait for all of its requests. In the next batch, records that are not parked have their time again."""
        assert self.admit(1, 0.9) == [1, 1, 1, 0, 0]

    def test_a_record_that_is_not_costly_is_stored_with_the_batch(self) -> None:
        """However often it occurs. Parked, its requests would take longer, and soon fill the prefetch."""
        assert self.admit(1, 0.01, waves=400) == [1] * 400

    def test_many_records_are_not_parked_because_the_database_is_slow(self) -> None:
        """Parked, each would be stored by itself, which takes longer."""
        assert self.admit(17, 0.9) == [17] * 5


class TestFailuresThatLast:
    """A row is refused only if the database is not the cause."""

    def test_a_row_is_refused_after_one_more_try_if_others_pass(self) -> None:
        """Otherwise a corrupt row would wait for ever. No row of our own need be tried."""

        async def act(bench: Bench) -> None:
            bench.store.doubts = {"corrupt"}
            bench.parking.refusals.passes = 1
            await bench.parking.park([bench.request(subject="corrupt")], LASTING, 0)
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


class TestSearch:
    """Which parts of a wave are tried, in which order, and what is parked. `apply` plays the database."""

    async def search(self, bench: Bench, subjects: str, *, seconds: float = 0.0) -> tuple[list[str], list[str]]:
        """The parts that were tried, and those that passed. Each try takes some seconds."""
        wave = [bench.request(subject=subject) for subject in subjects]
        looking: Search[Delivery] = Search(wave, bench.parking)
        tried, passed = [], []
        while part := looking.next():
            await asyncio.sleep(seconds)
            text = "".join(str(request.record.subject) for request in part)
            tried.append(text)
            try:
                await FakeStore.apply(bench.store, part, looking.patience)
            except Unavailable as failure:
                assert isinstance(failure, Failed)
                await looking.failed(part, failure)
            else:
                looking.passed(part)
                passed.append(text)
        return tried, passed

    def test_a_wave_that_passes_is_one_part(self) -> None:
        """It is tried with patience."""

        async def act(bench: Bench) -> None:
            assert await self.search(bench, "abc") == (["abc"], ["abc"])
            assert bench.store.patience == PATIENT

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
            assert bench.store.patience == Patience(lock_seconds=0.1)

        run(act)

    def test_only_locked_rows(self) -> None:
        """Nothing is left to try."""

        async def act(bench: Bench) -> None:
            bench.store.locks = {"x"}
            assert await self.search(bench, "xxx") == (["xxx"], [])
            assert bench.parking.messages == 3

        run(act)

    def test_a_lock_that_cannot_be_seen_is_found_by_halving(self) -> None:
        """A new row of a transaction that has not committed, or a request key. Its parts get less patience."""

        async def act(bench: Bench) -> None:
            bench.store.delays = {"x"}
            tried, passed = await self.search(bench, "abcxefgh")
            assert tried == ["abcxefgh", "abcx", "ab", "cx", "c", "x", "efgh"]
            assert passed == ["ab", "c", "efgh"]
            assert bench.parking.messages == 1
            assert bench.store.patience == Patience(lock_seconds=0.1, seconds=2.0)

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
        """What is left and does not pass is parked whole, and tried row by row there; the next batch does not wait."""

        async def act(bench: Bench) -> None:
            bench.store.delays = {"x"}
            tried, _ = await self.search(bench, "xxxxxxxx", seconds=0.9)
            assert tried == ["xxxxxxxx", "xxxx", "xx", "x", "x", "xx", "xxxx"][: len(tried)]
            assert len(tried) <= 7
            assert bench.parking.messages == 8

        run(act)

    def test_without_the_list_of_locked_rows_it_halves(self) -> None:
        """The connection for what is parked may not be possible: too many connections."""

        async def act(bench: Bench) -> None:
            async def locked(_: object) -> set[UUID]:
                raise Unavailable("too many connections (53300)")

            bench.store.locks = {"x"}
            bench.store.locked = locked  # type: ignore[assignment, method-assign]
            assert (await self.search(bench, "axbb"))[1] == ["a", "bb"]
            assert bench.parking.messages == 1

        run(act)
