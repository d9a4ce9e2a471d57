"""Intake: deliveries from the request queues, at the pace that is safe, over a connection that is rebuilt when lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from functools import partial
from math import inf
from typing import Any

import aio_pika
import structlog

from task_activity_log.aio import Waiting, end
from task_activity_log.message import Delivery
from task_activity_log.pipeline.suspects import is_suspect
from task_activity_log.rabbitmq.balancing import Balancing
from task_activity_log.rabbitmq.channel import wait_closed
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.cut_off import Watch, commit, count_consumers
from task_activity_log.rabbitmq.frames import FrameReader
from task_activity_log.rabbitmq.link import (
    LOST,
    LinkOptions,
    broker_failed,
    cannot_reach_queue,
    connect,
    describe,
    supervise,
)
from task_activity_log.rabbitmq.pace import Pace
from task_activity_log.rabbitmq.queue_intake import Connected, QueueIntake
from task_activity_log.rabbitmq.topology import Topology, check, consumers, declare
from task_activity_log.rabbitmq.weight import UNBOUNDED, Bounds, Budget

log = structlog.get_logger(__name__)

_SOON_SECONDS = 10.0
"""If the broker fails while this worker has a consumer, and again within this time, it fails at a delivery."""
_LOOK_SECONDS = 1.0
"""How often it is looked whether queues that are isolated have nothing in hand."""
_OTHERS = (
    "Across workers a later message for a record may be applied before an earlier one, unless publishers send x-version."
    " WORKER_PARTITIONS keeps the order and lets all workers work; WORKER_SINGLE_ACTIVE_CONSUMER keeps it, too, and lets"
    " the others stand by."
)


async def _at_once() -> None:
    pass


class Intake:
    """Consumes the request queues, and consumes them again whenever the connection is lost.

    It is one queue, or the partitions and the queue of those who do not send by record.
    """

    connected_since: float | None = None
    """When the present connection was opened (`time.monotonic`); None while there is none. Set by `_session`."""
    _outage: str | None = None  # of the connection. Set by `run`
    balancing: Balancing | None
    """Shares the partitions with other workers; None without partitions."""
    _finish_until: float | None = None  # set by `stop`: when nothing more is taken (`time.monotonic`)
    _seen_others = False  # set at the first connection
    _suspects = False  # whether the last batch was a suspect; set by `take`
    _failed_at = -inf  # when the broker last failed while it delivered (`time.monotonic`). Set by `_explained_session`
    _isolating = False  # whether each queue has a connection of its own. Set by `_explained_session`

    def __init__(
        self,
        options: LinkOptions,
        topology: Topology,
        *,
        prefetch: int,
        forward_prefetch: int | None = None,
        batch_max: int,
        bounds: Bounds = UNBOUNDED,
        declare_topology: bool = True,
        before_consuming: Callable[[], Awaitable[object]] = _at_once,
        on_lost: Callable[[], None] = lambda: None,
        on_late: Callable[[int], None] = lambda _: None,
        on_suspects: Callable[[Sequence[Delivery]], None] = lambda _: None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            options: how to reach the broker.
            topology: the names.
            prefetch: how many deliveries of a queue may be in hand once its consumer is proved.
            forward_prefetch: the same for the queue of those who do not send by record; None: as any queue.
            batch_max: how many deliveries may be processed together.
            bounds: how much a batch and what is in hand may weigh.
            declare_topology: whether to declare the queues, or only to check that they exist.
            before_consuming: awaited on each new connection. What is delivered in an outage uses up counted deliveries.
            on_lost: called when a connection that consumed is lost.
            on_late: called with the number of deliveries that could not be acknowledged any more.
            on_suspects: called with messages that may have crashed a worker, by their attempts, before the first is tried alone.
        """
        self._options, self._topology, self._bounds = options, topology, bounds
        self._prepare, self._before_consuming = declare if declare_topology else check, before_consuming
        self._on_lost, self._on_late, self._on_suspects = on_lost, on_late, on_suspects
        self._waiting: Waiting[RabbitDelivery] = Waiting(bounds.batch)  # filled by the consumers
        self._paused_by: set[str] = set()  # changed by `pause` and `resume` alone
        pace = partial(Pace, batch_max=batch_max, single_active=topology.is_single_active)
        self._queues = _queues_of(topology, self._waiting, pace, (prefetch, forward_prefetch or prefetch), bounds)
        self.balancing = Balancing(self._queues[: topology.partitions], topology) if topology.partitions else None

    @property
    def consuming(self) -> bool:
        """Whether all queues have a consumer of ours, or are about to have it again."""
        return all(queue.consuming for queue in self._queues)

    @property
    def consuming_some(self) -> bool:
        """Whether one of the queues has. Others may have no leader, which a restart of the worker does not change."""
        return any(queue.consuming for queue in self._queues)

    @property
    def outage(self) -> str | None:
        """Why there is no consumer on some queue; None if all have one, and before the first connection ends."""
        return self._outage or next((queue.outage for queue in self._queues if queue.outage), None)

    @property
    def in_hand(self) -> int:
        """How many deliveries are not settled."""
        return sum(queue.in_hand for queue in self._queues)

    @property
    def waiting(self) -> int:
        """How many of them were not taken yet."""
        return len(self._waiting)

    async def wait_consuming(self) -> None:
        """Return once every queue has a consumer of ours."""
        for queue in self._queues:
            await queue.registered.wait()

    async def run(self) -> None:
        """Keep consuming until cancelled."""
        await supervise("intake", self._explained_session, self._on_lost)

    async def _explained_session(self, established: Callable[[], None]) -> None:
        registered = self._registrations
        try:
            await self._session(established)
            while self._isolating:  # it has ended because isolation is over
                self._isolating = False
                await self._session(established)
        except LOST as error:
            self._outage = describe(error).text
            failed, now = broker_failed(error), time.monotonic()
            self._isolating = failed and now - self._failed_at < _SOON_SECONDS
            # Before it had a consumer it may be a queue without a leader.
            delivered = failed and (self._isolating or self._registrations > registered)
            self._failed_at = now if delivered else -inf
            raise

    @property
    def _registrations(self) -> int:
        return sum(queue.registrations for queue in self._queues)

    async def _session(self, established: Callable[[], None]) -> None:
        # The publishers have to be at the same node. Only the intake finds out that its node is cut off from the others, and
        # such a node returns what is sent to queues that it does not know.
        async with connect(self._options, "intake", leads=True) as (connection, frame_reader):
            self.connected_since = time.monotonic()
            watch = self._watch(connection, frame_reader)
            working = (
                self._consume(connection, frame_reader, established),
                _wait_lost(connection),
                watch.wait_cut_off(),
            )
            try:
                await _all(working, self._disconnected)
            except LOST as error:
                # The queue did not register the renewed consumer, or the node cannot reach the queue, and says so. Anything
                # else is a lost connection, or a broker that is slow.
                if watch.under_way and cannot_reach_queue(error):
                    raise watch.cut_off() from error
                raise

    def _watch(self, connection: aio_pika.Connection, frame_reader: FrameReader) -> Watch:
        """Finds out whether the node is cut off. No order is changed by what the queue is asked."""
        queue = self._topology.proof_queue
        prove: Callable[[], Awaitable[object]] = self._queues[0].renew
        if self._topology.partitions:
            prove = partial(commit, connection, queue)  # nobody publishes to it
        return Watch(
            queue,
            registered=lambda: self.consuming_some,
            seen=lambda: [each.seen for each in self._queues],
            prove=prove,
            count=partial(count_consumers, connection, queue),
            read_seconds=lambda: frame_reader.read_seconds,
        )

    async def _consume(
        self, connection: aio_pika.Connection, frame_reader: FrameReader, established: Callable[[], None]
    ) -> None:
        """Consume all queues, and balance the partitions."""
        if not self._isolating:  # everything was there a moment ago, and declaring many partitions takes seconds
            await self._prepare(connection, self._topology)
        await self._warn_of_others(connection)
        await self._before_consuming()
        missing = set(self._queues)

        def tried(queue: QueueIntake) -> None:
            if queue in missing:
                missing.remove(queue)
                if not missing:
                    self._outage = None
                    established()

        if self.balancing is None and not self._isolating:
            queue = self._queues[0]
            await queue.consume(connection, frame_reader, partial(tried, queue))
            return
        restore = partial(self._prepare, connection, self._topology)
        working = [
            queue.keep_consuming(
                self._connected(queue, connection, frame_reader), partial(tried, queue), restore, alone=self._isolating
            )
            for queue in self._queues
        ]
        if self._isolating:
            working.append(self._leave_isolation())
        if self.balancing is not None:
            working.append(self.balancing.run(connection, self._may_balance, lambda: frame_reader.read_seconds))
        await _all(working)

    def _connected(self, queue: QueueIntake, connection: aio_pika.Connection, frame_reader: FrameReader) -> Connected:
        """The connection for a queue: the shared one, or its own if the broker has failed twice while it delivered."""
        if not self._isolating:
            return lambda: nullcontext((connection, frame_reader))
        queue.isolate()
        log.warning("queue_isolated", queue=queue.queue)
        return partial(self._own_connection, queue, (connection, frame_reader))

    @asynccontextmanager
    async def _own_connection(
        self, queue: QueueIntake, shared: tuple[aio_pika.Connection, FrameReader]
    ) -> AsyncIterator[tuple[aio_pika.Connection, FrameReader]]:
        """A connection for this queue alone; the shared one if the broker permits no more connections."""
        async with AsyncExitStack() as stack:
            opened = shared
            with suppress(*LOST):
                opened = await stack.enter_async_context(connect(self._options, f"intake of {queue.queue}"))
            yield opened

    async def _leave_isolation(self) -> None:
        """Let queues leave isolation; return when none has been isolated for a while, to have one connection again."""
        while any(queue.was_isolated for queue in self._queues):
            await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.gather(*(queue.leave_isolation() for queue in self._queues))

    def _may_balance(self) -> bool:
        return not self._paused_by and self._finish_until is None

    def _disconnected(self) -> None:
        """The connection is lost: everything in hand comes again."""
        self.connected_since = None
        self._waiting.clear()
        for queue in self._queues:
            queue.forget()

    async def _warn_of_others(self, connection: aio_pika.Connection) -> None:
        # At the first connection only: later ones may see this worker's own last consumer, which the broker still has.
        if self._seen_others or self._topology.is_single_active:
            return
        self._seen_others = True
        if others := await consumers(connection, self._topology):
            log.warning("other_consumers", count=others, advice=_OTHERS)

    async def take(self, most: int) -> list[RabbitDelivery] | None:
        """The next batch: what is waiting, at least one, at most `most`. Without a single active consumer, a suspect alone.

        Returns an empty list when nothing more is to be taken before `renew` was called, and None once `stop` was called
        and nothing is waiting, or its time is over.
        """
        while True:
            stopped = self._finish_until is not None
            if stopped and (not self._waiting or time.monotonic() >= (self._finish_until or 0)):
                return None
            if self._waiting and not self._paused_by:
                waiting = self._waiting.peek(most)
                if not self._topology.is_single_active:
                    self._notice_suspects(waiting)
                queue = self._queue_of(waiting[0])
                if count := queue.pace.batch(waiting, queue.in_hand):
                    return self._waiting.take_waiting(count)
                return None if stopped else []
            await self._waiting.changed()

    def coming(self, most: int) -> Sequence[RabbitDelivery]:
        """What may be taken next, as far as it has arrived."""
        return self._waiting.peek(most)

    def _queue_of(self, delivery: RabbitDelivery) -> QueueIntake:
        return next(queue for queue in self._queues if queue.consumer is delivery.consumer)

    def set_apart(self, suspects: Sequence[RabbitDelivery]) -> bool:
        """Whether suspects, of which the first is about to be tried alone, must be returned with everything else in hand.

        Then they come again one by one after `renew`. With a single active consumer they stay in hand, to keep the order. If
        their channel is lost by now, they come again as well.
        """
        if not self.has(suspects[0]):
            return False
        queue = self._queue_of(suspects[0])
        return queue.pace.set_apart(suspects[0], queue.in_hand, queue.in_hand_up_to(suspects[-1]))

    def _notice_suspects(self, waiting: Sequence[RabbitDelivery]) -> None:
        before, self._suspects = self._suspects, is_suspect(waiting[0])
        if self._suspects and not before:
            self._on_suspects([delivery for delivery in waiting if is_suspect(delivery)])

    async def renew(self) -> None:
        """Return what is left in hand to the queues, in order, and consume again.

        To be called after `take` has returned an empty list, or `set_apart` True, and when what was taken is finished.
        """
        await self.requeue()

    async def synchronize(self) -> None:
        """Return when the broker has read the acknowledgements so far, or the connection is lost."""
        await asyncio.gather(
            *(queue.synchronize() for queue in self._queues if queue.in_hand or len(self._queues) == 1)
        )

    def has(self, delivery: RabbitDelivery) -> bool:
        """Whether this delivery is not settled yet, neither here nor by a channel that was closed or lost."""
        return delivery.consumer.has(delivery.tag)

    def holds_up(self, delivery: RabbitDelivery) -> bool:
        """Whether this delivery is not settled, and its queue is isolated and delivers nothing more before it is."""
        return delivery.consumer.has(delivery.tag) and self._queue_of(delivery).pace.holds_up

    async def acknowledge(self, deliveries: Sequence[RabbitDelivery]) -> None:
        """Acknowledge `deliveries`, or keep the acknowledgements back while their consumer is being closed.

        Those of a lost channel come again: counted as late, never an error.
        """
        late = len(deliveries)
        for queue, its in self._by_queue(deliveries):
            late -= await queue.acknowledge(its)
        if late:
            self._on_late(late)
            log.info("settled_late", count=late)

    async def prove(self, deliveries: Sequence[RabbitDelivery]) -> None:
        """These were processed safely, although they cannot be acknowledged yet: they prove the consumer all the same."""
        for queue, its in self._by_queue(deliveries):
            await queue.prove(its)

    def _by_queue(self, deliveries: Sequence[RabbitDelivery]) -> list[tuple[QueueIntake, Sequence[RabbitDelivery]]]:
        if len(self._queues) == 1:
            return [(self._queues[0], deliveries)]
        its: dict[int, list[RabbitDelivery]] = {}
        for delivery in deliveries:
            its.setdefault(id(delivery.consumer), []).append(delivery)
        return [(queue, its[id(queue.consumer)]) for queue in self._queues if id(queue.consumer) in its]

    async def pause(self, by: str) -> None:
        """Take nothing more until everybody who paused has resumed. What is in hand stays there until `requeue`."""
        self._paused_by.add(by)
        for queue in self._queues:
            queue.pace.pause(by)
            queue.repaced()

    async def resume(self, by: str) -> None:
        """Consume again, one message at a time at first if everything was requeued, unless others still pause."""
        self._paused_by.discard(by)
        await asyncio.gather(*(queue.resume(by) for queue in self._queues))

    async def stop(self, finish_seconds: float = 0.0) -> None:
        """Let nothing more come, and take what is in hand for that long. What was taken may still be settled."""
        for queue in self._queues:
            queue.pace.stop()
            queue.repaced()
        await asyncio.gather(*(queue.next_arrives() for queue in self._queues))
        self._finish_until = time.monotonic() + finish_seconds
        self._waiting.wake()

    async def requeue(self) -> int:
        """Return everything in hand to the queues, in order; returns how many messages.

        Nothing comes again before everybody who paused has resumed, and never after `stop`.
        """
        return sum(await asyncio.gather(*(queue.close() for queue in self._queues)))


