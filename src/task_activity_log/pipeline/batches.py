"""Work on whole batches: decoding in slices, and passing on what must be settled in parts.

The event loop runs between two slices, and only a few parts exist at a time. So neither the number nor the size of the
messages in a batch delays heartbeats and probes, or takes more memory than planned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Generic

from task_activity_log.aio import Slices
from task_activity_log.pipeline import reply
from task_activity_log.pipeline.ports import D, Settlement, Stored
from task_activity_log.pipeline.request import Request, Rules, decode
from task_activity_log.problem import Code, Rejected

_LONG_BYTES = 2**21
"""A body that is longer takes more than a millisecond to hash."""


async def decode_all(batch: Sequence[D], rules: Rules, slices: Slices) -> tuple[list[Request[D]], list[Settlement[D]]]:
    """The requests in a batch, and the settlements of the messages that are rejected."""
    requests: list[Request[D]] = []
    rejected: list[Settlement[D]] = []
    for delivery in batch:
        try:
            requests.append(decode(delivery, rules))
        except Rejected as error:
            answering = partial(reply.undecoded, delivery, error.problem, rules.default_media_type)
            # The message_id of the answer is a digest of the body. While hashlib works, other threads run.
            answer = await asyncio.to_thread(answering) if len(delivery.body) > _LONG_BYTES else answering()
            answers = error.problem.code is not Code.REPLY_AS_REQUEST
            rejected.append(Settlement(delivery, answer, error.problem, answers))
        if slices.over(len(delivery.body)):
            await slices.next()
    return requests, rejected


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
