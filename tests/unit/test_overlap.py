"""What is done while the worker waits: the next batch is decoded and stored, and its replies are published."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import pytest

from task_activity_log.aio import Slices
from task_activity_log.message import Delivery
from task_activity_log.pipeline import batches
from task_activity_log.pipeline.answering import Answering
from task_activity_log.pipeline.batches import Decoding
from task_activity_log.pipeline.ports import Settlement
from task_activity_log.pipeline.reply import Reply
from task_activity_log.pipeline.request import Rules, decode
from task_activity_log.pipeline.worker import Worker
from task_activity_log.problem import Code, Problem, Unavailable
from task_activity_log.record import Outcome
from tests.fakes import FakeDeadLetters, FakeIntake, FakeReplies, FakeStore, FakeWatch, delivered, upsert


class SlowReplies(FakeReplies):
    """Confirms what was published when it is told to, or fails."""

    def __init__(self) -> None:
        super().__init__([])
        self.attempts: list[list[str]] = []
        """The message_ids of each attempt to publish."""
        self._answers: list[asyncio.Future[None]] = []
        self._attempted = asyncio.Condition()

    async def publish(self, settlements: Sequence[Settlement[Delivery]]) -> list[bool]:
        async with self._attempted:
            self.attempts.append([each.reply.message_id for each in settlements])
            self._answers.append(asyncio.get_running_loop().create_future())
            answer = self._answers[-1]
            self._attempted.notify_all()
        await answer
        return await super().publish(settlements)

    async def attempted(self, count: int) -> None:
        """Return once there were this many attempts to publish."""
        async with self._attempted:
            await self._attempted.wait_for(lambda: len(self.attempts) >= count)

    def confirm(self, attempt: int) -> None:
        self._answers[attempt].set_result(None)

    def fail(self, attempt: int) -> None:
        self._answers[attempt].set_exception(Unavailable("away"))


class Bench:
    """The second stage of a worker."""

    def __init__(self) -> None:
        self.intake, self.replies, self.watch = FakeIntake(), SlowReplies(), FakeWatch([])
        self.dead_letters = FakeDeadLetters([])
        self.stored: asyncio.Queue[list[Settlement[Delivery]] | None] = asyncio.Queue()
        self.worker: Worker[Delivery] = Worker(
            intake=self.intake,
            store=FakeStore(),
            dead_letters=self.dead_letters,
            replies=self.replies,
            watch=self.watch,
            rules=Rules(),
            batch_max=10,
        )
        self.stage: Answering[Delivery] = self.worker._answering
        self.stage.stored = self.stored

    def put(self, *batch: Settlement[Delivery]) -> None:
        self.intake.unsettled += [each.delivery for each in batch]
        self.stored.put_nowait(list(batch))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self.stage.run())
        try:
            yield
        finally:
            self.stored.put_nowait(None)
            await asyncio.wait_for(running, 5)

    @property
    def acknowledged(self) -> list[bytes]:
        return [delivery.body for delivery in self.intake.acknowledged]


def settlement(
    name: str,
    record: UUID | None = None,
    *,
    problem: Problem | None = None,
    reply_to: str | None = None,
    body: bytes = b"",
) -> Settlement[Delivery]:
    answer = Reply(Outcome.INSERTED, body, "application/json", None, name, "", {}, reply_to)
    return Settlement(Delivery(name.encode()), answer, problem, record=record or uuid4())


async def settle() -> None:
    """Let everything that can go on do so."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_the_replies_of_the_next_batch_are_published_while_these_are_confirmed() -> None:
    """If they are long, those of the one behind it are not. Whatever is confirmed first, they are acknowledged in order."""
    bench = Bench()
    async with bench.running():
        for name in "abc":
            bench.put(settlement(name, body=b"x" * 2**22))
        await bench.replies.attempted(2)
        bench.replies.confirm(1)
        await settle()
        assert bench.replies.attempts == [["a"], ["b"]]
        assert bench.acknowledged == []
        bench.replies.confirm(0)
        await bench.replies.attempted(3)
        bench.replies.confirm(2)
        await bench.watch.settled(3)
    assert bench.acknowledged == [b"a", b"b", b"c"]


async def test_the_replies_of_several_short_batches_are_published_while_the_first_are_confirmed() -> None:
    """At most four batches."""
    bench = Bench()
    async with bench.running():
        for name in "abcde":
            bench.put(settlement(name))
        await bench.replies.attempted(4)
        for attempt in range(1, 4):
            bench.replies.confirm(attempt)
        await settle()
        assert bench.replies.attempts == [[name] for name in "abcd"]
        assert bench.acknowledged == []
        bench.replies.confirm(0)
        await bench.replies.attempted(5)
        bench.replies.confirm(4)
        await bench.watch.settled(5)
    assert bench.acknowledged == [name.encode() for name in "abcde"]


async def test_the_replies_of_one_record_do_not_overtake_each_other_across_several_batches() -> None:
    """Other batches are between them."""
    bench, record = Bench(), uuid4()
    async with bench.running():
        bench.put(settlement("first", record))
        bench.put(settlement("other"))
        bench.put(settlement("second", record))
        await bench.replies.attempted(2)
        bench.replies.confirm(1)
        await settle()
        assert bench.replies.attempts == [["first"], ["other"]]
        bench.replies.confirm(0)
        await bench.replies.attempted(3)
        bench.replies.confirm(2)
        await bench.watch.settled(3)


