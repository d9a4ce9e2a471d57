"""Tries replies apart whose addresses take nothing at present. `Addresses` decides; here it is done.

Two connections, opened when they are needed: one with a channel for each address that is tried apart, which may wait long
for an answer; and some, each new for one try, for addresses that may end them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any, Generic, TypeVar

import aio_pika
import structlog

from task_activity_log.rabbitmq.addresses import AGAIN_SECONDS, PATIENCE_SECONDS, Addresses, Line, Waiting
from task_activity_log.rabbitmq.answered_time import ASK_SECONDS, SILENT_SECONDS, AnsweredTime
from task_activity_log.rabbitmq.confirms import ConfirmChannel, open_confirming
from task_activity_log.rabbitmq.frames import FrameReader
from task_activity_log.rabbitmq.link import LOST, LinkOptions, asking_the_driver, connect, supervise
from task_activity_log.rabbitmq.log_limit import LogLimit
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing

log = structlog.get_logger(__name__)

T = TypeVar("T")

_CHANNELS_MAX = 64
_OPENING_MAX = 16
"""How many channels are opened at a time. If thousands were, the answers to all of them would come too late."""
_TRIALS_MAX = 4
"""How many connections may be open at a time on which addresses are tried together."""
_TICK_SECONDS = 0.25
_PAUSE = 3
"""The pause between two looks at all addresses, in times of what the first one took."""
_OPEN_SECONDS = 2.0
_LATELY_SECONDS = 3.0
"""Longer than it takes to ask the broker twice after the first reply was not confirmed: see `Addresses.tidy`."""
_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True)
class Failing:
    """An address where replies wait."""

    address: str
    waiting: int
    oldest_seconds: float
    fate: Fate | None
    """What became of the last try; None if there was none, or its reply was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks(Generic[T]):
    """What `Retries` asks and tells."""

    outgoing: Callable[[str, T], Outgoing]
    """The message for an address and a reply."""
    finished: Callable[[list[tuple[Waiting[T], str | None]]], None]
    """Called with what is confirmed or given up, and why."""
    still: Callable[[T], bool]
    """Whether a reply is still wanted. It is not if its delivery was requeued."""
    reachable: Callable[[], bool]
    """Whether the broker takes other replies. While it does not, no time passes for those that wait."""
    answered_at: Callable[[], float]
    """When the broker last answered a publish, on the event loop's clock."""
    ask: Callable[[], Coroutine[Any, Any, bool]]
    """Asks the broker something else; whether it has answered. It waits for the answer while there is a connection."""
    message_max: Callable[[int], None]
    """Called with the broker's `max_message_size`, if it says so."""


