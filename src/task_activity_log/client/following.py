"""The latest replies, for a program that shows them to several people: through a queue of its own, so that none is taken."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from task_activity_log.aio import end
from task_activity_log.client.errors import ClientError
from task_activity_log.client.messages import Received, StoredReply
from task_activity_log.client.subscribing import subscribe
from task_activity_log.rabbitmq.link import LinkOptions

_REMEMBERED = 500
_FOLLOWED_SECONDS = 600.0
"""How long replies are followed after somebody wanted them last: while nobody looks, they cost the broker nothing."""
_CONNECT_SECONDS = 5.0


class Heard(NamedTuple):
    """A reply, when it came, and the id of its record; empty for a problem, or if it cannot be read."""

    reply: Received
    at: datetime
    record_id: str


class LatestReplies:
    """Follows the replies from when somebody wants them until nobody has for a while."""

    def __init__(self, link: LinkOptions, exchange: str, on_reply: Callable[[Received], None]) -> None:
        self._link, self._exchange, self._on_reply = link, exchange, on_reply
        self._task: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._wanted_at = 0.0
        self.latest: deque[Heard] = deque(maxlen=_REMEMBERED)
        self.problem = ""
        """Why they cannot be followed; empty if they are."""

    async def follow(self, seconds: float = _CONNECT_SECONDS) -> None:
        """Follow from now on, and return once it has begun, or has failed, or takes longer than this."""
        self._wanted_at = time.monotonic()
        if self._task is None or self._task.done():
            self._connected.clear()
            self._task = asyncio.create_task(self._run())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._connected.wait()

    async def close(self) -> None:
        """Follow no more."""
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        replies = subscribe(
            self._link, queue=None, exchange=self._exchange, routing_keys=("#",), everything=True,
            on_connected=self._began, on_outage=self._lost,
        )  # fmt: skip
        try:
            async with replies:
                async for reply in replies:
                    record = str(reply.record.id) if isinstance(reply, StoredReply) else ""
                    self.latest.append(Heard(reply, datetime.now(UTC), record))
                    self._on_reply(reply)
                    if time.monotonic() - self._wanted_at > _FOLLOWED_SECONDS:
                        return
        except ClientError as error:
            self.problem = str(error)
        finally:
            self._connected.set()

    def _began(self) -> None:
        self.problem = ""
        self._connected.set()

    def _lost(self, reason: str) -> None:
        self.problem = reason
