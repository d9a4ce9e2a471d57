"""Which deliveries are acknowledged while the replies of others wait for their address."""

from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import pytest

from task_activity_log.message import Delivery
from task_activity_log.pipeline.overtaking import Overtaking
from task_activity_log.pipeline.ports import Settlement

A, B = UUID(int=1), UUID(int=2)


def stored(name: str, record: UUID | None = A, *, protected: bool = False) -> Settlement[Delivery]:
    return Settlement(Delivery(name.encode()), cast("Any", None), record=record, protected=protected)


def acknowledged(
    overtaking: Overtaking[Delivery],
    batch: Sequence[Settlement[Delivery]],
    placed: Sequence[bool],
    *,
    in_hand: bool = True,
    holds_up: bool = False,
) -> list[str]:
    """The names of what is acknowledged."""
    now = overtaking.acknowledged(batch, placed, lambda _: in_hand, lambda _: holds_up)
    return [delivery.body.decode() for delivery in now]


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (stored("later"), ["first", "later"]),
        (stored("later", protected=True), ["first", "later"]),
        (stored("later", B), ["later"]),
        (stored("later", None), ["later"]),
    ],
    ids=["of its record", "of its record, with a key", "of another record", "rejected"],
)
def test_a_later_request_is_acknowledged_with_the_earlier_one_that_waits(
    later: Settlement[Delivery], expected: list[str]
) -> None:
    overtaking, first = Overtaking[Delivery](), stored("first")
    assert acknowledged(overtaking, [first], [False]) == []
    assert acknowledged(overtaking, [later], [True]) == expected
    assert first.acknowledged is ("first" in expected)
    assert acknowledged(overtaking, [later], [True]) == (["later"] if first.acknowledged else expected)


def test_within_a_batch_only_earlier_requests_count() -> None:
    batch = [stored("one"), stored("two"), stored("three"), stored("four")]
    assert acknowledged(Overtaking[Delivery](), batch, [True, False, True, False]) == ["one", "two", "three"]


def test_a_request_with_a_key_or_a_version_waits_for_its_own_reply() -> None:
    overtaking, first = Overtaking[Delivery](), stored("first", protected=True)
    assert acknowledged(overtaking, [first], [False]) == []
    assert acknowledged(overtaking, [stored("later")], [True]) == ["later"]
    assert not first.acknowledged


def test_what_is_not_in_hand_any_more_is_forgotten() -> None:
    overtaking, first = Overtaking[Delivery](), stored("first")
    acknowledged(overtaking, [first], [False])
    assert acknowledged(overtaking, [stored("later")], [True], in_hand=False) == ["later"]
    assert not first.acknowledged


@pytest.mark.parametrize("protected", [False, True])
def test_what_holds_up_its_queue_is_acknowledged_although_its_reply_waits(protected: bool) -> None:
    """With those before it, of its record."""
    overtaking, first, next_ = Overtaking[Delivery](), stored("first"), stored("next", protected=protected)
    assert acknowledged(overtaking, [first], [False]) == []
    assert acknowledged(overtaking, [next_], [False], holds_up=True) == ["first", "next"]
    assert first.acknowledged
    assert next_.acknowledged
