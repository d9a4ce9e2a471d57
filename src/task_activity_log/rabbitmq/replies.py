"""Replies: where each one goes, and what happens to one that cannot be delivered (contract, section 6)."""

import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import structlog

from task_activity_log.message import APP_ID, PERSISTENT, Properties
from task_activity_log.pipeline.reply import Reply
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.publisher import Fate, Outgoing, Publisher
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.record import Outcome

log = structlog.get_logger(__name__)

_DIRECT_REPLY_TO = "amq.rabbitmq.reply-to."


class Replies:
    """Publishes each reply to the `reply_to` of its request, or to the replies exchange if the request has none."""

    def __init__(
        self,
        publisher: Publisher,
        topology: Topology,
        *,
        reply_to_allowed: Sequence[str] = ("*",),
        also_to_exchange: bool = False,
        give_up_seconds: float = 30.0,
        on_given_up: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._publisher = publisher
        self._exchange = topology.replies_exchange
        self._own_queues = topology.own_queues
        self._allowed = tuple(reply_to_allowed)
        self._also_to_exchange = also_to_exchange
        self._give_up_seconds = give_up_seconds
        self._on_given_up = on_given_up
        self._refusing: dict[str, float] = {}  # each reply_to that refuses, and since when (`time.monotonic`)

    async def publish(self, replies: Sequence[Reply]) -> list[bool]:
        """Publish replies and return, for each, whether nothing more is to be done for it.

        True: it is confirmed, or was given up because its `reply_to` no longer exists or has refused replies for
        `give_up_seconds`; later replies to that address are then given up at once, until it takes one again. False: its
        `reply_to` refuses it at present (the queue is full); publish it again soon.

        Raises:
            Unavailable: the broker is away, or the replies exchange leads to no queue that takes them. Publish all of
                them again: a repeat has the same message_id.
        """
        outgoing = [self._outgoing(reply) for reply in replies]
        fates = iter(await self._publisher.publish([message for messages in outgoing for message in messages]))
        done: list[bool] = []
        for messages in outgoing:
            placed = [self._placed(message, next(fates)) for message in messages]
            done.append(all(placed))
        return done

    def _outgoing(self, reply: Reply) -> list[Outgoing]:
        properties = Properties(
            content_type=reply.content_type,
            headers=reply.headers,
            delivery_mode=PERSISTENT,
            correlation_id=reply.correlation_id,
            message_id=reply.message_id,
            timestamp=int(time.time()),
            type=reply.type,
            app_id=APP_ID,
        )
        outgoing = []
        address = self._address(reply.reply_to)
        if address is not None:
            # RabbitMQ returns a mandatory message to direct reply-to although it delivers it.
            mandatory = not address.startswith(_DIRECT_REPLY_TO)
            outgoing.append(Outgoing("", address, properties, reply.body, mandatory=mandatory))
        if address is None or self._also_to_exchange:
            outgoing.append(Outgoing(self._exchange, routing_key(reply), properties, reply.body))
        return outgoing

    def _placed(self, message: Outgoing, fate: Fate) -> bool:
        """Whether this message is done: confirmed, or given up."""
        if fate is Fate.CONFIRMED:
            if not message.exchange:
                self._refusing.pop(message.routing_key, None)
            return True
        if message.exchange:
            raise Unavailable(f"replies {fate.value}", f"no queue takes what {message.exchange} is sent")
        if fate is Fate.NACKED:
            since = self._refusing.setdefault(message.routing_key, time.monotonic())
            if time.monotonic() - since < self._give_up_seconds:
                return False
        self._on_given_up(fate.value)
        log.warning("reply_given_up", reply_to=message.routing_key, why=fate.value)
        return True

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
