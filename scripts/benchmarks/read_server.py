"""Serves one ReadImage over /dev/cachefiles until standard input ends.

    python -m scripts.benchmarks.read_server SETTINGS

SETTINGS is JSON, see `Settings`. It says "ready" on standard output, and for each line on standard
input its own CPU seconds and what it has done, as JSON.

`minimal` is what others are compared with: a loop that reads a message with struct, writes bytes
that lie in memory, page-aligned and checked by nobody, and completes. `checked` is the same loop
over the compressed blob: what it costs to decode each span and to compute its digest, and nothing
else. The others are the parts of
the daemon behind one another (transport, catalog, fill engine), over a blob in memory.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import mmap
import os
import resource
import select
import struct
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import zstandard

from lazyimg.fill.decode import decode_spans
from lazyimg.fill.engine import Engine
from lazyimg.host.allocator import keep_freed_memory
from lazyimg.host.space import CacheLimits
from lazyimg.images.catalog import Catalog
from lazyimg.images.library import Library
from lazyimg.images.shown import ShownAccess
from lazyimg.limits import FillLimits
from lazyimg.transports.cachefiles.device import bind_cache, open_device
from lazyimg.transports.cachefiles.transport import CachefilesTransport
from lazyimg_formats.cachefiles.layout import IOC_READ_COMPLETE, MSG_MAX_SIZE
from lazyimg_formats.device_table import DeviceTable
from scripts.benchmarks.read_image import ReadImage

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazyimg.fill.ports import BlobReader
    from lazyimg.images.library import SourceRecord
    from lazyimg.registry.ports import Access

DOMAIN: Final = "benchmark"

_HEADER: Final = struct.Struct("=IIII")
_READ: Final = struct.Struct("=QQ")
_END: Final = 4 << 20  # the kernel reads ahead of the end


class Settings(msgspec.Struct):
    """What to serve, and how.

    Attributes:
        image: as ReadImage has it.
        cache: an empty directory.
        kind: "minimal", "checked": the loops above; else the daemon's parts: "decoded": all spans
            were decoded and checked lately; "local": the blob's bytes count as being in memory;
            "fetched": they are asked for, as from a registry, which answers at once.
        min_fetch: as in FillLimits.
    """

    image: tuple[str, str, str]
    cache: str
    kind: str
    min_fetch: int


def main() -> None:
    """Serve."""
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    root, fsid, device = settings.image
    image = ReadImage(Path(root), fsid, device)
    keep_freed_memory()
    if settings.kind in {"minimal", "checked"}:
        serve_minimal(image, Path(settings.cache), checked=settings.kind == "checked")
    else:
        asyncio.run(serve(image, settings))


def answer_parent(count: Callable[[], int]) -> None:
    """Tell the parent what it asks for."""
    print("ready", flush=True)
    for _ in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        said = {
            "cpu": used.ru_utime + used.ru_stime,
            "reads": count(),
            "faults": used.ru_minflt + used.ru_majflt,
            "switches": used.ru_nvcsw + used.ru_nivcsw,
        }
        print(json.dumps(said), flush=True)


class MemoryBlob:
    """A blob in memory."""

    def __init__(self, data: bytes, *, at_hand: bool) -> None:
        self._data = data
        self._at_hand = at_hand

    async def read(self, offset: int, length: int) -> bytes:
        """Give bytes of it."""
        return self._data[offset : offset + length]

    def peek(self, offset: int, length: int) -> memoryview | None:
        """Give bytes of it, if it counts as being at hand."""
        return memoryview(self._data)[offset : offset + length] if self._at_hand else None

    def release(self) -> None:
        """Keep it."""

    def distrust(self, offset: int, length: int) -> bool:  # noqa: ARG002 - there is no other
        """Give False."""
        return False


async def serve(image: ReadImage, settings: Settings) -> None:
    """Serve with the daemon's own parts."""
    at_hand = settings.kind == "local"
    blob = MemoryBlob(await asyncio.to_thread(image.blob.read_bytes), at_hand=at_hand)

    async def open_blob(_source: SourceRecord, _access: Access | None) -> BlobReader:
        return blob

    library = Library(image.root / "library.sqlite")
    limits = FillLimits(min_fetch=settings.min_fetch, ahead=0)  # what is asked for, and no more
    if settings.kind == "decoded":
        limits = replace(limits, recent=8 * image.content.stat().st_size)
    engine = Engine(limits=limits)
    catalog = Catalog(image.root, library, engine, open_blob, ShownAccess())
    catalog.load()
    transport = CachefilesTransport(catalog, domain_id=DOMAIN)
    catalog.use(transport)
    if settings.kind == "decoded":
        decode_all(engine, image)
    await transport.start(Path(settings.cache))
    try:
        await asyncio.to_thread(answer_parent, lambda: transport.counters.reads)
    finally:
        await transport.stop()
        await engine.close()
        library.close()


