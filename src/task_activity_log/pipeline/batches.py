"""Work on whole batches: decoding in slices and ahead of time, and passing on what must be settled in parts.

The event loop runs between two slices, and only a few parts exist at a time. So neither the number nor the size of the
messages in a batch delays heartbeats and probes, or takes more memory than planned.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Generic

from task_activity_log.aio import Slices
from task_activity_log.pipeline import reply
from task_activity_log.pipeline.ports import D, Settlement, Stored
from task_activity_log.pipeline.request import Request, Rules, decode
from task_activity_log.pipeline.suspects import is_doubtful
from task_activity_log.problem import Code, Rejected

_LONG_BYTES = 2**21
"""A body that is longer takes more than a millisecond to hash."""


_AHEAD_SECONDS = 0.002
"""A slice of the work that is done ahead of time. The answer of the database waits for its end."""


class Decoding(Generic[D]):
    """Decodes batches. While the database stores one, it decodes what comes next."""

    def __init__(self, rules: Rules, slices: Slices) -> None:
        """Nothing is decoded yet. `slices` are those of all work on batches."""
        self._rules = rules
        self._slices = slices
        self._ahead: dict[D, Request[D]] = {}
        self._seconds = 0.0

    async def all(self, batch: Sequence[D]) -> tuple[list[Request[D]], list[Settlement[D]]]:
        """The requests in a batch, and the settlements of the messages that are rejected."""
        began = time.perf_counter()
        ahead, self._ahead = self._ahead, {}  # what is not in this batch was returned to its queue, or comes later
        requests: list[Request[D]] = []
        rejected: list[Settlement[D]] = []
        for delivery in batch:
            try:
                requests.append(ahead.get(delivery) or decode(delivery, self._rules))
            except Rejected as error:
                rejected.append(await self._settlement(delivery, error))
            if self._slices.over(len(delivery.body)):
                await self._slices.next()
        self._seconds += time.perf_counter() - began
        return requests, rejected

    async def _settlement(self, delivery: D, error: Rejected) -> Settlement[D]:
        answering = partial(reply.undecoded, delivery, error.problem, self._rules.default_media_type)
        # The message_id of the answer is a digest of the body. While hashlib works, other threads run.
        answer = await asyncio.to_thread(answering) if len(delivery.body) > _LONG_BYTES else answering()
        answers = error.problem.code is not Code.REPLY_AS_REQUEST
        return Settlement(delivery, answer, error.problem, answers)

    async def ahead(self, coming: Sequence[D]) -> None:
        """Decode some of what comes next. It may be cancelled at any time: `all` decodes what is left.

        What was returned often is left out, because it may crash the process. Then only its own batch may be in hand.
        """
        slices = Slices(_AHEAD_SECONDS)
        began = time.perf_counter()
        for delivery in coming:
            if is_doubtful(delivery):
                break
            if delivery in self._ahead:
                continue
            try:
                self._ahead[delivery] = decode(delivery, self._rules)
            except Rejected:  # `all` answers it
                continue
            if slices.over(len(delivery.body)):
                self._seconds += time.perf_counter() - began
                await slices.next()
                began = time.perf_counter()
        self._seconds += time.perf_counter() - began

    def seconds(self) -> float:
        """How long decoding has taken since this was asked last."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class Parts(Generic[D]):
    """Collects what must be settled, and passes it on when a batch is complete or its replies are long."""

    def __init__(self, stored: Stored[D], most_bytes: int) -> None:
        """A part is passed on to `stored` when its replies have more than `most_bytes`."""
        self.stored = stored
        """Where the parts go."""
        self._most_bytes = most_bytes
        self._bytes = 0
        self._part: list[Settlement[D]] = []
        self.slices = Slices()
        """Of all the work on batches: what follows without a wait continues the slice."""

    def __len__(self) -> int:
        return len(self._part)

    def add(self, settlement: Settlement[D]) -> bool:
        """Add what must be settled next; whether `relieve` must be awaited before more is added."""
        self._part.append(settlement)
        size = len(settlement.reply.body)
        self._bytes += size
        return self.slices.over(size) or self._bytes > self._most_bytes

    async def add_all(self, settlements: Iterable[Settlement[D]]) -> None:
        """Add these in their order."""
        for settlement in settlements:
            if self.add(settlement):
                await self.relieve()

    async def relieve(self) -> None:
        """Pass on a part that is long enough, when the parts before are settled. Let the event loop run."""
        if self._bytes > self._most_bytes:
            await self.pass_on()
        await self.slices.next()

    async def pass_on(self) -> None:
        """Pass on what was added. If that is nothing, it is passed on too: storing is one batch ahead at most."""
        part = self._part
        self.clear()
        await self.stored.put(part)

    async def flush(self) -> None:
        """Pass on what was added, if that is anything."""
        if self._part:
            await self.pass_on()

    def clear(self) -> None:
        """Forget what was added, because it was requeued."""
        self._part, self._bytes = [], 0
