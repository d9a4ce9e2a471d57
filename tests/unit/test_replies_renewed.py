"""When replies go over a new connection because a queue has refused some."""

from typing import Any, cast
from uuid import uuid4

import pytest

from task_activity_log.message import Delivery
from task_activity_log.pipeline.ports import Settlement
from task_activity_log.pipeline.reply import undecoded
from task_activity_log.problem import Code, Problem
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.replies import Replies
from task_activity_log.rabbitmq.topology import Topology
from tests.fakes import upsert


class FakePublisher:
    """Has one fate for all messages. Counts how often it was to publish over a new connection."""

    connected, blocked, slow, answered_at, version = True, None, False, 0.0, "3.10.8"

    def __init__(self) -> None:
        self.fate = Fate.NACKED
        self.renewed = 0

    async def publish(self, messages: list[Outgoing], *_: Any) -> list[Fate]:
        return [self.fate] * len(messages)

    async def ask(self) -> bool:
        return True

    def renew(self) -> None:
        self.renewed += 1


class Asking:
    """Replies to one address."""

    def __init__(self) -> None:
        self.publisher = FakePublisher()
        publisher = cast("Publisher", self.publisher)
        self._replies: Replies[Delivery] = Replies(publisher, publisher, LinkOptions("amqp://nowhere/"), Topology())

    async def refused(self, count: int) -> int:
        """Publish this many at once, which the queue refuses; how often a new connection was asked for so far."""
        problem = Problem(Code.INVALID_UUID, "It is one of a test.")
        requests = [upsert(uuid4(), reply_to="full") for _ in range(count)]
        await self._replies.publish([Settlement(one, undecoded(one, problem), problem) for one in requests])
        return self.publisher.renewed

    def taken(self) -> None:
        """The queue takes all that wait, which are tried apart, and its address is used like others."""
        for line in list(self._replies._addresses.lines()):
            while line.waiting:
                for waiting in self._replies._addresses.begin(line, 0.0):
                    self._replies._addresses.answered(waiting, Fate.CONFIRMED, 0.0)
        assert not self._replies.failing


async def test_a_queue_that_refuses_several_at_once_is_only_full() -> None:
    """A new connection would be refused as well."""
    asking = Asking()
    assert await asking.refused(5) == 0


async def test_a_queue_that_takes_replies_apart_and_refuses_them_here_gets_a_new_connection() -> None:
    """A quorum queue whose limit was removed goes on to refuse the channels that it has refused."""
    asking = Asking()
    assert await asking.refused(5) == 0
    asking.taken()
    assert await asking.refused(5) == 1


async def test_a_queue_that_is_full_again_and_again_gets_one_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replies to all other addresses change their connection as well."""
    now = 1000.0
    monkeypatch.setattr("task_activity_log.rabbitmq.replies.time.monotonic", lambda: now)
    asking = Asking()
    renewed = []
    for _ in range(10):
        renewed.append(await asking.refused(1))
        asking.taken()
        now += 8.0
    assert renewed == [0, 1, 1, 1, 1, 1, 1, 1, 1, 2]
