"""Upserts that wait for their answers: sent in batches, and sent again on a new connection until each is answered."""

import asyncio
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeAlias

from task_activity_log.aio import Waiting, end, meanwhile
from task_activity_log.client.connections import Connections, refusal
from task_activity_log.client.copying import again
from task_activity_log.client.errors import ClientError, NoAnswer
from task_activity_log.client.messages import Answer, Upsert, no_answer
from task_activity_log.client.notices import Notices
from task_activity_log.client.opener import Opener
from task_activity_log.client.order import Order, waves
from task_activity_log.client.routing import Routing
from task_activity_log.problem import Code, Problem, Unavailable
from task_activity_log.rabbitmq.link import LOST, LinkOptions, Outage, asking_the_driver, describe, supervise
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import MessageMax, Publisher, may_be_of_a_message
from task_activity_log.rabbitmq.queues import own_queue
from task_activity_log.rabbitmq.reading import reading

BATCH = 500
_AGAIN_SECONDS = 0.2  # after a nack, or a lost connection that has not been noticed everywhere yet
_WATCH_SECONDS = 1.0
_CONFIRM_SECONDS, _REFUSED_SECONDS = 10.0, 10.0
"""How long nothing may be confirmed, or everything be refused, before another connection is tried: a caller waits for 30 s."""
_ALONE_TIMES = 3  # how often the broker must close the channel because of an upsert that is sent alone
Done: TypeAlias = Callable[[Answer | ClientError], None]
OnSent: TypeAlias = Callable[[int], None]
OnRefused: TypeAlias = Callable[[Answer], None]


@dataclass(eq=False, slots=True)
class Ask:
    """An upsert that waits for its answer."""

    upsert: Upsert
    done: Done
    confirmed: bool = False
    """Whether the broker has it."""


@dataclass(slots=True)
class _Sent:
    """What became of upserts that were published."""

    confirmed: int = 0
    ended: list[tuple[Upsert, Answer | ClientError]] = field(default_factory=list)
    """Those that are not sent again, and why: the broker takes no such message, or no queue takes it."""
    again: list[Upsert] = field(default_factory=list)
    """Those that were refused for now."""


class Sending(Protocol):
    """What the publisher's client sends through: `Asks`, or a fake of it for tests."""

    async def open(self) -> None:
        """Connect."""

    async def listen(self) -> None:
        """Have a queue for answers."""

    async def close(self) -> None:
        """Disconnect. Each ask that is left gets a `NoAnswer`."""

    def ask(self, upsert: Upsert, done: Done) -> Ask:
        """Send an upsert; `done` is called with its answer."""

    def forget(self, ask: Ask) -> None:
        """Stop waiting for an answer."""

    async def send(self, upserts: Sequence[Upsert], on_sent: OnSent, on_refused: OnRefused) -> None:
        """Send without asking for answers."""

    def no_answer(self, timeout: float | None, unanswered: Sequence[Upsert]) -> NoAnswer:
        """What to raise when no answer has come in time."""

    def not_confirmed(self, timeout: float | None) -> ClientError:
        """What to raise when nothing was confirmed in time."""


