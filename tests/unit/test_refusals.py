"""Whose fault a refusal is, as a pure decision; and what becomes of the messages."""

import asyncio
from collections.abc import Sequence
from uuid import uuid4

import pytest

from task_activity_log.message import Delivery
from task_activity_log.pipeline.ports import PATIENT, Patience
from task_activity_log.pipeline.refusals import TRY_AGAIN_SECONDS, Refusals
from task_activity_log.pipeline.request import Request
from task_activity_log.problem import Failed, Rule
from task_activity_log.record import Applied, TaskActivityLog
from tests.fakes import upsert
from tests.unit.test_worker import Bench

RULE = Rule("23514", "short")
OWN = Failed("every row is refused (23514)", "23514", name="short", lasting=True)
OTHER = Failed("every row is refused (23514)", "23514", name="other", lasting=True)
RECORD = TaskActivityLog(id=uuid4())


def refuse(refusals: Refusals, times: int, rule: Rule = RULE) -> bool:
    """Have the database refuse as many rows. Whether our own must be tried after the last of them."""
    return [refusals.must_try(rule, refusals.passes, 0.0, lasting=False) for _ in range(times)][-1]


class TestDecision:
    """When our own rows are tried, and what follows from it."""

    def test_the_tenth_refusal_in_a_row_starts_a_trial(self) -> None:
        """For the same reason: SQLSTATE and constraint."""
        refusals = Refusals(10)
        assert not refuse(refusals, 9)
        assert not refuse(refusals, 9, Rule("23514", "other"))
        assert not refuse(refusals, 9, Rule("23505", "short"))
        assert refuse(refusals, 1)

    def test_what_passes_between_begins_a_new_count(self) -> None:
        """Ten refusals among others that pass are ten bad messages."""
        refusals, unique = Refusals(10), Rule("23505", "unique")
        for _ in range(5):
            assert not refuse(refusals, 9, unique)
            refusals.passed(RECORD)

    def test_the_first_refusal_starts_a_trial_if_a_record_was_stored_before(self) -> None:
        """If the database refuses the values of that record now, it has changed. Then ten more."""
        refusals = Refusals(10)
        refusals.passed(RECORD)
        assert refuse(refusals, 1)
        assert not refuse(refusals, 8)
        assert refuse(refusals, 1)
        refusals.passed(RECORD)
        assert refuse(refusals, 1)

    def test_a_constraint_that_refuses_copies_says_nothing_at_first(self) -> None:
        """A unique constraint refuses our own row because it has the values of another."""
        refusals = Refusals(10)
        refusals.passed(RECORD)
        assert not refuse(refusals, 9, Rule("23505", "unique"))
        assert refuse(refusals, 1, Rule("23505", "unique"))

    def test_a_row_is_at_fault_if_others_passed_since_it_was_first_tried(self) -> None:
        """Whatever the database says."""
        refusals = Refusals(1)
        refusals.passed(RECORD)
        assert not refusals.must_try(RULE, 0, 0.0, lasting=True)

    def test_an_error_that_is_rarely_a_rows_starts_a_trial_at_once(self) -> None:
        """No such function, for example: a trigger may name one that is missing for every row."""
        assert Refusals(10).must_try(RULE, 0, 0.0, lasting=True)

    def test_without_a_limit_it_is_always_the_rows_fault(self) -> None:
        """Operators can switch the mechanism off."""
        refusals = Refusals(0)
        assert not refuse(refusals, 1000)
        assert not refusals.must_try(RULE, 0, 0.0, lasting=True)

    @pytest.mark.parametrize(
        ("found", "expected"),
        [([], None), ([OTHER], None), ([OWN], OWN), ([OTHER, OWN, OTHER], OWN), ([OTHER] * 3, None)],
    )
    def test_it_is_everybodys_if_no_own_row_passes_and_one_meets_the_same_rule(
        self, found: list[Failed], expected: Failed | None
    ) -> None:
        """If one passes, or all meet other rules, it is the rows' fault."""
        refusals = Refusals(10)
        refuse(refusals, 10)
        refusals.tried(RULE, 0, 0.0, found)
        assert refusals.everybodys is expected
        assert not refuse(refusals, 9)
        assert refuse(refusals, 1) is (expected is None)

    def test_a_pass_during_the_trial_decides(self) -> None:
        """Another task stores a row meanwhile."""
        refusals = Refusals(10)
        refuse(refusals, 10)
        refusals.passed(RECORD)
        refusals.tried(RULE, 0, 0.0, [OWN])
        assert refusals.everybodys is None

    def test_it_ends_with_the_first_row_that_passes(self) -> None:
        """And that is reported once."""
        refusals = Refusals(10)
        refusals.tried(RULE, 0, 0.0, [OWN])
        assert refusals.passed(RECORD)
        assert not refusals.everybodys
        assert not refusals.passed(RECORD)

    def test_our_own_are_tried_again_every_ten_seconds(self) -> None:
        """As long as all are refused, for whatever reason, it goes on."""
        refusals = Refusals(10)
        refusals.tried(RULE, 0, 100.0, [OWN])
        assert not refusals.must_try(RULE, 0, 100.0 + TRY_AGAIN_SECONDS - 1, lasting=False)
        assert refusals.must_try(RULE, 0, 100.0 + TRY_AGAIN_SECONDS, lasting=False)
        refusals.tried(RULE, 0, 110.0, [OTHER])
        assert refusals.everybodys is OTHER
        refusals.tried(RULE, 0, 120.0, [])
        assert refusals.everybodys is None


