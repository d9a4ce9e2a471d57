"""Upserts that wait for their answers: sent in batches, and sent again on a new connection until each is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from task_activity_log.aio import Waiting
from task_activity_log.client.connections import Connections
from task_activity_log.client.messages import Answer, ClientError, NoAnswer, Upsert
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.link import LinkOptions, Outage, supervise
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.queues import own_queue
from task_activity_log.rabbitmq.reading import reading
from task_activity_log.rabbitmq.topology import REQUEST_KEY

BATCH = 500
_AGAIN_SECONDS = 0.2
"""After a nack, or a lost connection that has not been noticed everywhere yet."""

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Ask:
    """An upsert that waits for its answer."""

    upsert: Upsert
    done: Callable[[Answer | ClientError], None]


class Asks:
    """Two connections: one publishes upserts, the other consumes their answers from a queue of its own.

    What is unanswered when the answers' connection is lost is sent again on the next one, with the same message_id and
    the address of the new queue.
    """

    def __init__(
        self, broker: str | LinkOptions, *, exchange: str, app_id: str, on_outage: Callable[[str], None]
    ) -> None:
        """Connect to nothing yet.

        Raises:
            ClientError: the URL is not that of a broker.
        """
        self._connections = Connections(broker, on_outage=self._away, on_failure=self._fail)
        self._exchange = exchange
        self._app_id = app_id
        self._on_outage = on_outage
        self._publisher = Publisher(self._connections.options, purpose="upserts")
        self._listening = asyncio.Event()
        self._reply_to: str | None = None  # the queue that is listened to
        self._asks: dict[str, Ask] = {}  # by message_id, in the order given
        self._outbox: Waiting[Ask] = Waiting()
        self._reason = ""  # of the latest outage or nack

    async def open(self) -> None:
        """Connect, and stay connected until `close`.

        Raises:
            ClientError: nothing answers, the broker refuses, or the exchange does not exist.
        """
        await self._connections.open(
            self._publisher.run(),
            supervise("answers", self._listen, lambda: None, self._connections.options.on_outage),
            self._send_all(),
            ready=self._ready(),
        )

    async def close(self) -> None:
        """Disconnect. The queue of answers is deleted with its connection; each ask that is left gets a `NoAnswer`."""
        await self._connections.close()
        for ask in list(self._asks.values()):
            ask.done(NoAnswer("the client was closed before the answer came", ask.upsert))
        self._asks.clear()

    def ask(self, upsert: Upsert, done: Callable[[Answer | ClientError], None]) -> Ask:
        """Send an upsert; `done` is called with its answer, or with the reason why there will not be one.

        Raises:
            ClientError: one with its message_id is waiting already.
        """
        if upsert.message_id in self._asks:
            raise ClientError(f"an upsert with message_id {upsert.message_id} is already waiting for its answer")
        ask = self._asks[upsert.message_id] = Ask(upsert, done)
        self._outbox.put(ask)
        return ask

    def forget(self, ask: Ask) -> None:
        """Stop waiting for its answer, and do not send it again."""
        if self._asks.get(ask.upsert.message_id) is ask:
            del self._asks[ask.upsert.message_id]

    async def send(self, upserts: Sequence[Upsert], on_sent: Callable[[int], None]) -> None:
        """Send upserts without asking for answers; `on_sent` is called with how many more the broker has confirmed.

        Raises:
            ClientError: no queue takes upserts.
        """
        while upserts:
            confirmed, returned, upserts = by_fate(upserts, await self._publish(upserts, None))
            if returned:
                raise self._no_queue()
            on_sent(len(confirmed))
            if upserts:
                await asyncio.sleep(_AGAIN_SECONDS)

    def why_silent(self, timeout: float | None, unanswered: int) -> str:
        """What to say of `unanswered` upserts when no answer has come for `timeout` seconds."""
        away = not (self._listening.is_set() and self._publisher.connected)
        why = f"the broker is away ({self._reason})" if away else "is a worker running? What was sent is in its queue"
        upserts = f"{unanswered:,} upsert{'' if unanswered == 1 else 's'}"
        return f"no answer for {timeout or 0:g} s ({upserts} unanswered): {why}"

    def why_unconfirmed(self, timeout: float | None) -> str:
        """What to say when the broker has confirmed nothing for `timeout` seconds."""
        return f"the broker confirmed nothing for {timeout or 0:g} s: {self._reason or 'no reason known'}"

    async def _ready(self) -> None:
        await self._publisher.wait_connected()
        await self._listening.wait()

    # ---- out

    async def _send_all(self) -> None:
        while batch := await self._outbox.take(BATCH):
            await self._listening.wait()
            asks = [ask for ask in batch if ask.upsert.message_id in self._asks]
            _, returned, nacked = by_fate(asks, await self._publish([ask.upsert for ask in asks], self._reply_to))
            for ask in returned:
                self.forget(ask)
                ask.done(self._no_queue())
            if nacked:
                asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._send_again, nacked)

    def _send_again(self, asks: Iterable[Ask]) -> None:
        for ask in asks:
            self._outbox.put(ask)

    async def _publish(self, upserts: Sequence[Upsert], reply_to: str | None) -> list[Fate]:
        """Publish, on each new connection again, until the broker has answered for all."""
        while True:
            await self._publisher.wait_connected()
            try:
                fates = await self._publisher.publish(
                    [
                        Outgoing(self._exchange, REQUEST_KEY, upsert.properties(reply_to, self._app_id), upsert.body)
                        for upsert in upserts
                    ]
                )
            except Unavailable as error:
                self._reason = error.reason
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                self._note(fates)
                return fates

    def _note(self, fates: Sequence[Fate]) -> None:
        """Remember why some of these were not taken."""
        if Fate.LOST in fates:
            self._reason = f"publisher connection lost: {self._publisher.last_reason}"
        elif Fate.UNCONFIRMED in fates:
            self._reason = "upserts not confirmed in time"
        elif Fate.NACKED in fates:
            self._reason = "the broker refuses upserts: is the queue full?"

    def _no_queue(self) -> ClientError:
        return ClientError(
            f"exchange {self._exchange} routes upserts to no queue: a worker declares and binds its queue when it starts"
        )

    # ---- back

    async def _listen(self, established: Callable[[], None]) -> None:
        choice = own_queue(self._exchange, prefetch=2 * BATCH)
        async with reading(self._connections.options, "answers", choice) as reader:
            self._reply_to = reader.found.queue
            self._outbox.clear()
            self._send_again(self._asks.values())  # the queue of their reply_to was deleted with its connection
            self._listening.set()
            established()
            try:
                while True:
                    deliveries = await reader.take(BATCH)
                    for delivery in deliveries:
                        self._answered(delivery)
                    await reader.acknowledge([delivery.tag for delivery in deliveries])
            finally:
                self._listening.clear()

    def _answered(self, delivery: RabbitDelivery) -> None:
        ask = self._asks.pop(delivery.properties.correlation_id or "", None)
        if ask is not None:
            ask.done(Answer.of(delivery, upsert=ask.upsert))

    def _away(self, outage: Outage) -> None:
        self._reason = outage.text
        self._on_outage(outage.text)

    def _fail(self, failure: ClientError) -> None:
        for ask in list(self._asks.values()):
            ask.done(failure)


def by_fate(messages: Sequence[T], fates: Sequence[Fate]) -> tuple[list[T], list[T], list[T]]:
    """Published messages in three lists: confirmed; returned, as no queue takes them; all others, to be sent again."""
    pairs = list(zip(messages, fates, strict=True))
    confirmed = [message for message, fate in pairs if fate is Fate.CONFIRMED]
    returned = [message for message, fate in pairs if fate is Fate.RETURNED]
    nacked = [message for message, fate in pairs if fate not in (Fate.CONFIRMED, Fate.RETURNED)]
    return confirmed, returned, nacked
