"""A worker process: puts the parts together, runs them, and drains at a signal."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from task_activity_log import __version__
from task_activity_log.aio import end
from task_activity_log.pipeline.hold import Hold
from task_activity_log.pipeline.lines import Limits
from task_activity_log.pipeline.worker import Worker
from task_activity_log.problem import Misconfigured, Unavailable
from task_activity_log.rabbitmq.consumer import RabbitDelivery
from task_activity_log.rabbitmq.dead_letters import DeadLetters
from task_activity_log.rabbitmq.forwarder import Forwarder
from task_activity_log.rabbitmq.intake import Intake
from task_activity_log.rabbitmq.publisher import MessageMax, Publisher
from task_activity_log.rabbitmq.replies import Replies
from task_activity_log.rabbitmq.topology import declare, keep_replies
from task_activity_log.rabbitmq.weight import Bounds
from task_activity_log.settings import BATCHES_IN_HAND, Settings
from task_activity_log.status import Status
from task_activity_log.telemetry import logs, tracing
from task_activity_log.telemetry.health import Health, HealthServer
from task_activity_log.telemetry.metrics import Metrics
from task_activity_log.telemetry.watch import Watch
from task_activity_log.wiring import (
    connector_of,
    forward_prefetch_of,
    journal_of,
    link_of,
    reply_options_of,
    rules_of,
    secrets_of,
    store_of,
    topology_of,
)

if TYPE_CHECKING:  # it imports OpenTelemetry
    from task_activity_log.telemetry.spans import Tracing

log = structlog.get_logger(__name__)

_FINISHING_SHARE = 1 / 3
"""The part of the drain limit in which messages in hand are still taken. The batches under way then get another third."""

_JOURNAL_SHARE = 1 / 10
"""The part of the drain limit that the journal may take to write its last rows."""

_CLOSING_SHARE = 1 / 4
"""The part of the drain limit that is left to return messages to the queue and to close the connections."""

_LOOK_EVERY_SECONDS = 5.0
"""How often a worker looks whether the tables still fit; and an idle one, whether its connection to the database is open."""
_TRIM_EVERY_SECONDS = 60.0
_TRIM_CHUNK = 5_000


class Service:
    """One worker process."""

    def __init__(
        self, settings: Settings, traces: Tracing | None = None, redaction: logs.Redaction | None = None
    ) -> None:
        """Put the parts together. Nothing is connected yet. `redaction` learns passwords that change."""
        redaction = redaction or logs.Redaction(secrets_of(settings))
        self._settings = settings
        self._traces = traces
        self.metrics = Metrics(redaction.text)
        self._watch = Watch(self.metrics)
        self._start_hold, self._idle_hold = Hold("start"), Hold("idle")
        topology = topology_of(settings)
        link = link_of(settings, redaction)
        count = self.metrics.counters
        connector = connector_of(settings, redaction)
        self._store = store_of(settings, connector)
        self._parked_store = store_of(settings, connector)  # connects only while something is parked,
        self._slow_store = store_of(settings, connector)  # and this one only while a slow row is
        self._parked_store.watch = self._slow_store.watch = self._store.watch
        self._journal = journal_of(
            settings, connector, on_dropped=count["task_activity_log_journal_rows_lost_total"].inc
        )
        if self._journal is not None:
            self._watch.on_answered = self._journal.add
        message_max = MessageMax()
        may_declare = settings.topology == "declare"
        restore = partial(declare, topology=topology) if may_declare else None
        self._publisher = Publisher(
            link,
            confirm_timeout_seconds=settings.confirm_timeout_seconds,
            on_lost=count["task_activity_log_connections_lost_total"].labels("replies").inc,
            message_max=message_max,
            also_leave=("reply-to", "retries", "forwards"),
            restore=restore,
            keep=partial(keep_replies, topology=topology) if may_declare else None,
        )
        self._addressed = Publisher(
            link,
            purpose="reply-to",
            on_lost=count["task_activity_log_connections_lost_total"].labels("reply-to").inc,
            message_max=message_max,
        )
        self._forwards = Publisher(
            link,
            purpose="forwards",
            on_lost=count["task_activity_log_connections_lost_total"].labels("forwards").inc,
            restore=restore,
        )
        self._intake = Intake(
            link,
            topology,
            prefetch=settings.queue_prefetch,
            forward_prefetch=forward_prefetch_of(settings),
            batch_max=settings.batch_max,
            bounds=Bounds(settings.batch_bytes, settings.in_hand_bytes),
            declare_topology=may_declare,
            before_consuming=self._ready_to_consume,
            on_lost=count["task_activity_log_connections_lost_total"].labels("intake").inc,
            on_late=count["task_activity_log_late_settlements_total"].inc,
            on_suspects=self._watch.set_apart,
        )
        self._tasks = self._intake if traces is None else traces.intake(self._intake)
        replies = self._replies = Replies[RabbitDelivery](
            self._publisher,
            self._addressed,
            link,
            topology,
            reply_options_of(settings),
            still=self._intake.has,
            message_max=message_max,
            on_given_up=lambda why: count["task_activity_log_replies_given_up_total"].labels(why).inc(),
            on_not_taken=lambda why, number: (
                count["task_activity_log_subscriber_replies_not_taken_total"].labels(why).inc(number)
            ),
        )
        self._worker: Worker[RabbitDelivery] = Worker(
            intake=self._tasks,
            store=self._store if traces is None else traces.store(self._store),
            dead_letters=DeadLetters(self._publisher, topology.dead_letters_queue, message_max),
            replies=replies if traces is None else traces.replies(replies),
            watch=self._watch,
            rules=rules_of(settings),
            batch_max=settings.batch_max,
            part_bytes=settings.batch_bytes,
            nulls=settings.nulls,
            hold_limit_seconds=settings.hold_limit_seconds,
            parked_store=self._parked_store if traces is None else traces.store(self._parked_store),
            slow_store=self._slow_store if traces is None else traces.store(self._slow_store),
            park=Limits(
                messages=max(1, settings.prefetch // 2),
                weight=settings.in_hand_bytes / 2,
                seconds=settings.park_limit_seconds,
            ),
            refused_in_a_row=settings.refused_in_a_row,
            forwarder=Forwarder(self._forwards, topology.partitions_exchange) if topology.partitions else None,
        )
        if topology.is_single_active:
            self._worker.trials.on_suspects = self._watch.set_apart
        if (balancing := self._intake.balancing) is not None:
            balancing.alone = self._worker.writes.alone
            balancing.on_handed_over = count["task_activity_log_hand_overs_total"].inc
        if self._worker.forwarding is not None:
            self._worker.forwarding.on_forwarded = count["task_activity_log_forwarded_total"].inc
        self._draining = asyncio.Event()
        self.http_port = settings.http_port
        """The port on which health and metrics are served, once the service runs."""
        self.status = Status(
            settings,
            intake=self._intake,
            publisher=self._publisher,
            addressed=self._addressed,
            forwards=self._forwards if topology.partitions else None,
            replies=self._replies,
            store=self._store,
            holds=(self._start_hold, self._idle_hold, *self._worker.holds),
            parking=self._worker.parking,
            watch=self._watch,
        )
        self.status.show_gauges(self.metrics)
        self._inbox_age = 0.0
        self.metrics.gauge("task_activity_log_inbox_age_seconds", lambda: self._inbox_age)
        self.metrics.gauge("task_activity_log_inbox_keep_seconds", lambda: settings.inbox_keep_seconds)
        self._health = Health(
            ready=self.status.not_ready,
            alive=self.status.not_alive,
            status=self.status.report,
            metrics=self.metrics.exposition,
            redact=redaction.text,
        )

    @property
    def in_hand(self) -> int:
        """How many deliveries are unsettled."""
        return self._intake.in_hand

    async def wait_consuming(self) -> None:
        """Return once a consumer is registered."""
        await self._intake.wait_consuming()

    def drain(self) -> None:
        """Start to stop: take no more messages and finish the current batches. `run` then returns."""
        if not self._draining.is_set():
            log.info("draining", in_hand=self._intake.in_hand, limit_seconds=self._settings.drain_limit_seconds)
        self.status.draining = True
        self._draining.set()

    async def run(self) -> None:
        """Serve health and metrics and run the worker until `drain` is called; then stop within the drain limit.

        Raises:
            OSError: it is not possible to listen on HTTP_HOST and HTTP_PORT.
        """
        server = HealthServer(self._health, self._settings.http_host, self._settings.http_port)
        self.http_port = server.port
        self._log_started()
        working = asyncio.create_task(self._worker.run(), name="worker")
        tasks: list[asyncio.Task[Any]] = [
            working,
            asyncio.create_task(self._draining.wait(), name="draining"),
            asyncio.create_task(self._health.beat(), name="beat"),
            asyncio.create_task(self._publisher.run(), name="publisher"),
            asyncio.create_task(self._addressed.run(), name="publisher to reply_to"),
            *([asyncio.create_task(self._forwards.run(), name="forwards")] if self._worker.forwarding else []),
            asyncio.create_task(self._replies.run(), name="retries of replies"),
            asyncio.create_task(self._intake.run(), name="intake"),
            asyncio.create_task(self._watch_database(), name="watch of the database"),
            asyncio.create_task(self._watch_tables(), name="watch of the tables"),
            asyncio.create_task(self._trim(), name="trim"),
        ]
        journal = None if self._journal is None else asyncio.create_task(self._journal.run(), name="journal")
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises an error, unless the service drains: no other task ends by itself
            await self._drain(working)
        finally:
            await end(*tasks)
            if self._journal is not None and journal is not None:
                await self._journal.finish(journal, self._settings.drain_limit_seconds * _JOURNAL_SHARE)
            await asyncio.gather(*(store.close() for store in (self._store, self._parked_store, self._slow_store)))
            server.close()
            if self._traces is not None:
                await asyncio.to_thread(self._traces.close)
            log.info("stopped")

    def _log_started(self) -> None:
        prefetch, batch_max = self._settings.prefetch, self._settings.batch_max
        log.info("started", version=__version__, http_port=self.http_port, prefetch=prefetch, batch_max=batch_max)
        if prefetch < BATCHES_IN_HAND * batch_max:
            log.warning("prefetch_reduced", prefetch=prefetch, why="WORKER_MEMORY_LIMIT_BYTES")

    async def _drain(self, working: asyncio.Task[None]) -> None:
        """Let the worker finish what is in hand, or only the batches under way, and requeue the rest, all in time."""
        limit = self._settings.drain_limit_seconds
        try:
            async with asyncio.timeout(limit * (1 - _CLOSING_SHARE)):
                self._worker.drain()
                await self._intake.stop(limit * _FINISHING_SHARE)
                await working
            log.info("drained", given_back=await self._tasks.requeue())
            await self._worker.trials.drained()
        except TimeoutError:
            log.warning("drain_limit_reached", in_hand=self._intake.in_hand, what_is_in_hand="will be redelivered")
            await end(working)
            if not working.cancelled():
                working.result()
            with suppress(TimeoutError):
                async with asyncio.timeout(limit * _CLOSING_SHARE):
                    # What is finished is acknowledged with what is returned.
                    await asyncio.gather(self._tasks.requeue(), self._worker.trials.drained())

    async def _ready_to_consume(self) -> None:
        """Return once a message could be stored and answered."""
        while True:
            try:
                await self._store.open()
                await self._store.probe()
                break
            except Unavailable as outage:
                self._watch.held("start", outage)
                await self._start_hold.wait(outage.reason)
        if self._start_hold.reason is not None:
            self._watch.released("start", self._start_hold.release())
        await self._publisher.wait_connected()
        await self._addressed.wait_connected()

    async def _watch_database(self) -> None:
        """Connect again while there is nothing to store, so that an outage is known before the next message.

        Only lost connections are noticed, because PostgreSQL closes them when it ends, and TCP keepalives find those that are
        dead; and tables that do not fit any more.
        """
        while True:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            while self._intake.consuming and self._is_database_doubtful and self._worker.store_hold.reason is None:
                try:
                    await self._store.open()
                    if self._store.watch.doubtful:
                        await self._store.probe()
                except Unavailable as outage:
                    self._watch.held("idle", outage)
                    await self._idle_hold.wait(outage.reason)
            if self._idle_hold.reason is not None:
                self._watch.released("idle", self._idle_hold.release())

    @property
    def _is_database_doubtful(self) -> bool:
        return self._store.watch.doubtful or not self._store.connected

    async def _watch_tables(self) -> None:
        """Look whether the tables still fit, while rows are stored as well."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            with suppress(Unavailable):
                await self._store.watch.look()

    async def _trim(self) -> None:
        """Forget old requests and old answers, also those of a journal that is not kept any more."""
        keep, said = timedelta(seconds=self._settings.inbox_keep_seconds), ""
        while True:
            with suppress(Unavailable):
                failure = await self._trim_inbox(keep)
                self._inbox_age = await self._store.inbox_age()
                # The database can be used, so this is no outage.
                if failure is not None and failure.reason != said:
                    log.warning("trim_failing", reason=failure.reason)
                said = "" if failure is None else failure.reason
            with suppress(Unavailable):
                while await self._store.trim_journal(keep, _TRIM_CHUNK) == _TRIM_CHUNK:
                    pass
            await asyncio.sleep(_TRIM_EVERY_SECONDS)

    async def _trim_inbox(self, keep: timedelta) -> Unavailable | None:
        """Forget old requests. Why it is not possible; None if it is."""
        trimmed = _TRIM_CHUNK
        try:
            while trimmed == _TRIM_CHUNK:
                trimmed = await self._store.trim(keep, _TRIM_CHUNK)
                self.metrics.counters["task_activity_log_inbox_trimmed_total"].inc(trimmed)
        except Unavailable as failure:
            return failure
        return None


def run(settings: Settings) -> None:
    """Run a worker until SIGTERM or SIGINT, drain, and return.

    Raises:
        OSError: it is not possible to listen on HTTP_HOST and HTTP_PORT.
        Misconfigured: what is on the broker does not fit the settings.
    """
    redaction = logs.Redaction(secrets_of(settings))
    logs.configure(settings.log_format, settings.log_level, redaction)
    # Batches create many objects that are freed together: collect less often, and never what start-up has created.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)

    async def serve() -> None:
        traces = tracing.from_environment(os.environ, settings.requests_queue, settings.replies_exchange)
        service = Service(settings, traces, redaction)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, service.drain)
        await service.run()

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve())
    except (OSError, Misconfigured):
        raise
    except Exception as error:  # noqa: BLE001 - any error: its text may quote a message, so it must not be printed
        log.critical("crashed", exception=logs.whereabouts(error))
        raise SystemExit(1) from None


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop
