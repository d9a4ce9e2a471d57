"""The proxy does to connections what its methods promise, so that tests of faults test the worker and not the proxy."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from sandbox.proxy import Proxy


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """The port of a server that echoes what it receives, and closes a connection when its peer has closed it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
async def proxy(echo: int) -> AsyncIterator[Proxy]:
    async with Proxy("127.0.0.1", echo) as proxy:
        yield proxy


class Peer:
    """A client of the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def echoed(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await self.reader.readexactly(len(data))


async def connect(proxy: Proxy) -> Peer:
    return Peer(*await asyncio.open_connection("127.0.0.1", proxy.port))


async def test_bytes_pass_both_ways(proxy: Proxy) -> None:
    """More bytes than fit into any buffer arrive complete and in order."""
    peer = await connect(proxy)
    data = bytes(range(256)) * 20_000
    sending = asyncio.create_task(peer.echoed(data))
    assert await sending == data
    peer.writer.close()


async def test_the_end_of_a_stream_passes(proxy: Proxy) -> None:
    """A side that has finished sending still receives what the other side sends afterwards."""
    peer = await connect(proxy)
    peer.writer.write(b"last words")
    peer.writer.write_eof()
    assert await peer.reader.read() == b"last words"
    peer.writer.close()


async def test_cut_resets_and_new_connections_pass(proxy: Proxy) -> None:
    """A cut resets the existing connections instead of closing them, and does not affect later ones."""
    peer = await connect(proxy)
    await peer.echoed(b"before")
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await peer.reader.read()
    peer.writer.close()

    again = await connect(proxy)
    assert await again.echoed(b"after") == b"after"
    assert proxy.connections == 2
    again.writer.close()


async def test_refuse_affects_new_connections_only(proxy: Proxy) -> None:
    """While the proxy refuses, existing connections work and new ones fail; later it accepts on the same port."""
    peer = await connect(proxy)
    await peer.echoed(b"before")
    proxy.refuse()
    assert await peer.echoed(b"still") == b"still"
    with pytest.raises(ConnectionRefusedError):
        await connect(proxy)
    proxy.accept()
    again = await connect(proxy)
    assert await again.echoed(b"again") == b"again"
    peer.writer.close()
    again.writer.close()


async def test_hold_passes_nothing_and_loses_nothing(proxy: Proxy) -> None:
    """While held, a connection passes no byte, no end and no reset; afterwards everything arrives, late."""
    peer = await connect(proxy)
    await peer.echoed(b"before")
    proxy.hold()
    peer.writer.write(b"held")
    peer.writer.write_eof()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(peer.reader.read(1), 0.2)
    proxy.resume()
    assert await peer.reader.read() == b"held"
    peer.writer.close()


async def test_cut_ends_a_held_connection(proxy: Proxy) -> None:
    """Bytes that a held connection has not forwarded are lost when it is cut."""
    peer = await connect(proxy)
    await peer.echoed(b"before")
    proxy.hold()
    peer.writer.write(b"lost")
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await peer.reader.read()
    peer.writer.close()


async def test_what_was_held_is_not_forwarded_after_a_cut(proxy: Proxy) -> None:
    """An answer that came before the cut would arrive otherwise, when `resume` is called for new connections."""
    peer = await connect(proxy)
    assert await peer.echoed(b"before") == b"before"
    proxy.hold_at(b"marked", after=True)
    peer.writer.write(b"marked")
    await proxy.held_back()
    proxy._held_back.clear()
    await proxy.held_back()  # the answer
    proxy.cut()
    proxy.resume()
    with pytest.raises(ConnectionResetError):
        await peer.reader.read(100)
    peer.writer.close()
    other = await connect(proxy)
    assert await other.echoed(b"after") == b"after"
    other.writer.close()


async def test_delay_keeps_the_throughput(proxy: Proxy) -> None:
    """A delayed connection adds the delay once in each direction, however many chunks there are."""
    peer = await connect(proxy)
    await peer.echoed(b"before")
    proxy.delay(0.1)
    loop = asyncio.get_running_loop()
    began = loop.time()
    data = bytes(1_000_000)
    assert await peer.echoed(data) == data
    assert 0.2 <= loop.time() - began < 2.0
    peer.writer.close()


async def test_connected_awaits_a_connection(proxy: Proxy) -> None:
    """A test can wait until the proxy has accepted a given number of connections."""
    waiting = asyncio.create_task(proxy.connected(2))
    first = await connect(proxy)
    await proxy.connected()
    assert not waiting.done()
    second = await connect(proxy)
    await waiting
    first.writer.close()
    second.writer.close()


async def test_a_server_that_is_down_ends_the_connection() -> None:
    """If the service behind the proxy is down, a connection to the proxy ends at once and does not hang."""
    async with Proxy("127.0.0.1", 1) as proxy:
        peer = await connect(proxy)
        assert await peer.reader.read() == b""
        peer.writer.close()


def test_the_url_leads_through_the_proxy() -> None:
    """Only the host and port of the URL change: credentials, path and options stay the same."""
    proxy = Proxy.to("amqp://user:p%40ss@[::1]:5673/a%2Fb?heartbeat=5")
    assert proxy.url == f"amqp://user:p%40ss@127.0.0.1:{proxy.port}/a%2Fb?heartbeat=5"
