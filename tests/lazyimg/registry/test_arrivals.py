"""Large answers in few pieces, over real sockets: nothing may be waited for that never comes."""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest

from lazyimg.registry.arrivals import LARGE, PIECE, receive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

DATA = bytes(range(256)) * (LARGE // 128)  # 2 MiB
DEADLINE = 20.0
"""Seconds after which a test hangs."""


class Server:
    """Sends a body of `length` bytes as `parts`, each when `more` lets it; then ends if told so."""

    def __init__(self, parts: Sequence[bytes], length: int, *, ends: bool = False) -> None:
        self.parts = parts
        self.length = length
        self.ends = ends
        self.more = asyncio.Semaphore(10_000)
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self.length)
                for part in self.parts:
                    await self.more.acquire()
                    writer.write(part)
                    await writer.drain()
                if self.ends:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def asking(
    server: Server,
) -> AsyncIterator[Callable[[], aiohttp.client._RequestContextManager]]:
    """Serve, and give what asks on one connection."""
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    connector = aiohttp.TCPConnector(limit=1)
    async with (
        asyncio.timeout(DEADLINE),
        listening,
        aiohttp.ClientSession(connector=connector, read_bufsize=PIECE) as session,
    ):
        yield lambda: session.get(f"http://127.0.0.1:{port}/")


def socket_of(response: aiohttp.ClientResponse) -> socket.socket:
    assert response.connection is not None
    assert response.connection.transport is not None
    found: socket.socket = response.connection.transport.get_extra_info("socket")
    return found


def wait_of(found: socket.socket) -> int:
    """Return how many bytes the kernel waits for."""
    return found.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


async def read(response: aiohttp.ClientResponse) -> bytes:
    return b"".join([piece async for piece in receive(response)])


async def test_large_answer_whose_end_comes_alone() -> None:
    server = Server([DATA[:-100], DATA[-100:-1], DATA[-1:]], len(DATA))
    async with asking(server) as ask:
        for _ in range(3):
            async with ask() as response:
                found = socket_of(response)
                assert await read(response) == DATA
                assert wait_of(found) == 1
    assert server.connections == 1


async def test_large_answer_in_drops() -> None:
    drops = [DATA[start : start + 1000] for start in range(0, len(DATA), 1000)]
    async with asking(Server(drops, len(DATA))) as ask, ask() as response:
        pieces = [piece async for piece in receive(response)]
    assert b"".join(pieces) == DATA
    assert len(pieces) < len(drops) // 10


async def test_kernel_waits_for_no_more_than_what_is_to_come() -> None:
    server = Server([DATA[:-5000], DATA[-5000:]], len(DATA))
    server.more = asyncio.Semaphore(1)
    async with asking(server) as ask, ask() as response, aclosing(receive(response)) as body:
        found, size = socket_of(response), 0
        async for piece in body:
            size += len(piece)
            assert wait_of(found) == min(PIECE, max(1, len(DATA) - response.content.total_bytes))
            server.more.release()
    assert size == len(DATA)


async def test_small_answer_is_not_waited_for() -> None:
    data = DATA[: LARGE - 1]
    server = Server([data[:100], data[100:]], len(data))
    server.more = asyncio.Semaphore(1)
    async with asking(server) as ask, ask() as response, aclosing(receive(response)) as body:
        assert await anext(body) == data[:100]
        assert wait_of(socket_of(response)) == 1
        server.more.release()
        assert b"".join([piece async for piece in body]) == data[100:]


async def test_answer_that_is_there_already() -> None:
    async with asking(Server([b"x"], 1)) as ask, ask() as response:
        await response.read()
        assert response.connection is None
        assert not [piece async for piece in receive(response)]


async def test_answer_that_ends_early() -> None:
    async with asking(Server([DATA[:1000]], len(DATA), ends=True)) as ask, ask() as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await read(response)


async def test_answer_that_is_left() -> None:
    server = Server([DATA[:-5000]], len(DATA))
    async with asking(server) as ask, ask() as response:
        found = socket_of(response)
        async with aclosing(receive(response)) as body:
            await anext(body)
            assert wait_of(found) == PIECE
        assert wait_of(found) == 1


async def test_closed_connection_is_left_alone() -> None:
    server = Server([DATA[:-5000]], len(DATA))
    async with asking(server) as ask, ask() as response, aclosing(receive(response)) as body:
        await anext(body)
        response.close()
        await asyncio.sleep(0)


async def test_tls_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([DATA[:-5000], DATA[-5000:]], len(DATA))
    async with asking(server) as ask, ask() as response:
        found = socket_of(response)
        assert response.connection is not None
        transport = response.connection.transport
        extra = {"sslcontext": object(), "socket": found}
        monkeypatch.setattr(transport, "get_extra_info", extra.get)
        async with aclosing(receive(response)) as body:
            await anext(body)
            assert wait_of(found) == 1
