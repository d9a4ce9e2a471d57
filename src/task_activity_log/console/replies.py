"""The replies as they come, for all viewers: followed through a queue of the console's own, without taking any."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

from task_activity_log.aio import end
from task_activity_log.client import ClientError, Received, RejectedReply, StoredReply, UnreadableReply, subscribe
from task_activity_log.rabbitmq.link import LinkOptions

_REMEMBERED = 500
_FOLLOWED_SECONDS = 600.0
"""How long replies are followed after somebody wanted them last: a console that nobody looks at costs the broker nothing."""
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Heard:
    """A reply, and when it came."""

    reply: Received
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def record_id(self) -> str:
        """The id of its record; empty for a problem, or if it cannot be read."""
        return str(self.reply.record.id) if isinstance(self.reply, StoredReply) else ""

    def told(self, *, with_bodies: bool) -> str:
        """The subject of its record, or the problem in words. A subject is a part of a body."""
        match self.reply:
            case StoredReply(record):
                return (record.subject or "") if with_bodies else ""
            case RejectedReply(problem):
                return problem.detail
            case UnreadableReply(error):
                return str(error)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which replies to show: those that match everything that is given."""

    outcome: str = ""
    code: str = ""
    id: str = ""
    """The id of the record."""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Self:
        """What the query of a URL asks for."""
        return cls(*(query.get(name, "").strip() for name in ("outcome", "code", "id")))

    def __contains__(self, heard: Heard) -> bool:
        return (
            (not self.outcome or heard.reply.outcome == self.outcome)
            and (not self.code or heard.reply.code == self.code)
            and (not self.id or heard.record_id == self.id.lower())
        )


class Replies:
    """Follows the replies from when somebody wants them until nobody has for a while."""

    def __init__(self, link: LinkOptions, exchange: str, on_reply: Callable[[Received], None]) -> None:
        """Follow nothing yet."""
        self._link = link
        self._exchange = exchange
        self._on_reply = on_reply
        self._task: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._wanted_at = 0.0
        self.latest: deque[Heard] = deque(maxlen=_REMEMBERED)
        self.count = 0
        """How many have come, so that a page can tell whether there are new ones."""
        self.problem = ""
        """Why they cannot be followed; empty if they are."""

    def begin(self) -> None:
        """Follow from now on: somebody is about to do something that is answered."""
        self._wanted_at = time.monotonic()
        if self._task is None or self._task.done():
            self._connected.clear()
            self._task = asyncio.create_task(self._run())

    async def follow(self) -> None:
        """Follow from now on, and return once it has begun, or has failed, or takes long."""
        self.begin()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._connected.wait()

    async def close(self) -> None:
        """Follow no more."""
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        replies = subscribe(
            self._link,
            queue=None,
            exchange=self._exchange,
            routing_keys=("#",),
            everything=True,
            on_connected=self._began,
            on_outage=self._lost,
        )
        try:
            async with replies:
                async for reply in replies:
                    self.latest.append(Heard(reply))
                    self.count += 1
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
