"""One look at the dead letters for everybody who wants to see them, and loans one at a time, so that none hides them."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from task_activity_log.client.dead_letters import DeadLetter, Loan, borrow_dead_letters, borrow_these
from task_activity_log.client.errors import ClientError
from task_activity_log.client.letters import Letter
from task_activity_log.pipeline.request import Rules
from task_activity_log.rabbitmq.link import LinkOptions

_FRESH_SECONDS = 15.0
_TIMES_ITS_DURATION = 10
"""A look that took long is not repeated soon: each one has every dead letter delivered once."""
_OTHERS_RETRIES = 3
_OTHERS_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Look:
    """The dead letters as they were at one time, oldest first."""

    letters: Sequence[Letter]
    waiting: int
    """How many there were; more than `letters` if not all could be read."""
    others: int
    """How many other consumers the queue had: what they had is not here."""
    at: datetime
    taken: float
    """When, by the monotonic clock."""
    seconds: float
    """How long it took."""

    @cached_property
    def by_id(self) -> Mapping[str, Letter]:
        """The letters by their ids."""
        return {letter.id: letter for letter in self.letters}


class Looks:
    """Looks at the dead letters when somebody wants to see them and the last look is old.

    For a program that shows them to several people: each look has all of them delivered, and nobody else sees them meanwhile.
    """

    def __init__(self, link: LinkOptions, queue: str, rules: Rules, most_bytes: int) -> None:
        """Look at nothing yet. At most this many bytes of dead letters are kept, of the oldest."""
        self._link, self._queue, self._rules, self._most_bytes = link, queue, rules, most_bytes
        self._loan = asyncio.Lock()
        self._task: asyncio.Task[Look] | None = None
        self._outdated = False
        self.last: Look | None = None
        self.problem = ""
        """Why the last look failed; empty if it did not."""

    @property
    def is_fresh(self) -> bool:
        """Whether the last look may be shown instead of another one."""
        if self.last is None or self._outdated:
            return False
        return time.monotonic() - self.last.taken < max(_FRESH_SECONDS, _TIMES_ITS_DURATION * self.last.seconds)

    def outdate(self) -> None:
        """Something was changed: the next viewer gets a look of its own."""
        self._outdated = True

    def begin(self) -> asyncio.Task[Look]:
        """The look that is under way; all viewers wait for the same one."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._task

    async def current(self, *, again: bool = False) -> Look:
        """The last look, or another one if it is old, or if it is asked for `again`.

        Raises `ClientError`: the broker cannot be asked, and there was no look before.
        """
        if again or not self.is_fresh:
            try:
                return await asyncio.shield(self.begin())
            except ClientError:
                if self.last is None:
                    raise
        assert self.last is not None  # noqa: S101 - it is fresh, or there was one before
        return self.last

    async def _look(self) -> Look:
        self._outdated = False
        try:
            self.last = await self._read()
            self.problem = ""
        except ClientError as error:
            self.problem = str(error)
            raise
        return self.last

    async def _read(self) -> Look:
        began = time.monotonic()
        for attempt in range(_OTHERS_RETRIES):
            raws, size = list[DeadLetter](), 0
            async with self._loan, borrow_dead_letters(self._link, self._queue) as loan:
                async for raw in loan:
                    raws.append(raw)
                    size += len(raw.body) + len(raw.properties.table)
                    if size > self._most_bytes:
                        break
            if not loan.others or attempt == _OTHERS_RETRIES - 1:
                break
            await asyncio.sleep(_OTHERS_WAIT_SECONDS)  # another command has them for a moment only
        known = {letter.raw.key: letter for letter in self.last.letters} if self.last else {}
        raws.sort(key=lambda raw: raw.rejected_at)  # the queue may have returned some in another order
        letters = await asyncio.to_thread(lambda: [known.get(raw.key) or Letter.of(raw, self._rules) for raw in raws])
        now = time.monotonic()
        return Look(letters, loan.waiting, loan.others, datetime.now(UTC), now, now - began)

    @asynccontextmanager
    async def on_loan(self, letters: Sequence[DeadLetter]) -> AsyncIterator[tuple[Loan, list[DeadLetter]]]:
        """These dead letters, on loan and in the order of the queue; all others are in the queue again."""
        try:
            async with AsyncExitStack() as stack:
                async with self._loan:
                    keys = [letter.key for letter in letters]
                    loan, found = await stack.enter_async_context(borrow_these(self._link, self._queue, keys))
                yield loan, found
        finally:
            self.outdate()