REFUSED = Failed("every row is refused (23514)", "23514", lasting=True)
"""What our own rows meet when `FakeStore.refuses` is everybody's fault."""


async def test_ten_bad_messages_of_one_publisher_stop_nobody() -> None:
    """Our own row passes, so they are rejected, and the next good message is stored."""
    bench = Bench()
    bench.store.refuses = {"bad"}
    bench.intake.put(*(upsert(subject="bad") for _ in range(25)))
    async with bench.running():
        await bench.watch.settled(25)
        bench.intake.put(upsert(subject="good"))
        await bench.watch.settled(26)
        assert bench.watch.held_reasons == []
    assert bench.outcomes == ["rejected"] * 25 + ["inserted"]
    assert bench.store.own_tried == 2


async def test_a_batch_that_the_database_refuses_whatever_it_contains_makes_no_dead_letter() -> None:
    """Also not of the first ten. When the cause is fixed, all are stored, in their order."""
    bench = Bench()
    bench.store.refuses, bench.store.own = {"a", "b", "c"}, [REFUSED]
    identifiers = [uuid4() for _ in range(20)]
    deliveries = [upsert(identifier, subject=subject) for subject in "abc" for identifier in identifiers]
    bench.intake.put(*deliveries)
    async with bench.running():
        while bench.worker.parking.messages < 60:
            await asyncio.sleep(0)
        assert bench.hold_reason == "every row is refused (23514)"
        assert bench.dead_letters.kept == []
        bench.store.refuses = set()
        await bench.watch.settled(60)
        assert not bench.hold_reason
    assert bench.dead_letters.kept == []
    assert [bench.store.rows[identifier].subject for identifier in identifiers] == ["c"] * 20
    assert sorted(bench.outcomes) == ["inserted"] * 20 + ["updated"] * 40


async def test_messages_that_come_one_by_one_after_one_that_was_stored_make_no_dead_letter() -> None:
    """The first one that is refused waits."""
    bench = Bench(batch_max=1)
    bench.intake.put(upsert(subject="good"))
    async with bench.running():
        await bench.watch.settled(1)
        bench.store.refuses, bench.store.own = {"good"}, [REFUSED]
        bench.intake.put(*(upsert(subject="good") for _ in range(30)))
        while bench.worker.parking.messages < 30:
            await asyncio.sleep(0)
        bench.store.refuses = set()
        await bench.watch.settled(31)
    assert bench.outcomes == ["inserted"] * 31


async def test_messages_that_come_one_by_one_to_a_worker_that_has_stored_nothing_cost_nine_dead_letters() -> None:
    """Each was answered before the next one came. From the tenth on they wait."""
    bench = Bench(batch_max=1)
    bench.store.refuses, bench.store.own = {"good"}, [REFUSED]
    bench.intake.put(*(upsert(subject="good") for _ in range(30)))
    async with bench.running():
        while bench.worker.parking.messages < 21:
            await asyncio.sleep(0)
        assert len(bench.dead_letters.kept) == 9
        bench.store.refuses = set()
        await bench.watch.settled(30)
    assert bench.outcomes.count("inserted") == 21


