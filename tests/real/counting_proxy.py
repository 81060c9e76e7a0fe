"""An HTTP proxy in front of a registry, in a thread of its own, that counts what it passes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import aiohttp
from aiohttp import web
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PIECE: Final = 1 << 18  # bytes read and passed on at a time
HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade"})


@dataclass
class Exchange:
    """One request and what was answered."""

    method: str
    path: str
    range: str | None
    status: int = 0
    sent: int = 0
    """Bytes of the answer's body so far."""


@dataclass
class Counts:
    """Every exchange since the start, or since `clear`.

    Attributes:
        exchanges: in the order they began.
        held: no content of a blob is passed on while it is set.
    """

    exchanges: list[Exchange] = field(default_factory=list)
    held: bool = False

    def blob_reads(self, digest: str = "") -> list[Exchange]:
        """Return the GETs of blobs, or of one blob, that the registry answered with content."""
        return [
            exchange
            for exchange in self.exchanges
            if exchange.method == "GET"
            and f"/blobs/{digest}" in exchange.path
            and exchange.status in {200, 206}
        ]

    def sent(self, digest: str = "") -> int:
        """Return how many bytes of blobs, or of one blob, went out."""
        return sum(exchange.sent for exchange in self.blob_reads(digest))

    def clear(self) -> None:
        """Forget what was counted."""
        self.exchanges.clear()


class Proxy(NamedTuple):
    """A running proxy."""

    address: str
    counts: Counts


Answer = Callable[
    [aiohttp.ClientSession, str, web.BaseRequest, Counts], Awaitable[web.StreamResponse]
]


@contextmanager
def running_proxy(origin: str, answer: Answer | None = None) -> Iterator[Proxy]:
    """Run a proxy in front of `origin` (host:port) until the block ends.

    `answer` answers instead of `pass_on`, in the proxy's thread.
    """
    started: list[Proxy] = []
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        try:
            async with serving(origin, answer or pass_on) as proxy:
                started.append(proxy)
                ready.set()
                await stop.wait()
        finally:
            ready.set()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@asynccontextmanager
async def serving(origin: str, answer: Answer) -> AsyncIterator[Proxy]:
    """Serve on a free port of loopback."""
    counts = Counts()
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False
    ) as session:

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return await answer(session, origin, request, counts)

        runner = web.ServerRunner(web.Server(handle), shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        try:
            yield Proxy(f"{host}:{port}", counts)
        finally:
            await runner.cleanup()


async def pass_on(
    session: aiohttp.ClientSession,
    origin: str,
    request: web.BaseRequest,
    counts: Counts,
    *,
    without: str = "",
) -> web.StreamResponse:
    """Pass one request to the origin, `without` one header, and its answer back, piece by piece."""
    exchange = Exchange(request.method, request.raw_path, request.headers.get("Range"))
    counts.exchanges.append(exchange)
    headers = [
        (name, text)
        for name, text in request.headers.items()
        if is_end_to_end(name) and name != without
    ]
    async with session.request(
        request.method,
        URL(f"http://{origin}{request.raw_path}", encoded=True),  # as it came, not quoted anew
        headers=headers,
        data=request.content.iter_chunked(PIECE) if request.body_exists else None,
        allow_redirects=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    ) as answer:
        exchange.status = answer.status
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        for name, text in answer.headers.items():
            if is_end_to_end(name):
                response.headers.add(name, text)
        await response.prepare(request)
        async for piece in answer.content.iter_chunked(PIECE):
            while counts.held and "/blobs/" in exchange.path:  # noqa: ASYNC110 - set by a thread
                await asyncio.sleep(0.01)
            exchange.sent += len(piece)
            await response.write(piece)
        await response.write_eof()
    return response


def is_end_to_end(name: str) -> bool:
    """Tell whether a header concerns more than one connection."""
    return name.lower() not in HOP_BY_HOP