async def test_the_replies_of_one_record_do_not_overtake_each_other() -> None:
    """The first of them may have to be published again. So the second is published when the first is confirmed."""
    bench, record = Bench(), uuid4()
    async with bench.running():
        bench.put(settlement("first", record), settlement("other"))
        bench.put(settlement("second", record), settlement("another"))
        await bench.replies.attempted(1)
        await settle()
        assert bench.replies.attempts == [["first", "other"]]
        bench.replies.confirm(0)
        await bench.replies.attempted(2)
        bench.replies.confirm(1)
        await bench.watch.settled(4)


@pytest.mark.parametrize("how", ["dead letter", "address"])
async def test_dead_letters_and_replies_to_addresses_wait_for_the_batch_before(how: str) -> None:
    bench = Bench()
    following = (
        settlement("b", problem=Problem(Code.MISSING_ID, "")) if how == "dead letter" else settlement("b", reply_to="q")
    )
    async with bench.running():
        bench.put(settlement("a"))
        bench.put(following)
        await bench.replies.attempted(1)
        await settle()
        assert bench.replies.attempts == [["a"]]
        assert bench.dead_letters.kept == []
        bench.replies.confirm(0)
        await bench.replies.attempted(2)
        bench.replies.confirm(1)
        await bench.watch.settled(2)


async def test_what_fails_early_is_published_again_in_its_turn() -> None:
    bench = Bench()
    async with bench.running():
        bench.put(settlement("a"))
        bench.put(settlement("b"))
        await bench.replies.attempted(2)
        bench.replies.fail(1)
        await settle()
        assert bench.stage.hold.reason is None
        assert len(bench.replies.attempts) == 2
        bench.replies.confirm(0)
        await bench.replies.attempted(3)
        bench.replies.confirm(2)
        await bench.watch.settled(2)
    assert bench.replies.attempts[2] == ["b"]
    assert bench.acknowledged == [b"a", b"b"]


async def test_a_batch_behind_one_that_is_given_up_is_not_acknowledged() -> None:
    """Its replies may be confirmed. But what is before it comes again, and so must what is behind."""
    bench = Bench()
    bench.stage.hold.drain()
    async with bench.running():
        bench.put(settlement("a"))
        bench.put(settlement("b"))
        bench.put(settlement("c"))
        await bench.replies.attempted(3)
        bench.put(settlement("d"))
        bench.replies.fail(0)
        await settle()
        bench.put(settlement("e"))
        for attempt in range(1, len(bench.replies.attempts)):
            bench.replies.confirm(attempt)
        await asyncio.wait_for(bench.stored.join(), 5)
    assert bench.acknowledged == []
    assert ["e"] not in bench.replies.attempts


async def decoded_until_stored(
    bench: Bench, first: Sequence[Delivery], others: Sequence[Delivery]
) -> list[list[Delivery]]:
    """What was decoded when the first statement ended, and when all was settled, where others wait behind the first batch."""
    decoded: list[Delivery] = []
    storing = bench.worker._storing
    found: list[list[Delivery]] = []
    apply = storing.store.apply

    def noted(delivery: Delivery, rules: Rules) -> Any:
        decoded.append(delivery)
        return decode(delivery, rules)

    async def slow(*arguments: Any) -> Any:
        if not found:
            await settle()
            found.append(list(decoded))
        return await apply(*arguments)

    bench.intake.batches = [list(first)]
    bench.intake.put(*others)
    bench.stage.stored = storing.parts.stored
    bench.replies.publish = FakeReplies([]).publish  # type: ignore[method-assign]
    with patch.object(batches, "decode", noted), patch.object(storing.store, "apply", slow):
        running = asyncio.create_task(bench.worker.run())
        await bench.watch.settled(len(first) + len(others))
        bench.intake.waiting.close()
        bench.worker.drain()
        await asyncio.wait_for(running, 5)
    return [*found, decoded]


async def test_the_next_batch_is_decoded_while_the_database_stores_one() -> None:
    """Each message is decoded once, and what cannot be decoded ahead is rejected with its own batch."""
    bench = Bench()
    first, others = [upsert() for _ in range(10)], [*(upsert() for _ in range(5)), delivered(b"{", message_id="bad")]
    when_stored, at_the_end = await decoded_until_stored(bench, first, others)
    assert when_stored == [*first, *others]
    assert at_the_end == [*first, *others, others[-1]]
    assert bench.watch.outcomes.count("rejected") == 1


async def test_nothing_is_decoded_ahead_while_a_message_that_was_returned_often_is_tried() -> None:
    """A crash would be taken for the fault of that message."""
    bench = Bench()
    first, others = [upsert() for _ in range(3)], [upsert() for _ in range(5)]
    first[1].attempts = 2
    when_stored, at_the_end = await decoded_until_stored(bench, first, others)
    assert when_stored == first
    assert at_the_end == [*first, *others]


async def test_what_may_crash_the_worker_is_not_decoded_ahead() -> None:
    """Only its own batch may be in hand then. Nor is what is behind it, because it is not of the next batch."""
    decoding: Decoding[Delivery] = Decoding(Rules(), Slices())
    first, doubtful, behind = upsert(), upsert(), upsert()
    doubtful.attempts = 2
    with patch.object(batches, "decode", side_effect=decode) as decoder:
        await decoding.ahead([first, doubtful, behind])
        assert [call.args[0] for call in decoder.call_args_list] == [first]
