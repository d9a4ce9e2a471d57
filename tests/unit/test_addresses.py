"""Addresses that take no reply: which reply is tried when, and which is given up. Every time is a parameter."""

from collections.abc import Sequence
from random import Random

import pytest

from task_activity_log.rabbitmq.addresses import TOO_MANY, Addresses, Line, Waiting
from task_activity_log.rabbitmq.outgoing import Fate

GIVE_UP = 30.0
DIRECT = "amq.rabbitmq.reply-to.x.y"


def wanted(_: str) -> bool:
    return True


class Bench:
    """Addresses, and a clock."""

    def __init__(self, *, count_max: int = 8, size_max: int = 10_000) -> None:
        self.now = 100.0
        self.addresses: Addresses[str] = Addresses(give_up_seconds=GIVE_UP, count_max=count_max, size_max=size_max)

    def join(self, address: str, *items: str, size: int = 1) -> list[Waiting[str]]:
        return [self.addresses.join(address, item, size, self.now) for item in items]

    def refused(self, address: str, *items: str, size: int = 1) -> list[Waiting[str]]:
        """Replies that were published, and that a full queue has refused."""
        waiting = self.join(address, *items, size=size)
        for one in waiting:
            self.addresses.refused(one, self.now)
        return waiting

    def due(self) -> list[str]:
        """Begin what is due apart: the items, as they would be published."""
        return [one.item for line in self.addresses.due(self.now) for one in self.addresses.begin(line, self.now)]

    def answer(self, waiting: Sequence[Waiting[str]], fate: Fate) -> None:
        for one in waiting:
            self.addresses.answered(one, fate, self.now)

    def done(self) -> list[tuple[str, str | None]]:
        """What was finished since, and why it was given up."""
        self.addresses.tidy(self.now, wanted)
        finished, self.addresses.finished = self.addresses.finished, []
        return [(waiting.item, why) for waiting, why in finished]

    def group(self) -> list[str]:
        """Begin the next group that is tried together: its addresses."""
        self.lines: list[Line[str]] = self.addresses.next_group(self.now)
        self.tried = [self.addresses.begin(line, self.now)[0] for line in self.lines]
        return [line.address for line in self.lines]


def test_a_refused_reply_is_tried_again_after_a_second() -> None:
    """Not sooner, however often it is asked for, and not by a message that joins."""
    bench = Bench()
    [first] = bench.refused("full", "1")
    bench.join("full", "2")
    assert bench.due() == []
    bench.now += 0.99
    assert bench.due() == []
    bench.now += 0.01
    assert bench.due() == ["1"]
    bench.answer([first], Fate.NACKED)
    assert bench.due() == []
    bench.now += 1
    assert bench.due() == ["1"]


def test_after_a_confirmation_the_next_replies_go_in_growing_parts() -> None:
    """In order and at once; a part is published when the one before is answered."""
    bench = Bench()
    waiting = bench.refused("full", *"123456789")
    bench.now += 1
    published = []
    while items := bench.due():
        published.append("".join(items))
        assert bench.due() == []
        bench.answer([one for one in waiting if one.item in items], Fate.CONFIRMED)
    assert published == ["1", "23", "4567", "89"]
    assert bench.done() == [(item, None) for item in "123456789"]
    assert "full" not in bench.addresses


def test_one_refusal_makes_the_parts_small_again() -> None:
    """What was taken of the part is done; the rest waits for a second."""
    bench = Bench()
    one, two, three = bench.refused("full", *"123")
    bench.now += 1
    assert bench.due() == ["1"]
    bench.answer([one], Fate.CONFIRMED)
    assert bench.due() == ["2", "3"]
    bench.answer([two], Fate.CONFIRMED)
    bench.answer([three], Fate.NACKED)
    assert bench.due() == []
    bench.now += 1
    assert bench.due() == ["3"]
    assert bench.done() == [("1", None), ("2", None)]