def decode_all(engine: Engine, image: ReadImage) -> None:
    """Let the engine have decoded every span lately."""
    table = DeviceTable((image.root / "tables" / "table").read_bytes())
    spans, _ = decode_spans(table, range(table.span_count), 0, image.blob.read_bytes())
    for number, data in spans.items():
        engine._recent.put(image.device, number, data)  # noqa: SLF001 - nobody else would


def serve_minimal(image: ReadImage, cache: Path, *, checked: bool) -> None:
    """Serve with the loop."""
    objects: dict[str, Object] = {image.fsid: Memory(image.bootstrap.read_bytes())}
    objects[image.device] = Spans(image) if checked else Memory(image.content.read_bytes())
    control = open_device()
    bind_cache(control, cache, "benchmark", CacheLimits())
    reads = [0]
    threading.Thread(target=_loop, args=(control, objects, reads), daemon=True).start()
    answer_parent(lambda: reads[0])


class Object(Protocol):
    """What the loop serves: `size` bytes."""

    size: int

    def read(self, offset: int, length: int) -> memoryview:
        """Give a range, page-aligned; anything behind the end."""
        ...


class Memory:
    """Bytes that lie ready."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._memory = _new_memory(len(data) + _END)
        self._memory[: len(data)] = data

    def read(self, offset: int, length: int) -> memoryview:
        """Give them."""
        return self._memory[offset : offset + length]


class Spans:
    """A device whose spans are of one size, decoded and checked for each read."""

    def __init__(self, image: ReadImage) -> None:
        self._table = DeviceTable((image.root / "tables" / "table").read_bytes())
        self.size = self._table.size
        self._blob = memoryview(image.blob.read_bytes())
        self._zstd = zstandard.ZstdDecompressor()
        self._step = self._table.span_length(0)
        self._buffer = _new_memory(_END)

    def read(self, offset: int, length: int) -> memoryview:
        """Decode and check."""
        for start in range(offset, min(offset + length, self.size), self._step):
            span = self._table.span(start // self._step)
            data = self._blob[span.blob_offset : span.blob_offset + span.blob_length]
            part = self._buffer[start - offset : start - offset + self._step]
            self._zstd.stream_reader(data).readinto(part)
            if hashlib.sha256(part).digest() != span.digest:
                raise ValueError(f"span at {start} has another digest")
        return self._buffer[:length]


def _new_memory(size: int) -> memoryview:
    return memoryview(mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE))


def _loop(control: int, objects: dict[str, Object], reads: list[int]) -> None:
    opened: dict[int, tuple[int, Object]] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        poll.poll()
        while message := os.read(control, MSG_MAX_SIZE):
            number, opcode, _, object_id = _HEADER.unpack_from(message)
            if opcode == 2:
                offset, length = _READ.unpack_from(message, 16)
                fd, data = opened[object_id]
                os.pwrite(fd, data.read(offset, length), offset)
                fcntl.ioctl(fd, IOC_READ_COMPLETE, number)
                reads[0] += 1
            elif opcode == 0:
                volume, _, fd, _ = _HEADER.unpack_from(message, 16)
                data = objects[message[32 + volume :].decode()]
                os.write(control, b"copen %d,%d" % (number, data.size))
                opened[object_id] = fd, data


if __name__ == "__main__":
    main()
