"""Askers that do harm: those who name a `reply_to` that ends connections, says nothing, is slow or full, or is too small."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

from aio_pika.abc import AbstractChannel

from sandbox import SandboxError
from tests.askers import DIRECT_REPLY_TO, direct_address
from tests.broker_control import silenced
from tests.chaos.messages import FULL_QUEUE, Message
from tests.chaos.publishers import CONNECTION_ERRORS, connect, disconnect

if TYPE_CHECKING:
    from tests.chaos.faults import Faults
    from tests.chaos.hostile import Stranger

SILENT_QUEUE = "chaos.silent"
"""A reply queue that accepts replies and at times confirms none."""
SLOW_QUEUE = "chaos.slow"
"""A reply queue with room for one reply, which is read once a second."""
LARGEST_MESSAGE = 300_000
"""The broker's `max_message_size` in bytes: more than any body that is sent here, and less than some replies."""
_LARGE_FIELD = 160_000
_FORGED = ("x.y", "garbage", "AAAA.AAAA", "", "g2EB.key", "\N{LATIN SMALL LETTER E WITH ACUTE}.y")


async def declare(channel: AbstractChannel) -> None:
    """Declare the queues of these askers."""
    quorum: dict[str, Any] = {"x-queue-type": "quorum"}
    await channel.declare_queue(SLOW_QUEUE, durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    await channel.declare_queue(SILENT_QUEUE, durable=True, arguments=quorum)


async def asker_silent(faults: Faults) -> None:
    """A reply queue has no majority for a while: it accepts replies, and confirms none."""
    seconds, lock = faults.seconds(2, 12), faults.lock_of(faults.broker)
    if lock.locked():  # it is silent already, or the broker is stopped
        return
    async with lock:
        with suppress(SandboxError):  # the queue may have no leader after an early kill, and is silent anyway
            async with silenced(faults.broker, faults.amqp_url, SILENT_QUEUE):
                faults.journal.fault("asker silent", f"for {seconds:.1f} s")
                await asyncio.sleep(seconds)


async def read_slowly(amqp_url: str) -> None:
    """Read one reply a second from the slow queue, until cancelled."""
    while True:
        connection = None
        try:
            connection = await connect(amqp_url)
            queue = await (await connection.channel()).get_queue(SLOW_QUEUE, ensure=False)
            while True:
                await queue.get(no_ack=True, fail=False)
                await asyncio.sleep(1)
        except CONNECTION_ERRORS:
            await asyncio.sleep(0.3)
        finally:
            await disconnect(connection)


def forged(stranger: Stranger) -> Sequence[Message]:
    """Direct reply-to addresses that nobody has: some end the connection of whoever publishes to them."""
    number = stranger.random.randrange(1000)
    address = stranger.random.choice((*(DIRECT_REPLY_TO + form for form in _FORGED), direct_address(number=number)))
    return [stranger.message("forged asker", reply_to=address)]


def silent(stranger: Stranger) -> Sequence[Message]:
    """The queue that is silent at times."""
    return [stranger.message("silent asker", reply_to=SILENT_QUEUE)]


def slow(stranger: Stranger) -> Sequence[Message]:
    """The queue that is read slowly."""
    return [stranger.message("slow asker", reply_to=SLOW_QUEUE)]


def full(stranger: Stranger) -> Sequence[Message]:
    """The queue that never has room."""
    return [stranger.message("full asker", reply_to=FULL_QUEUE)]


def oversized(stranger: Stranger) -> Sequence[Message]:
    """Two merges of one record whose reply is larger than the broker takes."""
    first = _large_merge(stranger, "description", None)
    return [first, _large_merge(stranger, "reference_back_office", first.record)]


def _large_merge(stranger: Stranger, name: str, record: UUID | None) -> Message:
    headers, fields = {"x-update-mode": "merge"}, {name: name[0] * _LARGE_FIELD}
    return stranger.message("oversized reply", headers=headers, fields=fields, record=record, may_be_too_large=True)


ALL = (forged, silent, slow, full, oversized)