class Asks:
    """Two connections: one publishes upserts, the other consumes their answers from a queue of its own.

    The second one is opened when the first answer is asked for: a program that only sends needs no permission for it. What is
    unanswered when it is lost is sent again on the next one, with the same message_id and the address of the new queue.
    """

    def __init__(
        self,
        broker: str | LinkOptions,
        *,
        routing: Routing,
        app_id: str,
        on_outage: Callable[[str], None],
        on_connected: Callable[[], None] = lambda: None,
    ) -> None:
        """Do not connect yet. Raises `ClientError` if the URL is not that of a broker."""
        self._connections = Connections(broker, on_outage=self._away, on_failure=self._fail)
        self._routing = routing
        self._app_id = app_id
        self._notices = Notices(on_outage=on_outage, on_connected=on_connected, on_failure=self._connections.fail)
        self._message_max = MessageMax()
        self._reply_to: str | None = None  # the queue that is listened to
        self._asks: dict[str, Ask] = {}  # by message_id, in the order given
        self._reason = ""  # of the latest outage or nack
        self._over: ClientError | None = NOT_OPEN  # why nothing can be sent
        self._opener, self._opening = Opener("client"), False
        self._begin()

    def _begin(self) -> None:
        """Forget an earlier time. What waits in asyncio belongs to one event loop, and the next time may be in another."""
        self._publisher = Publisher(
            self._connections.options,
            purpose="upserts",
            confirm_timeout_seconds=_CONFIRM_SECONDS,
            on_connected=self._notices.connected,
            message_max=self._message_max,
            also_leave=("answers",),  # what others publish elsewhere does not reach a queue on a node that is cut off
            refused_seconds=_REFUSED_SECONDS,
        )
        self._listening = asyncio.Event()
        self._listener = asyncio.Lock()
        self._has_listener = False
        self._outbox: Waiting[Upsert | None] = Waiting()
        self._order = Order()
        self._blocked = False  # whether the caller knows that the broker blocks publishers
        self._ends = asyncio.Event()  # set with `_over`

    async def open(self) -> None:
        """Connect, and stay connected until `close`. Raises `ClientError` if the first attempt fails, or if it is open."""
        if (self._over is None or self._opening) and not self._opener.ended:
            raise ClientError("the client is open already")
        if self._opener.ended:
            self._connections.forget()
        self._begin()
        self._opener.note()
        self._opening, self._over = True, NOT_OPEN
        try:
            await self._connections.open(self._publisher.run(), self._send_all(), ready=self._can_publish())
            if self._over is not NOT_OPEN:  # it has failed meanwhile
                raise again(self._over)
            self._over = None
        finally:
            self._opening = False

    async def listen(self) -> None:
        """Have a queue for answers, before the first `ask`. An outage that may pass is waited for: the caller has a time limit.

        Raises `ClientError` for any other.
        """
        self._check_open()
        async with self._listener:
            self._check_open()  # it may have been closed meanwhile
            if not self._has_listener:
                outages = self._connections.options.on_outage
                listening = supervise("answers", self._listen, lambda: None, outages)
                await self._connections.open(listening, ready=self._listening.wait(), waits=True)
                self._has_listener = True

    async def close(self) -> None:
        """Disconnect. The queue of answers is deleted with its connection; each ask that is left gets a `NoAnswer`.

        In a process that was forked, or another event loop, it does nothing: the connections are not its own.
        """
        if self._over is None and not self._opener.is_here:
            return
        self._over = NOT_OPEN
        try:
            await self._connections.close()
        finally:  # also if it is cancelled
            self._end(NOT_OPEN, lambda ask: NoAnswer("the client was closed before the answer came", ask.upsert))

    def ask(self, upsert: Upsert, done: Done) -> Ask:
        """Send an upsert whose message_id is not waiting already; `done` is called with its answer, or why there is none.

        Raises `ClientError` if nothing can be sent.
        """
        self._check_open()
        if upsert.message_id in self._asks:
            raise ClientError(f"an upsert with message_id {upsert.message_id} is already waiting for its answer")
        ask = self._asks[upsert.message_id] = Ask(upsert, done)
        self._outbox.put(upsert)
        return ask

    def forget(self, ask: Ask) -> None:
        """Stop waiting for its answer, and do not send it again."""
        if self._asks.get(ask.upsert.message_id) is ask:
            del self._asks[ask.upsert.message_id]

    async def send(self, upserts: Sequence[Upsert], on_sent: OnSent, on_refused: OnRefused) -> None:
        """Send without asking for answers, until the broker has confirmed all that it takes.

        `on_sent` is called with how many more are confirmed, and `on_refused` with each that it does not take. Raises
        `ClientError` if no queue takes them, or the client ends.
        """
        self._check_open()
        sending = asyncio.ensure_future(self._send(upserts, on_sent, on_refused))
        ending = asyncio.ensure_future(self._ends.wait())
        try:
            await asyncio.wait({sending, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._check_open()
            await sending
        finally:
            ending.cancel()
            await end(sending)  # it tells what became of its upserts

    def no_answer(self, timeout: float | None, unanswered: Sequence[Upsert]) -> NoAnswer:
        """What to raise when no answer to these has come for `timeout` seconds."""
        if not (self._listening.is_set() and self._publisher.connected):
            why = f"the broker is away ({self._reason or 'there is no connection at the moment'})"
        elif all(ask.confirmed for upsert in unanswered if (ask := self._asks.get(upsert.message_id))):
            why = "is a worker running? What was sent is in its queue"
        else:
            why = self._not_confirmed
        return no_answer(timeout, unanswered, why)

    def not_confirmed(self, timeout: float | None) -> ClientError:
        """What to raise when the broker has confirmed nothing for `timeout` seconds."""
        return ClientError(f"the broker confirmed nothing for {timeout or 0:g} s: {self._not_confirmed}")

    @property
    def _not_confirmed(self) -> str:
        """Why the broker has not confirmed everything that was given."""
        if self._publisher.blocked is not None:
            return f"the broker blocks publishers ({self._publisher.blocked})"
        return self._reason or "the broker has not confirmed what was sent"

    async def _can_publish(self) -> None:
        """Return once there is a channel, the exchange exists, and it is known whether to send by record.

        Report otherwise, like a lost connection.
        """
        await self._publisher.wait_connected()
        try:
            with asking_the_driver():
                await self._publisher.require_exchange(self._routing.exchange)
                await self._routing.find_out(self._publisher)
        except LOST as error:
            assert self._connections.options.on_outage is not None  # noqa: S101 - `Connections` has set it
            self._connections.options.on_outage(describe(error))
            await asyncio.Event().wait()  # until the caller of `open` gets the error and cancels this

    def _check_open(self) -> None:
        if self._over is not None:
            raise again(self._over)
        self._opener.check()

    def _end(self, why: ClientError, answer: Callable[[Ask], ClientError]) -> None:
        for ask in list(self._asks.values()):
            ask.done(answer(ask))
        self._over = why
        self._asks.clear()
        self._ends.set()

    # ---- out

    async def _send_all(self) -> None:
        while batch := await self._outbox.take(BATCH):
            await self._listening.wait()
            order = self._order
            for wave in order.waves(filter(None, batch)):
                if self._order is not order:  # all that is unanswered is in the outbox again, in the order given
                    break
                waiting = [upsert for upsert in self._order.admit(wave) if upsert.message_id in self._asks]
                sent = _Sent()
                await self._publish(waiting, self._reply_to, sent)
                for upsert, outcome in sent.ended:
                    if ask := self._asks.pop(upsert.message_id, None):
                        ask.done(outcome)
                if sent.again:
                    records = self._order.refused(sent.again)
                    asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._send_again, records)

    def _send_again(self, records: Iterable[Hashable]) -> None:
        self._order.due(records)
        self._outbox.put(None)  # wakes the task that takes from it

    async def _send(self, upserts: Sequence[Upsert], on_sent: OnSent, on_refused: OnRefused) -> None:
        for wave in waves(upserts):
            left = wave
            while left:
                sent = _Sent()
                try:
                    await self._publish(left, None, sent)
                finally:  # also if the time is over
                    for answer in (one for _, one in sent.ended if isinstance(one, Answer)):
                        on_refused(answer)
                    if sent.confirmed:
                        on_sent(sent.confirmed)
                for _, outcome in sent.ended:
                    if isinstance(outcome, ClientError):
                        raise outcome
                left = sent.again
                if left:
                    await asyncio.sleep(_AGAIN_SECONDS)

    async def _publish(self, upserts: Sequence[Upsert], reply_to: str | None, sent: _Sent) -> None:
        """Publish, on each new connection again, until each was answered by the broker.

        The broker closes the channel, or the connection, at a message that it does not take, and everything behind it is
        lost. So what is lost is published again in halves, until such a message is alone.
        """
        pieces = [list(upserts)]
        lost_alone = 0
        while pieces:
            piece = self._without_too_large(pieces.pop(), sent)
            if not piece:
                continue
            lost = await self._publish_once(piece, reply_to, sent)
            if not lost:
                lost_alone = 0
            elif self._routing.must_change(self._publisher.last_reason):
                pieces.append(lost)
            elif error := self._no_way():
                sent.ended += [(upsert, error) for upsert in lost]
            elif len(piece) > 1:
                half = (len(lost) + 1) // 2
                pieces += [lost[half:], lost[:half]]
            elif (lost_alone := lost_alone + 1) < _ALONE_TIMES or not may_be_of_a_message(self._publisher.last_reason):
                pieces.append(lost)
            else:
                lost_alone = 0
                detail = f"The broker refuses this message: {self._publisher.last_reason}"
                sent.ended += [(lost[0], Answer.not_sent(lost[0], Problem(Code.INVALID_PROPERTIES, detail)))]

    async def _publish_once(self, upserts: Sequence[Upsert], reply_to: str | None, sent: _Sent) -> list[Upsert]:
        """Publish once there is a connection; returns those that were lost with it."""
        messages = [
            Outgoing(
                *self._routing.address(upsert.body, upsert.content_type),
                upsert.properties(reply_to, self._app_id),
                upsert.body,
            )
            for upsert in upserts
        ]
        while True:
            await self._publisher.wait_connected()
            try:
                async with meanwhile(self._watch_blocked()):
                    fates = await self._publisher.publish(messages)
                break
            except Unavailable as error:
                self._reason = error.reason
                self._report_blocked()
            await asyncio.sleep(_AGAIN_SECONDS)
        self._note(fates)
        lost = []
        for upsert, message, fate in zip(upserts, messages, fates, strict=True):
            if fate is Fate.CONFIRMED:
                sent.confirmed += 1
                if ask := self._asks.get(upsert.message_id):
                    ask.confirmed = True
            elif fate is Fate.RETURNED:
                sent.ended.append((upsert, ClientError(self._routing.without_queue(message.exchange))))
            elif fate is Fate.LOST:
                lost.append(upsert)
            else:
                sent.again.append(upsert)
        return lost

    async def _watch_blocked(self) -> None:
        """Report that the broker blocks publishers while a publish waits. It says so only once something was published."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            self._report_blocked()

    def _report_blocked(self) -> None:
        if self._publisher.blocked is not None and not self._blocked:
            self._blocked = True
            self._notices.away(f"the broker blocks publishers ({self._publisher.blocked})")

    def _without_too_large(self, upserts: list[Upsert], sent: _Sent) -> list[Upsert]:
        """Those that the broker's limit allows, as far as it is known: it says so when it closes a channel."""
        most = self._message_max.known
        if most is None or all(len(upsert.body) <= most for upsert in upserts):
            return upserts
        for upsert in upserts:
            if len(upsert.body) > most:
                detail = f"Send at most {most} bytes, the broker's limit. The body had {len(upsert.body)}."
                sent.ended.append((upsert, Answer.not_sent(upsert, Problem(Code.BODY_TOO_LARGE, detail))))
        return [upsert for upsert in upserts if len(upsert.body) <= most]

    def _no_way(self) -> ClientError | None:
        """Why nothing at all can be published, if that is why the last channel was closed."""
        reason = self._publisher.last_reason
        if reason.startswith("ACCESS_REFUSED"):
            return ClientError(f"{refusal(reason)}: see Permissions in docs/publishing.md")
        if reason.startswith("NOT_FOUND"):
            name = self._routing.named_in(reason)
            return ClientError(self._routing.without_exchange(name))
        return None

    def _note(self, fates: Sequence[Fate]) -> None:
        """Remember why some of these were not taken."""
        if Fate.LOST not in fates and Fate.UNCONFIRMED not in fates:
            self._reason = ""  # the broker has answered
            if self._blocked:
                self._blocked = False
                self._notices.connected()
        if Fate.LOST in fates:
            self._reason = f"publisher connection lost: {self._publisher.last_reason}"
        elif Fate.UNCONFIRMED in fates:
            self._reason = "upserts not confirmed in time"
        elif Fate.NACKED in fates:
            self._reason = "the broker refuses upserts: is the queue full?"

    # ---- back

    async def _listen(self, established: Callable[[], None]) -> None:
        choice = own_queue(self._routing.exchange, prefetch=2 * BATCH)
        expects = partial(bool, self._asks)  # the publisher finds it out while there is something to send
        async with reading(self._connections.options, "answers", choice, expects=expects) as reader:
            self._reply_to = reader.found.queue
            # The queue of their reply_to was deleted with its connection.
            self._order = Order()
            self._outbox.clear()
            for unanswered in self._asks.values():
                unanswered.confirmed = False
                self._outbox.put(unanswered.upsert)
            self._listening.set()
            established()
            if self._publisher.connected:
                self._notices.back()
            try:
                while True:
                    deliveries = await reader.take(BATCH)
                    for delivery in deliveries:
                        if ask := self._asks.get(delivery.properties.correlation_id or ""):
                            ask.done(Answer.of(delivery, upsert=ask.upsert))
                            self.forget(ask)  # not before: if this fails, it must not wait for ever
                    await reader.acknowledge([delivery.tag for delivery in deliveries])
            finally:
                self._listening.clear()

    def _away(self, outage: Outage) -> None:
        self._reason = outage.text
        self._notices.away(outage.text)

    def _fail(self, failure: ClientError) -> None:
        """A task of the client has ended: fail what waits, and what comes."""
        self._end(failure, lambda _: failure)


NOT_OPEN = ClientError("the client is not open: use it within `async with`")
