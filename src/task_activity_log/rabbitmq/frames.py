"""The fast path: reads deliveries, confirms and returns and writes publishes, without a task or an object per frame.

The driver creates a task for every delivery and waits for the socket at every publish (76 µs and 180 µs a message). Its
public `transport_factory` lets us put our own protocol into the connection: it takes the frames of deliveries, confirms
and returns from the stream as they arrive and passes everything else to the driver, which still does the handshake,
heartbeats, channels and topology. The driver gets no properties of messages, because it drops the connection when it
cannot read them. `tests/unit/test_frames.py` checks that what is read here equals what the driver reads.
"""

import asyncio
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from time import perf_counter
from typing import Any, cast

import aiormq
from aiormq.abc import ChannelFrame
from aiormq.connection import SSLContextProvider, TransportFactory
from yarl import URL

from task_activity_log.aio import Slices

_FRAME = struct.Struct(">BHI")
_METHOD, _HEADER, _BODY = 1, 2, 3
_DELIVER, _RETURN, _ACK, _NACK = 0x3C003C, 0x3C0032, 0x3C0050, 0x3C0078
_DELIVER_METHOD = _DELIVER.to_bytes(4, "big")
_BLOCKED, _UNBLOCKED = 0x0A003C, 0x0A003D
_HEARTBEAT = b"\x08\0\0\0\0\0\0\xce"
_END = b"\xce"
_SMALLEST = len(_HEARTBEAT)

_HEARTBEAT_EVERY_SECONDS = 2.0
_LOOK_EVERY_SECONDS = 0.02
"""How often a connection that is not read looks whether there is room again. What is in hand keeps the worker busy."""
_LONG_SECONDS = 0.001
"""Handling data for this long is remembered until the event loop has run; 32 shorter times need not be."""
_READ_SOME_SECONDS = 10.0
_SOME_BYTES = 2**20
"""So much is read every ten seconds even if too much is in hand: RabbitMQ closes a connection on which it could not send
anything for 30 s. That makes 60 MiB until the hold limit, when everything is requeued."""


@dataclass(slots=True)
class Inbound:
    """The functions that get one channel's frames in place of the driver."""

    deliver: Callable[[int, bool, bytes, bytes], None] | None = None
    """Delivery tag, redelivered, payload of the content header, body."""
    routed: Callable[[str], None] | None = None
    """The routing key of the delivery that comes next. Only where it is of use, because reading it takes time."""
    confirm: Callable[[int, bool, bool], None] | None = None
    """Delivery tag, multiple, and whether the broker took the message (ack) or not (nack)."""
    returned: Callable[[str, str, bytes], None] | None = None
    """Exchange, routing key and payload of the content header of a message that was returned: no queue took it."""
    full: Callable[[int], bool] | None = None
    """Whether bodies of this size must wait until deliveries are settled. The connection is not read until then."""
    content: "_Content | None" = None
    """The delivery or return whose header and body are still arriving. Written by the frame reader."""

    @property
    def arriving(self) -> int:
        """The size of the body that is arriving; 0 if there is none."""
        return 0 if self.content is None else self.content.size


