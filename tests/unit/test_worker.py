"""The worker with stand-ins for the broker and the database."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from math import inf
from types import SimpleNamespace
from unittest.mock import patch
from uuid import UUID, uuid4

import pytest

from task_activity_log.aio import Slices
from task_activity_log.message import Delivery
from task_activity_log.pipeline import parking, retrying
from task_activity_log.pipeline.lines import Limits
from task_activity_log.pipeline.ports import PATIENT, Patience, Settlement
from task_activity_log.pipeline.request import Request, Rules
from task_activity_log.pipeline.suspects import SUSPECT_FROM
from task_activity_log.pipeline.trials import CRASHES_MAX, marks_of
from task_activity_log.pipeline.worker import Worker
from task_activity_log.record import Applied, Outcome
from tests import virtual_time
from tests.fakes import FakeDeadLetters, FakeIntake, FakeReplies, FakeStore, FakeWatch, delivered, upsert


class Bench:
    """A worker and everything around it."""

    def __init__(
        self,
        batch_max: int = 100,
        hold_limit_seconds: float = 600,
        park_most: int = 1000,
        refused_in_a_row: int = 10,
    ) -> None:
        self.log: list[str] = []
        self.intake = FakeIntake()
        self.store = FakeStore()
        self.replies = FakeReplies(self.log)
        self.dead_letters = FakeDeadLetters(self.log)
        self.watch = FakeWatch(self.log)
        self.worker: Worker[Delivery] = Worker(
            intake=self.intake,
            store=self.store,
            dead_letters=self.dead_letters,
            replies=self.replies,
            watch=self.watch,
            rules=Rules(),
            batch_max=batch_max,
            hold_limit_seconds=hold_limit_seconds,
            park=Limits(park_most),
            refused_in_a_row=refused_in_a_row,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self.worker.run())
        try:
            yield
        finally:
            self.worker.drain()
            self.intake.waiting.close()
            await asyncio.wait_for(running, 5)

    @property
    def hold_reason(self) -> str | None:
        return self.worker.store_hold.reason or self.worker.reply_hold.reason

    @property
    def outcomes(self) -> list[str]:
        return [str(reply.outcome) for reply in self.replies.published]


async def test_every_message_is_stored_answered_and_acknowledged() -> None:
    """A batch of new records is one wave; each gets a reply, and all are acknowledged in delivery order."""
    bench = Bench()
    deliveries = [upsert() for _ in range(50)]
    bench.intake.put(*deliveries)
    async with bench.running():
        await bench.watch.settled(50)
    assert len(bench.store.waves) == 1
    assert bench.outcomes == ["inserted"] * 50
    assert bench.intake.acknowledged == deliveries


async def test_long_texts_are_stored_by_several_statements() -> None:
    """One statement for all of a batch would take so long on a busy machine that its rows would be searched for slow ones."""
    bench = Bench()
    deliveries = [upsert(subject="s" * 250_000) for _ in range(14)]
    bench.intake.put(*deliveries, upsert())
    async with bench.running():
        await bench.watch.settled(15)
    texts = [sum(len(subject or "") for subject in wave) for wave in bench.store.waves]
    assert max(texts) <= 2**20
    assert len(texts) == 4
    assert bench.outcomes == ["inserted"] * 15


async def test_an_id_is_applied_in_the_order_delivered() -> None:
    """Three upserts of one id in one batch are three waves. Each reply has the record as it was after that upsert."""
    bench = Bench()
    identifier = uuid4()
    bench.intake.put(*(upsert(identifier, subject=subject) for subject in "abc"))
    async with bench.running():
        await bench.watch.settled(3)
    assert bench.store.waves == [["a"], ["b"], ["c"]]
    assert bench.outcomes == ["inserted", "updated", "updated"]
    assert [
        subject in reply.body for subject, reply in zip((b'"a"', b'"b"', b'"c"'), bench.replies.published, strict=True)
    ]


async def test_an_invalid_message_does_not_affect_others() -> None:
    """It is dead-lettered and answered with its problem. The other messages are stored in the same wave."""
    bench = Bench()
    bad = delivered(b"{", message_id="bad")
    bench.intake.put(upsert(), bad, upsert())
    async with bench.running():
        await bench.watch.settled(3)
    assert sorted(bench.outcomes) == ["inserted", "inserted", "rejected"]
    assert [(delivery, problem.code) for delivery, problem in bench.dead_letters.kept] == [(bad, "malformed_json")]
    assert len(bench.intake.acknowledged) == 3


async def test_dead_letters_come_before_replies_and_replies_before_acknowledgements() -> None:
    """Whoever has read the problem finds the dead letter, and an acknowledged message has been answered."""
    bench = Bench()
    bench.intake.put(delivered(b""))
    async with bench.running():
        await bench.watch.settled(1)
    assert bench.log == ["dead letters", "replies", "settled"]


@pytest.mark.parametrize("guilty", [0, 37, 63])
async def test_the_row_that_the_database_refuses_is_found_by_halving(guilty: int) -> None:
    """Among 64 rows it is alone after at most 2 log2(64) + 1 statements; the other 63 are stored."""
    bench = Bench()
    bench.store.refuses = {"guilty"}
    deliveries = [upsert(subject="guilty" if number == guilty else "good") for number in range(64)]
    bench.intake.put(*deliveries)
    async with bench.running():
        await bench.watch.settled(64)
    assert len(bench.store.rows) == 63
    assert len(bench.store.waves) <= 13
    assert [(delivery, problem.code) for delivery, problem in bench.dead_letters.kept] == [
        (deliveries[guilty], "refused_by_database")
    ]


async def test_a_repeat_is_not_applied_again_and_has_the_same_message_id() -> None:
    """A message is delivered twice: the second reply has the outcome duplicate and the first one's message_id."""
    bench = Bench()
    delivery = upsert(message_id="m")
    bench.intake.put(delivery, delivery)
    async with bench.running():
        await bench.watch.settled(2)
    assert bench.outcomes == ["inserted", "duplicate"]
    assert len({reply.message_id for reply in bench.replies.published}) == 1


