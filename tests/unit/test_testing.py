"""The fake worker: the suite of the client, and what only a fake can do."""

import asyncio
from collections.abc import Iterator
from itertools import chain
from typing import Any, cast
from uuid import uuid4

import pytest

from task_activity_log.client import (
    NoAnswer,
    PoisonQueue,
    StoredReply,
    Subscription,
    TaskActivityLog,
    TaskActivityLogClient,
    Upsert,
)
from task_activity_log.message import Properties
from task_activity_log.testing import FakeWorker, Rules, UpdateMode
from task_activity_log.testing.broker import matches
from tests.client_suite import PublisherSuite, SubscriberSuite, subjects


class InMemory:
    """A fake worker."""

    def __init__(self) -> None:
        self.worker = FakeWorker()

    def client(self, *, window: int = 2_000) -> TaskActivityLogClient:
        return self.worker.client(window=window)

    def subscribe(self, **options: Any) -> Subscription[Any]:
        return self.worker.subscribe(**options)

    async def publish_junk(self, key: str) -> None:
        self.worker.publish(b"junk", Properties(), key)


@pytest.fixture
def place() -> InMemory:
    """A new fake worker."""
    return InMemory()


class TestPublisher(PublisherSuite):
    """In memory."""


class TestSubscriber(SubscriberSuite):
    """In memory."""


async def test_a_stopped_worker_answers_when_it_is_started() -> None:
    """As one that was away: what was sent waits, and a timeout ends the wait for the answer."""
    worker = FakeWorker()
    worker.stop()
    async with worker.client() as client:
        with pytest.raises(NoAnswer, match=r"no answer for 0\.01 s \(1 upsert unanswered\): is a worker running"):
            await client.upsert(TaskActivityLog(id=uuid4()), timeout=0.01)
        assert not worker.rows
        waiting = asyncio.create_task(client.upsert(TaskActivityLog(id=uuid4()), timeout=None))
        await asyncio.sleep(0)
        worker.start()
        assert (await waiting).outcome == "inserted"
        assert len(worker.rows) == 2


async def test_what_is_unanswered_and_the_rest_of_an_iterator_are_all_that_is_left() -> None:
    """After a bulk that ended with an error no record is in neither, also if the next one could not be sent yet."""
    records = [TaskActivityLog(id=uuid4()) for _ in range(8)]
    same = [Upsert.of(records[2], message_id="same")] * 2
    coming: Iterator[TaskActivityLog | Upsert] = iter([*records[:2], *same, *records[3:]])
    worker = FakeWorker()
    async with worker.client(window=3) as client:
        left: list[Upsert] = []
        for taken in (3, 4):  # the window is full; then its last one is sent alone, and waits for the one before
            worker.stop()
            bulk = client.upsert_many(chain(left, coming), timeout=0.01)
            with pytest.raises(NoAnswer):
                [answer async for answer in bulk]
            left = bulk.unanswered
            assert len(left) == taken
            client.window = 4
        worker.start()
        answers = [answer async for answer in client.upsert_many(chain(left, coming))]
    assert len(answers) == 9
    assert worker.rows.keys() == {record.id for record in records}


async def test_what_is_rejected_is_a_dead_letter() -> None:
    """By the rules that the test chooses."""
    worker = FakeWorker(Rules(body_limit=100))
    async with worker.client() as client:
        await client.send_many([Upsert(b" " * 101, source="long")])
    [(upsert, problem)] = worker.dead_letters
    assert (upsert.source, problem.code) == ("long", "body_too_large")


async def test_the_update_mode_is_the_one_that_the_test_chooses() -> None:
    """As with WORKER_UPDATE_MODE. A request can still have another one."""
    worker = FakeWorker(Rules(update_mode=UpdateMode.MERGE))
    one = uuid4()
    async with worker.client() as client:
        await client.upsert(TaskActivityLog(id=one, subject="kept"))
        assert (await client.upsert(TaskActivityLog(id=one))).record.subject == "kept"
        assert (await client.upsert(TaskActivityLog(id=one), merge=False)).record.subject is None


async def test_a_test_may_change_the_rows() -> None:
    """As somebody else may in the database."""
    worker = FakeWorker()
    record = TaskActivityLog(id=uuid4(), subject="mine")
    async with worker.client() as client:
        await client.upsert(record, message_id="a")
        del worker.rows[record.id]
        [answer] = [one async for one in client.upsert_many([Upsert.of(record, message_id="a")])]
    assert answer.code == "record_gone"


async def test_only_a_reply_whose_body_fails_comes_nearer_to_the_poison_queue() -> None:
    """Not those that were delivered with it: each has all of its tries."""
    worker, poison = FakeWorker(), PoisonQueue("poison", tries=2)
    notes = list[str]()
    async with worker.client() as client:
        await client.send_many([TaskActivityLog(id=uuid4(), subject=subject) for subject in "abc"])

    async def run(failing: str) -> None:
        async with worker.subscribe(on_poison=poison) as replies:
            async for reply in replies:
                assert isinstance(reply, StoredReply)
                if reply.record.subject == failing:
                    raise ValueError("mine")

    for failing in "aabb":
        with pytest.raises(ValueError, match="mine") as raised:
            await run(failing)
        notes += raised.value.__notes__
    again, moved = (
        "This was try 1 of 2: the reply is delivered again.",
        "After 2 deliveries the reply was moved to queue poison.",
    )
    assert notes == [again, moved, again, moved]


async def test_the_shared_queue_keeps_replies() -> None:
    """Until somebody reads them."""
    worker = FakeWorker()
    async with worker.client() as client:
        await client.send_many([TaskActivityLog(id=uuid4(), subject="a")])
    assert await subjects(worker.subscribe(most=1)) == ["a"]


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("#", "stored.updated", True),
        ("#", "", True),
        ("*", "rejected", True),
        ("*", "stored.updated", False),
        ("stored.*", "stored.updated", True),
        ("stored.*", "stored", False),
        ("stored.#", "stored", True),
        ("#.updated", "stored.updated", True),
        ("stored.updated", "storedxupdated", False),
    ],
)
def test_a_binding_matches_as_that_of_a_topic_exchange(pattern: str, key: str, *, expected: bool) -> None:
    """RabbitMQ: a star is one word, a hash is any number."""
    assert matches(pattern, key) is expected


def test_other_rules_than_rules_are_refused_at_once() -> None:
    """Not when the first message comes, which nobody would answer."""
    with pytest.raises(TypeError, match="rules should be Rules, and not str"):
        FakeWorker(cast("Rules", "merge"))
    assert Rules(update_mode=cast("UpdateMode", "merge")).update_mode is UpdateMode.MERGE
    with pytest.raises(ValueError, match="'keep' is not a valid UpdateMode"):
        Rules(update_mode=cast("UpdateMode", "keep"))
