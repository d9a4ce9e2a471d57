"""The pipeline with stand-ins for the broker and the database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import Mock
from uuid import UUID, uuid4

import pytest

from task_activity_log.message import Delivery
from task_activity_log.pipeline import worker
from task_activity_log.pipeline.request import Rules
from task_activity_log.pipeline.worker import Worker
from tests.fakes import FakeDeadLetters, FakeIntake, FakeReplies, FakeStore, FakeWatch, delivered, upsert


class Bench:
    """A worker and everything around it."""

    def __init__(self, batch_max: int = 100, hold_limit_seconds: float = 600) -> None:
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
    def outcomes(self) -> list[str]:
        return [str(reply.outcome) for reply in self.replies.published]


async def test_every_message_is_stored_answered_and_accepted() -> None:
    """A batch of new records: one wave, a reply each, all accepted in the order delivered."""
    bench = Bench()
    deliveries = [upsert() for _ in range(50)]
    bench.intake.put(*deliveries)
    async with bench.running():
        await bench.watch.settled(50)
    assert len(bench.store.waves) == 1
    assert bench.outcomes == ["inserted"] * 50
    assert bench.intake.accepted == deliveries


async def test_an_id_is_applied_in_the_order_delivered() -> None:
    """Three upserts of one id in one batch are three waves; each is answered with the record after it."""
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


async def test_a_bad_message_harms_no_other() -> None:
    """It is dead-lettered and answered with its problem; its neighbours are stored in the same wave."""
    bench = Bench()
    bad = delivered(b"{", message_id="bad")
    bench.intake.put(upsert(), bad, upsert())
    async with bench.running():
        await bench.watch.settled(3)
    assert sorted(bench.outcomes) == ["inserted", "inserted", "rejected"]
    assert [(delivery, problem.code) for delivery, problem in bench.dead_letters.kept] == [(bad, "malformed_json")]
    assert len(bench.intake.accepted) == 3


async def test_dead_letters_come_before_replies_and_both_before_acceptance() -> None:
    """Who has read the problem finds the dead letter; what is accepted has been answered."""
    bench = Bench()
    bench.intake.put(delivered(b""))
    async with bench.running():
        await bench.watch.settled(1)
    assert bench.log == ["dead letters", "replies", "settled"]


@pytest.mark.parametrize("guilty", [0, 37, 63])
async def test_the_row_that_the_database_refuses_is_found_by_halving(guilty: int) -> None:
    """Of 64 the guilty one is alone after 2 log2(64) + 1 statements at the most; the 63 others are stored."""
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
    """One message delivered twice: the second reply says duplicate and carries the first one's message_id."""
    bench = Bench()
    delivery = upsert(message_id="m")
    bench.intake.put(delivery, delivery)
    async with bench.running():
        await bench.watch.settled(2)
    assert bench.outcomes == ["inserted", "duplicate"]
    assert len({reply.message_id for reply in bench.replies.published}) == 1


async def test_an_outage_of_the_database_is_waited_out() -> None:
    """Nothing is accepted while it lasts, the reason is shown, and afterwards everything is."""
    bench = Bench()
    bench.store.away = "database down"
    bench.intake.put(upsert())
    async with bench.running():
        await bench.store.tried.wait()
        assert bench.intake.accepted == []
        bench.store.tried.clear()
        await bench.store.tried.wait()
        held_for = bench.worker.hold_reason
        bench.store.away = None
        await bench.watch.settled(1)
        assert (held_for, bench.worker.hold_reason) == ("database down", None)
    assert bench.outcomes == ["inserted"]
    assert set(bench.watch.held_reasons) == {"store: database down"}


async def test_replies_that_nobody_takes_are_held() -> None:
    """Stored, but not accepted until the reply is confirmed."""
    bench = Bench()
    bench.replies.away = "replies returned"
    bench.intake.put(upsert())
    async with bench.running():
        await bench.replies.tried.wait()
        assert len(bench.store.rows) == 1
        assert bench.intake.accepted == []
        bench.replies.away = None
        await bench.watch.settled(1)


async def test_the_next_batch_is_stored_while_replies_wait() -> None:
    """Two stages overlap."""
    bench = Bench(batch_max=1)
    bench.replies.away = "blocked"
    bench.intake.put(upsert(), upsert())
    async with bench.running():
        await bench.replies.tried.wait()
        while len(bench.store.rows) < 2:
            await asyncio.sleep(0)
        bench.replies.away = None
        await bench.watch.settled(2)