async def test_an_outage_of_the_database_is_waited_out() -> None:
    """Nothing is acknowledged during the outage, the reason is shown, and afterwards everything is acknowledged."""
    bench = Bench()
    bench.store.away = "database down"
    bench.intake.put(upsert())
    async with bench.running():
        await bench.store.tried.wait()
        assert bench.intake.acknowledged == []
        bench.store.tried.clear()
        await bench.store.tried.wait()
        held_for = bench.hold_reason
        bench.store.away = None
        await bench.watch.settled(1)
        assert (held_for, bench.hold_reason) == ("database down", None)
    assert bench.outcomes == ["inserted"]
    assert set(bench.watch.held_reasons) == {"store: database down"}


async def test_a_message_is_not_acknowledged_before_its_reply_is_confirmed() -> None:
    """While replies cannot be published it is stored and stays unsettled."""
    bench = Bench()
    bench.replies.away = "replies returned"
    bench.intake.put(upsert())
    async with bench.running():
        await bench.replies.tried.wait()
        assert len(bench.store.rows) == 1
        assert bench.intake.acknowledged == []
        bench.replies.away = None
        await bench.watch.settled(1)


async def test_the_next_batch_is_stored_while_replies_wait() -> None:
    """The two stages run at the same time."""
    bench = Bench(batch_max=1)
    bench.replies.away = "blocked"
    bench.intake.put(upsert(), upsert())
    async with bench.running():
        await bench.replies.tried.wait()
        while len(bench.store.rows) < 2:
            await asyncio.sleep(0)
        bench.replies.away = None
        await bench.watch.settled(2)


async def test_draining_finishes_the_current_batch_and_leaves_the_rest() -> None:
    """The batch in the database is answered and acknowledged; a message that was not taken is not touched."""
    bench = Bench(batch_max=1)
    begun, untouched = upsert(), upsert()
    bench.intake.put(begun)
    async with bench.running():
        await bench.store.tried.wait()
        bench.intake.waiting.close()
        bench.intake.put(untouched)
    assert bench.intake.acknowledged == [begun]
    assert len(bench.store.rows) == 1


async def test_draining_finishes_a_message_that_was_taken_alone_and_returned_before() -> None:
    """Nothing is behind it in its batch that could take its place."""
    bench = Bench()
    returned = replace(upsert(), attempts=10)
    bench.intake.batches = [[returned]]
    bench.worker.drain()
    async with bench.running():
        pass
    assert bench.intake.acknowledged == [returned]


@pytest.mark.parametrize("part", ["store", "replies", "dead_letters"])
async def test_draining_in_an_outage_gives_up_after_one_more_try(part: str) -> None:
    """The worker tries exactly once more, fails, and ends. Nothing is acknowledged, so the broker delivers it again."""
    bench = Bench()
    getattr(bench, part).away = "away"
    bench.intake.put(upsert(), delivered(b"{"))
    tried = 0
    async with bench.running():
        while not bench.watch.held_reasons:
            await asyncio.sleep(0)
        tried = len(bench.watch.held_reasons)
    assert len(bench.watch.held_reasons) == tried + 1
    assert bench.intake.acknowledged == []
    assert bench.intake.requeued == []


