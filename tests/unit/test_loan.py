"""Dead letters on loan: a queue that is slow, one that delivers nothing, and what counts as corrected."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from task_activity_log.client import ClientError
from task_activity_log.client.dead_letters import DeadLetter, Loan, answered
from task_activity_log.message import Delivery, Properties
from task_activity_log.rabbitmq.queues import Found
from task_activity_log.rabbitmq.reading import Reader
from tests.virtual_time import run


class Queue:
    """A queue with two messages, which it delivers after some seconds."""

    def __init__(self, *, after: float, others: int = 0, waiting: int = 2, stream: bool = False) -> None:
        self.found = Found("dead", 2, 2, others)
        self._after, self._waiting, self._stream = after, waiting, stream

    async def take(self, most: int) -> list[Delivery]:
        await asyncio.sleep(self._after - asyncio.get_running_loop().time())
        return [Delivery(b"", Properties(message_id=str(number))) for number in range(most)]

    async def now(self) -> tuple[int, int]:
        return self._waiting, self.found.consumers + 1

    async def is_stream(self) -> bool:
        return self._stream

    async def cancel(self) -> None:
        pass


def letters(queue: Queue) -> list[str]:
    async def read() -> list[str]:
        return [letter.name async for letter in Loan(cast("Reader", queue))]

    return run(read())


def test_a_busy_broker_is_waited_for() -> None:
    """That a queue delivers nothing for some seconds does not mean that there are no dead letters."""
    assert letters(Queue(after=22.0)) == ["0", "1"]


@pytest.mark.parametrize("queue", [Queue(after=99.0, others=1), Queue(after=99.0, waiting=0)])
def test_what_others_have_or_was_removed_is_not_waited_for(queue: Queue) -> None:
    """It is not in the queue any more."""
    assert letters(queue) == []


@pytest.mark.parametrize(
    ("queue", "words"),
    [
        (Queue(after=99.0), "queue dead has not delivered all of its messages in 30 s"),
        (Queue(after=99.0, stream=True), "queue dead is a stream: it cannot be looked through"),
    ],
)
def test_a_queue_that_does_not_deliver_is_an_error(queue: Queue, words: str) -> None:
    """It is not said to be empty."""
    with pytest.raises(ClientError, match=words):
        letters(queue)


def test_a_row_that_was_stored_right_after_the_rejection_may_be_an_older_request() -> None:
    """Both were delivered together: the older one is stored some time after the newer one was rejected."""
    taken = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    letter = DeadLetter(b"", Properties(headers={"x-last-seen": taken.isoformat()}), cast("Any", None))
    assert not answered(letter, taken + timedelta(seconds=60))
    assert answered(letter, taken + timedelta(seconds=61))
    assert not answered(letter, None)
