"""The replies exchange: replies are kept in the replies queue, whatever other queues are bound to it.

A subscriber may bind a queue of its own. If that queue refuses a reply or never confirms it, the broker confirms the reply
for no queue at all. It is then published once more, to the replies queue alone, so that nobody waits for the subscriber.

A queue that is silent holds the channel, and the connection behind some hundreds of replies. So while one is, a few replies
of a batch go to the exchange, as long as few channels are held; the others go to the replies queue alone, at once. If these
few are confirmed in time, or the broker was slow as a whole, all of the batch goes to the exchange.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from task_activity_log.pipeline.reply import Reply
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.properties import properties_of, properties_of_all
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.record import Outcome

log = structlog.get_logger(__name__)

_PATIENCE_SECONDS = 2.0
_SILENT_PATIENCE_SECONDS = 0.25
"""Used for half a minute after the exchange has not confirmed in time."""
_SILENT_SECONDS = 30.0
_SILENT_MAX = 32
"""How many replies of a batch go to the exchange then."""
_LOG_SECONDS = 60.0


class RepliesExchange:
    """Publishes replies to the replies exchange until they are in the replies queue."""

    def __init__(self, publisher: Publisher, topology: Topology, on_not_taken: Callable[[str, int], None]) -> None:
        """Publish nothing yet.

        `on_not_taken` is called with the reason and the number of replies that another queue has not taken.
        """
        self._publisher = publisher
        self._exchange = topology.replies_exchange
        self._queue = topology.replies_queue
        self._on_not_taken = on_not_taken
        self._silent_until = 0.0
        self._log_from = 0.0
        self._only_queue: dict[int, Reply] = {}  # by `id`, which stays theirs while they are here
        """Those of the last call that the replies queue has not taken. Other queues have their copies: they get no more."""

    async def publish(self, replies: Sequence[Reply], confirmed: Callable[[int], None]) -> None:
        """Publish these, and return when all are confirmed. `confirmed` is called with the position of each that is.

        Raises:
            Unavailable: the broker is away, or the replies queue takes nothing. Some may be confirmed.
        """
        only_queue, self._only_queue = self._only_queue, {}
        again = [place for place, reply in enumerate(replies) if id(reply) in only_queue] if only_queue else []
        if again:
            await self._publish_to_queue([replies[place] for place in again], lambda n: confirmed(again[n]))
            rest = [place for place, reply in enumerate(replies) if id(reply) not in only_queue]
            if rest:
                await self.publish([replies[place] for place in rest], lambda n: confirmed(rest[n]))
        elif _now() < self._silent_until or not self._publisher.has_room_for_late:
            await self._publish_carefully(replies, confirmed)
        else:
            await self._publish(replies, confirmed, _PATIENCE_SECONDS)

    async def _publish_carefully(self, replies: Sequence[Reply], confirmed: Callable[[int], None]) -> None:
        """Find out with a few whether a queue is silent still. If not, the others go to the exchange as well."""
        few = _SILENT_MAX if self._publisher.has_room_for_late else 0
        rest = replies[few:]
        began = _now()
        silent = not few or await self._publish(replies[:few], confirmed, _SILENT_PATIENCE_SECONDS)
        # If the replies queue was as slow, the broker stood still: a subscriber must not miss replies because of that.
        if silent and _now() - began < _PATIENCE_SECONDS:
            if rest:
                await self._publish_to_queue(rest, lambda n: confirmed(few + n))
                self._not_taken(Fate.UNCONFIRMED, len(rest))
        elif not rest or not await self._publish(rest, lambda n: confirmed(few + n), _SILENT_PATIENCE_SECONDS):
            self._silent_until = 0.0

    async def _publish(
        self, replies: Sequence[Reply], confirmed: Callable[[int], None], patience_seconds: float
    ) -> bool:
        """Publish these to the exchange, and then to the replies queue what was not confirmed; whether something was not."""
        fates = await self._publish_to_exchange(replies, patience_seconds)
        left = _sort(fates, confirmed)
        if Fate.LOST in fates:
            raise Unavailable("publisher connection lost", self._publisher.last_reason)
        if Fate.RETURNED in fates:
            self._publisher.restore()
            raise Unavailable("replies returned", f"no queue takes what {self._exchange} is sent")
        if left:
            why = Fate.UNCONFIRMED if Fate.UNCONFIRMED in fates else Fate.NACKED
            await self._publish_to_queue([replies[position] for position in left], lambda n: confirmed(left[n]))
            self._not_taken(why, len(left))
        return Fate.UNCONFIRMED in fates

    async def _publish_to_exchange(self, replies: Sequence[Reply], patience_seconds: float) -> list[Fate]:
        """Publish these, and remember whether the exchange was silent."""
        messages = [
            Outgoing(self._exchange, routing_key(each), properties, each.body)
            for each, properties in zip(replies, properties_of_all(replies), strict=True)
        ]
        began = _now()
        fates = await self._publisher.publish(messages, patience_seconds, _ignored)
        now = _now()
        # Whatever could not be written in time is lost, because the connection takes nothing more.
        if Fate.UNCONFIRMED in fates or (Fate.LOST in fates and now - began >= patience_seconds):
            self._silent_until = now + _SILENT_SECONDS
        return fates

    async def _publish_to_queue(self, replies: Sequence[Reply], confirmed: Callable[[int], None]) -> None:
        messages = [Outgoing("", self._queue, properties_of(each), each.body) for each in replies]
        fates = await self._publisher.publish(messages)
        if Fate.NACKED in fates:
            self._publisher.renew()
        if Fate.RETURNED in fates:
            self._publisher.restore()
        if left := _sort(fates, confirmed):
            self._only_queue = {id(reply): reply for reply in map(replies.__getitem__, left)}
            raise Unavailable(f"replies {fates[left[0]].value}", f"queue {self._queue} does not take them")

    def _not_taken(self, why: Fate, count: int) -> None:
        now = _now()
        self._on_not_taken(why.value, count)
        if now >= self._log_from:
            self._log_from = now + _LOG_SECONDS
            if why is Fate.NACKED:
                self._publisher.renew()
            log.warning("subscriber_takes_nothing", exchange=self._exchange, why=why.value)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _sort(fates: Sequence[Fate], confirmed: Callable[[int], None]) -> list[int]:
    """Report the positions that are confirmed, and return the others."""
    left = []
    for position, fate in enumerate(fates):
        if fate is Fate.CONFIRMED:
            confirmed(position)
        else:
            left.append(position)
    return left


def _ignored(_: int, __: Fate) -> None:
    """The copy for a subscriber is confirmed late, or never."""


def routing_key(reply: Reply) -> str:
    """The routing key of a reply on the replies exchange: `stored.<outcome>` or `rejected`."""
    return "rejected" if reply.outcome is Outcome.REJECTED else f"stored.{reply.outcome}"