async def test_a_good_message_among_those_that_wait_ends_the_hold() -> None:
    """Our own row was refused too, by a rule that it does not satisfy: the bad ones are rejected, the good ones stored."""
    bench = Bench()
    bench.store.refuses, bench.store.own = {"bad"}, [REFUSED]
    bench.intake.put(*(upsert(subject="bad") for _ in range(40)))
    async with bench.running():
        while bench.hold_reason is None:
            await asyncio.sleep(0)
        bench.intake.put(*(upsert(subject="bad") for _ in range(10)), upsert(subject="good"))
        await bench.watch.settled(51)
        assert not bench.hold_reason
    assert sorted(bench.outcomes) == ["inserted", *["rejected"] * 50]


async def test_a_message_that_is_refused_during_the_hold_does_not_end_it() -> None:
    """The database answers, but it still refuses every row: the hold goes on, and is not logged as over and begun again."""
    bench = Bench()
    bench.store.refuses, bench.store.own = {"good"}, [REFUSED]
    bench.intake.put(*(upsert(subject="good") for _ in range(10)))
    released: list[str] = []
    bench.watch.released = lambda place, seconds: released.append(place)  # type: ignore[method-assign]  # noqa: ARG005
    async with bench.running():
        while bench.hold_reason is None:
            await asyncio.sleep(0)
        since = bench.worker.store_hold.since
        bench.intake.put(upsert(subject="good"))
        while bench.worker.parking.messages < 11:
            await asyncio.sleep(0)
        assert (released, bench.worker.store_hold.since) == ([], since)
        bench.store.refuses = set()
        await bench.watch.settled(11)
        assert released == ["store"]


async def test_an_outage_during_the_hold_is_shown_and_the_hold_goes_on() -> None:
    """The reason is that of the outage, and afterwards that of the hold again."""
    bench = Bench()
    bench.store.refuses, bench.store.own = {"good"}, [REFUSED]
    bench.intake.put(*(upsert(subject="good") for _ in range(10)))
    released: list[str] = []
    bench.watch.released = lambda place, seconds: released.append(place)  # type: ignore[method-assign]  # noqa: ARG005
    async with bench.running():
        while bench.hold_reason is None:
            await asyncio.sleep(0)
        bench.store.away = "connection lost"
        bench.intake.put(upsert(subject="good"))
        while bench.hold_reason != "connection lost":
            await asyncio.sleep(0)
        bench.store.away = None
        while bench.hold_reason != "every row is refused (23514)":
            await asyncio.sleep(0)
        assert released == []
        bench.store.refuses = set()
        await bench.watch.settled(11)
        assert not bench.hold_reason
    assert bench.outcomes == ["inserted"] * 11


@pytest.mark.parametrize("stored_before", [True, False])
async def test_what_is_refused_while_the_database_cannot_be_asked_makes_no_dead_letter(*, stored_before: bool) -> None:
    """A trigger for statements, say, refuses the probe as well, or there is no connection for rows of our own."""
    bench = Bench()
    async with bench.running():
        if stored_before:
            bench.intake.put(upsert(subject="first"))
            await bench.watch.settled(1)
        bench.store.refuses, bench.store.unwritable = {"good"}, True
        bench.intake.put(*(upsert(subject="good") for _ in range(15)))
        while bench.worker.parking.messages < 15:
            await asyncio.sleep(0)
        assert bench.hold_reason == "not permitted"
        bench.store.refuses, bench.store.unwritable = set(), False
        await bench.watch.settled(15 + stored_before)
        assert not bench.hold_reason
    assert set(bench.outcomes) == {"inserted"}


