"""The properties of a request that is forwarded to the partition of its record."""

import pytest

from task_activity_log.message import Properties
from task_activity_log.pipeline.request import MESSAGE_ID_MAX
from task_activity_log.rabbitmq.forwarder import forwarded
from task_activity_log.rabbitmq.headers import encode, received

FRAME = 131_064


@pytest.mark.parametrize("name", ["traceparent", "tracestate", "large"])
@pytest.mark.parametrize("frame", [FRAME, 8_184])
def test_a_header_of_amqp_1_0_that_is_longer_than_a_frame_is_left_out(name: str, frame: int) -> None:
    """RabbitMQ 4 delivers it, and would end the connection that publishes it again: nothing would be forwarded any more."""
    kept = {"x-update-mode": "merge", "x-version": 7, "MessageId": "\U0001f600" * MESSAGE_ID_MAX}
    copy = forwarded(received(Properties(headers={name: "x" * 200_000, **kept})), frame)
    assert len(encode(copy, 0)) < frame
    assert received(copy).headers == kept


def test_a_message_id_that_does_not_count_is_left_out_too() -> None:
    """It may be longer than one that does."""
    given = Properties(message_id="m-1", headers={"MessageId": "x" * 200_000, "traceparent": "t", "x-version": 7})
    assert received(forwarded(received(given), FRAME)).headers == {"traceparent": "t", "x-version": 7}


def test_headers_that_fit_stay() -> None:
    """Whatever their names are."""
    headers = {"traceparent": "x" * 100_000, "other": "y"}
    assert received(forwarded(received(Properties(headers=headers)), FRAME)).headers == headers
