"""Publishers that lose nothing themselves: they send each message again until the broker has confirmed it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, Protocol, cast

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractExchange
from aiormq.exceptions import AMQPError
from yarl import URL

from task_activity_log.hosts import urls
from tests.chaos.messages import Message

CONNECTION_ERRORS = (
    AMQPError,
    aio_pika.exceptions.AMQPException,
    OSError,
    TimeoutError,
    RuntimeError,
    asyncio.InvalidStateError,
)
"""What the driver raises when it loses the broker."""

EXCHANGE = "task_activity_log"
BY_RECORD = "task_activity_log.by-record"
QUEUE = "task_activity_log.upsert"
_CONFIRM_SECONDS = 10.0
_PAUSE_SECONDS = 0.3


_turns = count()


async def connect(url: str) -> AbstractConnection:
    """A connection with a short heartbeat, which detects within seconds that the broker is gone.

    Each attempt goes to another host of the URL.
    """
    hosts = urls(url)
    connection = aio_pika.Connection(URL(hosts[next(_turns) % len(hosts)]).update_query(heartbeat=3))
    try:
        await connection.connect(timeout=5)
    except BaseException:
        await connection.close()
        raise
    return connection


async def disconnect(connection: AbstractConnection | None) -> None:
    """Close a connection in whatever state it is.

    A second call marks it as closed although the broker did not answer the first one. If the driver's finalizer met it
    open, in whatever thread and test the garbage is collected, it would warn.
    """
    if connection is not None:
        with suppress(*CONNECTION_ERRORS):
            async with asyncio.timeout(2):
                await connection.close()
        await connection.close()


class Writer(Protocol):
    """Writes the messages of one publisher."""

    def burst(self) -> list[Message]:
        """Messages to send together."""

    def kept_back(self) -> list[Message]:
        """The messages that are not sent yet."""


class Publisher:
    """Sends what its writer writes at a steady rate."""

    def __init__(self, url: str, writer: Writer, rate: float, sent: Callable[[Message], None]) -> None:
        """`sent` is called with each message that the broker has confirmed."""
        self._url = url
        self._writer = writer
        self._rate = rate
        self._sent = sent
        self._connection: AbstractConnection | None = None
        self._to_exchange: AbstractExchange | None = None
        self._to_queue: AbstractExchange | None = None
        self._by_record: AbstractExchange | None = None
        self.resent = 0
        """How many messages were sent again because their confirm did not arrive."""

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until `stop` is set, then publish what the writer has kept back."""
        try:
            while not stop.is_set():
                burst = self._writer.burst()
                await self._publish(burst)
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(len(burst), 1) / self._rate):
                        await stop.wait()
            await self._publish(self._writer.kept_back())
        finally:
            await disconnect(self._connection)

    async def _publish(self, burst: Sequence[Message]) -> None:
        unconfirmed = list(burst)
        while unconfirmed:
            try:
                await self._open()
            except CONNECTION_ERRORS:
                await self._disconnect()
                continue
            answers = await asyncio.gather(*map(self._send, unconfirmed), return_exceptions=True)
            failed: list[Message] = []
            for message, answer in zip(unconfirmed, answers, strict=True):
                if answer is None:
                    self._sent(message)
                elif isinstance(answer, CONNECTION_ERRORS):
                    failed.append(message)
                else:
                    raise answer
            if failed:
                self.resent += len(failed)
                await self._disconnect()
            unconfirmed = failed

    async def _open(self) -> None:
        if self._connection is None:
            self._connection = await connect(self._url)
            channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
            self._to_exchange = await channel.get_exchange(EXCHANGE, ensure=False)
            self._to_queue = channel.default_exchange
            self._by_record = await channel.get_exchange(BY_RECORD, ensure=False)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        await disconnect(connection)
        await asyncio.sleep(_PAUSE_SECONDS)

    async def _send(self, message: Message) -> None:
        if message.slot is not None:
            exchange, key = self._by_record, message.slot
        else:
            exchange, key = (self._to_exchange, "upsert") if message.number % 2 else (self._to_queue, QUEUE)
        assert exchange is not None
        await exchange.publish(
            aio_pika.Message(
                message.body,
                content_type=message.content_type,
                headers=cast("dict[str, Any]", message.headers),
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                correlation_id=str(message.number),
                message_id=message.message_id,
                reply_to=message.reply_to,
            ),
            key,
            mandatory=True,
            timeout=_CONFIRM_SECONDS,
        )
