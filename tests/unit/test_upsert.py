"""What an upsert may consist of: anything else fails where it is made, not where it is sent with those of others."""

from typing import Any

import pytest

from task_activity_log.client import TaskActivityLogClient, Upsert


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("priority", 1.5),
        ("priority", "4"),
        ("message_id", 5),
        ("content_type", None),
        ("content_encoding", 1),
        ("headers", None),
        ("body", "{}"),
    ],
)
def test_a_value_of_another_type_is_named(name: str, value: object) -> None:
    given: dict[str, Any] = {"body": b"{}", name: value}
    with pytest.raises(TypeError, match=f"{name} should not be a value of type {type(value).__name__}"):
        Upsert(**given)


def test_a_window_in_which_nothing_could_be_sent_is_refused() -> None:
    with pytest.raises(ValueError, match="window should be at least 1"):
        TaskActivityLogClient("amqp://localhost", window=0)
