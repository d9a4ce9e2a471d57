"""What is known of dead letters that were sent when the connection is lost in the middle."""

import json
from collections.abc import Sequence
from typing import cast
from uuid import UUID

from task_activity_log.client import replaying
from task_activity_log.client.routing import BY_RECORD, Routing
from task_activity_log.message import Properties
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher


async def test_what_was_confirmed_is_known_if_the_rest_cannot_be_sent_in_the_other_way() -> None:
    """The user may not send by record, so what was lost is sent to the one queue, and the connection is lost then.

    Otherwise what is in both queues would be said to be in one.
    """

    class Broker:
        last_reason = f"ACCESS_REFUSED - access to exchange 'requests{BY_RECORD}' refused"
        sent = 0

        async def require_exchange(self, name: str) -> None:
            """It exists."""

        async def publish(self, messages: Sequence[Outgoing]) -> list[Fate]:
            self.sent += len(messages)
            if self.sent > len(messages):
                raise Unavailable("connection lost")
            return [Fate.CONFIRMED, Fate.LOST]

    publisher, routing = cast("Publisher", Broker()), Routing("requests")
    await routing.find_out(publisher)
    properties = Properties(content_type="application/json")
    requests = [(properties, json.dumps({"id": str(UUID(int=number))}).encode()) for number in (1, 2)]
    assert await replaying._publish(publisher, routing, requests) == [Fate.CONFIRMED, Fate.LOST]