@pytest.mark.parametrize("part", ["store", "replies", "dead_letters"])
async def test_draining_in_an_outage_that_just_ended_loses_no_work(part: str) -> None:
    """If the one more try succeeds, the batch is stored, answered and acknowledged."""
    bench = Bench()
    outside = getattr(bench, part)
    outside.away = "away"
    bench.intake.put(upsert(), delivered(b"{"))
    async with bench.running():
        while not bench.watch.held_reasons:
            await asyncio.sleep(0)
        outside.away = None
    assert len(bench.watch.held_reasons) == 1
    assert len(bench.intake.acknowledged) == 2


async def test_an_unexpected_error_ends_the_worker() -> None:
    """It is not suppressed: the process ends, and unsettled messages are delivered again."""
    bench = Bench()

    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    bench.store.apply = broken  # type: ignore[assignment, method-assign]
    bench.intake.put(upsert())
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(bench.worker.run(), 5)
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)


async def test_a_row_that_was_deleted_is_answered_and_not_dead_lettered() -> None:
    """A repeat whose row was deleted is answered with the problem record_gone; nothing is written or dead-lettered."""
    bench = Bench()
    identifier = UUID(int=1)
    delivery = upsert(identifier, message_id="m")
    bench.intake.put(delivery)
    async with bench.running():
        await bench.watch.settled(1)
        del bench.store.rows[identifier]
        bench.intake.put(delivery)
        await bench.watch.settled(2)
    assert b"record_gone" in bench.replies.published[1].body
    assert bench.dead_letters.kept == []
    assert bench.store.rows == {}


