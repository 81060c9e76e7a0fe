"""Serves the device of one ReadImage over a transport of plain files, until standard input ends.

    python -m scripts.benchmarks.transport_server SETTINGS

SETTINGS is JSON, see `Settings`. It says on standard output where the device is, and answers each
line on standard input with one of JSON: what it has used and done so far, after it has done what
the line says: `finish` makes the rest of the device present, `store` gives FUSE all of it to keep.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import struct
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from unittest.mock import patch

import msgspec

from lazyimg.cache.device_cache import DeviceCache
from lazyimg.errors import NotFoundError
from lazyimg.fill.engine import Engine
from lazyimg.host.allocator import keep_freed_memory
from lazyimg.limits import FillLimits
from lazyimg.transports.fanotify.transport import FanotifyTransport
from lazyimg.transports.fuse import protocol
from lazyimg.transports.fuse.transport import FuseTransport
from lazyimg_formats.device_table import DeviceTable
from lazyimg_formats.fuse import messages
from lazyimg_formats.fuse.layout import OpenFlag
from scripts.benchmarks.read_image import ReadImage
from scripts.benchmarks.read_server import MemoryBlob

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazyimg.cache.device_file import DeviceFile
    from lazyimg.fill.ports import Sink

PIECE: Final = 4 << 20
LEFT: Final = 8 << 20
"""Bytes of the end of a device that is present, but not complete; nobody reads them."""

STORED: Final = 1 << 20
"""Bytes that FUSE is given at a time."""

NOTIFY_STORE: Final = 4
HEADER: Final = struct.Struct("=IiQ")  # fuse_out_header
STORE: Final = struct.Struct("=QQII")  # fuse_notify_store_out


class Settings(msgspec.Struct):
    """What to serve, and how.

    Attributes:
        image: as ReadImage has it.
        cache: a directory for the device's file.
        tree: an empty directory, for FUSE's tree.
        transport: "fuse" or "fanotify".
        filler: where bytes come from: "memory": they lie there; "engine": they are decoded and
            checked, as those of images.
        delay: seconds that each fill takes at least ("memory") or each request for bytes of the
            blob ("engine").
        state: of the device at the start: "empty", "present" (but for its end) or "complete".
        passthrough: a complete device is a file of FUSE's tree.
        pages: FUSE keeps what was read, which the daemon does not let it do.
    """

    image: tuple[str, str, str]
    cache: str
    tree: str
    transport: str
    filler: str
    delay: float
    state: str
    passthrough: bool = False
    pages: bool = False


class BenchFiller(Protocol):
    """Both fillers: a transport's port, and an end."""

    fills: int

    def size(self, cookie: str) -> int | None:
        """See the port."""
        ...

    def read_local(self, cookie: str, offset: int, length: int, buffer: memoryview) -> int | None:
        """See the port."""
        ...

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        """See the port."""
        ...

    async def close(self) -> None:
        """Stop."""
        ...


class MemoryFiller:
    """Gives bytes that lie in memory, checked by nobody."""

    def __init__(self, name: str, content: bytes, delay: float) -> None:
        self.fills = 0
        self._name = name
        self._content = memoryview(content)
        self._delay = delay

    def size(self, cookie: str) -> int | None:
        """Give it at once."""
        return len(self._content) if cookie == self._name else None

    def read_local(self, cookie: str, offset: int, length: int, buffer: memoryview) -> int | None:  # noqa: ARG002
        """Nothing counts as local: each fill is one."""
        return None

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        """Write exactly what is asked for."""
        if cookie != self._name:
            raise NotFoundError(cookie, "is not served")
        self.fills += 1
        if self._delay:
            await asyncio.sleep(self._delay)
        await sink.write(offset, self._content[offset : offset + length])

    async def close(self) -> None:
        """Nothing is open."""


class SlowBlob(MemoryBlob):
    """A blob in memory, each request for which takes its time."""

    def __init__(self, data: bytes, delay: float) -> None:
        super().__init__(data, at_hand=False)
        self._delay = delay

    async def read(self, offset: int, length: int) -> bytes:
        """Wait, and give bytes of it."""
        if self._delay:
            await asyncio.sleep(self._delay)
        return await super().read(offset, length)


