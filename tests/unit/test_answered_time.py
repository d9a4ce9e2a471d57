"""The time that counts for replies that wait: that in which the broker answers somebody."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from task_activity_log.rabbitmq.addresses import Addresses
from task_activity_log.rabbitmq.answered_time import AnsweredTime
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.retries import Callbacks, Retries
from tests import virtual_time

TICK = 0.25
GIVE_UP = 3.0


class Broker:
    """The clock of a worker, read four times a second, and what the broker answers to others."""

    def __init__(self) -> None:
        self.now, self.answered_at, self.reachable = 100.0, 100.0, True
        self.clock = AnsweredTime()
        self.read()
        self.addresses: Addresses[str] = Addresses(give_up_seconds=GIVE_UP, count_max=100, size_max=10_000)

    def read(self) -> float:
        return self.clock.read(self.now, reachable=self.reachable, answered_at=self.answered_at)

    def waits(self, fate: Fate) -> None:
        """A reply was published, and its address is silent or refuses it."""
        one = self.addresses.join("address", "reply", 1, self.read())
        (self.addresses.opened if fate is Fate.UNCONFIRMED else self.addresses.refused)(one, self.read())

    def passes(self, seconds: float, *, answering: bool) -> list[str | None]:
        """Let time pass; why replies were given up meanwhile."""
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            if answering:
                self.answered_at = self.now
            self.addresses.tidy(self.read(), lambda _: True)
        return [why for _, why in self.addresses.finished]


def test_all_time_counts_while_the_broker_answers() -> None:
    """Also if it answers once a second only."""
    broker = Broker()
    began = broker.read()
    broker.passes(5, answering=True)
    assert broker.read() - began == 5
    for _ in range(5):
        broker.passes(0.75, answering=False)
        broker.passes(0.25, answering=True)
    assert broker.read() - began == 10


def test_of_a_time_without_any_answer_the_first_second_counts() -> None:
    """However long it is, and again after the next answer."""
    broker = Broker()
    began = broker.read()
    broker.passes(60, answering=False)
    assert broker.read() - began == 1
    broker.passes(TICK, answering=True)
    assert broker.read() - began == 1, "the broker was silent until now"
    broker.passes(2, answering=True)
    assert broker.read() - began == 3


def test_a_process_that_did_not_run_counts_a_second_at_most_before_the_next_answer() -> None:
    """It was stopped for nine seconds, and reads the first answer before its clock."""
    broker = Broker()
    began = broker.read()
    broker.now += 9
    broker.answered_at = broker.now
    assert broker.read() - began == 1


def test_time_in_which_the_broker_cannot_be_reached_does_not_count() -> None:
    """An answer that arrives meanwhile does not change that."""
    broker = Broker()
    began = broker.read()
    broker.reachable = False
    broker.passes(5, answering=True)
    assert broker.read() - began == 0
    broker.reachable = True
    broker.passes(1, answering=True)
    assert broker.read() - began == 1


@pytest.mark.parametrize("frozen", [2.0, 9.0])
def test_no_reply_is_given_up_because_the_broker_was_frozen(frozen: float) -> None:
    """The address has the rest of its time when the broker answers others again."""
    broker = Broker()
    broker.waits(Fate.UNCONFIRMED)
    assert broker.passes(frozen, answering=False) == []
    assert broker.passes(TICK, answering=True) == []  # at the end of this the broker has answered
    assert broker.passes(GIVE_UP - 1 - TICK, answering=True) == []
    assert broker.passes(TICK, answering=True) == ["unconfirmed"]


@pytest.mark.parametrize(("fate", "why"), [(Fate.NACKED, "refused"), (Fate.UNCONFIRMED, "unconfirmed")])
def test_an_address_that_takes_nothing_while_others_are_answered_is_given_up_on_time(fate: Fate, why: str) -> None:
    """Not earlier, and not later."""
    broker = Broker()
    broker.waits(fate)
    assert broker.passes(GIVE_UP - TICK, answering=True) == []
    assert broker.passes(TICK, answering=True) == [why]


def test_while_nothing_is_published_to_others_the_broker_is_asked_whether_it_answers() -> None:
    """Otherwise a silent address would be waited for as long as nobody else has traffic."""
    given_up: list[str | None] = []
    addresses: Addresses[str] = Addresses(give_up_seconds=GIVE_UP, count_max=100, size_max=10_000)

    async def main() -> None:
        answers = asyncio.Event()
        async with trying(addresses, callbacks(given_up, answers.wait)) as wait:
            wait("silent", 1)
            await asyncio.sleep(60)
            assert given_up == []
            answers.set()
            await asyncio.sleep(GIVE_UP + 2)
            assert given_up == ["unconfirmed"]

    virtual_time.run(main())


def test_a_silent_address_that_has_the_whole_prefetch_is_found_within_a_second() -> None:
    """Nothing is published to others then, so only the broker's answers to questions tell that it is not frozen."""
    given_up: list[str | None] = []
    addresses: Addresses[str] = Addresses(give_up_seconds=GIVE_UP, count_max=8, size_max=10_000)

    async def main() -> None:
        began = asyncio.get_running_loop().time()
        calls = callbacks(given_up, lambda: asyncio.sleep(0.01, result=True), lambda: began)
        async with trying(addresses, calls) as wait:
            await asyncio.sleep(1.5)
            wait("silent", 20)
            await asyncio.sleep(1.1)
            assert given_up == ["too_many"] * 16

    virtual_time.run(main())


def test_a_frozen_broker_is_no_reason_to_give_replies_up_as_too_many() -> None:
    """It answered until a moment ago. Once it answers others again, the address that does not is at fault."""
    given_up: list[str | None] = []
    addresses: Addresses[str] = Addresses(give_up_seconds=GIVE_UP, count_max=8, size_max=10_000)

    async def main() -> None:
        answers, now = asyncio.Event(), asyncio.get_running_loop().time
        began = now()
        calls = callbacks(given_up, answers.wait, lambda: now() if answers.is_set() else began)
        async with trying(addresses, calls) as wait:
            await asyncio.sleep(1.5)
            wait("slow", 20)
            await asyncio.sleep(60)
            assert given_up == []
            answers.set()
            await asyncio.sleep(1)
            assert given_up == ["too_many"] * 16

    virtual_time.run(main())


@asynccontextmanager
async def trying(addresses: Addresses[str], calls: Callbacks[str]) -> AsyncIterator[Callable[[str, int], None]]:
    """Try replies again meanwhile. What it yields lets that many replies wait at a silent address."""
    retries = Retries(LinkOptions("amqp://nowhere/"), addresses, calls)

    def wait(address: str, count: int) -> None:
        for number in range(count):
            addresses.opened(addresses.join(address, str(number), 1, retries.clock()), retries.clock())
        retries.wake()

    running = asyncio.create_task(retries.run())
    try:
        yield wait
    finally:
        running.cancel()
        await asyncio.wait({running})


def callbacks(
    given_up: list[str | None],
    ask: Callable[[], Coroutine[Any, Any, bool]],
    answered_at: Callable[[], float] = lambda: 0.0,
) -> Callbacks[str]:
    """Of a broker that answers `ask`, and last answered a publish at `answered_at`. Notes why replies are given up."""

    def nothing(address: str, reply: str) -> Outgoing:
        raise AssertionError((address, reply))

    return Callbacks(
        outgoing=nothing,
        finished=lambda finished: given_up.extend(why for _, why in finished),
        still=lambda _: True,
        reachable=lambda: True,
        answered_at=answered_at,
        ask=ask,
        message_max=lambda _: None,
    )