async def test_draining_finishes_what_is_under_way_and_leaves_the_rest() -> None:
    """The batch in the database is answered and accepted; what was not begun is not touched."""
    bench = Bench(batch_max=1)
    begun, untouched = upsert(), upsert()
    bench.intake.put(begun)
    async with bench.running():
        await bench.store.tried.wait()
        bench.intake.waiting.close()
        bench.intake.put(untouched)
    assert bench.intake.accepted == [begun]
    assert len(bench.store.rows) == 1


@pytest.mark.parametrize("part", ["store", "replies", "dead_letters"])
async def test_draining_in_an_outage_gives_up_after_one_more_try(part: str) -> None:
    """What is in hand stays unaccepted: it goes back to the broker."""
    bench = Bench()
    getattr(bench, part).away = "away"
    bench.intake.put(upsert(), delivered(b"{"))
    async with bench.running():
        while not bench.watch.held_reasons:
            await asyncio.sleep(0)
    assert bench.intake.accepted == []


async def test_a_failure_nobody_foresaw_ends_the_worker() -> None:
    """It is not swallowed: the process ends, and what is in hand comes again."""
    bench = Bench()

    async def broken(_: object) -> None:
        raise ZeroDivisionError

    bench.store.apply = broken  # type: ignore[assignment, method-assign]
    bench.intake.put(upsert())
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(bench.worker.run(), 5)
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)


async def test_a_row_that_was_deleted_is_answered_and_not_dead_lettered() -> None:
    """A repeat whose row is gone: the problem record_gone, nothing written, nothing kept."""
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


async def test_a_suspect_is_set_apart_after_all_others_are_settled() -> None:
    """With what came after it for its record it goes back, in their order, to come again one at a time."""
    bench = Bench()
    identifier = uuid4()
    suspect = replace(upsert(identifier, subject="suspect"), attempts=2)
    overtaking = upsert(identifier, subject="later")
    others = [upsert() for _ in range(5)]
    bench.intake.put(others[0], suspect, overtaking, *others[1:])
    async with bench.running():
        await bench.intake.resumed.wait()
    assert bench.intake.accepted == others
    assert bench.intake.given_back == [suspect, overtaking]
    assert bench.intake.comes_again_one_by_one
    assert bench.intake.paused_by == set()


async def test_a_suspect_that_comes_alone_is_tried() -> None:
    """With nothing else in hand: if it kills, it takes nobody with it."""
    bench = Bench()
    suspect = replace(upsert(subject="suspect"), attempts=3)
    bench.intake.put(suspect)
    async with bench.running():
        await bench.watch.settled(1)
    assert bench.intake.accepted == [suspect]
    assert bench.intake.given_back == []


async def test_a_poison_message_is_rejected_without_being_looked_at() -> None:
    """After ten deliveries it is dead-lettered and answered; its neighbours are stored with the batch."""
    bench = Bench()
    poison = replace(upsert(subject="poison"), attempts=10)
    bench.intake.put(upsert(subject="good"), poison)
    async with bench.running():
        await bench.watch.settled(2)
    assert bench.store.waves == [["good"]]
    assert [(delivery, problem.code) for delivery, problem in bench.dead_letters.kept] == [(poison, "poison_message")]


async def test_past_the_hold_limit_everything_is_given_back_until_a_probe_succeeds() -> None:
    """Paused and given back once; taken up again when the database is there."""
    bench = Bench(hold_limit_seconds=0.01)
    bench.store.away = "database down"
    lost, later = upsert(), upsert()
    bench.intake.put(lost)
    async with bench.running():
        while not bench.intake.given_back:
            await bench.store.tried.wait()
            bench.store.tried.clear()
        assert bench.intake.paused_by == {"store"}
        bench.store.away = None
        await bench.intake.resumed.wait()
        bench.intake.put(later)
        await bench.watch.settled(1)
    assert bench.intake.given_back == [lost]
    assert bench.intake.accepted == [later]


async def test_past_the_hold_limit_replies_go_on_being_tried() -> None:
    """What is in hand is given back, and nothing more is taken until the replies are confirmed."""
    bench = Bench(hold_limit_seconds=0.01)
    bench.replies.away = "replies returned"
    bench.intake.put(upsert())
    async with bench.running():
        while not bench.intake.given_back:
            await bench.replies.tried.wait()
            bench.replies.tried.clear()
        assert bench.intake.paused_by == {"reply"}
        bench.replies.away = None
        await bench.intake.resumed.wait()
    assert bench.outcomes == ["inserted"]


async def test_a_row_that_times_out_does_not_hold_its_neighbours() -> None:
    """A locked row is found by halving; the others are answered while it is waited for."""
    bench = Bench()
    bench.store.locked = {"locked"}
    locked = upsert(subject="locked")
    bench.intake.put(*(upsert(subject="free") for _ in range(7)), locked)
    async with bench.running():
        await bench.watch.settled(7)
        assert bench.worker.hold_reason == "timeout"
        assert locked not in bench.intake.accepted
        bench.store.locked = set()
        await bench.watch.settled(8)
    assert len(bench.store.rows) == 8