def _queues_of(
    topology: Topology,
    waiting: Waiting[RabbitDelivery],
    pace: Callable[[int], Pace],
    prefetches: tuple[int, int],
    bounds: Bounds,
) -> list[QueueIntake]:
    """All queues; they share the memory, because nobody knows how many of them give messages to this worker.

    `prefetches` are that of a partition and that of the requests queue.
    """
    budget = Budget(bounds.in_hand)
    return [
        QueueIntake(queue, pace(prefetches[not by_record]), waiting, budget=budget, is_partition=by_record)
        for queue in topology.request_queues
        for by_record in (queue != topology.requests_queue,)
    ]


async def _all(endless: Sequence[Coroutine[Any, Any, None]], before_ending: Callable[[], None] = lambda: None) -> None:
    """Run these until one of them fails, then end the others and raise its error."""
    tasks = [asyncio.create_task(each) for each in endless]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        before_ending()
        await end(*tasks)
        _ = [task.cancelled() or task.exception() for task in tasks]  # read, or asyncio reports it


async def _wait_lost(connection: aio_pika.Connection) -> None:
    """Raise ConnectionError with the reason once the connection is lost; never return."""
    if connection.transport is None:
        raise ConnectionError("closed")
    raise ConnectionError(await wait_closed(connection.transport.connection, asyncio.Event()))
