"""The pace of the intake: every state with every event, and what holds after any sequence of events."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_activity_log.aio import Waiting
from task_activity_log.message import Delivery
from task_activity_log.pipeline.suspects import (
    ALONE,
    RETURNED_BELOW,
    SUSPECT_FROM,
    batch_length,
    by_arrival,
    by_attempts,
    divided,
    is_doubtful,
)
from task_activity_log.rabbitmq.pace import Pace, State
from task_activity_log.rabbitmq.queue_intake import QueueIntake

FULL, BATCH_MAX = 4, 2
HARMLESS, SUSPECT = Delivery(b"", attempts=SUSPECT_FROM - 1), Delivery(b"", attempts=SUSPECT_FROM)
MARKED = Delivery(b"", attempts=2, suspect=True)
FRESH = Delivery(b"")

Event = Callable[[Pace], object]

EVENTS: dict[str, Event] = {
    "opened": Pace.opened,
    "lost": Pace.closed,
    "two are returned": lambda pace: pace.closed(2),
    "a harmless message is settled": lambda pace: pace.settled([HARMLESS]),
    "a suspect is settled": lambda pace: pace.settled([SUSPECT]),
    "nothing is settled": lambda pace: pace.settled([]),
    "a harmless message is proved": lambda pace: pace.proved([HARMLESS]),
    "a suspect is proved": lambda pace: pace.proved([SUSPECT]),
    "a suspect comes alone": lambda pace: pace.batch([SUSPECT], 1),
    "a suspect comes with another": lambda pace: pace.batch([SUSPECT], 2),
    "marks of the first of three are found": lambda pace: pace.set_apart(MARKED, 3, 1),
    "a marked one is settled": lambda pace: pace.settled([MARKED]),
    "pause": lambda pace: pace.pause("store"),
    "resume": lambda pace: pace.resume("store"),
    "stop": Pace.stop,
}

BEFORE: dict[str, tuple[str, ...]] = {
    "not connected": (),
    "unproved": ("opened",),
    "proved": ("opened", "a harmless message is settled"),
    "returning": ("opened", "a harmless message is settled", "a suspect comes with another"),
    "paused": ("opened", "pause"),
    "paused, everything returned": ("opened", "pause", "two are returned"),
    "two to come one by one": ("opened", "a suspect comes with another", "two are returned", "opened"),
    "one to come one by one": (
        "opened",
        "a suspect comes with another",
        "two are returned",
        "opened",
        "a suspect is settled",
    ),
    "stopping": ("opened", "stop"),
    "stopped": ("stop",),
}
"""How each state is reached."""

CLOSED, UNPROVED, PROVED, CLOSING = State

TRANSITIONS: dict[str, dict[str, tuple[State, int]]] = {
    "not connected": {
        **dict.fromkeys(EVENTS, (CLOSED, 1)),
        "opened": (UNPROVED, 1),
        "pause": (CLOSED, 0),
        "stop": (CLOSED, 0),
    },
    "unproved": {
        **dict.fromkeys(EVENTS, (UNPROVED, 1)),
        "lost": (CLOSED, 1),
        "two are returned": (CLOSED, 1),
        "a harmless message is settled": (PROVED, FULL),
        "a harmless message is proved": (PROVED, FULL),
        "a suspect comes with another": (CLOSING, 1),
        "marks of the first of three are found": (CLOSING, 1),
        "pause": (CLOSING, 0),
        "stop": (CLOSING, 0),
    },
    "proved": {
        **dict.fromkeys(EVENTS, (PROVED, FULL)),
        "lost": (CLOSED, 1),
        "two are returned": (CLOSED, 1),
        "a suspect comes with another": (CLOSING, FULL),
        "marks of the first of three are found": (CLOSING, FULL),
        "pause": (CLOSING, 0),
        "stop": (CLOSING, 0),
    },
    "returning": {
        **dict.fromkeys(EVENTS, (CLOSING, FULL)),
        "lost": (CLOSED, 1),
        "two are returned": (CLOSED, 1),
        "pause": (CLOSING, 0),
        "stop": (CLOSING, 0),
    },
    "paused": {
        **dict.fromkeys(EVENTS, (CLOSING, 0)),
        "lost": (CLOSED, 0),
        "two are returned": (CLOSED, 0),
        "resume": (UNPROVED, 1),
    },
    "paused, everything returned": {
        **dict.fromkeys(EVENTS, (CLOSED, 0)),
        "opened": (CLOSING, 0),
        "resume": (CLOSED, 1),
    },
    "two to come one by one": {
        **dict.fromkeys(EVENTS, (UNPROVED, 1)),
        "lost": (CLOSED, 1),
        "two are returned": (CLOSED, 1),
        "a suspect comes with another": (CLOSING, 1),
        "marks of the first of three are found": (CLOSING, 1),
        "pause": (CLOSING, 0),
        "stop": (CLOSING, 0),
    },
    "one to come one by one": {
        **dict.fromkeys(EVENTS, (UNPROVED, 1)),
        "lost": (CLOSED, 1),
        "two are returned": (CLOSED, 1),
        "a harmless message is settled": (PROVED, FULL),
        "a suspect comes with another": (CLOSING, 1),
        "marks of the first of three are found": (CLOSING, 1),
        "pause": (CLOSING, 0),
        "stop": (CLOSING, 0),
    },
    "stopping": {
        **dict.fromkeys(EVENTS, (CLOSING, 0)),
        "lost": (CLOSED, 0),
        "two are returned": (CLOSED, 0),
    },
    "stopped": {**dict.fromkeys(EVENTS, (CLOSED, 0)), "opened": (CLOSING, 0)},
}
"""By state and event: the next state, and the prefetch that is wanted then."""


def after(*events: str, single_active: bool = False) -> Pace:
    """A pace that has seen these events."""
    pace = Pace(FULL, BATCH_MAX, single_active=single_active)
    for event in events:
        EVENTS[event](pace)
    return pace


@pytest.mark.parametrize(
    ("before", "event"), [(before, event) for before, table in TRANSITIONS.items() for event in table]
)
def test_every_state_meets_every_event(before: str, event: str) -> None:
    """The next state and the prefetch are those of the table."""
    pace = after(*BEFORE[before])
    EVENTS[event](pace)
    assert (pace.state, pace.wanted) == TRANSITIONS[before][event]


def test_the_table_has_every_state() -> None:
    """Otherwise the test above would miss a case."""
    assert {after(*events).state for events in BEFORE.values()} == set(State)
    assert set(TRANSITIONS) == set(BEFORE)


def test_one_harmless_message_among_suspects_proves_the_consumer() -> None:
    """It was processed, and nothing happened to the process."""
    pace = after("opened")
    pace.settled([SUSPECT, HARMLESS])
    assert pace.state is PROVED


def test_consuming_goes_on_when_the_last_of_those_who_paused_has_resumed() -> None:
    """The store and the replies may be unavailable at the same time."""
    pace = after("opened")
    pace.pause("store")
    pace.pause("reply")
    assert pace.paused_by == {"store", "reply"}
    pace.resume("store")
    assert pace.state is CLOSING
    pace.resume("reply")
    assert (pace.state, pace.paused_by) == (UNPROVED, set())


def test_a_consumer_has_to_be_proved_again_after_its_channel_was_closed() -> None:
    """What crashes the process may have arrived meanwhile."""
    for closed in ("two are returned", "lost"):
        pace = after("opened", "a harmless message is settled", "pause", closed, "resume", "opened")
        assert (pace.state, pace.wanted) == (UNPROVED, 1)


def test_messages_to_come_one_by_one_outlive_a_lost_connection() -> None:
    """They are first in the queue, whoever consumes them."""
    pace = after("opened", "a suspect comes with another", "two are returned", "opened", "lost", "opened")
    pace.settled([HARMLESS])
    assert pace.state is UNPROVED
    pace.settled([HARMLESS] * 3)
    assert pace.state is PROVED


def test_a_single_active_consumer_always_has_the_full_prefetch() -> None:
    """A part of what was returned must not be returned apart from the rest."""
    for closed in ("two are returned", "lost"):
        pace = after("opened", closed, "opened", single_active=True)
        assert (pace.state, pace.wanted) == (PROVED, FULL)


@pytest.mark.parametrize("single_active", [True, False])
def test_from_an_isolated_queue_what_was_returned_comes_one_by_one(single_active: bool) -> None:
    """It may fail whenever it is to deliver one of these, and then all of them would reach the delivery limit."""
    pace = after("opened", "a harmless message is settled", single_active=single_active)
    pace.isolate()
    pace.closed()
    pace.opened()
    for _ in range(FULL):
        assert (pace.state, pace.wanted) == (UNPROVED, 1)
        pace.settled([HARMLESS])
    pace.settled([])
    assert (pace.state, pace.wanted) == (UNPROVED, 1)
    pace.closed()  # it has failed again
    pace.opened()
    pace.settled([FRESH])
    assert (pace.state, pace.wanted) == (PROVED, FULL)


async def test_an_isolated_queue_is_not_handed_over() -> None:
    """What arrives meanwhile would be returned behind what was returned before, with a prefetch of one."""
    pace = after("opened", single_active=True)
    queue = QueueIntake("queue", pace, Waiting())
    pace.isolate()
    assert await queue.hand_over(nullcontext, 0.1) is None
    pace.settled([FRESH])
    assert await queue.hand_over(nullcontext, 0.1) == 0


@pytest.mark.parametrize(("single_active", "wanted"), [(False, FULL), (True, 1)])
def test_a_parked_message_of_an_isolated_queue_does_not_hold_up_others(single_active: bool, wanted: int) -> None:
    """Unless there is an order to keep: to get the full prefetch, the queue would be left to the next consumer first."""
    pace = after("opened", single_active=single_active)
    pace.isolate()
    pace.closed()
    pace.opened()
    pace.proved([])
    assert pace.wanted == 1
    pace.proved([HARMLESS])
    assert pace.wanted == wanted


def test_attempts_do_not_divide_the_batches_of_a_single_active_consumer() -> None:
    """Hand-overs, drains and lost connections count as attempts there. The marks of its messages divide a batch, if any."""
    pace = after("opened", single_active=True)
    assert pace.batch([SUSPECT, SUSPECT, SUSPECT], FULL) == BATCH_MAX
    assert pace.state is PROVED


def test_what_is_in_front_of_the_last_suspect_comes_one_by_one() -> None:
    """What is behind it comes in bulk again, as soon as something harmless is settled."""
    pace = after("opened", "a harmless message is settled")
    assert pace.set_apart(MARKED, in_hand=4, count=2)
    pace.closed(4)
    pace.opened()
    for settled in (MARKED, MARKED):
        assert pace.state is UNPROVED
        pace.settled([settled])
    assert pace.state is UNPROVED
    pace.settled([HARMLESS])
    assert pace.state is PROVED


def test_attempts_alone_do_not_divide_a_batch_before_they_are_many() -> None:
    """Without a single active consumer too: outages, hand-overs and rolling updates make no suspects."""
    pace = after("opened", "a harmless message is settled")
    assert pace.batch([HARMLESS, HARMLESS, SUSPECT], FULL) == BATCH_MAX
    assert pace.batch([HARMLESS, SUSPECT], FULL) == 1


def test_a_suspect_that_was_returned_often_is_tried_whatever_is_in_hand() -> None:
    """Busy workers could pass it on, untried, until the broker's delivery limit."""
    pace = after("opened", "a harmless message is settled")
    assert pace.batch([Delivery(b"", attempts=RETURNED_BELOW), HARMLESS], FULL) == 1
    assert not pace.set_apart(Delivery(b"", attempts=RETURNED_BELOW), FULL, 1)
    assert pace.state is PROVED
    assert pace.batch([Delivery(b"", attempts=RETURNED_BELOW - 1), HARMLESS], FULL) == 0


