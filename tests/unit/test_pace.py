"""The pace of the intake: every state with every event, and what holds after any sequence of events."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_activity_log.message import Delivery
from task_activity_log.pipeline.suspects import SUSPICIOUS_FROM
from task_activity_log.rabbitmq.pace import Cancel, Pace, Register, State, Step

FULL = 4
HARMLESS, SUSPECT = Delivery(b"", attempts=SUSPICIOUS_FROM - 1), Delivery(b"", attempts=SUSPICIOUS_FROM)

Event = Callable[[Pace], Step | None]

EVENTS: dict[str, Event] = {
    "connected": Pace.connected,
    "lost": Pace.lost,
    "a harmless message is settled": lambda pace: pace.settled([HARMLESS], 1),
    "a suspect is settled": lambda pace: pace.settled([SUSPECT], 1),
    "a harmless message is settled late": lambda pace: pace.settled([HARMLESS], 0),
    "nothing is settled": lambda pace: pace.settled([], 0),
    "a message is proved": lambda pace: pace.proved(),
    "pause": lambda pace: pace.pause("store"),
    "resume": lambda pace: pace.resume("store"),
    "requeued": lambda pace: pace.requeued(2, one_by_one=False),
    "requeued one by one": lambda pace: pace.requeued(2, one_by_one=True),
    "stop": Pace.stop,
}

BEFORE: dict[str, tuple[str, ...]] = {
    "not connected": (),
    "unproved": ("connected",),
    "proved": ("connected", "a harmless message is settled"),
    "paused": ("connected", "pause"),
    "paused with two to come one by one": ("connected", "pause", "requeued one by one"),
    "one by one with two to come": ("connected", "pause", "requeued one by one", "resume"),
    "one by one with one to come": (
        "connected",
        "pause",
        "requeued one by one",
        "resume",
        "a suspect is settled",
    ),
    "stopping": ("connected", "stop"),
    "stopping, not connected": ("stop",),
}
"""How each state is reached."""

NOT_CONNECTED, UNPROVED, PROVED, PAUSED, ONE_BY_ONE, STOPPING = State

TRANSITIONS: dict[str, dict[str, tuple[State, Step | None]]] = {
    "not connected": {
        "connected": (UNPROVED, Register(1)),
        "lost": (NOT_CONNECTED, None),
        "a harmless message is settled": (NOT_CONNECTED, None),
        "a suspect is settled": (NOT_CONNECTED, None),
        "a harmless message is settled late": (NOT_CONNECTED, None),
        "nothing is settled": (NOT_CONNECTED, None),
        "a message is proved": (NOT_CONNECTED, None),
        "pause": (NOT_CONNECTED, None),
        "resume": (NOT_CONNECTED, None),
        "requeued": (NOT_CONNECTED, None),
        "requeued one by one": (NOT_CONNECTED, None),
        "stop": (STOPPING, None),
    },
    "unproved": {
        "lost": (NOT_CONNECTED, None),
        "a harmless message is settled": (PROVED, Register(FULL)),
        "a suspect is settled": (UNPROVED, None),
        "a harmless message is settled late": (PROVED, Register(FULL)),
        "nothing is settled": (UNPROVED, None),
        "a message is proved": (PROVED, Register(FULL)),
        "pause": (PAUSED, Cancel()),
        "resume": (UNPROVED, None),
        "requeued": (UNPROVED, None),
        "requeued one by one": (ONE_BY_ONE, None),
        "stop": (STOPPING, Cancel()),
    },
    "proved": {
        "lost": (NOT_CONNECTED, None),
        "a harmless message is settled": (PROVED, None),
        "a suspect is settled": (PROVED, None),
        "a harmless message is settled late": (PROVED, None),
        "nothing is settled": (PROVED, None),
        "a message is proved": (PROVED, None),
        "pause": (PAUSED, Cancel()),
        "resume": (PROVED, None),
        "requeued": (UNPROVED, Register(1)),
        "requeued one by one": (ONE_BY_ONE, Register(1)),
        "stop": (STOPPING, Cancel()),
    },
    "paused": {
        "lost": (NOT_CONNECTED, None),
        "a harmless message is settled": (PAUSED, None),
        "a suspect is settled": (PAUSED, None),
        "a harmless message is settled late": (PAUSED, None),
        "nothing is settled": (PAUSED, None),
        "a message is proved": (PAUSED, None),
        "pause": (PAUSED, None),
        "resume": (UNPROVED, Register(1)),
        "requeued": (PAUSED, None),
        "requeued one by one": (PAUSED, None),
        "stop": (STOPPING, None),
    },
    "paused with two to come one by one": {
        "lost": (NOT_CONNECTED, None),
        "a harmless message is settled": (PAUSED, None),
        "a suspect is settled": (PAUSED, None),
        "a harmless message is settled late": (PAUSED, None),
        "nothing is settled": (PAUSED, None),
        "a message is proved": (PAUSED, None),
        "pause": (PAUSED, None),
        "resume": (ONE_BY_ONE, Register(1)),
        "requeued": (PAUSED, None),
        "requeued one by one": (PAUSED, None),
        "stop": (STOPPING, None),
    },
    "one by one with two to come": {
        "lost": (NOT_CONNECTED, None),
        "a harmless message is settled": (ONE_BY_ONE, None),
        "a suspect is settled": (ONE_BY_ONE, None),
        "a harmless message is settled late": (ONE_BY_ONE, None),
        "nothing is settled": (ONE_BY_ONE, None),
        "a message is proved": (ONE_BY_ONE, None),
        "pause": (PAUSED, Cancel()),
        "resume": (ONE_BY_ONE, None),
        "requeued": (UNPROVED, None),
        "requeued one by one": (ONE_BY_ONE, None),
        "stop": (STOPPING, Cancel()),
    },
    "one by one with one to come": {
        "lost": (NOT_CONNECTED, None),
        "a harmless message is settled": (PROVED, Register(FULL)),
        "a suspect is settled": (UNPROVED, None),
        "a harmless message is settled late": (ONE_BY_ONE, None),
        "nothing is settled": (ONE_BY_ONE, None),
        "a message is proved": (ONE_BY_ONE, None),
        "pause": (PAUSED, Cancel()),
        "resume": (ONE_BY_ONE, None),
        "requeued": (UNPROVED, None),
        "requeued one by one": (ONE_BY_ONE, None),
        "stop": (STOPPING, Cancel()),
    },
    "stopping": dict.fromkeys(EVENTS, (STOPPING, None)),
    "stopping, not connected": dict.fromkeys(EVENTS, (STOPPING, None)),
}
"""By state and event: the next state, and the step that the intake has to take. Only a lost connection is followed by
`connected`."""


def after(*events: str) -> Pace:
    """A pace that has seen these events."""
    pace = Pace(FULL)
    for event in events:
        EVENTS[event](pace)
    return pace


@pytest.mark.parametrize(
    ("before", "event"), [(before, event) for before, table in TRANSITIONS.items() for event in table]
)
def test_every_state_meets_every_event(before: str, event: str) -> None:
    """The next state and the step are those of the table."""
    pace = after(*BEFORE[before])
    step = EVENTS[event](pace)
    assert (pace.state, step) == TRANSITIONS[before][event]


def test_the_table_has_every_state_and_every_event() -> None:
    """Otherwise the test above would miss a case."""
    assert {after(*events).state for events in BEFORE.values()} == set(State)
    for before, table in TRANSITIONS.items():
        assert set(table) >= set(EVENTS) - {"connected"}, before


def test_one_harmless_message_among_suspects_proves_the_consumer() -> None:
    """It was processed, and nothing happened to the process."""
    assert after("connected").settled([SUSPECT, HARMLESS], 2) == Register(FULL)


def test_consuming_goes_on_when_the_last_of_those_who_paused_has_resumed() -> None:
    """The store and the replies may be unavailable at the same time."""
    pace = after("connected")
    assert pace.pause("store") == Cancel()
    assert pace.pause("reply") is None
    assert pace.paused_by == {"store", "reply"}
    assert pace.resume("store") is None
    assert pace.resume("reply") == Register(1)
    assert pace.paused_by == set()


def test_a_consumer_has_to_be_proved_again_after_a_pause_and_after_a_lost_connection() -> None:
    """What crashes the process may have arrived meanwhile."""
    paused = after("connected", "a harmless message is settled", "pause")
    assert paused.resume("store") == Register(1)
    lost = after("connected", "a harmless message is settled", "lost")
    assert lost.connected() == Register(1)


def test_a_pause_outlives_a_lost_connection() -> None:
    """The new connection consumes only when it is over."""
    pace = after("connected", "pause", "lost")
    assert pace.connected() is None
    assert pace.state is PAUSED
    assert pace.resume("store") == Register(1)


def test_messages_to_come_one_by_one_outlive_a_lost_connection() -> None:
    """They are first in the queue, whoever consumes them."""
    pace = after("connected", "pause", "requeued one by one", "resume", "lost")
    assert pace.connected() == Register(1)
    assert pace.state is ONE_BY_ONE


def test_more_may_be_settled_than_were_expected_one_by_one() -> None:
    """Then nothing is left to come one by one."""
    pace = after("connected", "pause", "requeued one by one", "resume")
    assert pace.settled([HARMLESS] * 3, 3) == Register(FULL)


def test_with_a_prefetch_of_one_a_proved_consumer_stays_as_it_is() -> None:
    """Registering it again would change nothing."""
    pace = Pace(1)
    assert pace.connected() == Register(1)
    assert pace.settled([HARMLESS], 1) is None
    assert pace.state is PROVED


@given(st.lists(st.sampled_from(list(EVENTS)), max_size=30))
def test_the_steps_lead_to_what_the_state_allows(events: list[str]) -> None:
    """Whatever happens in whatever order: taken one after the other, the steps register exactly what the state says."""
    pace, registered = Pace(FULL), 0
    allowed = {UNPROVED: 1, ONE_BY_ONE: 1, PROVED: FULL}
    for event in events:
        if event == "connected":
            pace.lost()  # a connection is opened when the last one is lost, never before
        step = EVENTS[event](pace)
        if event in ("connected", "lost"):
            registered = 0
        if isinstance(step, Register):
            assert step.prefetch != registered, "a step for nothing"
            registered = step.prefetch
        elif step is not None:
            assert registered, "there was nothing to cancel"
            registered = 0
        assert registered == allowed.get(pace.state, 0)
        assert not (registered and pace.paused_by)
    assert (pace.state is STOPPING) == ("stop" in events)
