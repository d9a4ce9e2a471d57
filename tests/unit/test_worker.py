"""The pipeline with stand-ins for the broker and the database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest

from task_activity_log.request import Rules
from task_activity_log.worker import Worker
from tests.fakes import FakeDeadLetters, FakeDelivery, FakeIntake, FakeReplies, FakeStore, FakeWatch, upsert


class Bench:
    """A worker and everything around it."""

    def __init__(self, batch_max: int = 100) -> None:
        self.log: list[str] = []
        self.intake = FakeIntake()
        self.store = FakeStore()
        self.replies = FakeReplies(self.log)
        self.dead_letters = FakeDeadLetters(self.log)
        self.watch = FakeWatch(self.log)
        self.worker: Worker[FakeDelivery] = Worker(
            intake=self.intake,
            store=self.store,
            dead_letters=self.dead_letters,
            replies=self.replies,
            watch=self.watch,
            rules=Rules(),
            batch_max=batch_max,
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
    bad = FakeDelivery(b"{", message_id="bad")
    bench.intake.put(upsert(), bad, upsert())
    async with bench.running():
        await bench.watch.settled(3)
    assert sorted(bench.outcomes) == ["inserted", "inserted", "rejected"]
    assert [(delivery, problem.code) for delivery, problem in bench.dead_letters.kept] == [(bad, "malformed_json")]
    assert len(bench.intake.accepted) == 3


async def test_dead_letters_come_before_replies_and_both_before_acceptance() -> None:
    """Who has read the problem finds the dead letter; what is accepted has been answered."""
    bench = Bench()
    bench.intake.put(FakeDelivery(b""))
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
        assert bench.worker.hold_reason == "database down"
        bench.store.away = None
        await bench.watch.settled(1)
        assert bench.worker.hold_reason is None
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
    bench.intake.put(upsert(), FakeDelivery(b"{"))
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