def test_an_address_that_fails_and_recovers_is_reported_once_each() -> None:
    """The reason is that of the first failure."""
    bench = Bench()
    waiting = bench.refused("full", "1", "2")
    bench.now += 1
    bench.due()
    bench.answer(waiting[:1], Fate.NACKED)
    bench.now += 1
    bench.due()
    bench.answer(waiting[:1], Fate.CONFIRMED)
    bench.due()
    bench.answer(waiting[1:], Fate.CONFIRMED)
    assert bench.addresses.changes == [("full", Fate.NACKED), ("full", None)]


def test_a_reply_is_given_up_in_its_own_time() -> None:
    """Another that gets through meanwhile does not renew the time of those behind it."""
    bench = Bench()
    first, second = bench.refused("slow", "1", "2")
    bench.now += 20
    late = bench.join("slow", "3")
    bench.due()
    bench.answer([first], Fate.CONFIRMED)
    assert bench.due() == ["2", "3"]
    bench.answer([second, *late], Fate.NACKED)
    bench.now += 9.9
    assert bench.done() == [("1", None)]
    bench.now += 0.1
    assert bench.done() == [("2", "refused")]
    bench.now += 20
    assert bench.done() == [("3", "refused")]


def test_an_unconfirmed_reply_is_waited_for_and_not_published_again() -> None:
    """A late confirmation settles it, and the next is tried at once."""
    bench = Bench()
    [first] = bench.join("silent", "1")
    bench.addresses.opened(first, bench.now)
    bench.join("silent", "2")
    bench.now += 25
    assert bench.due() == []
    bench.answer([first], Fate.CONFIRMED)
    assert bench.done() == [("1", None)]
    assert bench.due() == ["2"]


def test_a_reply_that_is_open_apart_fails_after_the_patience() -> None:
    """It was published in doubt, among others: then its own address is the reason."""
    bench = Bench()
    bench.join("silent", "1")
    assert bench.due() == ["1"]
    assert bench.done() == []
    bench.now += 31
    assert bench.done() == [("1", "unconfirmed")]


def test_while_one_given_up_is_open_the_next_replies_wait_for_its_answer() -> None:
    """No copy and no other reply is added to those that the broker holds; after 90 seconds no answer is expected."""
    bench = Bench()
    [first] = bench.join("silent", "1")
    bench.addresses.opened(first, bench.now)
    bench.now += 30
    assert bench.done() == [("1", "unconfirmed")]
    [second] = bench.join("silent", "2")
    assert bench.due() == []
    bench.answer([first], Fate.CONFIRMED)
    assert bench.due() == ["2"]
    bench.answer([second], Fate.CONFIRMED)
    assert bench.done() == [("2", None)]
    assert "silent" not in bench.addresses


def test_an_open_reply_without_an_answer_is_tried_again_after_ninety_seconds() -> None:
    """RabbitMQ refuses after 65 seconds what a queue without a leader does not take."""
    bench = Bench()
    [first] = bench.join("silent", "1")
    bench.addresses.opened(first, bench.now)
    bench.now += 80
    bench.done()
    bench.join("silent", "2")
    bench.now += 10.1
    bench.done()
    assert bench.due() == ["2"]


def test_an_address_whose_replies_were_given_up_is_remembered_for_a_minute() -> None:
    """The next reply does not delay others again. Then it is forgotten."""
    bench = Bench()
    bench.refused("full", "1")
    bench.now += 30
    assert bench.done() == [("1", "refused")]
    bench.now += 59
    bench.done()
    assert "full" in bench.addresses
    bench.now += 2
    bench.done()
    assert "full" not in bench.addresses


def test_a_return_ends_a_reply_and_the_next_is_tried_at_once() -> None:
    """The queue was deleted while they waited."""
    bench = Bench()
    first, second = bench.refused("full", "1", "2")
    bench.now += 1
    bench.due()
    bench.answer([first], Fate.RETURNED)
    assert bench.due() == ["2"]
    bench.answer([second], Fate.RETURNED)
    assert bench.done() == [("1", "returned"), ("2", "returned")]


