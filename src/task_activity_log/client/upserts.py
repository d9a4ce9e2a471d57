"""The publisher's client: upserts out in batches, their answers back, over connections that are made again when lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from itertools import islice
from types import TracebackType
from typing import Self

import aiormq

from task_activity_log.aio import Waiting, end
from task_activity_log.client.bulk import Bulk, Record, request_of
from task_activity_log.client.link import PROGRAM, no_connection, options
from task_activity_log.client.messages import Answer, ClientError, NoAnswer, Upsert
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.link import LinkOptions, supervise
from task_activity_log.rabbitmq.publisher import Fate, Outgoing, Publisher
from task_activity_log.rabbitmq.reading import reading
from task_activity_log.rabbitmq.topology import REQUEST_KEY

_BATCH = 500
_AGAIN_SECONDS = 0.2
"""After a refusal, or a lost connection that is not noticed everywhere yet."""


class Ask:
    """An upsert that waits for its answer."""

    __slots__ = ("done", "upsert")

    def __init__(self, upsert: Upsert, done: Callable[[Answer | ClientError], None]) -> None:
        self.upsert = upsert
        self.done = done


class TaskActivityLogClient:
    """Sends upserts and receives their answers, through a reply queue of its own.

    What is unanswered when a connection is lost is sent again when there is one, with the same message_id: the worker's
    inbox sees to it that nothing is applied twice, and answers `duplicate`. Upserts are sent in the order in which they
    are given. Await the first of two for one record, or give them versions, where the order must hold even if the broker
    refuses one for a moment.
    """

    def __init__(
        self,
        broker: str | LinkOptions,
        *,
        exchange: str = "task_activity_log",
        app_id: str = PROGRAM,
        window: int = 2_000,
        on_outage: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            broker: the URL, `amqp://user:password@host:5672/vhost`.
            exchange: where the worker takes its requests from.
            app_id: who publishes, for those who read the dead letters.
            window: how many upserts of a bulk may be unanswered.
            on_outage: told why there is no connection, each time that one is lost or cannot be made.

        Raises:
            ClientError: the URL is none of a broker.
        """
        self._options = options(broker, self._away)
        self._exchange = exchange
        self._app_id = app_id
        self.window = window
        self._on_outage = on_outage
        self._publisher = Publisher(self._options, purpose="upserts")
        self._asks: dict[str, Ask] = {}  # by message_id, in the order given
        self._outbox: Waiting[Ask] = Waiting()
        self._reply_to: str | None = None
        self._listening = asyncio.Event()
        self._refused: asyncio.Future[str] | None = None  # while the first connection is made
        self._reason = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            ClientError: nobody answers, the broker refuses, or there is no worker's exchange.
        """
        self._refused = refused = asyncio.get_running_loop().create_future()
        self._tasks = [
            asyncio.create_task(self._publisher.run()),
            asyncio.create_task(supervise("answers", self._listen, lambda: None, self._away)),
            asyncio.create_task(self._send_all()),
        ]
        for task in self._tasks:
            task.add_done_callback(self._crashed)
        ready = asyncio.create_task(self._connected())
        try:
            await asyncio.wait({ready, refused}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._close()
            raise
        finally:
            ready.cancel()
            await asyncio.wait({ready})
            self._refused = None
        if refused.done():
            await self._close()
            raise no_connection(self._options, refused.result())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect; the reply queue goes with the connection. What is under way is applied all the same."""
        await self._close()

    async def _connected(self) -> None:
        await self._publisher.wait_connected()
        await self._listening.wait()

    async def _close(self) -> None:
        await end(*self._tasks)
        for ask in list(self._asks.values()):
            ask.done(NoAnswer("the client was closed before the answer came", ask.upsert))
        self._asks.clear()

    async def upsert(
        self, record: Record, *, message_id: str | None = None, version: int | None = None, timeout: float | None = 30.0
    ) -> Answer:
        """Send a record and return the answer: `.record` as the database has it now, and `.outcome`.

        Args:
            record: a record, or a request made by hand.
            message_id: that of an earlier attempt, to send a record again; None makes a new one.
            version: applied only if higher than every version of this record before.
            timeout: seconds for the answer to come, outages included; None waits for as long as it takes.

        Raises:
            UpsertRejected: the worker rejects it: `.code`, `.detail`, `.errors` for each bad field.
            NoAnswer: nobody answered in time: send `.upsert` of the exception again.
            ClientError: no queue takes upserts.
        """
        upsert = record if isinstance(record, Upsert) else Upsert.of(record, message_id=message_id, version=version)
        answered: asyncio.Future[Answer | ClientError] = asyncio.get_running_loop().create_future()
        ask = self._ask(upsert, lambda answer: None if answered.done() else answered.set_result(answer))
        try:
            async with asyncio.timeout(timeout):
                answer = await answered
        except TimeoutError:
            raise NoAnswer(self._no_answer(timeout, 1), upsert) from None
        finally:
            self._forget(ask)
        if isinstance(answer, ClientError):
            raise answer
        if answer.rejected:
            raise answer.problem
        return answer

    def upsert_many(self, records: Iterable[Record] | AsyncIterable[Record], *, timeout: float | None = 30.0) -> Bulk:
        """Send many, `window` of them unanswered at a time, and iterate over the answers as they come.

        `timeout` is the longest time in seconds without any answer, outages included; None waits for as long as it takes.
        Rejected ones are answers like others: see `Answer.rejected` and `Answer.problem`.
        """
        return Bulk(self, records, timeout)

    async def send_many(
        self,
        records: Iterable[Record],
        *,
        timeout: float | None = 30.0,
        on_sent: Callable[[int], None] = lambda _: None,
    ) -> int:
        """Send without asking for answers, which go to the replies exchange; returns how many the broker has confirmed.

        Args:
            records: what to send.
            timeout: the longest time in seconds without a confirmation, outages included.
            on_sent: told how many more are confirmed.

        Raises:
            ClientError: no queue takes upserts, or nothing was confirmed in time. Those before were.
        """
        count = 0
        coming = map(request_of, records)
        while batch := list(islice(coming, _BATCH)):
            try:
                async with asyncio.timeout(timeout):
                    while batch:
                        fates = await self._publish(batch, None)
                        _check(Fate.RETURNED not in fates, self._exchange)
                        refused = [upsert for upsert, fate in zip(batch, fates, strict=True) if fate is Fate.NACKED]
                        count += len(batch) - len(refused)
                        on_sent(len(batch) - len(refused))
                        batch = refused
                        if refused:
                            self._reason = "the broker refuses upserts: is the queue full?"
                            await asyncio.sleep(_AGAIN_SECONDS)
            except TimeoutError:
                raise ClientError(f"nothing confirmed for {timeout:g} s: {self._reason or 'no reason known'}") from None
        return count

    # ---- out

    def _ask(self, upsert: Upsert, done: Callable[[Answer | ClientError], None]) -> Ask:
        if upsert.message_id in self._asks:
            raise ClientError(f"message_id {upsert.message_id} is under way already")
        ask = self._asks[upsert.message_id] = Ask(upsert, done)
        self._outbox.put(ask)
        return ask

    def _forget(self, ask: Ask) -> None:
        if self._asks.get(ask.upsert.message_id) is ask:
            del self._asks[ask.upsert.message_id]

    async def _send_all(self) -> None:
        while batch := await self._outbox.take(_BATCH):
            await self._listening.wait()
            asks = [ask for ask in batch if ask.upsert.message_id in self._asks]
            fates = await self._publish([ask.upsert for ask in asks], self._reply_to)
            for ask, fate in zip(asks, fates, strict=True):
                if fate is Fate.RETURNED:
                    self._forget(ask)
                    ask.done(ClientError(_no_queue(self._exchange)))
                elif fate is Fate.NACKED:
                    self._reason = "the broker refuses upserts: is the queue full?"
                    asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._outbox.put, ask)

    async def _publish(self, upserts: Sequence[Upsert], reply_to: str | None) -> list[Fate]:
        """Publish until the broker has answered for all, again and again if need be."""
        while True:
            await self._publisher.wait_connected()
            try:
                return await self._publisher.publish(
                    [
                        Outgoing(self._exchange, REQUEST_KEY, upsert.properties(reply_to, self._app_id), upsert.body)
                        for upsert in upserts
                    ]
                )
            except Unavailable as error:
                self._reason = error.reason
            await asyncio.sleep(_AGAIN_SECONDS)

    # ---- back

    async def _listen(self, established: Callable[[], None]) -> None:
        async with reading(self._options, "answers", self._own_queue) as reader:
            self._reply_to = reader.queue
            # The queue of the connection before is gone, and with it what was answered to it.
            self._outbox.clear()
            for ask in self._asks.values():
                self._outbox.put(ask)
            self._listening.set()
            established()
            try:
                while True:
                    deliveries = await reader.take(_BATCH)
                    for delivery in deliveries:
                        self._answered(delivery)
                    await reader.acknowledge([delivery.tag for delivery in deliveries])
            finally:
                self._listening.clear()

    async def _own_queue(self, channel: aiormq.abc.AbstractChannel) -> tuple[str, int]:
        await channel.exchange_declare(self._exchange, passive=True)
        declared = await channel.queue_declare(exclusive=True, auto_delete=True)
        return declared.queue or "", 2 * _BATCH

    def _answered(self, delivery: RabbitDelivery) -> None:
        ask = self._asks.pop(delivery.properties.correlation_id or "", None)
        if ask is not None:
            ask.done(Answer.of(delivery, upsert=ask.upsert))

    def _away(self, reason: str) -> None:
        self._reason = reason
        if self._refused is not None:
            if not self._refused.done():
                self._refused.set_result(reason)
        else:
            self._on_outage(reason)

    def _crashed(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        failure = ClientError(f"the client failed: {type(error).__name__}")
        failure.__cause__ = error
        for ask in list(self._asks.values()):
            ask.done(failure)
        if self._refused is not None and not self._refused.done():
            self._refused.set_exception(failure)

    def _no_answer(self, timeout: float | None, unanswered: int) -> str:
        away = not (self._listening.is_set() and self._publisher.connected)
        why = f"the broker is away ({self._reason})" if away else "is a worker running? What was sent is in its queue"
        return f"no answer for {timeout or 0:g} s to {unanswered:,}: {why}"


def _no_queue(exchange: str) -> str:
    return f"exchange {exchange} leads to no queue: a worker declares and binds it when it starts"


def _check(routed: bool, exchange: str) -> None:
    if not routed:
        raise ClientError(_no_queue(exchange))
