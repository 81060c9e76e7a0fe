"""A small forward HTTP proxy on loopback, in a thread of its own: absolute URLs, and CONNECT.

    with running_forward_proxy({"registry.test": "127.0.0.1:5000"}) as proxy:
        ...  # HTTP_PROXY=proxy.url; what it was asked for is in proxy.asked

It knows the hosts of its table only, whatever their port; to others it answers 502. With
`credential` (user:password) it wants that.
"""

from __future__ import annotations

import asyncio
import base64
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_HEAD: Final = 1 << 16


@dataclass
class ForwardProxy:
    """A running proxy.

    Attributes:
        hosts: names that it knows, and the host:port behind each.
        credential: what it wants to see; "" for nothing.
        asked: method and target of each request line.
        address: host:port.
        tasks: its connections.
    """

    hosts: Mapping[str, str]
    credential: str = ""
    asked: list[str] = field(default_factory=list)
    address: str = ""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        """What clients are to set, credential included."""
        return f"http://{self.credential}{'@' if self.credential else ''}{self.address}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: one request, then bytes both ways."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            self.tasks.discard(task)
            await close(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line, _, rest = head.partition(b"\r\n")
        method, target, version = line.decode().split(" ")
        self.asked.append(f"{method} {target}")
        wanted = base64.b64encode(self.credential.encode())
        if self.credential and b"Proxy-Authorization: Basic " + wanted not in rest:
            await refuse(writer, 407, b'Proxy-Authenticate: Basic realm="proxy"\r\n')
            return
        url = urlsplit(target if "://" in target else f"//{target}")
        behind = self.hosts.get(url.hostname or "")
        if behind is None:
            await refuse(writer, 502)
            return
        host, _, port = behind.rpartition(":")
        upstream, downstream = await asyncio.open_connection(host, int(port))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        else:  # one request for each connection, so that it is enough to change the first line
            path = f"{url.path or '/'}{'?' if url.query else ''}{url.query}"
            headers = [one for one in rest.split(b"\r\n") if one and not is_own_header(one)]
            lines = [f"{method} {path} {version}".encode(), *headers, b"Connection: close"]
            downstream.write(b"\r\n".join(lines) + b"\r\n\r\n")
        try:
            await asyncio.gather(pump(reader, downstream), pump(upstream, writer))
        finally:
            await close(downstream)


def is_own_header(header: bytes) -> bool:
    """Tell whether a header is for the proxy, or about the connection to it."""
    return header.lower().startswith((b"proxy-", b"connection:"))


async def refuse(writer: asyncio.StreamWriter, status: int, headers: bytes = b"") -> None:
    """Answer without a body."""
    writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n".encode() + headers + b"\r\n")
    await writer.drain()


async def close(writer: asyncio.StreamWriter) -> None:
    """Close a connection, whatever has become of it."""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until there are no more, then say so."""
    with suppress(OSError):
        while data := await reader.read(MAX_HEAD):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def running_forward_proxy(hosts: Mapping[str, str], credential: str = "") -> Iterator[ForwardProxy]:
    """Run a proxy until the block ends."""
    proxy = ForwardProxy(hosts, credential)
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        try:
            server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0)
            host, port = server.sockets[0].getsockname()[:2]
            proxy.address = f"{host}:{port}"
            ready.set()
            await stop.wait()
            server.close()
            for task in list(proxy.tasks):
                task.cancel()
            while proxy.tasks:
                await asyncio.wait(proxy.tasks)
        finally:
            ready.set()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
