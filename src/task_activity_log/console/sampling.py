"""Samples the workers' /status and /metrics and the broker's queues, every few seconds, and keeps the findings of `check`."""

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Protocol
from urllib.parse import urlsplit

from task_activity_log.aio import end
from task_activity_log.console.history import Depth, History, Worker, figures
from task_activity_log.rabbitmq.inspection import Queue, counting
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, describe

_EVERY_SECONDS = 2.0
_ANSWER_SECONDS = 3.0
_LONGEST_ANSWER = 4 * 2**20
_CHECK_EVERY_SECONDS = 60.0


class Finding(Protocol):
    """A finding of `check`, as the console shows it."""

    @property
    def verdict(self) -> str:
        """`fine`, `unknown`, `warning` or `broken`."""

    @property
    def what(self) -> str:
        """What it is about."""

    @property
    def found(self) -> str:
        """What was found."""

    @property
    def advice(self) -> str:
        """What to do; empty if there is nothing to do."""


class Sampler:
    """Fills a history from `begin` to `close`."""

    def __init__(self, workers: Sequence[str], link: LinkOptions, queues: Sequence[str]) -> None:
        """Sample the workers at these URLs, and these queues. Nothing is asked yet."""
        self.history = History()
        self._urls = workers
        self._link = link
        self._queues = queues
        self._depths: dict[str, Depth] = {}
        self._broker_error = "it was not asked yet"
        self._sampled = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """Sample from now on."""
        self._tasks = [asyncio.create_task(self._count_queues()), asyncio.create_task(self._sample())]

    async def close(self) -> None:
        """Sample no more."""
        # Not by cancelling a task group: it cancels its tasks once, and the driver may lose that.
        await end(*self._tasks)

    async def next(self) -> None:
        """Return after the next sample."""
        await self._sampled.wait()

    async def _sample(self) -> None:
        while True:
            workers = await self._workers()
            self.history.add(time.monotonic(), workers, dict(self._depths), self._broker_error)
            self._sampled.set()
            self._sampled = asyncio.Event()
            await asyncio.sleep(_EVERY_SECONDS)

    async def _workers(self) -> list[Worker]:
        """All workers at all addresses of the URLs, each asked in a thread."""
        found = await asyncio.gather(*(asyncio.to_thread(_addresses, url) for url in self._urls))
        targets = dict.fromkeys(
            (url, address) for url, addresses in zip(self._urls, found, strict=True) for address in addresses
        )
        return list(await asyncio.gather(*(asyncio.to_thread(_ask, url, address) for url, address in targets)))

    async def _count_queues(self) -> None:
        while True:
            try:
                with asking_the_driver():
                    async with counting(self._link, "console") as count:
                        while True:
                            async with asyncio.timeout(2 * _ANSWER_SECONDS):
                                counted = await count(self._queues)
                            self._depths = {
                                name: Depth(queue.messages, queue.consumers) if isinstance(queue, Queue) else Depth()
                                for name, queue in counted.items()
                            }
                            self._broker_error = ""
                            await asyncio.sleep(_EVERY_SECONDS)
            except LOST as error:
                self._depths, self._broker_error = {}, describe(error).text
            await asyncio.sleep(_EVERY_SECONDS)


def _addresses(url: str) -> list[str]:
    """The addresses of a URL's host; its name alone if it has none, so that asking it says why."""
    parts = urlsplit(url)
    name = parts.hostname or ""
    if parts.scheme == "https":
        return [name]  # a certificate is for a name
    with suppress(OSError):
        found = socket.getaddrinfo(name, parts.port or 80, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        # A name of this machine has two addresses, and a worker listens on one of them or on both: it is one worker.
        return [name] if all(address in ("127.0.0.1", "::1") for address in addresses) else addresses
    return [name]


def _ask(url: str, address: str) -> Worker:
    """What a worker answers."""
    parts = urlsplit(url)
    shown = f"[{address}]:{parts.port or 80}" if ":" in address else f"{address}:{parts.port or 80}"
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(address, parts.port, timeout=_ANSWER_SECONDS)
    try:
        status = json.loads(_get(connection, f"{parts.path.rstrip('/')}/status"))
        return Worker(shown, status, figures(_get(connection, f"{parts.path.rstrip('/')}/metrics").decode()))
    except (OSError, HTTPException) as error:
        return Worker(shown, error=f"no answer ({(getattr(error, 'strerror', None) or type(error).__name__).lower()})")
    except (ValueError, KeyError):
        return Worker(shown, error="what answers there is not a worker")
    finally:
        connection.close()


def _get(connection: HTTPConnection, path: str) -> bytes:
    connection.request("GET", path, headers={"Connection": "close"})
    answer = connection.getresponse()
    body = answer.read(_LONGEST_ANSWER)
    connection.close()  # a worker closes it as well; the next request opens it again
    if answer.status != HTTPStatus.OK:
        raise ValueError
    return body


class Checks:
    """The findings of `check`, made again when somebody looks at them and they are old."""

    def __init__(self, check: Callable[[], Awaitable[Sequence[Finding]]]) -> None:
        self._check = check
        self._task: asyncio.Task[None] | None = None
        self._at = -_CHECK_EVERY_SECONDS
        self.findings: Sequence[Finding] | None = None
        """None: they were not made yet."""

    def wanted(self) -> Sequence[Finding] | None:
        """The findings so far. New ones are made in the background if these are older than a minute."""
        if time.monotonic() - self._at >= _CHECK_EVERY_SECONDS and (self._task is None or self._task.done()):
            self._at = time.monotonic()
            self._task = asyncio.create_task(self._make())
        return self.findings

    async def _make(self) -> None:
        with suppress(*LOST):
            self.findings = await self._check()

    async def close(self) -> None:
        """Make no more."""
        if self._task is not None:
            await end(self._task)