async def test_what_passes_in_another_task_says_nothing_about_a_wave_of_which_nothing_has_passed() -> None:
    """It was stored just before somebody added the rule."""
    bench = Bench()
    bench.store.own = [REFUSED]
    apply = bench.store.apply

    async def pass_meanwhile(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        try:
            return await apply(wave, patience)
        finally:
            if len(bench.store.waves) == 1:
                bench.worker.parking.passed(RECORD)

    bench.store.apply = pass_meanwhile  # type: ignore[method-assign]
    bench.store.refuses = {"good"}
    async with bench.running():
        bench.intake.put(upsert(subject="good"))
        while not bench.worker.parking.messages:
            assert bench.dead_letters.kept == []
            await asyncio.sleep(0)
        bench.store.refuses = set()
        await bench.watch.settled(1)
    assert bench.outcomes == ["inserted"]


@pytest.mark.parametrize("first", ["locks", "fails"])
@pytest.mark.parametrize("then", ["refuses", "doubts"])
async def test_what_passes_while_a_row_is_locked_says_nothing_about_it(first: str, then: str) -> None:
    """Somebody locks rows, or makes them fail, and then adds a rule that refuses every row: nothing is at fault."""
    bench = Bench()
    setattr(bench.store, first, {"good"})
    async with bench.running():
        bench.intake.put(upsert(subject="good"), upsert(subject="good"))
        while bench.worker.parking.messages < 2:
            await asyncio.sleep(0)
        bench.intake.put(upsert(subject="another"))
        await bench.watch.settled(1)
        tried = len(bench.store.waves)
        while len(bench.store.waves) == tried:
            await asyncio.sleep(0)
        bench.store.own = [Failed("every row is refused", "42501" if then == "doubts" else "23514", lasting=True)]
        setattr(bench.store, then, {"good"})
        setattr(bench.store, first, set())
        while bench.hold_reason is None:
            assert bench.dead_letters.kept == []
            await asyncio.sleep(0)
        setattr(bench.store, then, set())
        await bench.watch.settled(3)
    assert (bench.outcomes, bench.dead_letters.kept) == (["inserted"] * 3, [])


async def test_what_passes_between_two_reasons_says_nothing_about_the_second() -> None:
    """A constraint that refused every row is dropped, others pass, and then a privilege is revoked."""
    bench = Bench()
    bench.store.refuses, bench.store.own = {"good"}, [REFUSED]
    bench.intake.put(*(upsert(subject="good") for _ in range(10)))
    async with bench.running():
        while bench.hold_reason is None:
            await asyncio.sleep(0)
        bench.store.own = [Failed("not permitted (42501)", "42501", lasting=True)]
        bench.store.refuses, bench.store.doubts = set(), {"good"}
        bench.intake.put(upsert(subject="another"))
        await bench.watch.settled(1)
        while bench.hold_reason != "not permitted (42501)":
            assert bench.dead_letters.kept == []
            await asyncio.sleep(0)
        bench.store.doubts = set()
        await bench.watch.settled(11)
    assert (bench.outcomes, bench.dead_letters.kept) == (["inserted"] * 11, [])


@pytest.mark.parametrize("evidence", ["rows of our own pass", "a parked request passes"])
async def test_a_row_of_a_batch_that_was_refused_before_the_database_was_fixed_is_tried_again(evidence: str) -> None:
    """What shows that not every row is refused has passed after this row was tried: that says nothing about it."""
    bench = Bench()
    apply = bench.store.apply

    async def fixed(like: TaskActivityLog | None) -> list[Failed]:  # noqa: ARG001  # as the original
        bench.store.refuses = set()
        return []

    async def pass_meanwhile(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        try:
            return await apply(wave, patience)
        finally:
            if evidence == "a parked request passes" and bench.store.refuses:
                bench.store.refuses = set()
                bench.worker.parking.passed(RECORD)

    bench.store.apply = pass_meanwhile  # type: ignore[method-assign]
    bench.store.try_own_rows = fixed  # type: ignore[method-assign]
    bench.worker.parking.refusals.passed(RECORD)
    bench.store.refuses = {"good"}
    async with bench.running():
        bench.intake.put(upsert(subject="good"))
        await bench.watch.settled(1)
    assert (bench.outcomes, bench.dead_letters.kept) == (["inserted"], [])


async def test_what_is_refused_while_own_rows_are_tried_waits_for_what_is_found() -> None:
    """A parked request and one of a batch are refused at the same time, after one was stored."""
    bench = Bench()
    parking = bench.worker.parking
    bench.store.own = [REFUSED]
    parking.refusals.passed(RECORD)
    async with asyncio.timeout(30):
        found = await asyncio.gather(*(parking._everybodys(Rule("23514"), 1, lasting=False) for _ in range(3)))
    assert [each and each.label for each in found] == [REFUSED.label] * 3
    assert bench.store.own_tried == 1


async def test_without_the_mechanism_every_refusal_is_a_dead_letter() -> None:
    """WORKER_REFUSED_IN_A_ROW=0."""
    bench = Bench(refused_in_a_row=0)
    bench.store.refuses, bench.store.own = {"good"}, [REFUSED]
    bench.intake.put(*(upsert(subject="good") for _ in range(30)))
    async with bench.running():
        await bench.watch.settled(30)
    assert bench.outcomes == ["rejected"] * 30
