"""Publishing in batches with publisher confirms, over a connection of its own.

The connection is separate because a broker that blocks publishers must not block acknowledgements.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from math import inf
from typing import TypeAlias

import aio_pika

from task_activity_log.problem import Misconfigured, Unavailable
from task_activity_log.rabbitmq.channel import wait_closed
from task_activity_log.rabbitmq.confirms import FRAME_MAX, Batch, ConfirmChannel, Late, open_confirming
from task_activity_log.rabbitmq.frames import FrameReader
from task_activity_log.rabbitmq.link import LOST, CutOff, LinkOptions, asking_the_driver, connect, supervise
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.queues import must_exist
from task_activity_log.rabbitmq.version import version_of

_OPEN_SECONDS = 2.0
"""A broker that takes longer to open a channel on a connection in use reads nothing from that connection."""
_RECONNECT_SECONDS = 1.0
"""How long `publish` waits for a channel: opening the next one takes less if the broker is there."""
_RESTORE_SECONDS = 10.0
_KEEP_SECONDS = 30.0
Declare: TypeAlias = Callable[[aio_pika.Connection], Awaitable[object]]
_SLOW_SECONDS = 2.5
_LINGERING_MAX = 8
_LEARNED_SECONDS = 600.0
_OF_A_MESSAGE = (
    "PRECONDITION_FAILED",
    "FRAME_ERROR",
    "SYNTAX_ERROR",
    "NOT_ALLOWED",
    "INTERNAL_ERROR",
    "NOT_IMPLEMENTED",
)


def may_be_of_a_message(reason: str) -> bool:
    """Whether a message can be the cause for which the broker has ended its channel or connection."""
    return reason.startswith(_OF_A_MESSAGE)


class MessageMax:
    """The broker's `max_message_size`, as it has said when it closed a channel.

    The size is not known before, because operators can raise the default of their version. It is forgotten after ten
    minutes, in case it was raised since.
    """

    def __init__(self) -> None:
        self._learned: tuple[int, float] | None = None

    def learn(self, size: int) -> None:
        """The broker takes no body longer than `size` bytes."""
        self._learned = (size, time.monotonic())

    @property
    def known(self) -> int | None:
        """The longest body in bytes; None if it is not known."""
        if self._learned is not None and time.monotonic() - self._learned[1] > _LEARNED_SECONDS:
            self._learned = None
        return None if self._learned is None else self._learned[0]


class Publisher:
    """Publishes batches and waits for the broker's answer to every message."""

    last_reason = "closed"
    """Why the last channel ended. Set by `_keep_open`."""
    _waiting_from: float | None = None  # since when `publish` waits for the broker
    _is_missing = False  # whether a queue of ours is, as what was returned shows
    _silent_since: float | None = None  # when the oldest message was sent of those since the last answer
    _silent = False  # whether the next connection must be to another host. Both are set by `_linger`

    def __init__(
        self,
        options: LinkOptions,
        *,
        purpose: str = "replies",
        confirm_timeout_seconds: float = 30.0,
        on_connected: Callable[[], None] = lambda: None,
        on_lost: Callable[[], None] = lambda: None,
        message_max: MessageMax | None = None,
        also_leave: Collection[str] = (),
        refused_seconds: float = inf,
        restore: Declare | None = None,
        keep: Declare | None = None,
    ) -> None:
        """Do not connect yet.

        Args:
            options: how to reach the broker.
            purpose: the connection's name in logs and in management.
            confirm_timeout_seconds: how long `publish` waits for confirms by default.
            on_connected: called when a connection can publish.
            on_lost: called when it is lost then.
            message_max: is told what the broker says about its largest message.
            also_leave: the purposes of the connections that leave a host together with this one, because it confirms nothing.
            refused_seconds: how long all to one address may be refused before the connection is replaced. RabbitMQ 3.10 may
                refuse a channel for ever that was opened while a queue had no leader.
            restore: declares queues and exchanges again if one is missing; None: somebody else has to.
            keep: declares again, every half a minute, what the broker does not tell that it is missing.
        """
        self._options, self._purpose, self._restore, self._keep = options, purpose, restore, keep
        self._confirm_timeout, self._refused_seconds = confirm_timeout_seconds, refused_seconds
        self._refused_from: dict[tuple[str, str], float] = {}  # by exchange and routing key: since when all is refused
        self._on_connected, self._on_lost, self._also_leave = on_connected, on_lost, also_leave
        self._message_max = message_max or MessageMax()
        self._channel: ConfirmChannel | None = None  # this and the next one are set by `_keep_open`
        self._frame_reader: FrameReader | None = None
        self._connected, self._answered_at = asyncio.Event(), 0.0  # the latter on channels before the present one
        self._lingering: list[ConfirmChannel] = []  # those of the present connection that still wait for answers

    @property
    def connected(self) -> bool:
        """Whether there is a channel to publish on."""
        return self._channel is not None

    @property
    def header_max(self) -> int:
        """How many bytes a content header may have: the broker's largest frame without the 8 bytes around its payload."""
        return (FRAME_MAX if self._channel is None else self._channel.frame_max) - 8

    @property
    def blocked(self) -> str | None:
        """Why the broker currently blocks publishing (a resource alarm); None if it does."""
        return None if self._frame_reader is None else self._frame_reader.blocked

    @property
    def slow(self) -> bool:
        """Whether a publish waits for the broker's answer for an unusually long time."""
        now = asyncio.get_running_loop().time()
        return self._waiting_from is not None and now - self._waiting_from > _SLOW_SECONDS

    @property
    def answered_at(self) -> float:
        """When the broker last answered a publish, on the event loop's clock."""
        return self._answered_at if self._channel is None else max(self._answered_at, self._channel.answered_at)

    async def ask(self) -> bool:
        """Open a channel and close it; whether the broker has answered. Not limited in time: the connection is."""
        if self._channel is None:
            return False
        with suppress(*LOST), asking_the_driver():
            channel = await self._channel.channel.connection.channel(publisher_confirms=False)
            await channel.close()
            return True
        return False

    @property
    def version(self) -> str:
        """The broker's version; empty while there is no connection."""
        if self._channel is None:
            return ""
        return version_of(self._channel.channel.connection)

    @property
    def has_room_for_late(self) -> bool:
        """Whether one more channel may wait for late answers. The other half is for what is published at the same time."""
        return sum(not channel.settled for channel in self._lingering) < _LINGERING_MAX // 2

    async def wait_connected(self) -> None:
        """Return once there is a channel to publish on."""
        await self._connected.wait()

    async def require_exchange(self, exchange: str) -> None:
        """Return if the exchange exists. The user needs any one permission for it.

        Raises:
            One of `link.LOST`: it does not exist, the broker refuses, or the connection is lost.
        """
        if self._channel is None:
            raise ConnectionError(self.last_reason)
        channel = await self._channel.channel.connection.channel()
        async with must_exist(f"exchange '{exchange}'"):
            await channel.exchange_declare(exchange, passive=True)
        await channel.close()

    async def run(self) -> None:
        """Keep a channel open until cancelled."""
        await supervise(self._purpose, self._session, self._on_lost, self._options.on_outage)

    async def _session(self, established: Callable[[], None]) -> None:
        while True:
            self._silent = False
            reason: str | None = "closed"
            async with connect(self._options, self._purpose) as (connection, frame_reader):
                try:
                    reason = await self._keep_open(connection, frame_reader, established)
                finally:
                    if reason is None or not all(channel.settled for channel in self._lingering):
                        frame_reader.abort()  # a channel is stuck: the broker would answer `connection.close` late
                    for channel in self._lingering:
                        channel.lose()
                    self._lingering.clear()
                # Raised here, so that the next connection is to another host.
                if reason is not None:
                    raise ConnectionError(reason)
                if self._silent:
                    raise CutOff(_SILENT, self._also_leave)

    async def _keep_open(
        self, connection: aio_pika.Connection, frame_reader: FrameReader, established: Callable[[], None]
    ) -> str | None:
        """Open a channel, and another when it ends, until the connection is lost; returns the reason.

        None: the connection is open, but must be replaced at once.
        """
        reason: str | None = None
        while True:
            try:
                async with asyncio.timeout(_OPEN_SECONDS):
                    channel = await open_confirming(connection, frame_reader)
            except LOST as error:
                if reason is None:
                    raise
                return None if isinstance(error, TimeoutError) else reason
            if reason is None:
                established()
            self._channel, self._frame_reader = channel, frame_reader
            self._connected.set()
            if reason is None:
                self._on_connected()
            try:
                self.last_reason = reason = await self._closed(connection, channel)
            finally:
                self._channel = self._frame_reader = None
                self._connected.clear()
                if channel not in self._lingering:
                    channel.lose()
            if channel.message_max is not None:
                self._message_max.learn(channel.message_max)
            is_missing, self._is_missing = self._is_missing or reason.startswith("NOT_FOUND"), False
            if is_missing:
                await _carry_out(self._restore, connection)  # the next message that is published tries again
            if channel.broken.is_set() and channel not in self._lingering:
                return None

    async def _closed(self, connection: aio_pika.Connection, channel: ConfirmChannel) -> str:
        """Why the channel was closed, once it is. Until then `keep` is called again and again."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if self._keep is None else _KEEP_SECONDS):
                    return await wait_closed(channel.channel, channel.broken)
            await _carry_out(self._keep, connection)

    async def publish(
        self, messages: Sequence[Outgoing], patience_seconds: float | None = None, on_late: Late | None = None
    ) -> list[Fate]:
        """Publish `messages` in one write and return the fate of each.

        Args:
            messages: what to publish.
            patience_seconds: how long to wait for the broker's answers; by default the confirm timeout.
            on_late: called when a message that was unconfirmed is answered after all, or lost. Without it, the
                connection is replaced if a message is unconfirmed: the channel is stuck behind it. With it, what cannot be
                waited for is lost and never unconfirmed.

        Raises:
            Unavailable: nothing was sent, because there is no connection, or the broker blocks publishers. What was sent
                when it began to block them may be taken later: publish it again with the same message_id.
        """
        channel = await self._usable()
        if not messages:
            return []
        batch, pieces = channel.begin(messages)
        sending = asyncio.ensure_future(channel.send(batch, pieces))
        await self._wait(sending, channel, self._confirm_timeout if patience_seconds is None else patience_seconds)
        if sending.done():
            if not _sent(sending):
                self._leave(channel)
            fates = batch.end(Fate.LOST)
            self._notice_refusals(batch.messages, fates)
            return fates
        if self.blocked is not None and self._channel is channel:
            # The broker takes what was written once the alarm is over: the channel stays usable.
            sending.add_done_callback(_sent)
            raise Unavailable(_BLOCKED)
        sending.cancel()
        lingers = self._linger(channel, batch, on_late)
        return batch.end(Fate.UNCONFIRMED if lingers or on_late is None else Fate.LOST)

    async def _wait(self, sending: asyncio.Task[None], channel: ConfirmChannel, patience_seconds: float) -> None:
        self._waiting_from = asyncio.get_running_loop().time()
        try:
            await asyncio.wait({sending}, timeout=patience_seconds)
        except asyncio.CancelledError:
            # Nobody knows whether the write happened, so the sequence numbers are unknown as well.
            sending.cancel()
            self._leave(channel)
            raise
        finally:
            self._waiting_from = None
            self._answered_at = max(self._answered_at, channel.answered_at)

    async def _usable(self) -> ConfirmChannel:
        if self._channel is None:
            try:
                async with asyncio.timeout(_RECONNECT_SECONDS):
                    await self._connected.wait()
            except TimeoutError:
                raise Unavailable("no publisher connection") from None
        if self._channel is None:
            raise Unavailable("no publisher connection")
        if self.blocked is not None:
            raise Unavailable(_BLOCKED)
        return self._channel

    def _linger(self, channel: ConfirmChannel, batch: Batch, on_late: Late | None) -> bool:
        """Publish on another channel from now on, and wait for late answers on this one; whether they are waited for.

        They are not if the write has not ended, or too many channels wait: then the connection is replaced, and by one to another
        host if this one confirms nothing at all, as a node does that is cut off from the others.
        """
        self._lingering = [one for one in self._lingering if not one.settled]
        waits = channel in self._lingering  # another batch on the same channel was unconfirmed before
        lingers = on_late is not None and batch.written and (waits or len(self._lingering) < _LINGERING_MAX)
        if lingers:
            batch.on_late = on_late
            if not waits:
                self._lingering.append(channel)
        else:
            # Another batch on the same channel must not take back what the first one has found out.
            self._silent = self._silent or (self._channel is channel and self._is_silent([*self._lingering, channel]))
        self._leave(channel)
        return lingers

    def _is_silent(self, waiting: Sequence[ConfirmChannel]) -> bool:
        """Whether nothing was answered for the confirm timeout, on this connection and those before.

        If all that waits has one address, it may be its queue that does not answer, and not the node: then it takes twice as
        long. What goes to other addresses meanwhile shows which it is.
        """
        answered_at = max(self._answered_at, *(one.answered_at for one in waiting))
        oldest = min(one.unanswered_since for one in waiting)
        if answered_at >= oldest:
            self._silent_since = None
            return False
        if self._silent_since is None or answered_at > self._silent_since:
            self._silent_since = oldest
        addresses = set[tuple[str, str]]().union(*(one.unanswered_addresses() for one in waiting))
        limit = self._confirm_timeout if len(addresses) > 1 else 2 * self._confirm_timeout
        return asyncio.get_running_loop().time() - self._silent_since >= limit

    def _notice_refusals(self, messages: Sequence[Outgoing], fates: Sequence[Fate]) -> None:
        if self._refused_seconds == inf or not (self._refused_from or Fate.NACKED in fates):
            return
        now = asyncio.get_running_loop().time()
        for message, fate in zip(messages, fates, strict=True):
            address = message.exchange, message.routing_key
            if fate is Fate.NACKED:
                self._refused_from.setdefault(address, now)
            else:
                self._refused_from.pop(address, None)
        if any(now - since > self._refused_seconds for since in self._refused_from.values()):
            self._refused_from.clear()
            self.renew()

    def renew(self) -> None:
        """Publish over a new connection from now on, because a queue has refused a message.

        A quorum queue tells each channel when it is full and when it has room again, but not when its limit is removed:
        then it takes what others publish, and this channel would be refused for ever.
        """
        if self._channel is not None:
            self._leave(self._channel)

    def restore(self) -> None:
        """Have queues and exchanges declared again before anything else is published: one of ours, it seems, was deleted."""
        if self._restore is not None and self._channel is not None:
            self._is_missing = True
            self._leave(self._channel)

    def _leave(self, channel: ConfirmChannel) -> None:
        """Publish nothing more on this channel, from now on and not only when the session has noticed."""
        channel.broken.set()
        if self._channel is channel:
            self._channel = self._frame_reader = None
            self._connected.clear()


_BLOCKED = "the broker blocks publishers"
_SILENT = "nothing that is sent is confirmed"


async def _carry_out(declare: Declare | None, connection: aio_pika.Connection) -> None:
    if declare is not None:
        with suppress(*LOST, Misconfigured):
            async with asyncio.timeout(_RESTORE_SECONDS):
                await declare(connection)


def _sent(sending: asyncio.Task[None]) -> bool:
    """Whether a write has ended well. Its failure is read, or asyncio reports it where nobody waits for it any more."""
    if sending.cancelled():  # by the driver, whose connection is lost
        return False
    error = sending.exception()
    if error is not None and not isinstance(error, LOST):
        raise error
    return error is None


def must_be_bare(publisher: Publisher, fates: Sequence[Fate], *, was_bare: bool) -> bool:
    """Whether copies of messages are published next without what only the broker may refuse in them.

    Args:
        publisher: has published some, and knows why its channel or connection has ended.
        fates: theirs.
        was_bare: whether they were published so. If they are lost all the same, the next ones stay as they are.
    """
    return Fate.LOST in fates and (was_bare or may_be_of_a_message(publisher.last_reason))
