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
) -> list[str]:
    """The names of what is acknowledged."""
    return [delivery.body.decode() for delivery in overtaking.acknowledged(batch, placed, lambda _: in_hand)]


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
