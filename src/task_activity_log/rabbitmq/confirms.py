"""A channel in confirm mode: publishes batches in one write, and tells the fate of each message."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from math import inf
from typing import TypeAlias

import aio_pika
import aiormq

from task_activity_log.rabbitmq import headers
from task_activity_log.rabbitmq.channel import open_channel
from task_activity_log.rabbitmq.frames import FrameReader, Inbound, publish_frames, write
from task_activity_log.rabbitmq.link import describe
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing

FRAME_MAX = 131_072
"""The largest frame in bytes where the broker sets no limit."""

_TOO_LARGE = re.compile(r"larger than configured max size (\d+)")


Late: TypeAlias = Callable[[int, Fate], None]
"""Called with the position and the fate of a message whose answer came after the patience had ended."""


class Batch:
    """Messages that were published together, with consecutive sequence numbers from `first`."""

    __slots__ = ("_addresses", "began", "done", "fates", "first", "messages", "on_late", "unconfirmed", "written")

    def __init__(self, first: int, messages: Sequence[Outgoing]) -> None:
        self.first = first
        self.messages = messages
        self.fates = [Fate.CONFIRMED] * len(messages)  # what is not answered is in `unconfirmed`
        self.unconfirmed = set(range(first, first + len(messages)))
        self.written = False
        self.on_late: Late | None = None
        loop = asyncio.get_running_loop()
        self.began = loop.time()
        self.done: asyncio.Future[None] = loop.create_future()
        self._addresses: dict[tuple[str, str, str | None], list[int]] | None = None

    def settle(self, answered_from: int, answered_to: int, fate: Fate) -> None:
        """The answer to these sequence numbers, both included, as far as they belong to this batch."""
        # Only its own numbers are looked at: a broker that answers singly and then all at once names all since the first.
        tags = range(max(answered_from, self.first), min(answered_to + 1, self.first + len(self.messages)))
        if fate is not Fate.CONFIRMED:
            for tag in self.unconfirmed.intersection(tags):
                self.fates[tag - self.first] = fate
        answered = None if self.on_late is None else sorted(self.unconfirmed.intersection(tags))
        self.unconfirmed.difference_update(tags)
        if not self.unconfirmed and not self.done.done():
            self.done.set_result(None)
        if answered and self.on_late is not None:
            for tag in answered:
                self.on_late(tag - self.first, self.fates[tag - self.first])

    def returned(self, address: tuple[str, str, str | None]) -> None:
        """No queue takes what was sent to this exchange with this routing key and message_id."""
        if self._addresses is None:
            self._addresses = {}
            for position, message in enumerate(self.messages):
                key = (message.exchange, message.routing_key, message.properties.message_id)
                self._addresses.setdefault(key, []).append(position)
        for position in self._addresses.pop(address, ()):
            if self.first + position in self.unconfirmed:
                self.fates[position] = Fate.RETURNED

    def end(self, fate: Fate) -> list[Fate]:
        """The fates, with `fate` for what is not answered."""
        return [fate if tag in self.unconfirmed else known for tag, known in enumerate(self.fates, start=self.first)]


class ConfirmChannel:
    """A channel whose sequence numbers are counted here."""

    def __init__(self, channel: aiormq.abc.AbstractChannel, frame_max: int) -> None:
        self.channel = channel
        self.frame_max = frame_max
        self.broken = asyncio.Event()
        """Set when the channel must not be used any more, although it may be open."""
        self.message_max: int | None = None
        """The broker's `max_message_size`, if it has closed the channel because of it."""
        self.answered_at = 0.0
        """When the broker last answered, on the event loop's clock."""
        self._sequence = 0
        self._confirmed_to = 0
        self._batches: list[Batch] = []  # the oldest first
        channel.closing.add_done_callback(self._closed)

    @property
    def settled(self) -> bool:
        """Whether the broker has answered everything."""
        return not self._batches

    @property
    def unanswered_since(self) -> float:
        """When the oldest batch began that is not answered, on the event loop's clock; infinity if all are answered."""
        return self._batches[0].began if self._batches else inf

    def unanswered_addresses(self) -> set[tuple[str, str]]:
        """Exchange and routing key of what is not answered."""
        return {
            (message.exchange, message.routing_key)
            for batch in self._batches
            for tag, message in enumerate(batch.messages, start=batch.first)
            if tag in batch.unconfirmed
        }

    def begin(self, messages: Sequence[Outgoing]) -> tuple[Batch, list[bytes | memoryview]]:
        """Number these messages, and return them with their frames, which must be written next."""
        pieces: list[bytes | memoryview] = []
        for message in messages:
            pieces += publish_frames(
                self.channel.number,
                message.exchange,
                message.routing_key,
                mandatory=message.mandatory,
                header=headers.encode(message.properties, len(message.body)),
                body=message.body,
                frame_max=self.frame_max,
            )
        batch = Batch(self._sequence + 1, messages)
        self._sequence += len(messages)
        self._batches.append(batch)
        return batch, pieces

    async def send(self, batch: Batch, pieces: Sequence[bytes | memoryview]) -> None:
        """Write a batch, and return when each message is answered or lost.

        Raises:
            One of `link.LOST`: it could not be written.
        """
        await write(self.channel, pieces)
        batch.written = True
        await batch.done

    def confirm(self, tag: int, multiple: bool, taken: bool) -> None:
        """The broker's answer. Called by the frame reader."""
        self.answered_at = asyncio.get_running_loop().time()
        answered_from = self._confirmed_to + 1 if multiple else tag
        fate = Fate.CONFIRMED if taken else Fate.NACKED
        for batch in self._batches:
            if batch.first > tag:
                break
            batch.settle(answered_from, tag, fate)
        if multiple:
            self._confirmed_to = max(self._confirmed_to, tag)
        while self._batches and not self._batches[0].unconfirmed:
            del self._batches[0]

    def returned(self, exchange: str, routing_key: str, header: bytes) -> None:
        """A message came back. Called by the frame reader.

        A return does not say which publish it answers. Several unconfirmed messages with the same address and
        message_id are repeats of one message, and its queue is gone for all of them.
        """
        address = (exchange, routing_key, headers.decode(header).message_id)
        for batch in self._batches:
            batch.returned(address)

    def lose(self) -> None:
        """End every wait for a confirm: no more confirms will come."""
        batches, self._batches = self._batches, []
        for batch in batches:
            batch.settle(batch.first, batch.first + len(batch.messages) - 1, Fate.LOST)

    def _closed(self, closing: asyncio.Future[None]) -> None:
        error = None if closing.cancelled() else closing.exception()
        if error is not None and (found := _TOO_LARGE.search(describe(error).text)):
            self.message_max = int(found[1])
        self.lose()


async def open_confirming(connection: aio_pika.Connection, frame_reader: FrameReader) -> ConfirmChannel:
    """Open a channel in confirm mode whose answers come to a `ConfirmChannel`.

    Raises:
        One of `link.LOST`: the connection is closed, or the broker refuses.
    """
    opened = await open_channel(connection, confirms=True)
    channel = ConfirmChannel(opened, opened.connection.connection_tune.frame_max or FRAME_MAX)
    frame_reader.channels[opened.number] = Inbound(confirm=channel.confirm, returned=channel.returned)
    return channel
