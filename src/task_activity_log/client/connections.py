"""The client's connections: the first attempt succeeds or fails at once; later losses are reported and repaired."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from task_activity_log.aio import end
from task_activity_log.client.messages import ClientError
from task_activity_log.rabbitmq.link import LinkOptions, Outage, OutageKind

PROGRAM = "task-activity-log"
_PORTS = {"amqp": 5672, "amqps": 5671}


class Connections:
    """Tasks that each keep one connection, from the first attempt until `close`."""

    def __init__(
        self,
        broker: str | LinkOptions,
        *,
        on_outage: Callable[[Outage], None],
        on_failure: Callable[[ClientError], None] = lambda _: None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            broker: the URL, or options.
            on_outage: called with each outage after `open` has returned.
            on_failure: called when a task ends with an error that is not an outage: a fault of the client itself.

        Raises:
            ClientError: the URL is not that of a broker.
        """
        self.options = options(broker, self._outage)
        self._on_outage = on_outage
        self._on_failure = on_failure
        self._failed: asyncio.Future[Outage] | None = None  # while the first connections are made
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, *runs: Coroutine[Any, Any, None], ready: Coroutine[Any, Any, None]) -> None:
        """Start the tasks and return when `ready` does.

        Raises:
            ClientError: nothing answers, the broker refuses, or what is needed does not exist. No task is left then.
        """
        self._tasks = [asyncio.create_task(run) for run in runs]
        for task in self._tasks:
            task.add_done_callback(self._ended)
        try:
            await self._first_attempt(ready)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the tasks, and with them their connections."""
        await end(*self._tasks)

    async def _first_attempt(self, ready: Coroutine[Any, Any, None]) -> None:
        self._failed = failed = asyncio.get_running_loop().create_future()
        connected = asyncio.create_task(ready)
        try:
            await asyncio.wait({connected, failed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._failed = None
            await end(connected)
        if failed.done():
            raise no_connection(self.options, failed.result())
        connected.result()

    def _outage(self, outage: Outage) -> None:
        if self._failed is None:
            self._on_outage(outage)
        elif not self._failed.done():
            self._failed.set_result(outage)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        failure = ClientError(f"the client failed: {type(error).__name__}")
        failure.__cause__ = error
        self._on_failure(failure)
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(failure)


def options(broker: str | LinkOptions, on_outage: Callable[[Outage], None] | None = None) -> LinkOptions:
    """The options for a URL, or those given, under the client's name.

    Raises:
        ClientError: the URL is not that of a broker.
    """
    given = LinkOptions(broker) if isinstance(broker, str) else broker
    try:
        parts = urlsplit(given.url)
        usable = parts.scheme in _PORTS and bool(parts.hostname)
        _ = parts.port  # raises where it is not a port number
    except ValueError:
        usable = False
    if not usable:
        raise ClientError("the broker's URL should be one such as amqp://user:password@host:5672/vhost")
    return replace(given, program=PROGRAM, on_outage=on_outage)


def no_connection(given: LinkOptions, outage: Outage) -> ClientError:
    """What to raise when the first connection fails."""
    if outage.kind is OutageKind.NOT_FOUND:
        return ClientError(f"{outage.text}: a worker declares it when it starts")
    parts = urlsplit(given.url)
    reason = "connection refused" if outage.kind is OutageKind.CONNECTION_REFUSED else outage.text
    return ClientError(f"no connection to {parts.hostname}:{parts.port or _PORTS[parts.scheme]}: {reason}")
