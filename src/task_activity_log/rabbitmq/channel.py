"""A channel of a connection: opened, and waited for until it closes."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aio_pika
from aiormq.abc import AbstractChannel, AbstractConnection

from task_activity_log.rabbitmq.link import describe

T = TypeVar("T")


async def answered(asking: Awaitable[T], seconds: float, read_seconds: Callable[[], float]) -> T:
    """The broker's answer. It arrives behind the deliveries that are on their way: later, if there is no room for these.

    Args:
        asking: what returns the answer. Cancelled when it is given up.
        seconds: how long the broker may take while the connection is read.
        read_seconds: for how long the connection has been read without a pause (`FrameReader.read_seconds`).

    Raises:
        TimeoutError: there is no answer in time.
    """
    loop, asked_at = asyncio.get_running_loop(), time.monotonic()
    next_look: asyncio.TimerHandle

    def look() -> None:
        nonlocal next_look
        if min(time.monotonic() - asked_at, read_seconds()) > seconds:
            limit.reschedule(loop.time())
        else:
            next_look = loop.call_later(seconds / 10, look)

    next_look = loop.call_later(seconds / 10, look)
    try:
        # Awaited here and not in a task of its own, which would tell the reason after others know that the connection is lost.
        async with asyncio.timeout(None) as limit:
            return await asking
    finally:
        next_look.cancel()


async def open_channel(connection: aio_pika.Connection, *, confirms: bool = False) -> AbstractChannel:
    """Open a channel, in confirm mode if `confirms`.

    It is aiormq's own, which the connection keeps until it closes. an aio-pika channel around it would add nothing, and
    its caller would have to keep a reference to it: the connection does not.

    Raises:
        One of `link.LOST`: the connection is closed, or the broker refuses.
    """
    if connection.transport is None:
        raise ConnectionError("closed")
    return await connection.transport.connection.channel(publisher_confirms=confirms)


async def wait_closed(of: AbstractChannel | AbstractConnection, given_up: asyncio.Event) -> str:
    """Return the reason once the channel or connection is closed, or "closed" once `given_up` is set.

    A lost connection closes its channels.
    """
    giving_up = asyncio.ensure_future(given_up.wait())
    closing = of.closing
    try:
        await asyncio.wait({giving_up, closing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        giving_up.cancel()
    error = closing.exception() if closing.done() and not closing.cancelled() else None
    return "closed" if error is None else describe(error).text
