"""Many upserts through a window, and what became of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TYPE_CHECKING, TypeAlias

from task_activity_log.aio import Waiting
from task_activity_log.client.messages import Answer, ClientError, NoAnswer, Upsert
from task_activity_log.record import TaskActivityLog

if TYPE_CHECKING:
    from task_activity_log.client.upserts import Ask, TaskActivityLogClient

_BATCH = 500

Record: TypeAlias = TaskActivityLog | Upsert
"""What can be sent: a record, or a request made by hand (`Upsert.of`), for one with a version or a mode."""


def request_of(record: Record) -> Upsert:
    """The request for it."""
    return record if isinstance(record, Upsert) else Upsert.of(record)


class Summary:
    """What became of a bulk so far."""

    def __init__(self) -> None:
        self.sent = 0
        self.outcomes: Counter[str] = Counter()
        """How many were answered with each outcome."""
        self._began = time.monotonic()

    @property
    def answered(self) -> int:
        """How many were answered."""
        return self.outcomes.total()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def __str__(self) -> str:
        outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(self.outcomes.items())) or "none"
        return f"{self.answered:,} answered in {self.seconds:.1f} s: {outcomes}"


class Bulk:
    """The answers to many upserts, as they come: `async for answer in bulk`."""

    def __init__(
        self,
        client: TaskActivityLogClient,
        records: Iterable[Record] | AsyncIterable[Record],
        timeout: float | None,
    ) -> None:
        self._client = client
        self._records = records
        self._timeout = timeout
        self._asks: dict[str, Ask] = {}
        self._arrived: Waiting[Answer | ClientError | None] = Waiting()
        self._room = asyncio.Semaphore(client.window)
        self._answered = asyncio.Event()
        self.summary = Summary()

    @property
    def unanswered(self) -> list[Upsert]:
        """What was sent and not answered: after an error, send these again; nothing is applied twice."""
        return [ask.upsert for ask in self._asks.values()]

    async def __aiter__(self) -> AsyncIterator[Answer]:
        """Send and yield.

        Raises:
            NoAnswer: no answer came in time.
            ClientError: no queue takes upserts.
        """
        feeding = asyncio.create_task(self._feed())
        try:
            while not feeding.done() or self._asks:
                for answer in await self._next():
                    if answer is None:
                        continue  # something has changed: look again
                    if isinstance(answer, ClientError):
                        raise answer
                    del self._asks[answer.upsert.message_id]
                    self._answered.set()
                    self.summary.outcomes[answer.outcome] += 1
                    self._room.release()
                    yield answer
            await feeding
        finally:
            feeding.cancel()
            for ask in self._asks.values():
                self._client._forget(ask)  # noqa: SLF001 - two halves of one thing

    async def _next(self) -> list[Answer | ClientError | None]:
        try:
            async with asyncio.timeout(self._timeout if self._asks else None):
                return await self._arrived.take(_BATCH)
        except TimeoutError:
            text = self._client._no_answer(self._timeout, len(self._asks))  # noqa: SLF001
            raise NoAnswer(text, next(iter(self.unanswered))) from None

    async def _feed(self) -> None:
        try:
            async for record in _each(self._records):
                await self._room.acquire()
                upsert = request_of(record)
                while upsert.message_id in self._asks:  # a copy: an answer does not say which of two it answers
                    self._answered.clear()
                    await self._answered.wait()
                self._asks[upsert.message_id] = self._client._ask(upsert, self._arrived.put)  # noqa: SLF001
                self.summary.sent += 1
                if len(self._asks) == 1:
                    self._arrived.put(None)  # from now on there is an answer to wait for
        finally:
            # When this task is done: whoever waits shall see it so.
            asyncio.get_running_loop().call_soon(self._arrived.put, None)


async def _each(records: Iterable[Record] | AsyncIterable[Record]) -> AsyncIterator[Record]:
    if isinstance(records, AsyncIterable):
        async for record in records:
            yield record
    else:
        for record in records:
            yield record
