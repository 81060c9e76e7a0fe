"""Serves one ReadImage over /dev/cachefiles until standard input ends.

    python -m scripts.benchmarks.read_server SETTINGS

SETTINGS is JSON, see `Settings`. It says "ready" on standard output, and for each line on standard
input its own CPU seconds and what it has done, as JSON.

`minimal` is what others are compared with: a loop that reads a message with struct, writes bytes
that lie in memory, page-aligned and checked by nobody, and completes. The others are the parts of
the daemon behind one another (transport, catalog, fill engine), over a blob in memory.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import mmap
import os
import resource
import select
import struct
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from lazyimg.fill.engine import Engine
from lazyimg.host.allocator import keep_freed_memory
from lazyimg.images.catalog import Catalog
from lazyimg.images.library import Library
from lazyimg.images.shown import ShownAccess
from lazyimg.limits import FillLimits
from lazyimg.transports.cachefiles.device import bind_cache, open_device
from lazyimg.transports.cachefiles.space import CacheLimits
from lazyimg.transports.cachefiles.transport import CachefilesTransport
from lazyimg_formats.cachefiles.layout import IOC_READ_COMPLETE, MSG_MAX_SIZE
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
        kind: "minimal": the loop above; else the daemon's parts: "local": the blob's bytes count as
            being in memory; "fetched": they are asked for, as from a registry, which answers at
            once.
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
    if settings.kind == "minimal":
        serve_minimal(image, Path(settings.cache))
    else:
        cache, at_hand = Path(settings.cache), settings.kind == "local"
        asyncio.run(serve(image, cache, settings.min_fetch, at_hand=at_hand))


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


async def serve(image: ReadImage, cache: Path, min_fetch: int, *, at_hand: bool) -> None:
    """Serve with the daemon's own parts."""
    blob = MemoryBlob(await asyncio.to_thread(image.blob.read_bytes), at_hand=at_hand)

    async def open_blob(_source: SourceRecord, _access: Access | None) -> BlobReader:
        return blob

    library = Library(image.root / "library.sqlite")
    engine = Engine(limits=FillLimits(min_fetch=min_fetch))
    catalog = Catalog(image.root, library, engine, open_blob, ShownAccess())
    catalog.load()
    transport = CachefilesTransport(catalog, domain_id=DOMAIN)
    catalog.use(transport)
    await transport.start(cache)
    try:
        await asyncio.to_thread(answer_parent, lambda: transport.counters.reads)
    finally:
        await transport.stop()
        await engine.close()
        library.close()


def serve_minimal(image: ReadImage, cache: Path) -> None:
    """Serve with the loop."""
    objects = {
        name: _load(path)
        for name, path in ((image.fsid, image.bootstrap), (image.device, image.content))
    }
    control = open_device()
    bind_cache(control, cache, "benchmark", CacheLimits())
    reads = [0]
    threading.Thread(target=_loop, args=(control, objects, reads), daemon=True).start()
    answer_parent(lambda: reads[0])


def _load(path: Path) -> tuple[int, memoryview]:
    data = path.read_bytes()
    memory = memoryview(mmap.mmap(-1, -(-(len(data) + _END) // mmap.PAGESIZE) * mmap.PAGESIZE))
    memory[: len(data)] = data
    return len(data), memory


def _loop(control: int, objects: dict[str, tuple[int, memoryview]], reads: list[int]) -> None:
    opened: dict[int, tuple[int, memoryview]] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        poll.poll()
        while message := os.read(control, MSG_MAX_SIZE):
            number, opcode, _, object_id = _HEADER.unpack_from(message)
            if opcode == 2:
                offset, length = _READ.unpack_from(message, 16)
                fd, data = opened[object_id]
                os.pwrite(fd, data[offset : offset + length], offset)
                fcntl.ioctl(fd, IOC_READ_COMPLETE, number)
                reads[0] += 1
            elif opcode == 0:
                volume, _, fd, _ = _HEADER.unpack_from(message, 16)
                size, data = objects[message[32 + volume :].decode()]
                os.write(control, b"copen %d,%d" % (number, size))
                opened[object_id] = fd, data


if __name__ == "__main__":
    main()
