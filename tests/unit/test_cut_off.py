"""When a worker takes its node for cut off from the others, and leaves it. Time is virtual."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from task_activity_log.rabbitmq import channel, cut_off
from task_activity_log.rabbitmq.cut_off import Quiet, Watch
from task_activity_log.rabbitmq.link import CutOff
from tests import virtual_time


class Node:
    """A node and a queue, as a watch sees them."""

    def __init__(self) -> None:
        self.registered = True
        self.delivered = 0
        self.consumers: list[int] = []
        """The next counts; 1 when there is none left."""
        self.answers = True
        """Whether commands are carried out."""
        self.commands: list[float] = []
        """When each was given."""
        self.read_from = -1_000.0

    async def count(self) -> int:
        return self.consumers.pop(0) if self.consumers else 1

    async def prove(self) -> None:
        self.commands.append(now())
        if not self.answers:
            await asyncio.Event().wait()

    def watch(self) -> asyncio.Task[None]:
        watch = Watch(
            "queue",
            registered=lambda: self.registered,
            seen=lambda: self.delivered,
            prove=self.prove,
            count=self.count,
            read_seconds=lambda: max(0.0, now() - self.read_from),
        )
        return asyncio.create_task(watch.wait_cut_off())


def now() -> float:
    return asyncio.get_running_loop().time()


def run(monkeypatch: pytest.MonkeyPatch, act: Callable[[Node], Coroutine[Any, Any, None]]) -> None:
    """Run this at virtual time, from 0 on."""
    for module in (cut_off, channel):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=now))
    virtual_time.run(act(Node()))


def test_what_is_quiet_is_due_after_a_while() -> None:
    """Counted from the latest delivery, registration or proof; and not for all workers at the same time."""
    dues = set()
    for _ in range(20):
        quiet = Quiet(30.0, 0.0)
        assert not quiet.is_due("a", 29.0)
        assert not quiet.is_due("b", 50.0)
        assert not quiet.is_due("b", 79.0)
        dues.add(next(second for second in range(80, 97) if quiet.is_due("b", float(second))))
        quiet.proved(100.0)
        assert not quiet.is_due("b", 129.0)
    assert len(dues) > 1


def test_a_queue_that_delivers_or_answers_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that delivers is not even asked."""

    async def act(node: Node) -> None:
        watching = node.watch()
        for _ in range(20):
            await asyncio.sleep(10)
            node.delivered += 1
        assert node.commands == []
        await asyncio.sleep(500)
        assert 10 <= len(node.commands) <= 17
        assert not watching.done()
        watching.cancel()

    run(monkeypatch, act)


def test_a_queue_that_carries_nothing_out_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader on a node that is cut off: it knows its consumers, and commits nothing."""

    async def act(node: Node) -> None:
        node.answers = False
        with pytest.raises(CutOff, match="'queue' does not answer: this node is cut off") as error:
            await node.watch()
        assert 40 < now() < 60
        assert error.value.others is None

    run(monkeypatch, act)


def test_nothing_is_concluded_while_no_consumer_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is paused: nothing is asked, and what was asked before need not be answered."""

    async def act(node: Node) -> None:
        node.answers = False
        node.consumers = [0] * 20
        watching = node.watch()
        await asyncio.sleep(10)
        node.registered = False
        await asyncio.sleep(300)
        assert node.commands == []
        node.consumers.clear()
        node.registered = True
        while not node.commands:
            await asyncio.sleep(1)
        node.registered = False
        await asyncio.sleep(100)
        assert not watching.done()
        watching.cancel()

    run(monkeypatch, act)


@pytest.mark.parametrize(("counts", "left"), [([0, 0], True), ([0, 1], False), ([1, 1], False)])
def test_a_queue_that_knows_no_consumer_twice_is_left(
    monkeypatch: pytest.MonkeyPatch, counts: list[int], left: bool
) -> None:
    """Once is not enough: its members may be electing a leader."""

    async def act(node: Node) -> None:
        node.consumers = counts
        watching = node.watch()
        await asyncio.sleep(25)
        assert watching.done() is left
        if left:
            with pytest.raises(CutOff, match="'queue' does not know this consumer any more"):
                await watching
        watching.cancel()

    run(monkeypatch, act)


def test_no_answer_is_expected_while_the_connection_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker would leave a broker that is healthy. When it is read again, the answer has its time."""

    async def act(node: Node) -> None:
        node.read_from = 300.0
        node.answers = False
        watching = node.watch()
        await asyncio.sleep(309)
        assert not watching.done()
        with pytest.raises(CutOff):
            await watching
        assert 310 < now() < 313

    run(monkeypatch, act)
