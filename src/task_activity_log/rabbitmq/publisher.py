"""Publishing in batches with publisher confirms, over a connection of its own.

The connection is separate because a broker that blocks publishers must not block acknowledgements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import aiormq

from task_activity_log.message import Properties
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq import headers
from task_activity_log.rabbitmq.channel import open_channel, wait_closed
from task_activity_log.rabbitmq.frames import FrameReader, Inbound, publish_frames, write
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, connect, describe, supervise

_FRAME_MAX = 131_072
"""The largest frame in bytes where the broker sets no limit."""


@dataclass(slots=True)  # not frozen, which would take three times as long to make
class Outgoing:
    """A message to be published. It is not changed."""

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes
    mandatory: bool = True


class Fate(Enum):
    """What the broker did with a published message; the value is the word for it in logs and metrics."""

    CONFIRMED = "confirmed"
    RETURNED = "returned"
    """No queue takes messages at that address."""
    NACKED = "refused"
    """A queue is full, or could not write the message."""


_Address = tuple[str, str, str | None]
"""Exchange, routing key and message_id of a message that was published."""


class _Batch:
    """Messages that were published together, with consecutive sequence numbers from `first`."""

    __slots__ = ("_by_address", "done", "fates", "first", "messages", "unconfirmed")

    def __init__(self, first: int, messages: Sequence[Outgoing]) -> None:
        self.first = first
        self.messages = messages
        self.fates = [Fate.CONFIRMED] * len(messages)
        self.unconfirmed = set(range(first, first + len(messages)))
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._by_address: dict[_Address, list[int]] | None = None

    def settle(self, tags: Iterable[int], taken: bool) -> None:
        """The broker's answer to these sequence numbers, as far as they belong to this batch."""
        if not taken:
            for tag in self.unconfirmed.intersection(tags):
                self.fates[tag - self.first] = Fate.NACKED
        self.unconfirmed.difference_update(tags)
        if not self.unconfirmed and not self.done.done():
            self.done.set_result(None)

    def return_to(self, address: _Address) -> None:
        """The broker returns the messages of this address that are not confirmed yet.

        A search for each return would take 2 s where 5,000 messages of one batch are returned.
        """
        if self._by_address is None:
            self._by_address = {}
            for tag, message in enumerate(self.messages, self.first):
                key = (message.exchange, message.routing_key, message.properties.message_id)
                self._by_address.setdefault(key, []).append(tag)
        for tag in self.unconfirmed.intersection(self._by_address.pop(address, ())):
            self.fates[tag - self.first] = Fate.RETURNED


class _Channel:
    """A channel in confirm mode whose sequence numbers are counted here."""

    def __init__(self, channel: aiormq.abc.AbstractChannel, frame_max: int) -> None:
        self.channel = channel
        self.frame_max = frame_max
        self.broken = asyncio.Event()
        self._sequence = 0
        self._confirmed_to = 0
        self._batches: list[_Batch] = []  # the oldest first

    async def publish(self, messages: Sequence[Outgoing]) -> list[Fate]:
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
        batch = _Batch(self._sequence + 1, messages)
        self._sequence += len(messages)
        self._batches.append(batch)
        await write(self.channel, pieces)
        await batch.done
        return batch.fates

    def confirm(self, tag: int, multiple: bool, taken: bool) -> None:
        tags = range(self._confirmed_to + 1 if multiple else tag, tag + 1)
        for batch in self._batches:
            if batch.first > tag:
                break
            batch.settle(tags, taken)
        if multiple:
            self._confirmed_to = max(self._confirmed_to, tag)
        while self._batches and not self._batches[0].unconfirmed:
            del self._batches[0]

    def returned(self, exchange: str, routing_key: str, header: bytes) -> None:
        # A return does not say which publish it answers. Several unconfirmed messages with the same address and
        # message_id are repeats of one message, and its queue is gone for all of them.
        address = (exchange, routing_key, headers.decode(header).message_id)
        for batch in self._batches:
            batch.return_to(address)

    def lose(self, error: BaseException) -> None:
        """End every wait for a confirm: no more confirms will come."""
        for batch in self._batches:
            if not batch.done.done():
                batch.done.set_exception(error)
                batch.done.exception()  # read, or asyncio reports it where the publisher was cancelled
        self._batches.clear()


