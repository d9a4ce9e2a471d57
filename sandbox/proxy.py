"""A TCP proxy in this process, to cut, stall and slow down the network between a test and a service."""

import asyncio
import socket
import struct
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from sandbox.service import free_port

_CHUNK = 65_536
_CHUNKS_MAX = 64
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with a time of 0: closing the socket sends RST

_Chunk = tuple[float, bytes]
"""When a chunk may be forwarded, by the loop's clock, and its bytes; no bytes mark the end of the stream."""


class Proxy:
    """Listens on a port of 127.0.0.1 and forwards bytes to and from `host`:`port`.

    Example:
        async with Proxy.to(amqp_url) as proxy:
            worker = Worker(proxy.url)
            proxy.cut()
    """

    def __init__(self, host: str, port: int, url: str = "") -> None:
        """Set the target; `async with` starts listening."""
        self._target = (host, port)
        self._url = url
        self.port = free_port()
        self.connections = 0
        """How many connections have been accepted so far."""
        self._listener: socket.socket | None = None
        self._links: dict[asyncio.Task[None], set[socket.socket]] = {}
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._held_back = asyncio.Event()
        self._accepted = asyncio.Event()  # set by each connection
        self._delay = 0.0
        self._marker = b""
        self._markers_left = 0
        self._after = False

    @classmethod
    def to(cls, url: str) -> Self:
        """Return a proxy to the host and port of an AMQP URL or DSN."""
        parts = urlsplit(url)
        default = 5432 if parts.scheme.startswith("postgres") else 5672
        return cls(parts.hostname or "127.0.0.1", parts.port or default, url)

    @property
    def url(self) -> str:
        """The URL that was given to `to`, changed to lead through the proxy."""
        parts = urlsplit(self._url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{credentials}{at}127.0.0.1:{self.port}"))

    def cut(self) -> None:
        """Reset all connections, on both sides, without what is held back. New ones are still accepted."""
        held = not self._flowing.is_set()
        self.strand()  # `resume` may be called before the tasks have ended, and would have them forward what they hold
        if held:
            self._flowing.clear()
        for task, sockets in self._links.items():
            for side in sockets:
                if side.fileno() != -1:  # not closed already
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            task.cancel()

    def refuse(self) -> None:
        """Refuse new connections. Existing ones stay."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def accept(self) -> None:
        """Accept new connections again."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._listener.setblocking(False)
            asyncio.get_running_loop().add_reader(self._listener, self._accept_from, self._listener)

    def hold(self) -> None:
        """Forward nothing in either direction, not even the end of a connection: the connections are half-open."""
        self._flowing.clear()
        self._held_back.clear()

    def hold_at(self, marker: bytes, *, number: int = 1, after: bool = False) -> None:
        """As `hold`, as soon as a client has sent these bytes for the given time, counted from now by chunks.

        The chunk with the bytes is kept back. With `after` it is still forwarded, and what is answered is not.
        """
        self._marker, self._markers_left, self._after = marker, number, after
        self._held_back.clear()

    async def held_back(self) -> None:
        """Wait until something has come that `hold` keeps back, or until `hold_at` has begun to hold."""
        await self._held_back.wait()

    def resume(self) -> None:
        """Forward what was held back, and continue."""
        self._flowing.set()

    def strand(self) -> None:
        """Forward nothing more over the existing connections, ever. New ones work.

        This is what happens when a firewall or NAT between the two sides forgets a connection: neither side is told
        when the other closes it.
        """
        self._flowing.clear()
        self._flowing = asyncio.Event()
        self._flowing.set()

    def delay(self, seconds: float) -> None:
        """Forward each byte only after `seconds`. The throughput stays the same."""
        self._delay = seconds

    async def connected(self, count: int = 1) -> None:
        """Wait until at least `count` connections have been accepted since the start."""
        while self.connections < count:
            self._accepted.clear()
            await self._accepted.wait()

    async def __aenter__(self) -> Self:
        """Start listening."""
        self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close everything."""
        self.refuse()
        self.cut()
        await asyncio.gather(*self._links, return_exceptions=True)

    def _accept_from(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:  # it has gone already
            return
        server = socket.socket()
        task = asyncio.create_task(self._link(client, server))
        self._links[task] = {client, server}
        task.add_done_callback(self._ended)
        self.connections += 1
        self._accepted.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        # Not in the task, which may be cancelled before it begins.
        for side in self._links.pop(task):
            side.close()

    async def _link(self, client: socket.socket, server: socket.socket) -> None:
        """Serve one connection until either side resets it, both sides have ended it, or `cut` is called."""
        flowing = self._flowing
        for side in (client, server):
            side.setblocking(False)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError, ExceptionGroup):
            await asyncio.get_running_loop().sock_connect(server, self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(client, server, flowing, from_client=True))
                group.create_task(self._pass_on(server, client, flowing))

    async def _pass_on(
        self, source: socket.socket, sink: socket.socket, flowing: asyncio.Event, *, from_client: bool = False
    ) -> None:
        chunks: asyncio.Queue[_Chunk] = asyncio.Queue(_CHUNKS_MAX)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read(source, chunks, flowing))
            group.create_task(self._write(chunks, sink, flowing, from_client=from_client))

    async def _read(self, source: socket.socket, chunks: asyncio.Queue[_Chunk], flowing: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        data = b"not the end"
        while data:
            data = await loop.sock_recv(source, _CHUNK)
            await chunks.put((loop.time() + self._delay, data))
            if not flowing.is_set():
                self._held_back.set()

    async def _write(
        self, chunks: asyncio.Queue[_Chunk], sink: socket.socket, flowing: asyncio.Event, *, from_client: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await chunks.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            await flowing.wait()
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            if from_client and self._is_marked(data):
                self.hold()
                self._held_back.set()
                if not self._after:
                    await flowing.wait()
            await loop.sock_sendall(sink, data)

    def _is_marked(self, data: bytes) -> bool:
        """Whether this chunk is the one that `hold_at` waits for."""
        self._markers_left -= bool(self._marker) and self._marker in data
        if not self._marker or self._markers_left:
            return False
        self._marker = b""
        return True


class Proxies:
    """A proxy for each host of a URL."""

    def __init__(self, url: str) -> None:
        """Set the targets; `async with` starts listening."""
        self._url = url
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2].split(",")
        self.of = tuple(Proxy.to(urlunsplit(parts._replace(netloc=host))) for host in hosts)
        """In the order of the hosts."""

    @property
    def url(self) -> str:
        """The URL, changed to lead through the proxies."""
        parts = urlsplit(self._url)
        credentials, at, _ = parts.netloc.rpartition("@")
        hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.of)
        return urlunsplit(parts._replace(netloc=f"{credentials}{at}{hosts}"))

    async def __aenter__(self) -> Self:
        """Start listening."""
        for proxy in self.of:
            proxy.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close everything."""
        for proxy in self.of:
            await proxy.__aexit__(kind, error, trace)
