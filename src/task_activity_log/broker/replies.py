"""Replies: where each goes, and what becomes of one that cannot be placed (contract, section 6)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import structlog

from task_activity_log.broker.properties import Properties
from task_activity_log.broker.publisher import Fate, Outgoing, Publisher
from task_activity_log.broker.topology import Topology
from task_activity_log.problem import Unavailable
from task_activity_log.record import Outcome
from task_activity_log.reply import Reply

log = structlog.get_logger(__name__)

APP_ID = "task-activity-log-worker"
PERSISTENT = 2
_DIRECT_REPLY_TO = "amq.rabbitmq.reply-to."


class Replies:
    """Publishes replies to the `reply_to` of their requests, and to the replies exchange where there is none."""

    def __init__(
        self,
        publisher: Publisher,
        topology: Topology,
        *,
        reply_to_allowed: Sequence[str] = ("*",),
        also_to_exchange: bool = False,
        on_given_up: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._publisher = publisher
        self._exchange = topology.replies_exchange
        self._own_queues = topology.own_queues
        self._allowed = tuple(reply_to_allowed)
        self._also_to_exchange = also_to_exchange
        self._on_given_up = on_given_up

    async def publish(self, replies: Sequence[Reply]) -> None:
        """Publish `replies` and return when each is confirmed, or given up because its `reply_to` is gone.

        Raises:
            Unavailable: the broker is away, or the replies exchange leads to no queue that takes them. Publish all of
                them again: a repeat carries the same message_id.
        """
        now = int(time.time())
        outgoing: list[Outgoing] = []
        for reply in replies:
            properties = Properties(
                content_type=reply.content_type,
                headers=reply.headers,
                delivery_mode=PERSISTENT,
                correlation_id=reply.correlation_id,
                message_id=reply.message_id,
                timestamp=now,
                type=reply.type,
                app_id=APP_ID,
            )
            address = self._address(reply.reply_to)
            if address is not None:
                direct = address.startswith(_DIRECT_REPLY_TO)
                # RabbitMQ returns mandatory messages to direct reply-to although it delivers them.
                outgoing.append(Outgoing("", address, properties, reply.body, mandatory=not direct))
            if address is None or self._also_to_exchange:
                outgoing.append(Outgoing(self._exchange, routing_key(reply), properties, reply.body))
        for message, fate in zip(outgoing, await self._publisher.publish(outgoing), strict=True):
            if fate is Fate.CONFIRMED:
                continue
            if message.exchange:
                raise Unavailable(f"replies {fate.name.lower()}: no queue takes what {message.exchange} is sent")
            self._on_given_up(fate.name.lower())
            log.warning("reply_given_up", reply_to=message.routing_key, why=fate.name.lower())

    def _address(self, reply_to: str | None) -> str | None:
        if not reply_to:
            return None
        if reply_to in self._own_queues or not any(fnmatchcase(reply_to, pattern) for pattern in self._allowed):
            self._on_given_up("not_allowed")
            return None
        return reply_to


def routing_key(reply: Reply) -> str:
    """The routing key of a reply on the replies exchange: `stored.<outcome>` or `rejected`."""
    return "rejected" if reply.outcome is Outcome.REJECTED else f"stored.{reply.outcome}"