def test_a_message_is_tried_alone_before_the_brokers_delivery_limit() -> None:
    """Which is 20: it may be returned, found alone, and crash three workers by then."""
    assert SUSPECT_FROM < RETURNED_BELOW
    assert RETURNED_BELOW + 3 < 20
    assert by_arrival(SUSPECT) == ALONE
    assert by_arrival(HARMLESS) == 0


@pytest.mark.parametrize(
    ("attempts", "batch"),
    [
        ([], 0),
        ([0], 1),
        ([0] * 600, 500),
        ([1] * 600, 500),
        ([2] * 600, 125),
        ([3] * 600, 31),
        ([4] * 600, 7),
        ([5] * 600, 1),
        ([19] * 600, 1),
        ([0] * 100 + [2] * 500, 125),
        ([0] * 200 + [2] * 500, 200),
        ([0] * 3 + [5] + [0] * 500, 3),
        ([5] + [0] * 500, 1),
        ([2] + [0] * 500, 125),
        ([0] * 5 + [4] * 9, 7),
        ([5, 0, 2], 1),
        ([4] + [0] * 20 + [3], 7),
    ],
)
def test_a_batch_shrinks_with_the_attempts_of_its_messages(attempts: list[int], batch: int) -> None:
    """To a quarter each time. Messages with fewer attempts before them go first."""
    waiting = [Delivery(b"", attempts=count) for count in attempts]
    assert batch_length(waiting, 500, by_attempts) == batch
    assert any(map(is_doubtful, waiting[:batch])) == any(count > 1 for count in attempts[:batch])


def test_a_batch_is_divided_by_the_crashes_of_its_messages() -> None:
    """500, 125, 31, 7 and 1, in order. What has no crashes goes on in whole batches."""
    crashes = [1] * 200 + [2] * 40 + [3] * 8 + [4] * 2 + [0] * 600
    parts = list(divided(crashes, 500, int))
    assert [len(part) for part in parts] == [125, 75, 31, 9, 7, 1, 1, 1, 500, 100]
    assert [each for part in parts for each in part] == crashes


@given(st.lists(st.sampled_from(list(EVENTS)), max_size=30), st.booleans())
def test_the_state_says_what_may_be_wanted(events: list[str], single_active: bool) -> None:
    """Whatever happens in whatever order."""
    pace = Pace(FULL, BATCH_MAX, single_active=single_active)
    for event in events:
        EVENTS[event](pace)
        assert (pace.wanted == 0) == bool(pace.stopping or pace.paused_by)
        assert pace.wanted in ((0, FULL) if single_active else (0, 1, FULL))
        if pace.state in (UNPROVED, PROVED):
            assert pace.wanted == {UNPROVED: 1, PROVED: FULL}[pace.state]
    assert pace.stopping == ("stop" in events)
