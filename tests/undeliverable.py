"""A proxy to a broker that fails when it delivers a certain message, as RabbitMQ 4 does with some of AMQP 1.0 publishers."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

from pamqp import commands, frame

from task_activity_log.aio import end

_HEAD = struct.Struct(">BHI")
_METHOD, _CONTENT_HEADER = 1, 2
_DELIVER = b"\0\x3c\0\x3c"
_FAILURE = frame.marshal(commands.Connection.Close(541, "INTERNAL_ERROR", 0, 0), 0)


class FailingBroker:
    """Passes everything on, but for deliveries whose body contains `marker`: instead of these it ends the connection."""

    def __init__(self, amqp_url: str, marker: bytes) -> None:
        self._target, self._marker = urlsplit(amqp_url), marker
        self.failures = 0
        """How many deliveries have failed."""
        self.url = ""
        """The URL that leads through the proxy. Set by `running`."""
        self._serving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen for as long as the context lasts."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        credentials = self._target.netloc.rpartition("@")[0]
        self.url = urlunsplit(self._target._replace(netloc=f"{credentials}@127.0.0.1:{port}"))
        async with server:
            try:
                yield
            finally:
                await end(*self._serving)

    def _accept(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(client, to_client))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        broker, to_broker = await asyncio.open_connection(self._target.hostname, self._target.port)
        sending = asyncio.create_task(_pass_on(client, to_broker))
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._deliver(broker, to_client)
        finally:
            to_broker.transport.abort()  # the broker returns what this connection has in hand, and counts the delivery
            sending.cancel()
            to_client.close()

    async def _deliver(self, broker: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Pass frames on; return when a delivery has failed."""
        arriving: dict[int, tuple[bytes, int]] = {}
        """By channel, the frames of a delivery that is not complete, and how many bytes of its body are missing."""
        while True:
            head = await broker.readexactly(_HEAD.size)
            kind, channel, size = _HEAD.unpack(head)
            rest = await broker.readexactly(size + 1)
            if kind == _METHOD and rest.startswith(_DELIVER):
                arriving[channel] = head + rest, -1
                continue
            if channel not in arriving:
                to_client.write(head + rest)
                continue
            frames, missing = arriving.pop(channel)
            missing = int.from_bytes(rest[4:12], "big") if kind == _CONTENT_HEADER else missing - size
            if missing:
                arriving[channel] = frames + head + rest, missing
            elif self._marker in frames + rest:
                self.failures += 1
                to_client.write(_FAILURE)
                return
            else:
                to_client.write(frames + head + rest)


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65_536):
            sink.write(data)
        sink.close()