async def test_nothing_overtakes_a_row_that_times_out() -> None:
    """A later request of the same record waits behind it; the record ends as the later one says."""
    bench = Bench()
    bench.store.locked = {"locked"}
    identifier = uuid4()
    bench.intake.put(upsert(identifier, subject="locked"), upsert(identifier, subject="later"), upsert())
    async with bench.running():
        await bench.watch.settled(1)
        bench.store.locked = set()
        await bench.watch.settled(3)
    assert bench.store.rows[identifier].subject == "later"


async def test_a_doubtful_refusal_of_one_row_is_its_own_when_writing_is_permitted() -> None:
    """The probe passes and the row fails again: it is the row's."""
    bench = Bench()
    bench.store.doubts = {"guilty"}
    bench.intake.put(upsert(), upsert(subject="guilty"), upsert())
    async with bench.running():
        await bench.watch.settled(3)
    assert sorted(bench.outcomes) == ["inserted", "inserted", "rejected"]


async def test_a_doubtful_refusal_is_an_outage_when_nothing_may_be_written() -> None:
    """The probe fails too: nothing is rejected, the worker holds."""
    bench = Bench()
    bench.store.doubts = {"guilty"}
    bench.store.unwritable = True
    bench.intake.put(upsert(subject="guilty"))
    async with bench.running():
        while bench.worker.hold_reason is None:
            await asyncio.sleep(0)
        assert bench.outcomes == []
        bench.store.doubts, bench.store.unwritable = set(), False
        await bench.watch.settled(1)
    assert bench.outcomes == ["inserted"]


async def test_a_reply_that_its_reply_to_refuses_holds_nobody_else() -> None:
    """The others are accepted; it is tried again, and accepted when it is taken."""
    bench = Bench()
    bench.replies.refusing = {"full"}
    refused = upsert(reply_to="full")
    bench.intake.put(refused, upsert())
    async with bench.running():
        await bench.watch.settled(1)
        bench.intake.put(upsert())
        await bench.watch.settled(2)
        assert refused not in bench.intake.accepted
        bench.replies.refusing = set()
        await bench.watch.settled(3)
    assert bench.intake.accepted[-1] == refused


async def test_a_reply_that_is_refused_proves_the_consumer() -> None:
    """It is the first message of a new consumer, and stays in hand: others need not wait until it is given up."""
    bench = Bench()
    bench.replies.refusing = {"full"}
    refused = upsert(reply_to="full")
    bench.intake.put(refused)
    async with bench.running():
        while not bench.intake.vouched_for:
            await asyncio.sleep(0)
    assert bench.intake.vouched_for == [refused]
    assert bench.intake.accepted == []


async def test_a_batch_that_comes_in_the_moment_that_refused_replies_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is up, and before the stage wakes a batch is there: it is what comes next."""
    monkeypatch.setattr(worker, "_LAGGARD_SECONDS", 0)
    bench = Bench()
    bench.worker._laggards = [Mock()]
    waiting = asyncio.create_task(bench.worker._next_answers())
    loop = asyncio.get_running_loop()
    batch: list[Any] = [Mock()]
    loop.call_soon(lambda: loop.call_soon(bench.worker._stored.put_nowait, batch))
    assert await waiting is batch


@pytest.mark.parametrize("refusal", ["refuses", "locked"])
async def test_an_outage_that_ends_with_a_refusal_is_over(refusal: str) -> None:
    """The database answers: the worker no longer holds for the outage, whatever it says."""
    bench = Bench()
    bench.store.away = "database down"
    setattr(bench.store, refusal, {"guilty"})
    bench.intake.put(upsert(subject="guilty"))
    async with bench.running():
        while bench.worker.hold_reason is None:
            await asyncio.sleep(0)
        bench.store.away = None
        while bench.worker.hold_reason == "database down":
            await asyncio.sleep(0)
        if refusal == "refuses":
            await bench.watch.settled(1)
            assert bench.worker.hold_reason is None
        bench.store.locked = set()


async def test_a_suspect_that_is_left_alone_is_tried_at_once() -> None:
    """Given back it might come to other busy workers again and again, and pass for poison without having been tried."""
    bench = Bench()
    suspect = replace(upsert(subject="suspect"), attempts=2)
    others = [upsert() for _ in range(5)]
    bench.intake.put(others[0], suspect, *others[1:])
    async with bench.running():
        await bench.watch.settled(6)
    assert bench.intake.accepted == [*others, suspect]
    assert bench.store.waves[-1] == ["suspect"]
    assert bench.intake.given_back == []