def test_one_address_has_half_of_the_room_at_most() -> None:
    """The oldest are given up first."""
    bench = Bench(count_max=8)
    bench.refused("full", *"123456")
    assert bench.done() == [("1", TOO_MANY), ("2", TOO_MANY)]
    assert len(bench.addresses) == 4


def test_if_too_many_wait_the_oldest_of_the_longest_line_go_first() -> None:
    """Lines of 4, 3 and 3 where 8 may wait."""
    bench = Bench(count_max=8)
    bench.refused("a", *"1234")
    bench.refused("b", *"567")
    bench.refused("c", *"890")
    assert [item for item, why in bench.done() if why == TOO_MANY] == ["1", "2"]
    assert len(bench.addresses) == 8


def test_if_too_many_bytes_wait_the_oldest_of_the_longest_line_go_first() -> None:
    """A few large replies are as bad as many."""
    bench = Bench(size_max=100)
    bench.refused("a", *"12", size=40)
    bench.refused("b", "3", size=40)
    assert bench.done() == [("1", TOO_MANY)]


def test_replies_that_may_be_healthy_are_not_given_up_because_they_are_many() -> None:
    """The connection of a whole batch was lost: that is an outage until one of them fails alone."""
    bench = Bench(count_max=8)
    waiting = bench.join("healthy", *(str(number) for number in range(500)))
    bench.addresses.suspect(waiting[0].line)
    assert bench.done() == []
    assert bench.group() == ["healthy"]
    bench.answer(bench.tried, Fate.CONFIRMED)
    while bench.due():
        bench.answer([*waiting[0].line.open.values()], Fate.CONFIRMED)
    assert [why for _, why in bench.done()] == [None] * 500


def test_addresses_that_could_not_be_tried_in_two_seconds_are_limited_too() -> None:
    """Each may end a connection, and the number of those that are tried would keep the prefetch from all others."""
    bench = Bench(count_max=8)
    for number in range(80):
        bench.addresses.suspect(bench.join(f"{DIRECT}{number}", str(number))[0].line)
    assert len(bench.group()) == 64
    bench.now += 2
    assert bench.done() == []
    bench.now += 0.01
    given_up = bench.done()
    assert {why for _, why in given_up} == {TOO_MANY}
    assert [item for item, _ in given_up] == [str(number) for number in range(64, 72)], "those that are tried have time"
    bench.addresses.ended(bench.lines, bench.now)
    assert len(bench.done()) == 64
    assert len(bench.addresses) == 8
    for number in range(80, 90):
        bench.addresses.suspect(bench.join(f"{DIRECT}{number}", str(number))[0].line)
    bench.now += 0.5
    assert bench.done() == []
    bench.now += 0.01
    assert len(bench.done()) == 10, "the next wave has less time"


def test_an_address_that_was_tried_and_takes_replies_is_not_limited() -> None:
    """However long its line is, and however long the rest of it has to wait."""
    bench = Bench(count_max=8)
    waiting = bench.join("healthy", *(str(number) for number in range(20)))
    bench.addresses.suspect(waiting[0].line)
    bench.group()
    bench.answer(bench.tried, Fate.CONFIRMED)
    bench.now += 10
    assert bench.done() == [("0", None)]


def test_a_broker_that_answers_nobody_has_three_seconds_before_replies_are_given_up_as_too_many() -> None:
    """It may be slow for everybody, and the address only the first to notice. A refusal is an answer."""
    bench = Bench(count_max=8)
    for one in bench.join("silent", *"123456"):
        bench.addresses.opened(one, bench.now)
    bench.now += 2.9
    bench.addresses.tidy(bench.now, wanted, answering=False)
    assert bench.addresses.finished == []
    bench.now += 0.2
    bench.addresses.tidy(bench.now, wanted, answering=False)
    assert [waiting.item for waiting, _ in bench.addresses.finished] == ["1", "2"]
    bench.refused("full", *"12345")
    bench.addresses.tidy(bench.now, wanted, answering=False)
    assert [waiting.item for waiting, _ in bench.addresses.finished[2:]] == ["1"]