class FrameReader(asyncio.StreamReaderProtocol):
    """The protocol of one connection: takes the frames that `channels` asks for and passes the others to the driver."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self.channels: dict[int, Inbound] = {}
        """By channel number. Filled by the code that opens the channel."""
        self.blocked: str | None = None
        """Why the broker has blocked publishers (a resource alarm); None while it has not."""
        self.abort: Callable[[], None] = lambda: None
        """End the connection at once, without asking a broker that reads nothing from it. Set when it is open."""
        self._event_loop = loop
        self._loop_time = loop.time
        self._fed_at = loop.time()
        self._rest = b""
        self._socket: asyncio.Transport | None = None
        self._suspended: asyncio.TimerHandle | None = None
        self._slices: Slices | None = None  # the slice that continues, if the event loop has not run since
        self._read_at = loop.time()
        self._full_at = loop.time()
        self._allowance = 0  # how much may be read although too much is in hand

    @property
    def read_seconds(self) -> float:
        """For how long the connection has been read without a pause because too much is in hand.

        While it is not read, answers of the broker do not arrive.
        """
        return self._loop_time() - self._full_at

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport, to suspend it."""
        super().connection_made(transport)
        self._socket = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        """End what waits for the connection."""
        if self._suspended is not None:
            self._suspended.cancel()
        self._suspended = self._socket = None
        self._rest = b""
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Handle the frames in `data`. An incomplete frame is kept until the rest of it arrives.

        After a slice of time (`Slices`) the rest is kept as well, and handled when the event loop has run. uvloop reads up
        to 32 times in one iteration of the loop, so a slice continues from one call to the next until the loop has run.
        """
        if self._rest:
            data = self._rest + data
        if self._suspended is not None:
            self._rest = data
            return
        self._read_at = self._loop_time()
        began = perf_counter()
        slices = self._slices or Slices()
        self._rest = data[self._handle(data, slices.until) :]
        if self._slices is None and perf_counter() - began > _LONG_SECONDS:
            self._slices = slices
            self._event_loop.call_soon(self._end_slice)
        if slices.over():
            self._suspend(0)
        elif self._full():
            self._full_at = self._loop_time()
            self._allowance -= len(data)
            if self._allowance <= 0:
                self._suspend(_LOOK_EVERY_SECONDS)
        else:
            self._allowance = 0

    def _handle(self, data: bytes, until: float) -> int:
        """Take the frames or pass them to the driver, until this time; where the first one begins that is not handled."""
        offset, length, passed = 0, len(data), 0
        while length - offset >= _SMALLEST and perf_counter() < until:
            kind, channel, size = _FRAME.unpack_from(data, offset)
            end = offset + size + 8
            if kind > _HEARTBEAT[0]:
                # Not a frame: the server speaks another protocol. The driver reports it.
                end = length
            if end > length:
                break
            taken = self._take(kind, channel, data, offset + 7, end)
            if taken:
                if passed < offset:
                    self._pass_on(data[passed:offset])
                passed = end = taken
            elif kind == _HEADER:
                self._pass_on(data[passed:offset] + _without_properties(channel, data, offset))
                passed = end
            offset = end
        if passed < offset:
            self._pass_on(data[passed:offset])
        elif self._loop_time() - self._fed_at > _HEARTBEAT_EVERY_SECONDS:
            # A busy broker sends no heartbeats, and the driver does not see the frames taken here. Without a heartbeat
            # it would take the connection for dead.
            self._pass_on(_HEARTBEAT)
        return offset

    def _end_slice(self) -> None:
        self._slices = None

    def _full(self) -> bool:
        # Several bodies may be arriving, one on each channel. The consumers share what room there is.
        arriving = sum(inbound.arriving for inbound in self.channels.values())
        return any(inbound.full(arriving) for inbound in self.channels.values() if inbound.full is not None)

    def _suspend(self, seconds: float) -> None:
        """Read nothing for this long. The socket's buffers fill, and the broker waits."""
        if self._socket is not None and not self._socket.is_closing():
            self._socket.pause_reading()
            self._suspended = self._event_loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._suspended = None
        if self._socket is None or self._socket.is_closing():
            return
        if self._full() and self._allowance <= 0:
            self._full_at = now = self._loop_time()
            if now - self._fed_at > _HEARTBEAT_EVERY_SECONDS:
                self._pass_on(_HEARTBEAT)  # those of the broker are not read
            if now - self._read_at < _READ_SOME_SECONDS:
                self._suspend(_LOOK_EVERY_SECONDS)
                return
            self._allowance = _SOME_BYTES
        self._socket.resume_reading()
        self.data_received(b"")

    def _pass_on(self, frames: bytes) -> None:
        self._fed_at = self._loop_time()
        super().data_received(frames)

    def _take(self, kind: int, channel: int, data: bytes, start: int, end: int) -> int:
        """Take the frame whose payload begins at `start` and which ends at `end`, unless it is the driver's.

        Returns the end of what was taken: `end`, or more if a complete delivery was taken; 0 if nothing was.
        """
        inbound = self.channels.get(channel)
        if inbound is None:
            if channel == 0 and kind == _METHOD:
                self._watch_for_alarms(data[start : end - 1])
            return 0
        whole = _take_whole(inbound, channel, data, start, end) if kind == _METHOD else 0
        return whole or (end if _take_frame(inbound, kind, data, start, end - 1) else 0)

    def _watch_for_alarms(self, payload: bytes) -> None:
        method = int.from_bytes(payload[:4], "big")
        if method == _BLOCKED:
            self.blocked = _short_string(payload, 4)[0] or "no reason given"
        elif method == _UNBLOCKED:
            self.blocked = None


