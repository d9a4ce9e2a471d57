"""Upserts that wait for their answers: sent in batches, and sent again on a new connection until each is answered."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from task_activity_log.aio import Waiting
from task_activity_log.client.connections import Connections
from task_activity_log.client.messages import Answer, ClientError, NoAnswer, Upsert
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.link import LinkOptions, Outage, supervise
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.queues import own_queue
from task_activity_log.rabbitmq.reading import reading
from task_activity_log.rabbitmq.topology import REQUEST_KEY

BATCH = 500
_AGAIN_SECONDS = 0.2
"""After a nack, or a lost connection that has not been noticed everywhere yet."""


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
        """Do not connect yet. Raises `ClientError` if the URL is not that of a broker."""
        self._connections = Connections(broker, on_outage=self._away, on_failure=self._fail)
        self._exchange = exchange
        self._app_id = app_id
        self._on_outage = on_outage
        self._publisher = Publisher(self._connections.options, purpose="upserts")
        self._listening = asyncio.Event()
        self._reply_to: str | None = None  # the queue that is listened to
        self._asks: dict[str, Ask] = {}  # by message_id, in the order given
        self._outbox: Waiting[Upsert] = Waiting()
        self._reason = ""  # of the latest outage or nack

    async def open(self) -> None:
        """Connect, and stay connected until `close`. Raises `ClientError` if the first attempt fails."""
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
        """Send an upsert whose message_id is not waiting already; `done` is called with its answer, or why there is none."""
        if upsert.message_id in self._asks:
            raise ClientError(f"an upsert with message_id {upsert.message_id} is already waiting for its answer")
        ask = self._asks[upsert.message_id] = Ask(upsert, done)
        self._outbox.put(upsert)
        return ask

    def forget(self, ask: Ask) -> None:
        """Stop waiting for its answer, and do not send it again."""
        if self._asks.get(ask.upsert.message_id) is ask:
            del self._asks[ask.upsert.message_id]

    async def send(self, upserts: Sequence[Upsert]) -> None:
        """Send without asking for answers, until the broker has confirmed all. Raises `ClientError` if no queue takes them."""
        while True:
            returned, upserts = await self._publish(upserts, None)
            if returned:
                raise self._no_queue()
            if not upserts:
                return
            await asyncio.sleep(_AGAIN_SECONDS)

    def no_answer(self, timeout: float | None, unanswered: Sequence[Upsert]) -> NoAnswer:
        """What to raise when no answer to these has come for `timeout` seconds."""
        away = not (self._listening.is_set() and self._publisher.connected)
        why = f"the broker is away ({self._reason})" if away else "is a worker running? What was sent is in its queue"
        upserts = f"{len(unanswered):,} upsert{'' if len(unanswered) == 1 else 's'}"
        return NoAnswer(f"no answer for {timeout or 0:g} s ({upserts} unanswered): {why}", unanswered[0])

    def not_confirmed(self, timeout: float | None) -> ClientError:
        """What to raise when the broker has confirmed nothing for `timeout` seconds."""
        return ClientError(f"the broker confirmed nothing for {timeout or 0:g} s: {self._reason or 'no reason known'}")

    async def _ready(self) -> None:
        await self._publisher.wait_connected()
        await self._listening.wait()

    # ---- out

    async def _send_all(self) -> None:
        while batch := await self._outbox.take(BATCH):
            await self._listening.wait()
            waiting = [upsert for upsert in batch if upsert.message_id in self._asks]
            returned, others = await self._publish(waiting, self._reply_to)
            for upsert in returned:
                if ask := self._asks.pop(upsert.message_id, None):
                    ask.done(self._no_queue())
            asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._send_again, others)

    def _send_again(self, upserts: Iterable[Upsert]) -> None:
        for upsert in upserts:
            self._outbox.put(upsert)

    async def _publish(self, upserts: Sequence[Upsert], reply_to: str | None) -> tuple[list[Upsert], list[Upsert]]:
        """Publish, on each new connection again, until something was sent.

        Returns:
            Those that no queue takes, and those that are not confirmed, to be sent again.
        """
        messages = [
            Outgoing(self._exchange, REQUEST_KEY, upsert.properties(reply_to, self._app_id), upsert.body)
            for upsert in upserts
        ]
        while True:
            await self._publisher.wait_connected()
            try:
                fates = await self._publisher.publish(messages)
                break
            except Unavailable as error:
                self._reason = error.reason
            await asyncio.sleep(_AGAIN_SECONDS)
        self._note(fates)
        pairs = list(zip(upserts, fates, strict=True))
        returned = [upsert for upsert, fate in pairs if fate is Fate.RETURNED]
        others = [upsert for upsert, fate in pairs if fate not in (Fate.CONFIRMED, Fate.RETURNED)]
        return returned, others

    def _note(self, fates: Sequence[Fate]) -> None:
        """Remember why some of these were not taken."""
        if Fate.LOST in fates:
            self._reason = f"publisher connection lost: {self._publisher.last_reason}"
        elif Fate.UNCONFIRMED in fates:
            self._reason = "upserts not confirmed in time"
        elif Fate.NACKED in fates:
            self._reason = "the broker refuses upserts: is the queue full?"

    def _no_queue(self) -> ClientError:
        advice = "a worker declares and binds its queue when it starts"
        return ClientError(f"exchange {self._exchange} routes upserts to no queue: {advice}")

    # ---- back

    async def _listen(self, established: Callable[[], None]) -> None:
        choice = own_queue(self._exchange, prefetch=2 * BATCH)
        async with reading(self._connections.options, "answers", choice) as reader:
            self._reply_to = reader.found.queue
            self._outbox.clear()
            # The queue of their reply_to was deleted with its connection.
            self._send_again([ask.upsert for ask in self._asks.values()])
            self._listening.set()
            established()
            try:
                while True:
                    deliveries = await reader.take(BATCH)
                    for delivery in deliveries:
                        if ask := self._asks.pop(delivery.properties.correlation_id or "", None):
                            ask.done(Answer.of(delivery, upsert=ask.upsert))
                    await reader.acknowledge([delivery.tag for delivery in deliveries])
            finally:
                self._listening.clear()

    def _away(self, outage: Outage) -> None:
        self._reason = outage.text
        self._on_outage(outage.text)

    def _fail(self, failure: ClientError) -> None:
        for ask in list(self._asks.values()):
            ask.done(failure)
