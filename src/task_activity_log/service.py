"""The composition root: settings → telemetry → store and broker → worker; signals, drain, exit codes."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import structlog

from task_activity_log import __version__
from task_activity_log.broker.consumer import RabbitDelivery
from task_activity_log.broker.dead_letters import DeadLetters
from task_activity_log.broker.intake import Intake
from task_activity_log.broker.link import LinkOptions
from task_activity_log.broker.publisher import Publisher
from task_activity_log.broker.replies import Replies
from task_activity_log.broker.topology import Topology
from task_activity_log.hold import Hold
from task_activity_log.problem import Unavailable
from task_activity_log.request import Rules, UpdateMode
from task_activity_log.settings import Settings
from task_activity_log.store import Store
from task_activity_log.telemetry import logs
from task_activity_log.telemetry.health import Health, HealthServer
from task_activity_log.telemetry.metrics import Metrics
from task_activity_log.worker import Worker

log = structlog.get_logger(__name__)

_NOT_CONSUMING_SECONDS = 60.0
_TRIM_EVERY_SECONDS = 60.0
_TRIM_CHUNK = 5_000


class Service:
    """One worker process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.metrics = Metrics()
        self._start_hold = Hold("start")
        topology = topology_of(settings)
        link = link_of(settings)
        self._store = store_of(settings)
        self._publisher = Publisher(
            link,
            confirm_timeout_seconds=settings.confirm_timeout_seconds,
            on_lost=lambda: self.metrics.connection_lost("replies"),
        )
        self._intake = Intake(
            link,
            topology,
            prefetch=settings.prefetch,
            declare_topology=settings.topology == "declare",
            before_consuming=self._ready_to_consume,
            on_lost=lambda: self.metrics.connection_lost("intake"),
            on_late=self.metrics.settled_late,
        )
        self._worker: Worker[RabbitDelivery] = Worker(
            intake=self._intake,
            store=self._store,
            dead_letters=DeadLetters(self._publisher, topology.dead_letters_queue),
            replies=Replies(
                self._publisher,
                topology,
                reply_to_allowed=settings.reply_to_allowed,
                also_to_exchange=settings.replies == "both",
                give_up_seconds=settings.reply_give_up_seconds,
                on_given_up=self.metrics.reply_given_up,
            ),
            watch=self.metrics,
            rules=Rules(
                body_limit=settings.body_limit_bytes,
                default_media_type=None if settings.default_media_type == "none" else settings.default_media_type,
                naive_dates=settings.naive_dates,
                update_mode=UpdateMode(settings.update_mode),
            ),
            batch_max=settings.batch_max,
            nulls=settings.nulls,
            hold_limit_seconds=settings.hold_limit_seconds,
            poison_from=settings.poison_from,
        )
        self._draining = asyncio.Event()
        self.metrics.gauge("consuming", "1 while a consumer is registered.", lambda: self._intake.consuming)
        self.metrics.gauge("in_hand", "Deliveries that are not settled.", lambda: self._intake.in_hand)
        self.metrics.gauge("holding", "1 while an outage is waited out.", lambda: bool(self._hold_reason))

    @property
    def in_hand(self) -> int:
        """How many deliveries are not settled."""
        return self._intake.in_hand

    @property
    def _hold_reason(self) -> str | None:
        blocked = self._publisher.blocked
        return (
            self._start_hold.reason
            or self._worker.hold_reason
            or (None if blocked is None else f"the broker blocks publishers: {blocked}")
        )

    async def wait_consuming(self) -> None:
        """Return once a consumer is registered."""
        await self._intake.wait_consuming()

    def drain(self) -> None:
        """Begin to stop: take nothing more, finish what is under way."""
        if not self._draining.is_set():
            log.info("draining", in_hand=self._intake.in_hand, limit_seconds=self._settings.drain_limit_seconds)
        self._draining.set()

    async def run(self) -> None:
        """Work until `drain` is called, then stop inside the drain limit.

        Raises:
            OSError: HTTP_HOST and HTTP_PORT cannot be served on.
        """
        health = Health(
            ready=self.not_ready,
            alive=self.not_alive,
            status=self._status,
            metrics=self.metrics.exposition,
        )
        server = HealthServer(health, self._settings.http_host, self._settings.http_port)
        log.info(
            "started", version=__version__, http_port=server.port, prefetch=self._settings.prefetch,
            batch_max=self._settings.batch_max,
        )  # fmt: skip
        if self._settings.prefetch < 2 * self._settings.batch_max:
            log.warning("prefetch_reduced", prefetch=self._settings.prefetch, why="WORKER_MEMORY_LIMIT_BYTES")
        background = [asyncio.create_task(health.beat())]
        try:
            await self._work(background)
        finally:
            for task in background:
                task.cancel()
            await asyncio.wait(background)
            await self._store.close()
            server.close()
            log.info("stopped")

    async def _work(self, background: list[asyncio.Task[None]]) -> None:
        background += [
            asyncio.create_task(self._publisher.run(), name="publisher"),
            asyncio.create_task(self._intake.run(), name="intake"),
            asyncio.create_task(self._trim_inbox(), name="trim"),
        ]
        working = asyncio.create_task(self._worker.run(), name="worker")
        draining = asyncio.create_task(self._draining.wait())
        done, _ = await asyncio.wait({working, draining, *background}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        for task in done - {draining}:
            task.result()  # none of them ends by itself: this raises what ended it
        await self._stop(working)

    async def _stop(self, working: asyncio.Task[None]) -> None:
        try:
            async with asyncio.timeout(self._settings.drain_limit_seconds):
                self._worker.drain()
                await self._intake.stop()
                await working
                log.info("drained", given_back=await self._intake.give_back())
        except TimeoutError:
            working.cancel()
            log.warning("drain_limit_reached", in_hand=self._intake.in_hand, what_is_in_hand="comes again")
            with suppress(asyncio.CancelledError):
                await working

    async def _ready_to_consume(self) -> None:
        """Return once what is consumed could be stored and answered."""
        while True:
            try:
                await self._store.open()
                await self._store.probe()
                break
            except Unavailable as error:
                if error.reason != self._start_hold.reason:
                    log.warning("database_unavailable", reason=error.reason)
                await self._start_hold.wait(error.reason)
        if self._start_hold.reason is not None:
            log.info("database_available", seconds=round(self._start_hold.release(), 3))
        await self._publisher.wait_connected()

    async def _trim_inbox(self) -> None:
        keep = timedelta(seconds=self._settings.inbox_keep_seconds)
        while True:
            with suppress(Unavailable):
                while await self._store.trim(keep, _TRIM_CHUNK) == _TRIM_CHUNK:
                    pass
            await asyncio.sleep(_TRIM_EVERY_SECONDS)

    def not_ready(self) -> list[str]:
        """Why the worker does not take messages at present; empty when it does."""
        reasons = []
        if self._draining.is_set():
            reasons.append("draining")
        if self._hold_reason:
            reasons.append(f"holding: {self._hold_reason}")
        if not self._publisher.connected:
            reasons.append("no publisher connection")
        if not self._intake.consuming:
            reasons.append("not consuming")
        return reasons

    def not_alive(self) -> list[str]:
        """Why the process should be restarted; empty while it may go on."""
        since = self._intake.connected_since
        idle = 0.0 if since is None or self._intake.consuming else time.monotonic() - since
        if idle > _NOT_CONSUMING_SECONDS and not self._draining.is_set() and self._hold_reason is None:
            return [f"connected but not consuming for {idle:.0f} s"]
        return []

    def _status(self) -> dict[str, object]:
        return {
            "version": __version__,
            "consuming": self._intake.consuming,
            "publisher_connected": self._publisher.connected,
            "publisher_blocked": self._publisher.blocked,
            "in_hand": self._intake.in_hand,
            "hold_reason": self._hold_reason,
            "draining": self._draining.is_set(),
            "settings": self._settings.model_dump(mode="json", exclude={"amqp_url", "database_url"}),
        }


def topology_of(settings: Settings) -> Topology:
    """The names that the settings give to queues and exchanges."""
    return Topology(
        requests_queue=settings.requests_queue,
        replies_queue=settings.replies_queue,
        dead_letters_queue=settings.dead_letters_queue,
        requests_exchange=settings.requests_exchange,
        replies_exchange=settings.replies_exchange,
        single_active_consumer=settings.single_active_consumer,
    )


def link_of(settings: Settings) -> LinkOptions:
    """How the settings say the broker is reached."""
    return LinkOptions(
        url=settings.amqp_url.get_secret_value(),
        heartbeat_seconds=settings.amqp_heartbeat_seconds,
        connect_timeout_seconds=settings.amqp_connect_timeout_seconds,
    )


def store_of(settings: Settings) -> Store:
    """How the settings say the database is reached."""
    return Store(
        settings.database_url.get_secret_value(),
        connect_timeout=settings.database_connect_timeout_seconds,
        command_timeout=settings.database_command_timeout_seconds,
        statement_cache_size=settings.database_statement_cache,
    )


def run(settings: Settings) -> None:
    """Run a worker until SIGTERM or SIGINT, drain, and return.

    Raises:
        OSError: HTTP_HOST and HTTP_PORT cannot be served on.
    """
    logs.configure(settings.log_format, settings.log_level)
    # Batches make many objects that die together: fewer, later collections, and none of what start-up has made.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)

    async def serve() -> None:
        service = Service(settings)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, service.drain)
        await service.run()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve())


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop
