"""Forwards requests from the requests queue to the partition of their record, for publishers that do not send by record."""

from collections.abc import Sequence
from dataclasses import replace

from task_activity_log.message import PERSISTENT, Properties
from task_activity_log.partitions import hash_slot
from task_activity_log.pipeline.request import Request
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.headers import BROKERS_HEADERS, raw_headers
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher


class Forwarder:
    """Publishes requests by record."""

    def __init__(self, publisher: Publisher, exchange: str) -> None:
        self._publisher = publisher
        self._exchange = exchange

    async def forward(self, requests: Sequence[Request[RabbitDelivery]]) -> None:
        """Publish these, each to the hash slot of its record, and return when all are confirmed.

        They must be of different records: if only some are confirmed, all are forwarded again, and a later request of a
        record must not come before an earlier one.

        Raises:
            Unavailable: the broker is away, or a partition is missing or takes no messages. Forward all of them again.
        """
        fates = await self._publisher.publish(
            [
                Outgoing(
                    self._exchange,
                    hash_slot(request.record.id),
                    forwarded(request.delivery.properties),
                    request.delivery.body,
                )
                for request in requests
            ]
        )
        if Fate.NACKED in fates:
            self._publisher.renew()
        for fate in fates:
            if fate is not Fate.CONFIRMED:
                raise Unavailable(
                    f"partitions {fate.value}", f"a queue of exchange {self._exchange} does not take requests"
                )


def forwarded(original: Properties) -> Properties:
    """The properties of a request as it is forwarded.

    The broker would refuse another user's user_id, would let the message expire although it was taken in time, and would
    let messages with a higher priority overtake others of their record.
    """
    entries = [entry for name, entry in raw_headers(original.table) if name not in BROKERS_HEADERS]
    return replace(
        original,
        delivery_mode=PERSISTENT,
        user_id=None,
        expiration=None,
        priority=None,
        table=b"".join(entries),
        headers={},
    )