class Retries(Generic[T]):
    """Publishes what waits in `Addresses` until it is confirmed or given up."""

    def __init__(self, options: LinkOptions, addresses: Addresses[T], callbacks: Callbacks[T]) -> None:
        """Connect to nothing yet."""
        self._options = options
        self._addresses = addresses
        self._callbacks = callbacks
        self._changed, self._needed = asyncio.Event(), asyncio.Event()  # `_needed`: something is tried apart
        self._link: tuple[aio_pika.Connection, FrameReader] | None = None  # set by `_session`
        self._channels: dict[str, ConfirmChannel] = {}  # by address; those of `_link`
        self._opening: set[str] = set()  # addresses whose channels are being opened
        self._free: list[ConfirmChannel] = []  # those of addresses that are done, for the next ones
        self._tasks: asyncio.TaskGroup | None = None  # set by `run`
        self._together: set[asyncio.Task[None]] = set()
        self._clock = AnsweredTime()
        self._last_answer = 0.0  # to a publish here
        self._asked_at, self._asking = 0.0, False  # when the broker last answered `ask`; set by `_ask`
        self._log_limit = LogLimit()
        self.waiting = 0
        """How many replies wait. Like `failing`, up to a quarter of a second old: another thread may read both."""
        self.failing: tuple[Failing, ...] = ()
        """The addresses where replies wait, at most 20, those with the oldest reply first."""

    def clock(self) -> float:
        """The seconds in which the broker was reachable and answered, which `Addresses` counts in."""
        blocked = self._link is not None and self._link[1].blocked is not None
        reachable = not blocked and self._callbacks.reachable()
        answered_at = max(self._published_at, self._asked_at)
        return self._clock.read(asyncio.get_running_loop().time(), reachable=reachable, answered_at=answered_at)

    @property
    def _published_at(self) -> float:
        """When the broker last answered a publish."""
        return max(self._callbacks.answered_at(), self._last_answer)

    def wake(self) -> None:
        """Something has changed in `Addresses`."""
        self._changed.set()

    async def run(self) -> None:
        """Try what waits until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(supervise("retries", self._session, lambda: None, self._options.on_outage))
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_TICK_SECONDS if self._addresses.busy else None):
                        await self._changed.wait()
                self._changed.clear()
                began = perf_counter()
                self._step()
                # It looks at all addresses. If thousands are answered one by one, it must not do so after each answer.
                await asyncio.sleep(_PAUSE * (perf_counter() - began))

    def _step(self) -> None:
        """Give up, report, and start what is due. It does not wait."""
        now, addresses = self.clock(), self._addresses
        silent_since, time = self._published_at, asyncio.get_running_loop().time()
        silent_for = time - max(silent_since, self._asked_at)
        if addresses.busy and not self._asking and silent_for > ASK_SECONDS:
            self._asking = True
            self._spawn(self._ask())
        answered = now - min(silent_for, SILENT_SECONDS)  # then the clock stood still
        answering = time - silent_since < _LATELY_SECONDS
        addresses.tidy(now, self._callbacks.still, answering=answering, answered=answered)
        self._report(now)
        for address, channel in list(self._channels.items()):
            if address not in addresses or not (channel.settled or addresses.is_open(address)):
                del self._channels[address]
                self._free.append(channel)
        due = addresses.due(now)
        self._free, ended = [one for one in self._free if due and one.settled and not one.channel.is_closed], self._free
        for channel in ended:
            if channel not in self._free:
                self._spawn(_close(channel))
        if due or self._channels:
            self._needed.set()
        elif not addresses.busy:
            self._needed.clear()
        if self._link is not None:
            self._try_all_apart(due, now)
        self._together = {task for task in self._together if not task.done()}
        while len(self._together) < _TRIALS_MAX and (group := addresses.next_group(now)):
            some = [addresses.begin(line, now)[0] for line in group]
            self._together.add(self._spawn(self._try_together(group, some)))

    async def _ask(self) -> None:
        try:
            if await self._callbacks.ask():
                self._asked_at = asyncio.get_running_loop().time()
        finally:
            self._asking = False

    def _report(self, now: float) -> None:
        """Pass on what is finished and has changed, and show what waits."""
        finished, self._addresses.finished = self._addresses.finished, []
        changes, self._addresses.changes = self._addresses.changes, []
        if finished:
            self._callbacks.finished(finished)
        for address, fate in changes:
            self._tell(address, fate)
        self.waiting = len(self._addresses)
        self.failing = tuple(
            Failing(line.address, len(line.waiting), now - next(iter(line.waiting.values())).since, line.fate)
            for line in islice(self._addresses.lines(), _SHOWN_MAX)
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._tasks is not None  # noqa: S101 - a programming error
        return self._tasks.create_task(work)

    def _tell(self, address: str, fate: Fate | None) -> None:
        if self._log_limit.omit(1, asyncio.get_running_loop().time()) is not None:
            if fate is None:
                log.info("reply_to_recovered", reply_to=address)
            else:
                log.warning("reply_to_failing", reply_to=address, why=fate.value)

    # apart

    async def _session(self, established: Callable[[], None]) -> None:
        while True:
            await self._needed.wait()
            async with connect(self._options, "retries") as link:
                self._link = link
                established()
                self.wake()
                try:
                    await self._while_needed(link[0])
                finally:
                    self._link = None
                    channels, self._channels = self._channels, {}
                    self._free.clear()
                    if not all(channel.settled for channel in channels.values()):
                        link[1].abort()  # a channel is stuck: the broker would answer `connection.close` late
                    for channel in channels.values():
                        channel.lose()

    async def _while_needed(self, connection: aio_pika.Connection) -> None:
        """Return once the connection is not needed any more.

        Raises:
            ConnectionError: it is lost.
        """
        assert connection.transport is not None  # noqa: S101 - it was just opened
        closing = connection.transport.connection.closing
        while self._needed.is_set():
            await asyncio.wait({closing}, timeout=AGAIN_SECONDS)
            if closing.done():
                raise ConnectionError("closed")

    def _try_all_apart(self, due: Sequence[Line[T]], now: float) -> None:
        """Try as many of these as there are channels for. Thousands may be due, so no look at all lines is made for each."""
        has_room = True
        for line in due:
            if line.address in self._channels or self._free:
                self._try_apart(line, now)
            elif has_room and len(self._opening) < _OPENING_MAX and (has_room := self._make_room(now)):
                self._opening.add(line.address)
                self._try_apart(line, now)

    def _make_room(self, now: float) -> bool:
        """Whether one more channel may be opened, perhaps in place of one that has waited long for an answer."""
        if len(self._channels) + len(self._opening) < _CHANNELS_MAX:
            return True
        other = self._addresses.preempted(now)
        if other is None or other.address not in self._channels:
            return False
        channel = self._channels.pop(other.address)
        channel.lose()
        self._spawn(_close(channel))
        return True

    def _try_apart(self, line: Line[T], now: float) -> None:
        if line.address not in self._channels and line.address not in self._opening:
            self._channels[line.address] = self._free.pop()
        some = self._addresses.begin(line, now)
        self._spawn(self._publish_apart(line, some))

    async def _publish_apart(self, line: Line[T], some: Sequence[Waiting[T]]) -> None:
        channel = self._channels.get(line.address)
        if channel is None or channel.channel.is_closed:
            try:
                channel = self._channels[line.address] = await self._open()
            except LOST:
                self._addresses.not_tried(line, self.clock())
                return
            finally:
                self._opening.discard(line.address)
                self.wake()  # another one may be opened
        if await self._publish(channel, some) and self._channels.get(line.address) is channel:
            # A quorum queue whose limit is removed goes on to refuse this channel, and takes what a new one publishes.
            await _close(self._channels.pop(line.address))
        if channel.message_max is not None:
            self._callbacks.message_max(channel.message_max)

    async def _open(self) -> ConfirmChannel:
        if self._link is None:
            raise ConnectionError("closed")
        with asking_the_driver():
            async with asyncio.timeout(_OPEN_SECONDS):
                return await open_confirming(*self._link)

    async def _publish(self, channel: ConfirmChannel, some: Sequence[Waiting[T]]) -> bool:
        """Publish these, and return when each is answered, however late; whether any was refused."""
        batch, pieces = channel.begin(
            [self._callbacks.outgoing(waiting.line.address, waiting.item) for waiting in some]
        )
        batch.on_late = lambda position, fate: self._answered(some[position], fate)
        try:
            with asking_the_driver():
                await channel.send(batch, pieces)
        except LOST:
            channel.lose()
        return Fate.NACKED in batch.fates

    def _answered(self, waiting: Waiting[T], fate: Fate) -> None:
        if fate is not Fate.LOST:
            self._last_answer = asyncio.get_running_loop().time()
        self._addresses.answered(waiting, fate, self.clock())
        self.wake()

    # together

    async def _try_together(self, group: Sequence[Line[T]], some: Sequence[Waiting[T]]) -> None:
        """Publish one reply to each address over a new connection, and tell what became of each."""
        fates: dict[Line[T], Fate] = {}
        try:
            with asking_the_driver():
                async with connect(self._options, "trial") as link:
                    await self._publish_together(link, some, fates)
        except LOST:
            pass
        if not fates:
            self._addresses.put_back(group)
            await asyncio.sleep(AGAIN_SECONDS)
        else:
            now = self.clock()
            for waiting in some:
                fate = fates.get(waiting.line, Fate.LOST)
                if fate is not Fate.LOST:
                    self._addresses.answered(waiting, fate, now)
            self._addresses.ended([line for line in group if fates.get(line, Fate.LOST) is Fate.LOST], now)
        self.wake()

    async def _publish_together(
        self, link: tuple[aio_pika.Connection, FrameReader], some: Sequence[Waiting[T]], fates: dict[Line[T], Fate]
    ) -> None:
        channels = await asyncio.gather(*(open_confirming(*link) for _ in some))
        self._last_answer = asyncio.get_running_loop().time()  # a broker that opens channels is not slow for everybody

        async def publish(channel: ConfirmChannel, waiting: Waiting[T]) -> None:
            fates[waiting.line] = Fate.UNCONFIRMED
            batch, pieces = channel.begin([self._callbacks.outgoing(waiting.line.address, waiting.item)])
            try:
                with asking_the_driver():
                    await channel.send(batch, pieces)
                [fates[waiting.line]] = batch.fates
            except LOST:
                fates[waiting.line] = Fate.LOST

        tasks = [asyncio.create_task(publish(*pair)) for pair in zip(channels, some, strict=True)]
        try:
            await asyncio.wait(tasks, timeout=PATIENCE_SECONDS)
        finally:
            if not all(task.done() for task in tasks):
                link[1].abort()  # a channel is stuck: the broker would answer `connection.close` late
            for task in tasks:
                task.cancel()
        for channel in channels:
            if channel.message_max is not None:
                self._callbacks.message_max(channel.message_max)


async def _close(channel: ConfirmChannel) -> None:
    try:
        with asking_the_driver():
            async with asyncio.timeout(_OPEN_SECONDS):
                await channel.channel.close()
    except LOST:
        pass