def test_an_address_is_not_at_fault_before_the_broker_has_answered_somebody_else() -> None:
    """The broker has just answered, and is frozen. The address is only the first to notice, however many replies wait."""
    bench = Bench(count_max=8)
    answered = bench.now
    for one in bench.join("first", *"123456"):
        bench.addresses.opened(one, bench.now)
    bench.now += 1  # the clock of the answered time then stands still
    bench.addresses.tidy(bench.now, wanted, answered=answered)
    assert bench.addresses.finished == []
    bench.now += 0.3
    bench.addresses.tidy(bench.now, wanted, answered=bench.now)
    assert [waiting.item for waiting, _ in bench.addresses.finished] == ["1", "2"]


def test_what_was_requeued_is_forgotten() -> None:
    """Its message is delivered again, and answered then."""
    bench = Bench()
    bench.refused("full", "1", "2")
    bench.addresses.tidy(bench.now, lambda item: item == "2")
    assert (len(bench.addresses), bench.addresses.finished) == (1, [])


@pytest.mark.parametrize("guilty", [{"a"}, {"h"}, {"a", "h"}, {"c", "d", "e"}, set("abcdefgh"), set()])
def test_addresses_that_end_a_connection_are_found_by_halving(guilty: set[str]) -> None:
    """Eight were published together. The innocent are confirmed, the guilty fail alone, and none is tried apart."""
    bench = Bench(count_max=100)
    for name in "abcdefgh":
        bench.addresses.suspect(bench.join(name, name)[0].line)
    tries = 0
    while group := bench.group():
        tries += 1
        assert bench.due() == []
        if guilty.isdisjoint(group):
            bench.answer(bench.tried, Fate.CONFIRMED)
        else:
            bench.addresses.ended(bench.lines, bench.now)
    assert tries <= 1 + 6 * max(1, len(guilty))
    assert {item for item, why in bench.done() if why is None} == set("abcdefgh") - guilty
    assert {address for address, fate in bench.addresses.changes if fate is Fate.LOST} == guilty


def test_an_address_that_ends_its_connection_alone_is_tried_after_1_2_4_and_8_seconds() -> None:
    """Until it is given up."""
    bench = Bench()
    bench.addresses.suspect(bench.join("ender", "1")[0].line)
    tried = []
    began = bench.now
    while "ender" in bench.addresses and len(bench.addresses):
        if bench.group():
            tried.append(bench.now - began)
            bench.addresses.ended(bench.lines, bench.now)
        bench.now += 0.5
        bench.done()
    assert tried == [0, 1, 3, 7, 15, 23]


def test_direct_reply_to_is_tried_after_queues_and_without_them() -> None:
    """Its addresses are those that are known to end connections."""
    bench = Bench()
    for name in (DIRECT, "a", "b"):
        bench.addresses.suspect(bench.join(name, name)[0].line)
    assert bench.group() == ["a", "b"]
    bench.answer(bench.tried, Fate.CONFIRMED)
    assert bench.group() == [DIRECT]
    assert not bench.addresses.trusts(DIRECT)
    bench.answer(bench.tried, Fate.CONFIRMED)
    assert bench.addresses.trusts(DIRECT)


@pytest.mark.parametrize("fate", [Fate.NACKED, Fate.UNCONFIRMED])
def test_an_address_that_answers_or_is_silent_is_tried_apart_from_then_on(fate: Fate) -> None:
    """It was a suspect because another address ended the connection."""
    bench = Bench()
    bench.addresses.suspect(bench.join("full", "1")[0].line)
    bench.group()
    bench.answer(bench.tried, fate)
    assert bench.group() == []
    bench.now += 1
    assert bench.due() == ["1"]


