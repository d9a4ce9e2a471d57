"""The client's connections: the first attempt succeeds or fails at once; later losses are reported and repaired."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from task_activity_log.aio import end
from task_activity_log.client.errors import ClientError
from task_activity_log.hosts import addresses, urls
from task_activity_log.rabbitmq.link import LinkOptions, Outage, OutageKind
from task_activity_log.rabbitmq.publisher import MessageMax, Publisher

PROGRAM = "task-activity-log"
_REFUSED = re.compile(
    r"(?:(configure|write|read) )?access to (\w+) '([^']*)'.* refused for user '([^']*)'"  # newer brokers name the permission
)
_MAY_NOT = {"configure": "configure", "write": "write to", "read": "read"}

_PASSING = frozenset((OutageKind.CONNECTION_REFUSED, OutageKind.NO_SUCH_HOST, OutageKind.TIMEOUT, OutageKind.LOST))
"""What may end by itself. Anything else is somebody's mistake."""

for _driver in ("aiormq", "aio_pika"):
    # Without a handler Python would print what the drivers log, such as a traceback for each outage that the client survives.
    # Programs that configure logging get it as before.
    logging.getLogger(_driver).addHandler(logging.NullHandler())


WORKER_DECLARES = "a worker declares it when it starts"
"""Says of what the broker does not have how it comes to exist."""


class Connections:
    """Tasks that each keep one connection, from the first attempt until `close`.

    `on_outage` is called with each outage after `open` has returned, and `on_failure` when a task ends with an error
    that is not an outage: a fault of the client itself.
    """

    def __init__(
        self,
        broker: str | LinkOptions,
        *,
        on_outage: Callable[[Outage], None],
        on_failure: Callable[[ClientError], None] = lambda _: None,
    ) -> None:
        """Do not connect yet. Raises `ClientError` if the URL is not that of a broker."""
        self.options = options(broker, self._outage)
        self._on_outage = on_outage
        self._on_failure = on_failure
        self._opening: asyncio.Future[None] | None = None  # while the first connections are made
        self._waits = False
        self._tasks: list[asyncio.Task[Any]] = []

    async def open(
        self, *runs: Coroutine[Any, Any, None], ready: Coroutine[Any, Any, object], waits: bool = False
    ) -> None:
        """Start further tasks and return when `ready` does.

        Raises `ClientError` if the first attempt of one of them fails; none of these tasks is left then. If it `waits`, an outage
        that may pass is reported to `on_outage` and waited for instead.
        """
        self._waits = waits
        self._opening = opening = asyncio.get_running_loop().create_future()
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(run) for run in (*runs, ready)]
        self._tasks += tasks
        for task in tasks:
            task.add_done_callback(self._ended)
        try:
            await opening
        except BaseException:
            await end(*tasks)
            raise
        finally:
            if self._opening is opening:  # otherwise that of a later `open`, which has begun while this one ended
                self._opening = None

    async def close(self) -> None:
        """End the tasks, and with them their connections. An `open` that is under way raises `ClientError`."""
        self.fail(ClientError("the client was closed while it connected"), opening_only=True)
        await end(*self._tasks)

    def forget(self) -> None:
        """Forget the tasks of an event loop that is closed."""
        self._tasks.clear()
        self._opening = None

    def fail(self, failure: ClientError, *, opening_only: bool = False) -> None:
        """Raise it in the `open` that is under way; without one, report it, unless `opening_only`."""
        if self._opening is not None and not self._opening.done():
            self._opening.set_exception(failure)
        elif not opening_only:
            self._on_failure(failure)

    def _outage(self, outage: Outage) -> None:
        if self._opening is None or (self._waits and outage.kind in _PASSING):
            self._on_outage(outage)
        elif not self._opening.done():
            self._opening.set_exception(no_connection(self.options, outage))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            return
        opening = None if self._opening is None or self._opening.done() else self._opening
        if error := task.exception():
            failure = (
                error if isinstance(error, ClientError) else ClientError(f"the client failed: {type(error).__name__}")
            )
            failure.__cause__ = error.__cause__ if failure is error else error
            self._on_failure(failure)
            if opening is not None:
                opening.set_exception(failure)
        elif opening is not None:
            opening.set_result(None)  # that was `ready`; the others run until they are cancelled


@asynccontextmanager
async def publishing(
    broker: str | LinkOptions, purpose: str, message_max: MessageMax | None = None
) -> AsyncIterator[Publisher]:
    """A publisher for as long as the context lasts; `purpose` names its connection in the broker's management.

    `message_max` is told what the broker says about its largest message.

    Raises `ClientError` if there is no connection.
    """
    connections = Connections(broker, on_outage=lambda _: None)
    publisher = Publisher(connections.options, purpose=purpose, message_max=message_max)
    await connections.open(publisher.run(), ready=publisher.wait_connected())
    try:
        yield publisher
    finally:
        await connections.close()


def options(broker: str | LinkOptions, on_outage: Callable[[Outage], None] | None = None) -> LinkOptions:
    """The options for a URL, or those given, under the client's name. `ClientError` if it is not a broker's URL."""
    given = LinkOptions(broker) if isinstance(broker, str) else broker
    try:
        usable = given.url.startswith("amqp") and bool(urls(given.url))
    except ValueError:
        usable = False
    if not usable:
        raise ClientError("the broker's URL should be one such as amqp://user:password@host:5672/vhost")
    return replace(given, program=PROGRAM, on_outage=on_outage)


def no_connection(
    given: LinkOptions,
    outage: Outage,
    documents: str = "docs/publishing.md and docs/subscribing.md",
    missing: str = WORKER_DECLARES,
) -> ClientError:
    """What to raise when the first connection fails; `documents` say which permissions are needed.

    `missing` says of what the broker does not have how it comes to exist.
    """
    if outage.kind is OutageKind.NOT_FOUND:
        return ClientError(f"{outage.text}: {missing}")
    if outage.kind is OutageKind.ACCESS_REFUSED:
        return ClientError(f"{refusal(outage.text)}: see Permissions in {documents}")
    return ClientError(f"no connection to {' or '.join(addresses(given.url))}: {outage.text}")


def refusal(text: str) -> str:
    """What a user may not do, from the broker's text; a text of another form as it is."""
    found = _REFUSED.search(text)
    if found is None:
        return f"the broker refuses access: {text}"
    permission, kind, name, user = found.groups()
    named = f"{kind} '{name}'"
    if name.startswith("amq.gen"):
        named = f"{kind} 'amq.gen-…' (the private queue for replies, which the broker names)"
    return f"user '{user}' may not {_MAY_NOT.get(permission, 'use')} {named}"
