"""The proxy does to connections what its methods say, so that a fault test tests the worker and not the proxy."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from sandbox.proxy import Proxy


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """The port of a server that sends back what it gets, and ends when its peer has."""

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
    """More bytes than any buffer holds arrive complete and in order."""
    peer = await connect(proxy)
    data = bytes(range(256)) * 20_000
    sending = asyncio.create_task(peer.echoed(data))
    assert await sending == data
    peer.writer.close()


async def test_the_end_of_a_stream_passes(proxy: Proxy) -> None:
    """A side that has sent all it had still gets what the other has left to say."""
    peer = await connect(proxy)
    peer.writer.write(b"last words")
    peer.writer.write_eof()
    assert await peer.reader.read() == b"last words"
    peer.writer.close()


async def test_cut_resets_and_new_connections_pass(proxy: Proxy) -> None:
    """A cut is a reset, not an orderly end, and hits only what was connected then."""
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


async def test_refuse_and_accept(proxy: Proxy) -> None:
    """Refusing keeps what is connected and refuses what comes, on the port that accepts again later."""
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
    """A held link is half open: no byte, no end, no reset; after it the bytes come as if late."""
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


async def test_cut_ends_a_held_link(proxy: Proxy) -> None:
    """What a held link had under way is lost when it is cut."""
    peer = await connect(proxy)
    await peer.echoed(b"before")
    proxy.hold()
    peer.writer.write(b"lost")
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await peer.reader.read()
    peer.writer.close()


async def test_delay_keeps_the_throughput(proxy: Proxy) -> None:
    """A slow link is late by the delay each way, however many chunks there are."""
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
    """A test can await that somebody has connected, or has connected again."""
    waiting = asyncio.create_task(proxy.connected(2))
    first = await connect(proxy)
    await proxy.connected()
    assert not waiting.done()
    second = await connect(proxy)
    await waiting
    first.writer.close()
    second.writer.close()


async def test_a_server_that_is_down_ends_the_connection() -> None:
    """Behind a proxy a stopped service looks like a connection that ends, never like one that hangs."""
    async with Proxy("127.0.0.1", 1) as proxy:
        peer = await connect(proxy)
        assert await peer.reader.read() == b""
        peer.writer.close()


def test_the_url_leads_through_the_proxy() -> None:
    """Only host and port of a URL change: credentials, path and options are kept."""
    proxy = Proxy.to("amqp://user:p%40ss@[::1]:5673/a%2Fb?heartbeat=5")
    assert proxy.url == f"amqp://user:p%40ss@127.0.0.1:{proxy.port}/a%2Fb?heartbeat=5"