def test_a_group_that_finds_no_connection_is_tried_again_whole() -> None:
    """Nobody is at fault for that."""
    bench = Bench()
    for name in "ab":
        bench.addresses.suspect(bench.join(name, name)[0].line)
    bench.group()
    bench.addresses.put_back(bench.lines)
    assert bench.group() == ["a", "b"]
    assert bench.addresses.changes == []


def test_a_connection_that_is_lost_while_a_reply_is_open_makes_its_address_a_suspect() -> None:
    """And the answer to that copy no longer counts."""
    bench = Bench()
    waiting = bench.refused("full", "1")
    bench.now += 1
    assert bench.due() == ["1"]
    bench.answer(waiting, Fate.LOST)
    assert bench.due() == []
    bench.answer(waiting, Fate.NACKED)
    assert bench.group() == ["full"]


def test_a_reply_that_finds_no_connection_for_long_is_given_up() -> None:
    """The broker takes other replies, but opens no connection for this one."""
    bench = Bench()
    bench.addresses.suspect(bench.join("a", "1")[0].line)
    bench.now += GIVE_UP + 31
    assert bench.done() == [("1", "lost")]


def test_the_longest_open_reply_makes_way_for_another_address() -> None:
    """After five seconds; it is tried again half a minute later."""
    bench = Bench()
    for name in "ab":
        bench.join(name, name)
        bench.due()
        bench.now += 1
    bench.now += 2.9
    assert bench.addresses.preempted(bench.now) is None
    bench.now += 0.2
    line = bench.addresses.preempted(bench.now)
    assert line is not None
    assert line.address == "a"
    assert bench.due() == []
    bench.now += 30
    assert bench.due() == ["a"]


def test_a_late_answer_to_a_first_copy_does_not_forget_the_replies_that_joined_meanwhile() -> None:
    """A silent queue holds up a channel. A reply to another queue is published again apart, and the first copy is
    confirmed when the silence ends. Its line was dropped by then, and there is another one for the same address."""
    bench = Bench()
    [twice] = bench.join("slow", "1")
    assert bench.due() == ["1"]
    bench.answer([twice], Fate.CONFIRMED)
    bench.refused("slow", "2")
    bench.answer([twice], Fate.CONFIRMED)
    assert len(bench.addresses) == 1
    bench.now += GIVE_UP
    assert bench.done() == [("1", None), ("2", "refused")]


@pytest.mark.parametrize("seed", range(40))
def test_no_reply_is_ever_forgotten(seed: int) -> None:
    """Whatever the answers are, how late and how often they come: each reply is confirmed or given up in the end."""
    chance = Random(seed)  # noqa: S311 - a repeatable test
    bench = Bench(count_max=12, size_max=100)
    joined: list[Waiting[str]] = []
    done: list[str] = []
    for number in range(200):
        joined += bench.join(chance.choice((DIRECT, "full", "silent", "slow")), str(number))
        chance.choice(
            (
                lambda one: bench.addresses.refused(one, bench.now),
                lambda one: bench.addresses.opened(one, bench.now),
                lambda one: bench.addresses.suspect(one.line),
                lambda _: None,
            )
        )(joined[-1])
        try_at_random(bench, chance)
        for one in chance.sample(joined, min(len(joined), 3)):
            bench.answer([one], chance.choice(list(Fate)))
        done += [item for item, _ in bench.done()]
    for _ in range(100):
        bench.now += GIVE_UP
        done += [item for item, _ in bench.done()]
    assert sorted(done, key=int) == [str(number) for number in range(200)]


def try_at_random(bench: Bench, chance: Random) -> None:
    """Begin what is due apart, and what is due together; the connection of the latter ends, or is not there, or answers."""
    bench.now += chance.choice((0.1, 1.0, 5.0))
    bench.due()
    if bench.group():
        match chance.randrange(3):
            case 0:
                bench.addresses.ended(bench.lines, bench.now)
            case 1:
                bench.addresses.put_back(bench.lines)
            case _:
                bench.answer(bench.tried, chance.choice((Fate.CONFIRMED, Fate.NACKED)))
