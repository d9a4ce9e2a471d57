"""Samples the workers, the broker's queues and its management API every few seconds, and keeps the findings of `check`."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeAlias

from task_activity_log.aio import end, in_thread
from task_activity_log.hosts import vhost
from task_activity_log.rabbitmq.inspection import Counted, watch_queues
from task_activity_log.rabbitmq.link import LOST, LinkOptions
from task_activity_log.rabbitmq.management import Management, ManagementError, QueueStats
from task_activity_log.telemetry.asking import Worker, ask, urls_of
from task_activity_log.telemetry.history import Depth, History

_EVERY_SECONDS = 2.0
_MANAGEMENT_EVERY_SECONDS = 5.0  # its figures change as often
_CHECK_EVERY_SECONDS = 60.0

Check: TypeAlias = Callable[[], Awaitable[Sequence[Any]]]
"""Makes the findings of `check`: each has `verdict`, `what`, `found` and `advice`."""


class Sampler:
    """Fills a history from `begin` to `close`."""

    def __init__(
        self, workers: Sequence[str], link: LinkOptions, queues: Sequence[str], management: Management | None
    ) -> None:
        """Sample the workers at these URLs, and these queues. Nothing is asked yet."""
        self.history = History()
        self.management_error = ""
        """Why the management API gives no figures; empty if it does, or is not configured."""
        self._urls, self._link, self._queues, self._management = workers, link, queues, management
        self._counted: Counted = {}
        self._stats: Mapping[str, QueueStats] = {}
        self._broker_error = ""
        self._sampled = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """Sample from now on."""
        counting = watch_queues(self._link, "console", self._queues, _EVERY_SECONDS, self._on_counted)
        self._tasks = [asyncio.create_task(task) for task in (self._sample(), counting, self._ask_management())]

    async def close(self) -> None:
        """Sample no more."""
        await end(*self._tasks)

    async def next(self) -> None:
        """Return after the next sample."""
        await self._sampled.wait()

    def _on_counted(self, counted: Counted, error: str) -> None:
        self._counted, self._broker_error = counted, error

    async def _sample(self) -> None:
        while True:
            found = await asyncio.gather(*(in_thread(partial(urls_of, url)) for url in self._urls))
            urls = dict.fromkeys(url for urls in found for url in urls)
            workers: list[Worker] = await asyncio.gather(*(in_thread(partial(ask, url)) for url in urls))
            depths = {name: depth for name in self._queues if (depth := self._depth(name)) is not None}
            self.history.add(time.monotonic(), workers, depths, self._broker_error)
            self._sampled.set()
            self._sampled = asyncio.Event()
            await asyncio.sleep(_EVERY_SECONDS)

    def _depth(self, name: str) -> Depth | None:
        """What AMQP counts is of this moment; what the management API shows is some seconds old."""
        counted, stats = self._counted.get(name), self._stats.get(name)
        now = counted or stats
        rates = (stats.arriving, stats.settled) if stats else (None, None)
        return Depth(now.messages, now.consumers, *rates) if now else None

    async def _ask_management(self) -> None:
        while self._management is not None:
            try:
                self._stats = await in_thread(partial(self._management.queues, vhost(self._link.url)))
                self.management_error = ""
            except ManagementError as error:
                self._stats, self.management_error = {}, str(error)
            await asyncio.sleep(_MANAGEMENT_EVERY_SECONDS)


class Checks:
    """The findings of `check`, made again when somebody looks at them and they are older than a minute."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._task: asyncio.Task[None] | None = None
        self._at = -_CHECK_EVERY_SECONDS
        self._findings: Sequence[Any] | None = None
        self.made: datetime | None = None
        """When the findings were made; None if there were none yet."""

    def wanted(self) -> Sequence[Any] | None:
        """The findings so far; None if there were none yet."""
        if time.monotonic() - self._at >= _CHECK_EVERY_SECONDS and (self._task is None or self._task.done()):
            self._at = time.monotonic()
            self._task = asyncio.create_task(self._make())
        return self._findings

    async def close(self) -> None:
        """Make no more."""
        await end(*[self._task] if self._task else [])

    async def _make(self) -> None:
        with suppress(*LOST):
            self._findings, self.made = await self._check(), datetime.now(UTC)
