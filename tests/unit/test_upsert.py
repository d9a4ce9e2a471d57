"""What upserts, clients and subscriptions may be made of: anything else fails where it is made, not where it is sent."""

from typing import Any
from uuid import uuid4

import pytest

from task_activity_log.client import PoisonQueue, TaskActivityLog, TaskActivityLogClient, Upsert, subscribe
from task_activity_log.testing import FakeWorker


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("priority", 1.5),
        ("priority", "4"),
        ("priority", True),
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


def test_an_empty_message_id_is_refused() -> None:
    """The worker would take it for none, and apply the upsert each time that it is sent."""
    with pytest.raises(ValueError, match="message_id should not be empty"):
        Upsert(b"{}", message_id="")
    with pytest.raises(ValueError, match="message_id should not be empty"):
        Upsert.of(TaskActivityLog(id=uuid4()), message_id="")


def test_no_warning_shows_values_of_a_record_that_was_made_without_validation() -> None:
    """The worker names the bad fields, without their values. Pydantic's warning has them, and tests fail at each warning."""
    unvalidated: Any = {"subject": 5}
    record = TaskActivityLog.model_construct(**unvalidated)
    assert Upsert.of(record).body == b'{"subject":5}'


def test_a_window_in_which_nothing_could_be_sent_is_refused() -> None:
    with pytest.raises(ValueError, match="window should be at least 1"):
        TaskActivityLogClient("amqp://localhost", window=0)


@pytest.mark.parametrize("value", [1.5, None, b"7", ["a"], {"a": 1}, uuid4()])
def test_a_header_of_another_type_is_named(value: object) -> None:
    """It would be sent as text."""
    with pytest.raises(TypeError, match=f"header x-own should not be a value of type {type(value).__name__}"):
        Upsert(b"{}", headers={"x-ok": 1, "x-own": value})


@pytest.mark.parametrize("version", [1.5, True, "clok"])
def test_a_version_is_an_integer(version: Any) -> None:
    """The worker would reject any other, and so would `True`."""
    with pytest.raises(TypeError, match=f"version should be an integer, not {type(version).__name__}"):
        Upsert.of(TaskActivityLog(id=uuid4()), version=version)


@pytest.mark.parametrize("version", [-(2**63) - 1, 2**63])
def test_a_version_that_no_worker_takes_is_named(version: int) -> None:
    """It would be rejected as `invalid_version`."""
    with pytest.raises(
        ValueError, match="version should be an integer from -9223372036854775808 to 9223372036854775807"
    ):
        Upsert.of(TaskActivityLog(id=uuid4()), version=version)


@pytest.mark.parametrize("version", [-(2**63), 2**63 - 1])
def test_the_extreme_versions_can_be_sent(version: int) -> None:
    """They are the limits of a 64-bit integer."""
    assert Upsert.of(TaskActivityLog(id=uuid4()), version=version).headers == {"x-version": version}


LONG, NO_TEXT = "x" * 256, "\ud800"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"exchange": "x" * 118}, "exchange should have at most 117 letters"),
        ({"exchange": ""}, "exchange should have at most 117 letters"),
        ({"exchange": "é", "partitions_exchange": "x"}, "exchange should have at most 127 letters"),
        ({"partitions_exchange": "x" * 128}, "partitions_exchange should have at most 127 letters"),
        ({"app_id": LONG}, "app_id should be text of at most 255 bytes"),
        ({"app_id": NO_TEXT}, "app_id should be text of at most 255 bytes"),
        ({"partitioned": "no"}, "partitioned should be True, False or None"),
    ],
)
def test_a_client_has_names_that_can_be_sent(given: dict[str, Any], words: str) -> None:
    """A connection whose task fails says nothing about the name that was wrong. `"no"` would be taken for true."""
    with pytest.raises(ValueError, match=words):
        TaskActivityLogClient("amqp://localhost", **given)


SUBSCRIPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"queue": LONG}, ValueError, "queue should have at most 255 letters"),
    ({"queue": NO_TEXT}, ValueError, "queue should have at most 255 letters"),
    ({"routing_keys": [LONG]}, ValueError, "routing_keys should be text of at most 255 bytes"),
    ({"routing_keys": "stored.*", "queue": "q"}, TypeError, "routing_keys should be a sequence"),
    ({"prefetch": 0}, ValueError, "prefetch should be from 1 to 65535"),
    ({"prefetch": -1}, ValueError, "prefetch should be from 1 to 65535"),
    ({"prefetch": 65_536}, ValueError, "prefetch should be from 1 to 65535"),
    ({"on_poison": "poison"}, TypeError, "should be a PoisonQueue"),
    ({"on_poison": PoisonQueue("own"), "queue": "own"}, ValueError, "should name another queue"),
    ({"on_poison": PoisonQueue("task_activity_log.replies")}, ValueError, "should name another queue"),
    ({"on_poison": PoisonQueue("poison"), "routing_keys": ["#"]}, ValueError, "needs a queue that keeps the reply"),
]


@pytest.mark.parametrize(("given", "error", "words"), SUBSCRIPTIONS)
def test_a_subscription_that_cannot_work_is_refused(given: dict[str, Any], error: type[Exception], words: str) -> None:
    """Also by the fake worker. The letters of one text would be bound as keys, and a prefetch of 0 would wait without end."""
    with pytest.raises(error, match=words):
        subscribe("amqp://localhost", **given)
    with pytest.raises(error, match=words):
        FakeWorker().subscribe(**given)


@pytest.mark.parametrize("name", [LONG, "", NO_TEXT])
def test_a_poison_queue_has_a_name_that_can_be_sent(name: str) -> None:
    with pytest.raises(ValueError, match="name should have at most 255 letters"):
        PoisonQueue(name)


def test_an_exchange_of_subscribers_has_a_name_that_can_be_sent() -> None:
    with pytest.raises(ValueError, match="exchange should have at most 127 letters"):
        subscribe("amqp://localhost", exchange=LONG, routing_keys=["#"])
