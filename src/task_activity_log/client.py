"""For publishers: sends upserts and receives their replies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from aiormq.exceptions import AMQPError
from yarl import URL

_WINDOW = 500
"""Upserts under way at once: enough for the worker to batch, few enough to wait for after an interruption."""


class ClientError(Exception):
    """The broker is out of reach, refuses, or nobody answers; the text is one line."""


@dataclass(frozen=True, slots=True)
class Upsert:
    """A request body as it is sent."""

    body: bytes
    content_type: str
    source: str = ""
    """Where it came from, for the person who reads the answer."""
    message_id: str = field(default_factory=lambda: str(uuid4()))


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, and what it answers."""

    upsert: Upsert
    outcome: str
    content_type: str
    body: bytes


class Client:
    """A connection with a reply queue of its own."""

    def __init__(self, url: str, *, exchange: str = "task_activity_log", connect_timeout_seconds: float = 10.0) -> None:
        self._url = URL(url)
        self._exchange_name = exchange
        self._connect_timeout = connect_timeout_seconds
        self._answers: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            ClientError: nobody answers, or the broker refuses.
        """
        try:
            self._connection = await aio_pika.connect(self._url, timeout=self._connect_timeout)
            self._channel = await self._connection.channel(on_return_raises=True)
            self._exchange = await self._channel.get_exchange(self._exchange_name, ensure=False)
            self._queue: AbstractQueue = await self._channel.declare_queue(exclusive=True, auto_delete=True)
            await self._queue.consume(self._answers.put, no_ack=True)
        except (AMQPError, OSError, TimeoutError) as error:
            raise ClientError(f"no connection to {self._url.host}:{self._url.port or 5672}: {_words(error)}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection; the reply queue goes with it."""
        await self._connection.close()

    async def exchange(self, upserts: Sequence[Upsert], *, timeout_seconds: float = 30.0) -> AsyncIterator[Answer]:
        """Send `upserts`, in order, and yield the answers as they come.

        Raises:
            ClientError: the broker does not take one, or no answer came for `timeout_seconds`.
        """
        unanswered: dict[str, Upsert] = {}
        coming = iter(upserts)
        while True:
            window = [upsert for _, upsert in zip(range(_WINDOW - len(unanswered)), coming, strict=False)]
            unanswered |= {upsert.message_id: upsert for upsert in window}
            await self._send(window)
            if not unanswered:
                return
            try:
                message = await asyncio.wait_for(self._answers.get(), timeout_seconds)
            except TimeoutError:
                raise ClientError(
                    f"no answer for {timeout_seconds:g} s to {len(unanswered)} of {len(upserts)}: is a worker running?"
                    " What was sent is in its queue"
                ) from None
            upsert = unanswered.pop(message.correlation_id or "", None)
            if upsert is not None:
                outcome = str(message.headers.get("x-outcome", "unknown"))
                yield Answer(upsert, outcome, message.content_type or "", message.body)

    async def _send(self, upserts: Sequence[Upsert]) -> None:
        try:
            await asyncio.gather(*(self._publish(upsert) for upsert in upserts))
        except (AMQPError, OSError, TimeoutError) as error:
            raise ClientError(
                f"exchange {self._exchange_name} does not take upserts: {_words(error)}."
                " A worker declares it when it starts"
            ) from error

    async def _publish(self, upsert: Upsert) -> None:
        message = aio_pika.Message(
            upsert.body,
            content_type=upsert.content_type,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=upsert.message_id,
            reply_to=self._queue.name,
        )
        await self._exchange.publish(message, "upsert", mandatory=True)


def _words(error: BaseException) -> str:
    return " ".join(str(argument) for argument in error.args if argument)[:200] or type(error).__name__
