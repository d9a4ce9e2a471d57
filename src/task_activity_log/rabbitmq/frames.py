"""The fast path: reads deliveries, confirms and returns and writes publishes, without a task or an object per frame.

The driver creates a task for every delivery and waits for the socket at every publish (76 µs and 180 µs a message). Its
public `transport_factory` lets us put our own protocol into the connection: it takes the frames of deliveries, confirms
and returns from the stream as they arrive and passes everything else to the driver, which still does the handshake,
heartbeats, channels and topology. `tests/unit/test_frames.py` checks that what is read here equals what the driver
reads.
"""

import asyncio
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import aiormq
from aiormq.abc import ChannelFrame
from aiormq.connection import SSLContextProvider, TransportFactory
from yarl import URL

_FRAME = struct.Struct(">BHI")
_METHOD, _HEADER, _BODY = 1, 2, 3
_DELIVER, _RETURN, _ACK, _NACK = 0x3C003C, 0x3C0032, 0x3C0050, 0x3C0078
_DELIVER_METHOD = _DELIVER.to_bytes(4, "big")
_BLOCKED, _UNBLOCKED = 0x0A003C, 0x0A003D
_HEARTBEAT = b"\x08\0\0\0\0\0\0\xce"
_END = b"\xce"
_SMALLEST = len(_HEARTBEAT)

_HEARTBEAT_EVERY_SECONDS = 2.0


@dataclass(slots=True)
class Inbound:
    """The functions that get one channel's frames in place of the driver."""

    deliver: Callable[[int, bool, bytes, bytes], None] | None = None
    """Delivery tag, redelivered, payload of the content header, body."""
    confirm: Callable[[int, bool, bool], None] | None = None
    """Delivery tag, multiple, and whether the broker took the message (ack) or not (nack)."""
    returned: Callable[[str, str, bytes], None] | None = None
    """Exchange, routing key and payload of the content header of a message that was returned: no queue took it."""
    content: "_Content | None" = None
    """The delivery or return whose header and body are still arriving. Written by the frame reader."""


class FrameReader(asyncio.StreamReaderProtocol):
    """The protocol of one connection: takes the frames that `channels` asks for and passes the others to the driver."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self.channels: dict[int, Inbound] = {}
        """By channel number. Filled by whoever opens the channel."""
        self.blocked: str | None = None
        """Why the broker has blocked publishers (a resource alarm); None while it has not."""
        self.abort: Callable[[], None] = lambda: None
        """End the connection at once, without asking a broker that reads nothing from it. Set when it is open."""
        self._loop_time = loop.time
        self._fed_at = loop.time()
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        """Handle the frames in `data`. An incomplete frame is kept until the rest of it arrives."""
        if self._rest:
            data = self._rest + data
        offset, length, passed = 0, len(data), 0
        while length - offset >= _SMALLEST:
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
            offset = end
        if passed < offset:
            self._pass_on(data[passed:offset])
        elif self._loop_time() - self._fed_at > _HEARTBEAT_EVERY_SECONDS:
            # A busy broker sends no heartbeats, and the driver does not see the frames taken here. Without a heartbeat
            # it would take the connection for dead.
            self._pass_on(_HEARTBEAT)
        self._rest = data[offset:] if offset < length else b""

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
        content.missing = int.from_bytes(data[start + 4 : start + 12], "big")
    else:
        content.parts.append(data[start:end])
        content.missing -= end - start
    if content.missing <= 0:
        inbound.content = None
        content.complete(content.header, b"".join(content.parts))
    return True


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
    inbound.deliver(
        int.from_bytes(data[tagged : tagged + 8], "big"),
        bool(data[tagged + 8] & 1),
        data[header + 7 : body - 1],
        data[body + 7 : end - 1],
    )
    return end


class _Content:
    """A delivery or a return while its header and its body arrive."""

    __slots__ = ("complete", "header", "missing", "parts")

    def __init__(self, complete: Callable[[bytes, bytes], None]) -> None:
        """`complete` is called with the header's payload and the body once all of it is there."""
        self.complete = complete
        self.header = b""
        self.missing = 0  # bytes of the body
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
) -> list[bytes]:
    """The frames of one basic.publish, as pieces to be joined. `header` is the payload of its content header.

    Raises:
        ValueError: the name of the exchange or the routing key is longer than 255 bytes.
    """
    method = _publish_method(exchange, routing_key, mandatory)
    pieces = [
        _FRAME.pack(_METHOD, channel, len(method)), method, _END,
        _FRAME.pack(_HEADER, channel, len(header)), header, _END,
    ]  # fmt: skip
    payload_max = frame_max - 8
    for start in range(0, len(body), payload_max):
        part = body if len(body) <= payload_max else body[start : start + payload_max]
        pieces += (_FRAME.pack(_BODY, channel, len(part)), part, _END)
    return pieces


async def write(channel: aiormq.abc.AbstractChannel, pieces: Sequence[bytes]) -> None:
    """Send `pieces` in one write, after what the driver has queued; return when the socket has taken them."""
    drained = channel.create_future()  # the channel's, so that a lost connection ends the wait
    await channel.connection.write_queue.put(
        ChannelFrame(payload=b"".join(pieces), should_close=False, drain_future=drained)
    )
    await drained