async def test_a_suspect_is_stored_when_everything_before_it_is_settled() -> None:
    """And nothing else is stored before it is settled: if it crashes the process, it is the oldest that is unsettled."""
    bench = Bench()
    suspect = replace(upsert(subject="suspect"), attempts=SUSPECT_FROM)
    batches = [[upsert(subject="before")], [suspect], [upsert(subject="after")]]
    settled: list[int] = []
    apply = bench.store.apply

    async def noting(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        settled.append(len(bench.intake.acknowledged))
        return await apply(wave, patience)

    bench.store.apply = noting  # type: ignore[method-assign]
    bench.intake.batches = batches
    async with bench.running():
        await bench.watch.settled(3)
    assert settled == [0, 1, 2]
    assert bench.intake.synchronized == 2


async def test_a_suspect_comes_again_alone_and_what_is_before_it_is_settled() -> None:
    """It is found by its marks, after it was taken with others. Without a single active consumer these are returned first."""
    bench = Bench()
    before, suspect, after = upsert(subject="before"), upsert(subject="suspect"), upsert(subject="after")
    suspect = replace(suspect, attempts=2)
    bench.store.database.inbox |= set(marks_of(suspect).shared)
    bench.intake.sets_apart = True
    bench.intake.batches = [[before, suspect, after]]
    async with bench.running():
        await bench.watch.settled(1)
        while not bench.intake.renewed:
            await asyncio.sleep(0)
    assert bench.store.waves == [["before"]]
    assert bench.intake.acknowledged_when_renewed == [before]
    assert suspect.suspect
    assert not after.suspect


async def test_before_the_rest_is_requeued_everything_that_was_taken_is_settled() -> None:
    """An empty batch asks for that."""
    bench = Bench()
    taken = [upsert(), upsert()]
    bench.intake.batches = [taken, []]
    async with bench.running():
        await bench.watch.settled(2)
        while not bench.intake.renewed:
            await asyncio.sleep(0)
    assert bench.intake.acknowledged_when_renewed == taken


async def test_what_was_requeued_meanwhile_is_not_stored() -> None:
    """Another worker may have it by now, and may have stored later messages of its records."""
    bench = Bench(hold_limit_seconds=600)
    bench.store.away = "database down"
    lost, later = upsert(subject="lost"), upsert(subject="later")
    bench.intake.put(lost)
    async with bench.running():
        while bench.hold_reason is None:
            await asyncio.sleep(0)
        await bench.intake.requeue()  # as the other stage does, or as a lost connection
        bench.store.away = None
        bench.intake.put(later)
        await bench.watch.settled(1)
    assert bench.store.waves == [["later"]]
    assert bench.intake.acknowledged == [later]


async def test_the_rest_of_a_batch_is_stored_when_a_part_of_it_was_requeued_meanwhile() -> None:
    """With partitions a batch has messages of several queues, and one of these may be handed over or lost alone.

    If the rest were left, it would stay in hand, and later messages of its records would overtake it.
    """
    bench = Bench(hold_limit_seconds=600)
    bench.store.away = "database down"
    mine, lost, more = upsert(subject="mine"), upsert(subject="lost"), upsert(subject="more")
    bench.intake.put(mine, lost, more)
    async with bench.running():
        while bench.hold_reason is None:
            await asyncio.sleep(0)
        bench.intake.lose(lost)
        bench.store.away = None
        await bench.watch.settled(2)
    assert bench.store.waves == [["mine", "more"]]
    assert bench.intake.acknowledged == [mine, more]


async def test_nothing_is_requeued_while_it_is_being_stored() -> None:
    """The replies are not confirmed for too long while the database is slow: the requeueing waits for the statement."""
    bench = Bench(hold_limit_seconds=0.01)
    bench.replies.away = "no confirms"
    writing, finish = asyncio.Event(), asyncio.Event()
    apply = bench.store.apply

    async def slow(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        if wave[0].record.subject == "slow":
            writing.set()
            await finish.wait()
        return await apply(wave, patience)

    bench.store.apply = slow  # type: ignore[method-assign]
    bench.intake.batches = [[upsert(subject="first")], [upsert(subject="slow")]]
    async with bench.running():
        await writing.wait()
        while "reply" not in bench.intake.paused_by:
            await asyncio.sleep(0.001)
        for _ in range(100):
            await asyncio.sleep(0)
        assert bench.intake.requeued == []
        finish.set()
        while not bench.intake.requeued:
            await asyncio.sleep(0.001)
        bench.replies.away = None


async def test_a_message_that_has_crashed_workers_alone_is_rejected_without_being_tried() -> None:
    """It is dead-lettered and answered. Others are stored, however often they were delivered and returned in good order."""
    bench = Bench()
    poison = replace(upsert(subject="poison"), attempts=10)
    bench.store.database.inbox |= set(marks_of(poison).alone)
    bench.intake.batches = [[poison], [replace(upsert(subject="returned"), attempts=19)]]
    async with bench.running():
        await bench.watch.settled(2)
    assert bench.store.waves == [["returned"]]
    assert [(delivery, problem.code) for delivery, problem in bench.dead_letters.kept] == [(poison, "poison_message")]


async def test_a_message_that_was_killed_in_two_trials_is_tried_again() -> None:
    """Two kills at the wrong moment prove nothing. When it is settled, all its marks are removed."""
    bench = Bench()
    suspect = replace(upsert(subject="suspect"), attempts=10)
    bench.store.database.inbox |= set(marks_of(suspect).alone[: CRASHES_MAX - 1])
    marked: list[bool] = []
    apply = bench.store.apply

    async def noting(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        marked.append(bench.store.database.inbox >= set(marks_of(suspect).alone))
        return await apply(wave, patience)

    bench.store.apply = noting  # type: ignore[method-assign]
    bench.intake.batches = [[suspect]]
    async with bench.running():
        await bench.watch.settled(1)
    assert marked == [True]
    assert bench.store.database.inbox.isdisjoint(marks_of(suspect).all)


async def test_a_trial_that_is_returned_in_good_order_leaves_no_mark() -> None:
    """Past the hold limit a suspect is requeued, and the worker drains: earlier marks stay, its own does not."""
    bench = Bench(hold_limit_seconds=0.01)
    suspect = replace(upsert(subject="suspect"), attempts=10)
    bench.store.database.inbox.add(marks_of(suspect).alone[0])
    apply = bench.store.apply

    async def away(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        if bench.store.database.inbox >= set(marks_of(suspect).alone[:2]):
            bench.store.away = "database down"
        return await apply(wave, patience)

    bench.store.apply = away  # type: ignore[method-assign]
    bench.intake.batches = [[suspect]]
    async with bench.running():
        while not bench.intake.requeued:
            await bench.store.tried.wait()
            bench.store.tried.clear()
        bench.store.away = None
    await bench.worker.trials.drained()
    assert bench.store.database.inbox.intersection(marks_of(suspect).all) == {marks_of(suspect).alone[0]}


async def test_messages_that_were_returned_often_in_good_order_are_stored_together() -> None:
    """Hand-overs, drains and lost connections count as deliveries. No mark says that a worker has crashed."""
    bench = Bench(batch_max=100)
    bench.intake.batches = [[replace(upsert(subject="returned"), attempts=19) for _ in range(100)]]
    async with bench.running():
        await bench.watch.settled(100)
    assert [len(wave) for wave in bench.store.waves] == [100]
    assert bench.store.database.inbox == {request.key for request in bench.store.database.writes if request.key}


@pytest.mark.parametrize(
    ("crashes", "parts"),
    [(0, [100]), (1, [25, 25, 50]), (2, [6] * 9 + [46]), (3, [1] * 50 + [50]), (4, [1] * 50 + [50])],
)
async def test_what_was_in_hand_at_crashes_is_stored_in_smaller_parts(crashes: int, parts: list[int]) -> None:
    """A quarter each time, and what is behind it in one batch again. All marks are removed in the end."""
    bench = Bench(batch_max=100)
    crashed = [replace(upsert(subject="crashed"), attempts=2) for _ in range(50)]
    bench.store.database.inbox |= {mark for each in crashed for mark in marks_of(each).shared[:crashes]}
    during: list[int] = []
    apply = bench.store.apply

    async def noting(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        marks = {mark for each in crashed for mark in marks_of(each).all}
        during.append(len(bench.store.database.inbox & marks))
        return await apply(wave, patience)

    bench.store.apply = noting  # type: ignore[method-assign]
    bench.intake.batches = [[*crashed, *(replace(upsert(), attempts=1) for _ in range(50))]]
    async with bench.running():
        await bench.watch.settled(100)
    assert [len(wave) for wave in bench.store.waves] == parts
    assert during[0] == 50 * crashes + min(parts[0], 50)
    assert bench.store.database.inbox == {request.key for request in bench.store.database.writes if request.key}


async def test_behind_what_has_crashed_workers_alone_attempts_count_too() -> None:
    """It has used up the deliveries of the others in hand: there is no time to try them in large batches at first."""
    bench = Bench(batch_max=100)
    poison = replace(upsert(subject="poison"), attempts=10)
    bench.store.database.inbox |= set(marks_of(poison).alone)
    behind = [replace(upsert(subject="behind"), attempts=attempts) for attempts in (10, 10, 2, 2, 2)]
    bench.intake.batches = [[poison, *behind], [upsert(subject="later")], [behind[0]]]
    async with bench.running():
        await bench.watch.settled(8)
    assert [len(wave) for wave in bench.store.waves] == [1, 1, 3, 1, 1]
    assert len(bench.dead_letters.kept) == 1


async def test_past_the_hold_limit_everything_is_requeued_until_a_probe_succeeds() -> None:
    """The intake is paused and messages are requeued once; the worker resumes when the database works again."""
    bench = Bench(hold_limit_seconds=0.01)
    bench.store.away = "database down"
    lost, later = upsert(), upsert()
    bench.intake.put(lost)
    async with bench.running():
        while not bench.intake.requeued:
            await bench.store.tried.wait()
            bench.store.tried.clear()
        assert bench.intake.paused_by == {"store"}
        bench.store.away = None
        await bench.intake.resumed.wait()
        bench.intake.put(later)
        await bench.watch.settled(1)
    assert bench.intake.requeued == [lost]
    assert bench.intake.acknowledged == [later]


async def test_past_the_hold_limit_replies_are_still_tried() -> None:
    """Unsettled messages are requeued, and no more are taken until the replies are confirmed."""
    bench = Bench(hold_limit_seconds=0.01)
    bench.replies.away = "replies returned"
    bench.intake.put(upsert())
    async with bench.running():
        while not bench.intake.requeued:
            await bench.replies.tried.wait()
            bench.replies.tried.clear()
        assert bench.intake.paused_by == {"reply"}
        bench.replies.away = None
        await bench.intake.resumed.wait()
    assert bench.outcomes == ["inserted"]


@pytest.mark.parametrize("how", ["locks", "delays", "fails"])
async def test_a_row_that_does_not_pass_delays_no_other(how: str) -> None:
    """The others of its batch and of later batches are answered while it is parked, and the worker does not hold."""
    bench = Bench()
    setattr(bench.store, how, {"locked"})
    locked = upsert(subject="locked")
    bench.intake.put(*(upsert(subject="free") for _ in range(7)), locked)
    async with bench.running():
        await bench.watch.settled(7)
        bench.intake.put(*(upsert(subject="later") for _ in range(3)))
        await bench.watch.settled(10)
        assert bench.hold_reason is None
        assert locked not in bench.intake.acknowledged
        assert bench.worker.parking.messages == 1
        setattr(bench.store, how, set())
        await bench.watch.settled(11)
        assert bench.worker.parking.messages == 0
    assert len(bench.store.rows) == 11


@pytest.mark.parametrize("how", ["locks", "delays", "fails"])
async def test_draining_does_not_wait_for_what_is_parked(how: str) -> None:
    """It stays unsettled, so that it is returned with everything else."""
    bench = Bench()
    setattr(bench.store, how, {"parked"})
    parked = upsert(subject="parked")
    bench.intake.put(upsert(), parked)
    async with bench.running():
        await bench.watch.settled(1)
    assert bench.intake.unsettled == [parked]


async def test_a_worker_with_too_much_parked_takes_nothing_more_and_says_why() -> None:
    """Others would find no room in the prefetch soon. It goes on when there is room again."""
    bench = Bench(batch_max=2, park_most=2)
    bench.store.locks = {"locked"}
    identifier = uuid4()
    bench.intake.put(upsert(identifier, subject="locked"), upsert(identifier, subject="behind"), upsert())
    async with bench.running():
        while bench.hold_reason is None:
            await asyncio.sleep(0)
        assert bench.hold_reason == "parked: 2 messages of 1 records wait for their rows (timeout)"
        assert len(bench.intake.waiting) == 1
        bench.store.locks = set()
        await bench.watch.settled(3)
        assert not bench.hold_reason
    assert bench.watch.held_reasons == ["store: parked: 2 messages of 1 records wait for their rows (timeout)"]


async def test_an_answer_of_the_database_does_not_end_the_hold_while_too_much_is_parked() -> None:
    """Otherwise the hold would be logged as over twice a second, with each record that is tried again."""
    bench = Bench(batch_max=2, park_most=2)
    bench.store.locks = {"locked"}
    released: list[str] = []
    bench.watch.released = lambda place, seconds: released.append(place)  # type: ignore[method-assign]  # noqa: ARG005
    identifier = uuid4()
    bench.intake.put(upsert(identifier, subject="locked"), upsert(identifier, subject="locked"))
    async with bench.running():
        while bench.hold_reason is None:
            await asyncio.sleep(0)
        bench.worker.parking.on_answer()
        assert (released, bench.hold_reason is None) == ([], False)
        bench.store.locks = set()
        await bench.watch.settled(2)


async def test_a_failure_while_nothing_passes_is_shown_as_an_outage() -> None:
    """The probe passes and the only row fails: it may be the database, until a row passes. The worker goes on."""
    bench = Bench()
    bench.store.fails = {"failing"}
    bench.intake.put(upsert(subject="failing"))
    async with bench.running():
        while bench.hold_reason is None:
            await asyncio.sleep(0)
        assert bench.hold_reason == "out of resources (53200)"
        bench.intake.put(upsert())
        await bench.watch.settled(1)
        assert not bench.hold_reason
        bench.store.fails = set()
        await bench.watch.settled(2)


async def test_messages_that_were_requeued_meanwhile_are_not_stored() -> None:
    """Another worker may have stored later messages of their records by now."""
    bench = Bench()
    lost, later = upsert(subject="lost"), upsert(subject="later")
    bench.store.away = "database down"
    bench.intake.put(lost)
    async with bench.running():
        await bench.store.tried.wait()
        await bench.intake.requeue()
        bench.store.away = None
        bench.intake.put(later)
        await bench.watch.settled(1)
    assert bench.intake.acknowledged == [later]
    assert [row.subject for row in bench.store.rows.values()] == ["later"]


async def test_nothing_overtakes_a_row_that_times_out() -> None:
    """A later request of the same record waits behind it, so the record ends with the values of the later one."""
    bench = Bench()
    bench.store.locks = {"locked"}
    identifier = uuid4()
    bench.intake.put(upsert(identifier, subject="locked"), upsert(identifier, subject="later"), upsert())
    async with bench.running():
        await bench.watch.settled(1)
        bench.store.locks = set()
        await bench.watch.settled(3)
    assert bench.store.rows[identifier].subject == "later"


async def test_what_was_stored_is_answered_before_a_later_request_that_was_parked() -> None:
    """The rest of the batch takes longer than the parked request, which is answered as soon as it has passed."""
    bench = Bench()
    bench.store.fails = {"parked"}
    identifier, other = uuid4(), uuid4()
    apply, finish = bench.store.apply, asyncio.Event()

    async def slow(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        if wave[0].record.subject == "slow":
            bench.store.fails = set()
            await finish.wait()
        return await apply(wave, patience)

    bench.store.apply = slow  # type: ignore[method-assign]
    first, parked = upsert(identifier, subject="first"), upsert(identifier, subject="parked")
    slow_ones = [upsert(other, subject=subject) for subject in ("1", "2", "slow")]
    bench.intake.put(first, parked, *slow_ones)
    async with bench.running():
        while parked not in bench.intake.acknowledged:
            await asyncio.sleep(0.001)
        finish.set()
        await bench.watch.settled(5)
    answered = [reply.body for reply in bench.replies.published if b"first" in reply.body or b"parked" in reply.body]
    assert [b"first" in body for body in answered] == [True, False]


async def test_a_doubtful_refusal_is_the_rows_fault_if_writing_is_permitted() -> None:
    """The probe succeeds and the row fails again: the row is rejected."""
    bench = Bench()
    bench.store.doubts = {"guilty"}
    bench.intake.put(upsert(), upsert(subject="guilty"), upsert())
    async with bench.running():
        await bench.watch.settled(3)
    assert sorted(bench.outcomes) == ["inserted", "inserted", "rejected"]


async def test_a_doubtful_refusal_is_an_outage_if_nothing_may_be_written() -> None:
    """The probe fails too: nothing is rejected, and the worker holds."""
    bench = Bench()
    bench.store.doubts = {"guilty"}
    bench.store.unwritable = True
    bench.intake.put(upsert(subject="guilty"))
    async with bench.running():
        while bench.hold_reason is None:
            await asyncio.sleep(0)
        assert bench.outcomes == []
        bench.store.doubts, bench.store.unwritable = set(), False
        await bench.watch.settled(1)
    assert bench.outcomes == ["inserted"]


async def test_a_reply_that_its_reply_to_refuses_delays_no_other() -> None:
    """The other messages are acknowledged. The reply is tried again; its message is acknowledged once it is placed."""
    bench = Bench()
    bench.replies.refusing = {"full"}
    refused = upsert(reply_to="full")
    bench.intake.put(refused, upsert())
    async with bench.running():
        await bench.watch.settled(1)
        bench.intake.put(upsert())
        await bench.watch.settled(2)
        assert refused not in bench.intake.acknowledged
        bench.replies.refusing = set()
        await bench.watch.settled(3)
    assert bench.intake.acknowledged[-1] == refused


async def test_a_reply_that_is_refused_proves_the_consumer() -> None:
    """It is the first message of a new consumer and stays unsettled. Other messages need not wait until it is given up."""
    bench = Bench()
    bench.replies.refusing = {"full"}
    refused = upsert(reply_to="full")
    bench.intake.put(refused)
    async with bench.running():
        while not bench.intake.proved:
            await asyncio.sleep(0)
    assert bench.intake.proved == [refused]
    assert bench.intake.acknowledged == []


@pytest.mark.parametrize("seconds", [0.9, 1 - 1e-10, 1.0, 1 + 1e-10, 1.1])
def test_a_batch_that_is_stored_when_refused_replies_are_due_is_not_lost(seconds: float) -> None:
    """They are due after one second. The batch is stored just before, at the same time, or just after: it is answered once."""

    async def act() -> list[Delivery]:
        bench = Bench()
        bench.replies.refusing = {"full"}
        bench.intake.put(refused)
        store = bench.store.apply

        async def slowly(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
            applied = await store(wave, patience)
            await asyncio.sleep(seconds)  # of virtual time
            return applied

        async with bench.running():
            while not bench.intake.proved:
                await asyncio.sleep(0)
            bench.store.apply = slowly  # type: ignore[method-assign]
            bench.intake.put(*late)
            await bench.watch.settled(3)
            bench.replies.refusing = set()
            await bench.watch.settled(4)
        return bench.intake.acknowledged

    refused, late = upsert(reply_to="full"), [upsert() for _ in range(3)]
    assert virtual_time.run(act()) == [*late, refused]


def test_earlier_requests_of_a_costly_record_are_answered_before_those_that_are_parked() -> None:
    """The first ones were stored with the batch, which is not complete yet when the others are stored apart."""

    async def act() -> list[str]:
        bench = Bench()
        store = bench.store.apply

        async def slowly(wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
            await asyncio.sleep(0.9 if len(wave) == 1 else 60)
            return await store(wave, patience)

        bench.store.apply = slowly  # type: ignore[method-assign]
        record = uuid4()
        costly = [upsert(record, subject=str(number)) for number in range(6)]
        merges = [upsert(subject="merged") for _ in range(20)]
        for merge in merges:
            merge.properties.headers = {"x-update-mode": "merge"}
        bench.intake.put(*costly, *merges)
        clock = SimpleNamespace(monotonic=asyncio.get_running_loop().time)
        with patch.object(parking, "time", clock), patch.object(retrying, "time", clock):
            async with bench.running():
                await bench.watch.settled(26)
        subjects = [json.loads(reply.body)["subject"] for reply in bench.replies.published]
        assert subjects[6:] == ["merged"] * 20
        return subjects[:6]

    assert virtual_time.run(act()) == list("012345")


async def test_a_refused_reply_is_identified_by_its_position() -> None:
    """Two deliveries of one invalid message have equal replies. Only the one that is refused stays unsettled."""
    bench = Bench()

    async def refuse_the_first(settlements: Sequence[Settlement[Delivery]]) -> list[bool]:
        one, other = settlements
        assert one.reply == other.reply
        return [False, True]

    bench.replies.publish = refuse_the_first  # type: ignore[method-assign]
    first, second = (delivered(b"{", message_id="m") for _ in range(2))
    bench.intake.put(first, second)
    async with bench.running():
        await bench.watch.settled(1)
    assert bench.intake.proved == [first]
    assert bench.intake.acknowledged == [second]


@pytest.mark.parametrize("refusal", ["refuses", "locks"])
async def test_an_outage_that_ends_with_a_refusal_is_over(refusal: str) -> None:
    """If the database answers at all, the worker no longer holds because of the outage."""
    bench = Bench()
    bench.store.away = "database down"
    setattr(bench.store, refusal, {"guilty"})
    bench.intake.put(upsert(subject="guilty"))
    async with bench.running():
        while bench.hold_reason is None:
            await asyncio.sleep(0)
        bench.store.away = None
        while bench.hold_reason == "database down":
            await asyncio.sleep(0)
        if refusal == "refuses":
            await bench.watch.settled(1)
            assert bench.hold_reason is None
        bench.store.locks = set()


async def test_long_replies_to_many_requests_of_a_record_are_not_published_together() -> None:
    """One is published with its batch, and the others apart: others wait for few at a time. Each record keeps its order."""
    bench = Bench()
    bench.worker.parking._quick.parts.slices = Slices(inf)  # real time, which a busy machine takes from the test
    publish, together = bench.replies.publish, list[int]()

    async def publish_and_count(settlements: Sequence[Settlement[Delivery]]) -> list[bool]:
        together.append(sum(len(each.reply.body) > 262_000 for each in settlements))
        return await publish(settlements)

    bench.replies.publish = publish_and_count  # type: ignore[method-assign]
    long, short = uuid4(), uuid4()
    for number in range(8):
        bench.intake.put(upsert(long, subject=f"{number}{'a' * 262_000}"), upsert(short, subject=f"{number}b"))
    async with bench.running():
        await bench.watch.settled(16)
    subjects = [json.loads(reply.body)["subject"][:2] for reply in bench.replies.published]
    for kind in "ab":
        assert [subject for subject in subjects if subject[1] == kind] == [f"{number}{kind}" for number in range(8)]
    assert max(together) <= 2


def read_after(readable: asyncio.Event, bench: Bench) -> None:
    """Let nothing be read again before this event."""
    read = bench.store.read

    async def read_later(request: Request[Delivery], outcome: Outcome) -> Applied:
        await readable.wait()
        return await read(request, outcome)

    bench.store.read = read_later  # type: ignore[method-assign]


async def test_long_records_that_were_left_unread_delay_no_others() -> None:
    """They are stored and are read apart. A later request of one of them waits behind it, and its reply comes later."""
    bench = Bench()
    bench.store.leaves_unread, readable = True, asyncio.Event()
    read_after(readable, bench)
    record = uuid4()
    bench.intake.put(upsert(subject="first"), upsert(record, subject="unread"), upsert(subject="unread too"))
    async with bench.running():
        await bench.watch.settled(1)
        bench.intake.put(upsert(subject="other"))
        await bench.watch.settled(2)
        bench.intake.put(upsert(record, subject="later"))
        bench.intake.put(upsert(subject="another"))
        await bench.watch.settled(3)
        assert bench.store.rows[record].subject == "unread"
        readable.set()
        await bench.watch.settled(6)
    subjects = [json.loads(reply.body)["subject"] for reply in bench.replies.published]
    assert subjects[:3] == ["first", "other", "another"]
    assert subjects.index("unread") < subjects.index("later")
    assert bench.outcomes.count("updated") == 1


async def test_records_that_were_left_unread_are_read_one_by_one() -> None:
    """Each is answered with the outcome of its request, in order; an outage is waited out meanwhile."""
    bench = Bench()
    bench.store.leaves_unread = True
    deliveries = [upsert(subject=str(number)) for number in range(5)]
    bench.intake.put(*deliveries)
    async with bench.running():
        await bench.watch.settled(5)
    assert bench.outcomes == ["inserted"] * 5
    assert [f'"subject":"{number}"'.encode() in reply.body for number, reply in enumerate(bench.replies.published)] == [
        True
    ] * 5
    assert bench.intake.acknowledged == deliveries


async def test_a_batch_is_answered_with_some_long_replies_and_the_others_come_apart() -> None:
    """What follows in the batch, and the batches behind it, do not wait for them; nor do long records whose replies are few."""
    bench = Bench()
    readable = asyncio.Event()
    read_after(readable, bench)
    long = [upsert(subject="\x01" * 43_000) for _ in range(50)]  # each reply has 258 kB, six bytes for each character
    bench.intake.put(*long, upsert(subject="behind"))
    async with bench.running():
        await bench.watch.settled(34)
        bench.intake.put(upsert(subject="a" * 250_000), upsert(subject="other"))
        await bench.watch.settled(36)
        lengths = [len(reply.body) for reply in bench.replies.published]
        assert [length > 250_000 for length in lengths] == [True] * 33 + [False, True, False]
        assert sum(lengths[:33]) < 8 * 2**20 + 300_000
        readable.set()
        await bench.watch.settled(53)
    assert bench.outcomes == ["inserted"] * 53
