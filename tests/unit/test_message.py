"""What an AMQP message's properties mean."""

import pytest

from task_activity_log.message import Properties


@pytest.mark.parametrize(
    ("timestamp", "sent"),
    [
        (None, None),
        (0, 0),
        (1_768_165_114, 1_768_165_114),
        (2**32 - 1, 2**32 - 1),
        (2**32, 4_294_967.296),
        (1_768_165_114_500, 1_768_165_114.5),
    ],
)
def test_a_timestamp_is_in_seconds_or_from_two_to_the_32_on_in_milliseconds(
    timestamp: int | None, sent: float | None
) -> None:
    """Java publishers send milliseconds."""
    assert Properties(timestamp=timestamp).sent == sent
