"""The fake worker, and the client and the subscription that it gives out."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from uuid import UUID

from task_activity_log import wire
from task_activity_log.client import (
    Answer,
    ClientError,
    LinkOptions,
    NoAnswer,
    PoisonQueue,
    StoredTaskActivityLog,
    Subscription,
    TaskActivityLogClient,
    Upsert,
)
from task_activity_log.client.asks import NOT_OPEN, Ask, Done
from task_activity_log.client.copying import again
from task_activity_log.client.messages import no_answer
from task_activity_log.client.subscribing import check_queues
from task_activity_log.message import Delivery, Properties
from task_activity_log.pipeline import reply as replies
from task_activity_log.pipeline.request import Rules, decode
from task_activity_log.problem import Code, Problem, Rejected
from task_activity_log.rabbitmq.exchange import routing_key
from task_activity_log.rabbitmq.headers import received
from task_activity_log.rabbitmq.properties import properties_of
from task_activity_log.testing.broker import MemorySource, Queues
from task_activity_log.testing.database import FakeDatabase

_ANSWER_QUEUE = "amq.gen-memory"


class FakeWorker:
    """A worker, its broker and its database, in memory of one event loop."""

    def __init__(self, rules: Rules | None = None, *, shared_queue: str = "task_activity_log.replies") -> None:
        """It answers at once, until `stop` is called.

        Args:
            rules: the settings of the worker that apply to requests; None: the defaults.
            shared_queue: the queue of the replies that subscribers share.

        Raises:
            TypeError: `rules` are something else.
        """
        if not isinstance(rules, Rules | None):
            raise TypeError(f"rules should be Rules, and not {type(rules).__name__}")
        self.database = FakeDatabase()
        self.dead_letters: list[tuple[Upsert, Problem]] = []
        """What was rejected, and why."""
        self._rules = rules or Rules()
        self._queues = Queues(shared_queue)
        self._requests: deque[tuple[Upsert, Properties, Done]] = deque()
        self._running = True

    @property
    def rows(self) -> dict[UUID, StoredTaskActivityLog]:
        """The table of records, by id. A test may change it."""
        return self.database.rows

    def client(self, *, app_id: str = "task-activity-log", window: int = 2_000) -> TaskActivityLogClient:
        """A client that publishes to this worker. The two arguments are as for `TaskActivityLogClient`; it has no others."""
        return _FakeClient(self, app_id, window)

    def subscribe(
        self,
        *,
        queue: str | None = None,
        routing_keys: Sequence[str] = (),
        everything: bool = False,
        prefetch: int = 100,
        remember: int = 100_000,
        most: int | None = None,
        on_poison: PoisonQueue | None = None,
        on_connected: Callable[[], None] = lambda: None,
        on_outage: Callable[[str], None] = lambda _: None,
    ) -> Subscription[Delivery]:
        """The replies of this worker. The arguments are those of `task_activity_log.client.subscribe`."""
        check_queues(queue, routing_keys, on_poison, shared=self._queues.shared)
        return Subscription(
            MemorySource(self._queues, queue, routing_keys, on_poison),
            everything=everything,
            prefetch=prefetch,
            remember=remember,
            most=most,
            on_poison=on_poison,
            on_connected=on_connected,
            on_outage=on_outage,
        )

    def stop(self) -> None:
        """Answer nothing from now on: requests wait."""
        self._running = False

    def start(self) -> None:
        """Answer what waits, and what comes."""
        self._running = True
        while self._requests:
            self._answer(*self._requests.popleft())

    def resend(self, *ids: UUID) -> None:
        """Publish these records as they are, or all, as `task-activity-log resend` does."""
        for record in [self.rows[one] for one in ids] if ids else list(self.rows.values()):
            reply = replies.snapshot(record, wire.JSON, "emit")
            self._queues.publish(routing_key(reply), reply.body, received(properties_of(reply)))

    def publish(self, body: bytes, properties: Properties, routing_key: str = "stored.updated") -> None:
        """Put any message into the replies exchange, as somebody else might."""
        self._queues.publish(routing_key, body, received(properties))

    def request(self, upsert: Upsert, reply_to: str | None, app_id: str, done: Done) -> None:
        """Take a request; `done` is called with its answer if it has a `reply_to`."""
        properties = received(upsert.properties(reply_to, app_id))
        self._requests.append((upsert, properties, done))
        if self._running:
            self.start()

    def _answer(self, upsert: Upsert, asked: Properties, done: Done) -> None:
        delivery = Delivery(upsert.body, asked)
        try:
            request = decode(delivery, self._rules)
        except Rejected as rejected:
            self.dead_letters.append((upsert, rejected.problem))
            if rejected.problem.code is Code.REPLY_AS_REQUEST:
                return
            reply = replies.undecoded(delivery, rejected.problem, self._rules.default_media_type)
        else:
            [applied] = self.database.apply([request])
            reply = replies.stored(request, applied, "emit")
        properties = received(properties_of(reply))
        if asked.reply_to is None:
            self._queues.publish(routing_key(reply), reply.body, properties)
        else:
            done(Answer.of(Delivery(reply.body, properties), upsert=upsert))


class _FakeClient(TaskActivityLogClient):
    """The publisher's client, which sends to a fake worker."""

    def __init__(self, worker: FakeWorker, app_id: str, window: int) -> None:
        super().__init__(LinkOptions("amqp://memory/"), app_id=app_id, window=window)
        self._asks = _FakeAsks(worker, app_id)


