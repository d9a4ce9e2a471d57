"""Forwards requests from the requests queue to the partition of their record, for publishers that do not send by record."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from task_activity_log.message import PERSISTENT, TRACE_PARENT, TRACE_STATE, Properties
from task_activity_log.partitions import hash_slot
from task_activity_log.pipeline.request import Request
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.headers import BROKERS_HEADERS, NEEDED_HEADERS, encode, raw_headers
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher, must_be_bare

_TRACE = frozenset((TRACE_PARENT.encode(), TRACE_STATE.encode()))
_OTHERS_MAX = 4_096
"""More bytes than a content header has without its headers."""


class Forwarder:
    """Publishes requests by record."""

    def __init__(self, publisher: Publisher, exchange: str) -> None:
        self._publisher = publisher
        self._exchange = exchange
        self._bare = False
        """Whether only the needed headers are sent, because the broker has ended the connection."""

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
                    forwarded(request.delivery.properties, self._publisher.header_max, bare=self._bare),
                    request.delivery.body,
                )
                for request in requests
            ]
        )
        if Fate.NACKED in fates:
            self._publisher.renew()
        self._bare = must_be_bare(self._publisher, fates, was_bare=self._bare)
        for fate in fates:
            if fate is not Fate.CONFIRMED:
                raise Unavailable(
                    f"partitions {fate.value}", f"a queue of exchange {self._exchange} does not take requests"
                )


def forwarded(original: Properties, header_max: int, *, bare: bool = False) -> Properties:
    """The properties of a request as it is forwarded, in a content header of at most `header_max` bytes.

    The broker would refuse another user's user_id, would let the message expire although it was taken in time, and would
    let messages with a higher priority overtake others of their record.

    It ends the connection if the content header is longer than a frame, as one can be to which it has added headers of its
    own, or that a publisher of AMQP 1.0 has sent. Then only the headers are left that determine how the request is processed,
    and the trace context if there is room for it.

    The same is done if `bare`, without a type and the trace context. RabbitMQ 4 ends the connection that publishes some types
    of headers to a stream, and somebody else may have bound one to the exchange.
    """
    entries = [(name, entry) for name, entry in raw_headers(original.table) if name not in BROKERS_HEADERS]
    copy = replace(
        original,
        delivery_mode=PERSISTENT,
        user_id=None,
        expiration=None,
        priority=None,
        table=b"".join(entry for _, entry in entries),
        headers={},
    )
    if bare or _is_longer(copy, header_max):
        # None of these is long: the request would have been rejected.
        needed = NEEDED_HEADERS - {b"MessageId"} if original.message_id else NEEDED_HEADERS
        copy.table = _first(entries, needed if bare else needed | _TRACE)
        if _is_longer(copy, header_max):
            copy.table = _first(entries, needed)
    if bare:
        copy.type = None
    return copy


def _first(entries: Sequence[tuple[bytes, bytes]], names: Collection[bytes]) -> bytes:
    """The first header of each of these names, which is the one that counts."""
    return b"".join({name: entry for name, entry in reversed(entries) if name in names}.values())


def _is_longer(properties: Properties, header_max: int) -> bool:
    return len(properties.table) > header_max - _OTHERS_MAX and len(encode(properties, 0)) > header_max
