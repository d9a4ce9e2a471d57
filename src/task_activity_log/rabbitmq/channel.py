"""A channel of a connection: opened, and waited for until it closes."""

import asyncio

import aio_pika
from aiormq.abc import AbstractChannel, AbstractConnection

from task_activity_log.rabbitmq.link import describe


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