class _FakeAsks:
    """What the client sends through (`client.asks.Sending`)."""

    def __init__(self, worker: FakeWorker, app_id: str) -> None:
        self._worker = worker
        self._app_id = app_id
        self._open = False
        self._asks: dict[str, Ask] = {}

    async def open(self) -> None:
        if self._open:
            raise ClientError("the client is open already")
        self._open = True

    async def listen(self) -> None:
        self._check_open()

    async def close(self) -> None:
        for ask in list(self._asks.values()):
            ask.done(NoAnswer("the client was closed before the answer came", ask.upsert))
        self._asks.clear()
        self._open = False

    def ask(self, upsert: Upsert, done: Done) -> Ask:
        self._check_open()
        if upsert.message_id in self._asks:
            raise ClientError(f"an upsert with message_id {upsert.message_id} is already waiting for its answer")
        ask = self._asks[upsert.message_id] = Ask(upsert, done)

        def answered(answer: Answer | ClientError) -> None:
            if self._asks.get(upsert.message_id) is ask:
                del self._asks[upsert.message_id]
                done(answer)

        # Not at once: an answer comes after `ask` has returned.
        asyncio.get_running_loop().call_soon(self._worker.request, upsert, _ANSWER_QUEUE, self._app_id, answered)
        return ask

    def forget(self, ask: Ask) -> None:
        if self._asks.get(ask.upsert.message_id) is ask:
            del self._asks[ask.upsert.message_id]

    async def send(
        self,
        upserts: Sequence[Upsert],
        on_sent: Callable[[int], None],
        on_refused: Callable[[Answer], None],  # noqa: ARG002 - this broker takes everything
    ) -> None:
        self._check_open()
        for upsert in upserts:
            self._worker.request(upsert, None, self._app_id, lambda _: None)
        await asyncio.sleep(0)
        self._check_open()
        if upserts:
            on_sent(len(upserts))

    def no_answer(self, timeout: float | None, unanswered: Sequence[Upsert]) -> NoAnswer:
        return no_answer(timeout, unanswered, "is a worker running? What was sent is in its queue")

    def not_confirmed(self, timeout: float | None) -> ClientError:
        return ClientError(f"the broker confirmed nothing for {timeout or 0:g} s: no reason known")

    def _check_open(self) -> None:
        if not self._open:
            raise again(NOT_OPEN)