class Publisher:
    """Publishes batches and waits for the broker's answer to every message."""

    def __init__(
        self,
        options: LinkOptions,
        *,
        purpose: str = "replies",
        confirm_timeout_seconds: float = 30.0,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            options: how to reach the broker.
            purpose: the connection's name in logs and in the broker's management.
            confirm_timeout_seconds: how long `publish` waits for confirms.
            on_lost: called when a connection that could publish is lost.
        """
        self._options = options
        self._purpose = purpose
        self._confirm_timeout = confirm_timeout_seconds
        self._on_lost = on_lost
        self._channel: _Channel | None = None  # this and the next two are set by `_session`
        self._frame_reader: FrameReader | None = None
        self._connected = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether there is a channel to publish on."""
        return self._channel is not None

    @property
    def header_max(self) -> int:
        """How many bytes a content header may have: the broker's largest frame without the 8 bytes around its payload."""
        return (_FRAME_MAX if self._channel is None else self._channel.frame_max) - 8

    @property
    def blocked(self) -> str | None:
        """Why the broker takes no publishes at present (a resource alarm); None if it does."""
        return None if self._frame_reader is None else self._frame_reader.blocked

    async def wait_connected(self) -> None:
        """Return once there is a channel to publish on."""
        await self._connected.wait()

    async def run(self) -> None:
        """Keep a channel open until cancelled."""
        await supervise(self._purpose, self._session, self._on_lost, self._options.on_outage)

    async def _session(self, established: Callable[[], None]) -> None:
        async with connect(self._options, self._purpose) as (connection, frame_reader):
            opened = await open_channel(connection, confirms=True)
            channel = _Channel(opened, opened.connection.connection_tune.frame_max or _FRAME_MAX)
            frame_reader.channels[opened.number] = Inbound(confirm=channel.confirm, returned=channel.returned)
            self._channel, self._frame_reader = channel, frame_reader
            self._connected.set()
            established()
            reason = "closed"
            try:
                reason = await wait_closed(opened, channel.broken)
            finally:
                self._channel = self._frame_reader = None
                self._connected.clear()
                channel.lose(Unavailable("publisher connection lost", reason))
            raise ConnectionError(reason)

    async def publish(self, messages: Sequence[Outgoing]) -> list[Fate]:
        """Publish `messages` in one write and wait until the broker has answered for each.

        Raises:
            Unavailable: there is no connection, it was lost, or no answer came in time. Any of the messages may have
                been taken: publish them again with the same message_id.
        """
        channel, frame_reader = self._channel, self._frame_reader
        if channel is None or frame_reader is None:
            raise Unavailable("no publisher connection")
        if not messages:
            return []
        if frame_reader.blocked is not None:
            raise Unavailable(_BLOCKED)
        published = asyncio.ensure_future(channel.publish(messages))
        blocked = False
        try:
            with asking_the_driver():
                if (await asyncio.wait({published}, timeout=self._confirm_timeout))[0]:
                    return published.result()
            if self.blocked is None:
                raise Unavailable(f"{self._purpose} not confirmed in time")
            # The broker takes what was written once the alarm is over: the channel stays usable.
            blocked = True
            published.add_done_callback(_read)
        except LOST as error:
            channel.broken.set()
            if isinstance(error, Unavailable):
                raise
            raise Unavailable(describe(error).text) from error
        finally:
            if not published.done() and not blocked:
                # Interrupted: nobody knows whether the write happened, so the sequence numbers are unknown as well,
                # and the channel cannot be used any more.
                published.cancel()
                channel.broken.set()
        raise Unavailable(_BLOCKED)


_BLOCKED = "the broker blocks publishers"


def _read(published: asyncio.Task[list[Fate]]) -> None:
    """Read the failure of a publish that nobody waits for any more, or asyncio reports it."""
    if not published.cancelled():
        published.exception()