def _take_frame(inbound: Inbound, kind: int, data: bytes, start: int, end: int) -> bool:
    """Take the frame with this payload; False, and takes nothing, if the frame is the driver's."""
    if kind == _METHOD:
        method = int.from_bytes(data[start : start + 4], "big")
        if method == _DELIVER and inbound.deliver is not None:
            tagged = start + 5 + data[start + 4]
            tag = int.from_bytes(data[tagged : tagged + 8], "big")
            _route(inbound, data, tagged)
            inbound.content = _Content(partial(inbound.deliver, tag, bool(data[tagged + 8] & 1)))
        elif method in (_ACK, _NACK) and inbound.confirm is not None:
            tag = int.from_bytes(data[start + 4 : start + 12], "big")
            inbound.confirm(tag, bool(data[start + 12] & 1), method == _ACK)
        elif method == _RETURN and inbound.returned is not None:
            _, after = _short_string(data, start + 6)
            exchange, after = _short_string(data, after)
            routing_key, _ = _short_string(data, after)
            returned = partial(inbound.returned, exchange, routing_key)
            inbound.content = _Content(lambda header, _: returned(header))
        else:
            return False
        return True
    content = inbound.content
    if content is None:
        return False
    if kind == _HEADER:
        content.header = data[start:end]
        content.missing = content.size = int.from_bytes(data[start + 4 : start + 12], "big")
    else:
        content.parts.append(data[start:end])
        content.missing -= end - start
    if content.missing <= 0:
        inbound.content = None
        content.complete(content.header, b"".join(content.parts))
    return True


def _without_properties(channel: int, data: bytes, offset: int) -> bytes:
    """The content header frame at `offset`, without its properties.

    The driver drops the connection when it cannot read them, and needs half a second for the largest ones. Nobody reads those
    of a message that is left to it: what `basic.get` gives is returned to its queue, and what arrives in the queues by which
    the workers are counted is ignored.
    """
    fixed = data[offset + 7 : offset + 19]  # class, weight and body size
    return _FRAME.pack(_HEADER, channel, len(fixed) + 2) + fixed + b"\0\0" + _END


def _route(inbound: Inbound, data: bytes, tagged: int) -> None:
    """Pass on the routing key of the delivery whose tag begins at `tagged`, if it is of use."""
    if inbound.routed is not None:
        exchange = tagged + 9
        inbound.routed(_short_string(data, exchange + 1 + data[exchange])[0])


def _take_whole(inbound: Inbound, channel: int, data: bytes, start: int, header: int) -> int:
    """Take a delivery whose three frames follow each other in `data`, as those of nearly all deliveries do.

    `start` is where the method's payload begins, `header` where the next frame begins. Returns where the delivery ends;
    0, with nothing taken, if it is not complete or not of three frames.
    """
    if inbound.deliver is None or data[start : start + 4] != _DELIVER_METHOD:
        return 0
    length = len(data)
    if header + _SMALLEST > length:
        return 0
    kind, on, size = _FRAME.unpack_from(data, header)
    body = header + size + 8
    if kind != _HEADER or on != channel or body + _SMALLEST > length:
        return 0
    kind, on, size = _FRAME.unpack_from(data, body)
    end: int = body + size + 8
    if kind != _BODY or on != channel or end > length or size != int.from_bytes(data[header + 11 : header + 19], "big"):
        return 0
    tagged = start + 5 + data[start + 4]
    _route(inbound, data, tagged)
    inbound.deliver(
        int.from_bytes(data[tagged : tagged + 8], "big"),
        bool(data[tagged + 8] & 1),
        data[header + 7 : body - 1],
        data[body + 7 : end - 1],
    )
    return end


