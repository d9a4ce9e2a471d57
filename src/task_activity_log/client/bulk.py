"""Many upserts, a limited number of them unanswered at a time, and their outcomes."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass, field

from task_activity_log.aio import Waiting
from task_activity_log.client.asks import BATCH, Ask, Sending
from task_activity_log.client.copying import again
from task_activity_log.client.errors import ClientError
from task_activity_log.client.messages import Answer, Options, Record, Upsert, request_of
from task_activity_log.record import Outcome


@dataclass
class Summary:
    """How far a bulk has come."""

    sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    """Answers by outcome."""
    _began: float | None = None
    _ended: float | None = None

    @property
    def answered(self) -> int:
        """How many answers have come."""
        return self.outcomes.total()

    @property
    def seconds(self) -> float:
        """How long it has taken: until now, or until it ended."""
        if self._began is None:
            return 0.0
        return (time.monotonic() if self._ended is None else self._ended) - self._began

    def begin(self) -> None:
        """Begin to count the seconds."""
        self._began = time.monotonic()

    def end(self) -> None:
        """Count no more seconds."""
        self._ended = time.monotonic()

    def counts(self) -> list[str]:
        """The answers by outcome, as people write them: `1,200 inserted`, `2 duplicates`."""
        return [_counted(count, outcome) for outcome, count in sorted(self.outcomes.items())]

    def __str__(self) -> str:
        outcomes = ", ".join(self.counts())
        return f"{self.answered:,} answered in {self.seconds:.1f} s" + (f": {outcomes}" if outcomes else "")


class Bulk:
    """The answers to many upserts, as they come: `async for answer in bulk`."""

    def __init__(
        self,
        asks: Sending,
        records: Iterable[Record] | AsyncIterable[Record],
        options: Options,
        *,
        window: int,
        timeout: float | None,
    ) -> None:
        """Nothing is sent before it is iterated over."""
        self._asks = asks
        self._records = records
        self._options = options
        self._window = window
        self._timeout = timeout
        self._unanswered: dict[str, Ask] = {}
        self._next_one: Upsert | None = None  # taken from the records, and not sent yet
        self._arrived: Waiting[Answer | ClientError | None] = Waiting()
        self._answered = asyncio.Event()
        self._begun = False
        self._feeding: asyncio.Task[None] | None = None  # takes the records; None before and after
        self._waited = 0.0  # seconds of the timeout that are over, because there was no connection for the answers
        self.summary = Summary()

    @property
    def unanswered(self) -> list[Upsert]:
        """The upserts without an answer, as far as they were taken from the records. After an error, send these again.

        Nothing is applied twice. An iterator of records has the others.
        """
        unanswered = [ask.upsert for ask in self._unanswered.values()]
        return unanswered if self._next_one is None else [*unanswered, self._next_one]

    async def __aiter__(self) -> AsyncIterator[Answer]:
        """Send and yield. A bulk can be iterated over once.

        Raises:
            NoAnswer: no answer came in time.
            ClientError: no queue takes upserts, there is no connection for the answers, or the client is not open.
        """
        if self._begun:
            raise ClientError("a bulk is iterated over once: send what is `unanswered` in another one")
        self._begun = True
        self.summary.begin()
        await self._listen()
        await asyncio.sleep(
            0
        )  # where another bulk was left with `break`, it ends now, and its upserts may be asked again
        self._feeding = feeding = asyncio.create_task(self._feed())
        try:
            while not feeding.done() or self._unanswered:
                for answer in await self._next():
                    if answer is None:
                        continue  # only a wake-up: what is waited for may have changed
                    if isinstance(answer, ClientError):
                        raise again(answer)  # others get the same error
                    self._unanswered.pop(answer.upsert.message_id, None)  # it is not there if it was never sent
                    self._answered.set()
                    self.summary.outcomes[answer.outcome] += 1
                    yield answer
            await feeding
        finally:
            self._end()

    async def aclose(self) -> None:
        """Take no more records, for `contextlib.aclosing`: asyncio ends a bulk that was left with `break` only later."""
        self._begun = True
        feeding = self._feeding
        self._end()
        if feeding is not None:
            await asyncio.wait({feeding})

    def _end(self) -> None:
        """Take no more records, and expect no more answers. It is called twice where `aclose` is."""
        if self._feeding is None:
            return
        self.summary.end()
        self._feeding.cancel()
        self._feeding.add_done_callback(_read)
        self._feeding = None
        for ask in self._unanswered.values():
            self._asks.forget(ask)

    async def _listen(self) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                await self._asks.listen()
        except TimeoutError:
            seconds = f"{self._timeout or 0:g} s"
            raise ClientError(f"no connection for the answers within {seconds}; nothing was sent") from None
        self._waited = time.monotonic() - began

    async def _next(self) -> list[Answer | ClientError | None]:
        limit = None if self._timeout is None or not self._unanswered else max(0.0, self._timeout - self._waited)
        try:
            async with asyncio.timeout(limit):
                arrived = await self._arrived.take(BATCH)
        except TimeoutError:
            raise self._asks.no_answer(self._timeout, self.unanswered) from None
        if any(arrived):
            self._waited = 0.0
        return arrived

    async def _feed(self) -> None:
        try:
            async for record in _each(self._records):
                upsert = request_of(record, self._options)
                if isinstance(upsert, Answer):
                    self._arrived.put(upsert)
                    continue
                self._next_one = upsert
                # An answer does not say which of two upserts with one message_id it belongs to.
                while upsert.message_id in self._unanswered:
                    await self._next_answer()
                self._unanswered[upsert.message_id] = self._asks.ask(upsert, self._arrived.put)
                self._next_one = None
                self.summary.sent += 1
                if len(self._unanswered) == 1:
                    self._arrived.put(None)  # the waiter must wait with a timeout from now on
                while len(self._unanswered) >= self._window:  # before another one is taken from the records
                    await self._next_answer()
        finally:
            # Scheduled for after this task ends, so that the waiter sees `feeding.done()`.
            asyncio.get_running_loop().call_soon(self._arrived.put, None)

    async def _next_answer(self) -> None:
        self._answered.clear()
        await self._answered.wait()


def _counted(count: int, outcome: str) -> str:
    """The outcomes are participles, except for two that are nouns."""
    noun = outcome in (Outcome.DUPLICATE, Outcome.SNAPSHOT)
    return f"{count:,} {outcome}{'s' if noun and count != 1 else ''}"


def _read(ended: asyncio.Task[None]) -> None:
    """Read the error of a task that nobody waits for any more, or asyncio reports it."""
    if not ended.cancelled():
        ended.exception()


async def _each(records: Iterable[Record] | AsyncIterable[Record]) -> AsyncIterator[Record]:
    if isinstance(records, AsyncIterable):
        async for record in records:
            yield record
    else:
        for record in records:
            yield record