class EngineFiller:
    """Gives bytes as the daemon does: fetched, decoded, checked."""

    def __init__(self, table: DeviceTable, blob: bytes, delay: float) -> None:
        self.fills = 0
        self._engine = Engine(limits=FillLimits())
        self._engine.add_device(table, SlowBlob(blob, delay))

    def size(self, cookie: str) -> int | None:
        """Give it at once."""
        return self._engine.size(cookie)

    def read_local(self, cookie: str, offset: int, length: int, buffer: memoryview) -> int | None:
        """Give what was decoded lately."""
        return self._engine.read_local(cookie, offset, length, buffer)

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        """Fill, and what is beside it."""
        self.fills += 1
        await self._engine.fill(cookie, offset, length, sink)

    async def close(self) -> None:
        """Stop the engine."""
        await self._engine.close()


def main() -> None:
    """Serve."""
    keep_freed_memory()
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    with keeping_pages() if settings.pages else nullcontext():
        asyncio.run(serve(settings))


@contextmanager
def keeping_pages() -> Iterator[None]:
    """Have FUSE keep pages of files that are opened."""

    def reply_open(unique: int, flags: OpenFlag, **options: int) -> bytes:
        kept = OpenFlag.KEEP_CACHE if flags is OpenFlag.DIRECT_IO else flags
        return messages.reply_open(unique, kept, **options)

    with patch.object(protocol, "reply_open", reply_open):
        yield


async def serve(settings: Settings) -> None:
    """Serve with the daemon's own parts."""
    root, fsid, name = settings.image
    image = ReadImage(Path(root), fsid, name)
    content = await asyncio.to_thread(image.content.read_bytes)
    cache = DeviceCache(Path(settings.cache))
    await asyncio.to_thread(cache.load)
    file = await asyncio.to_thread(cache.open, name, len(content))
    stop = {"empty": 0, "present": len(content) - LEFT, "complete": len(content)}[settings.state]
    await asyncio.to_thread(make_present, file, content, stop)
    filler = make_filler(settings, image, content)
    transport: FuseTransport | FanotifyTransport
    if settings.transport == "fuse":
        transport = FuseTransport(filler, cache, passthrough=settings.passthrough)
    else:
        transport = FanotifyTransport(filler, cache)
    await transport.start(Path(settings.tree))
    try:
        (path,) = (await transport.prepare({name: len(content)})).values()
        print(json.dumps({"path": str(path)}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            if line == "finish\n":
                await asyncio.to_thread(make_present, file, content, len(content))
            elif line == "store\n":
                await asyncio.to_thread(store, transport.control_fd, file.node, content)
            print(json.dumps(account(transport.counters.reads, filler.fills)), flush=True)
        await transport.release([name])
    finally:
        await transport.stop()
        await filler.close()
        await cache.close()


def make_filler(settings: Settings, image: ReadImage, content: bytes) -> BenchFiller:
    """Make the filler that is asked for."""
    if settings.filler == "memory":
        return MemoryFiller(image.device, content, settings.delay)
    table = DeviceTable((image.root / "tables" / "table").read_bytes())
    return EngineFiller(table, image.blob.read_bytes(), settings.delay)


def make_present(file: DeviceFile, content: bytes, stop: int) -> None:
    """Fill what is absent before `stop`, and bring it to the disk."""
    data = memoryview(content)
    for start in range(0, stop, PIECE):
        for absent in file.absent(start, min(PIECE, stop - start)):
            file.write_now(absent.start, [data[absent.start : absent.stop]])
    file.sync()


def store(fd: int, node: int, content: bytes) -> None:
    """Put all of a file into FUSE's pages: FUSE_NOTIFY_STORE."""
    data = memoryview(content)
    for offset in range(0, len(data), STORED):
        part = data[offset : offset + STORED]
        where = STORE.pack(node, offset, len(part), 0)
        head = HEADER.pack(HEADER.size + STORE.size + len(part), NOTIFY_STORE, 0)
        os.writev(fd, [head, where, part])


def account(requests: int, fills: int) -> dict[str, float]:
    """Say what was used and done so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu": used.ru_utime + used.ru_stime, "requests": requests, "fills": fills}


if __name__ == "__main__":
    main()