class _Content:
    """A delivery or a return while its header and its body arrive."""

    __slots__ = ("complete", "header", "missing", "parts", "size")

    def __init__(self, complete: Callable[[bytes, bytes], None]) -> None:
        """`complete` is called with the header's payload and the body once all of it is there."""
        self.complete = complete
        self.header = b""
        self.missing = self.size = 0  # bytes of the body
        self.parts: list[bytes] = []


def _short_string(data: bytes, offset: int) -> tuple[str, int]:
    end = offset + 1 + data[offset]
    return data[offset + 1 : end].decode(errors="replace"), end


class FrameReaderFactory(TransportFactory):
    """Opens the driver's transport, plain or TLS, with a `FrameReader` as its protocol."""

    def __init__(self, address: str) -> None:
        """`address` is where to connect to: one of those of the URL's host, whose name TLS verifies."""
        self._address = address
        """Do not open anything yet. Both attributes are set by `create`, and stay None where it fails."""
        self.frame_reader: FrameReader | None = None
        self.transport: asyncio.Transport | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to `url`.

        Raises:
            aiormq.exceptions.AMQPConnectionError: nobody answers at that address, or TLS fails.
        """
        provider: SSLContextProvider = kwargs.pop("ssl_context_provider")
        context = await provider.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        try:
            transport, frame_reader = await loop.create_connection(
                lambda: FrameReader(reader, loop),
                host=self._address,
                port=url.port or 0,
                ssl=context,
                server_hostname=url.host if context else None,
                **kwargs,
            )
        except OSError as error:
            raise aiormq.exceptions.AMQPConnectionError(*error.args) from error
        frame_reader.abort = transport.abort
        self.frame_reader, self.transport = frame_reader, transport
        return reader, asyncio.StreamWriter(transport, frame_reader, reader, loop)


@lru_cache(maxsize=1024)
def _publish_method(exchange: str, routing_key: str, mandatory: bool) -> bytes:
    to, key = exchange.encode(), routing_key.encode()
    return b"".join((b"\0\x3c\0\x28\0\0", bytes((len(to),)), to, bytes((len(key),)), key, bytes((mandatory,))))


def publish_frames(
    channel: int,
    exchange: str,
    routing_key: str,
    *,
    mandatory: bool,
    header: bytes,
    body: bytes,
    frame_max: int,
) -> list[bytes | memoryview]:
    """The frames of one basic.publish, as pieces to be joined. `header` is the payload of its content header.

    Raises:
        ValueError: the name of the exchange or the routing key is longer than 255 bytes.
    """
    method = _publish_method(exchange, routing_key, mandatory)
    pieces: list[bytes | memoryview] = [
        _FRAME.pack(_METHOD, channel, len(method)), method, _END,
        _FRAME.pack(_HEADER, channel, len(header)), header, _END,
    ]  # fmt: skip
    payload_max = frame_max - 8
    for start in range(0, len(body), payload_max):
        part = body if len(body) <= payload_max else memoryview(body)[start : start + payload_max]
        pieces += (_FRAME.pack(_BODY, channel, len(part)), part, _END)
    return pieces


async def write(channel: aiormq.abc.AbstractChannel, pieces: Sequence[bytes | memoryview]) -> None:
    """Send `pieces` in one write, after what the driver has queued; return when the socket has taken them.

    Raises:
        One of `link.LOST`: the connection is lost, or is being closed.
    """
    drained = channel.create_future()  # the channel's, so that a lost connection ends the wait
    await channel.connection.write_queue.put(
        ChannelFrame(payload=b"".join(pieces), should_close=False, drain_future=drained)
    )
    try:
        await drained
    except Exception as error:
        # The driver ends the waits of a connection that it has closed in order with an exception of no kind.
        if type(error) is not Exception:
            raise
        raise ConnectionError("closed") from None
