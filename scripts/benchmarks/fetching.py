"""From a real registry to a file: fetch, decode, digest, write, without the kernel's part.

It runs on any kernel, so that what the daemon's own work costs can be seen where system calls are
as cheap as they are in production.
"""

from __future__ import annotations

import asyncio
import os
import resource
from typing import TYPE_CHECKING, Final

from lazyimg.fill.engine import Engine
from lazyimg.fill.prefetch import prefetch
from lazyimg.host.space import CacheLimits, CacheSpace
from lazyimg.images.blob import RemoteBlob
from lazyimg.images.library import SourceRecord
from lazyimg.limits import FillLimits
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.ports import Access
from lazyimg.registry.resolve import open_source, parse_location, parse_platform, resolve_image
from lazyimg.transports.cachefiles.object_file import ObjectFile
from lazyimg.transports.cachefiles.sink import ObjectSink, WriterPool
from lazyimg_formats.zstd_chunked.location import parse_annotations
from lazyimg_formats.zstd_chunked.toc import parse_toc
from scripts.benchmarks.measure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.fill.ports import BlobReader
    from lazyimg.registry.ports import ImageSource
    from lazyimg_formats.device_table import DeviceTable
    from lazyimg_formats.oci.documents import Descriptor

MB: Final = 1_000_000
REQUEST: Final = 1 << 20
"""Bytes of a READ of a reader that reads in order."""


def measure_fetching(work: Path, reference: str, rounds: int) -> list[Figure]:
    """Fill a device from its repository, as a reader in order does, and as a prefetch does."""
    by_reader, by_prefetch = [], []
    for _ in range(rounds):
        by_reader.append(asyncio.run(_run(work, reference, ahead=False)))
        by_prefetch.append(asyncio.run(_run(work, reference, ahead=True)))
    return [
        Figure("fetch, decode, digest, write: requests of 1 MiB", "MB/s per core", by_reader),
        Figure("fetch, decode, digest, write: prefetch", "MB/s per core", by_prefetch),
    ]


async def _run(work: Path, reference: str, *, ahead: bool) -> float:
    """Give megabytes of the device for each second of CPU of this process."""
    engine = Engine(limits=FillLimits())
    client = RegistryClient()
    location = parse_location(reference)
    source, wanted = await open_source(location, client, Access())
    image = await resolve_image(source, wanted, parse_platform(""))
    layer = image.manifest.layers[-1]
    table = await _read_table(source, layer)
    record = SourceRecord("benchmark", str(layer.digest), layer.size, "", b"{}")
    blob: BlobReader = RemoteBlob(source, record)
    engine.add_device(table, blob)
    path = work / "device"
    file = ObjectFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
    writers = WriterPool()
    sink = ObjectSink(file, table.name, CacheSpace(work, CacheLimits(), work), writers)
    os.truncate(path, table.size)
    offset, before = 0, _cpu()
    if ahead:
        await prefetch(engine, table, sink, list)
    else:
        while (offset := os.lseek(file.fd, offset, os.SEEK_HOLE)) < table.size:
            await engine.fill(table.name, offset, min(REQUEST, table.size - offset), sink)
    used = _cpu() - before
    await engine.close()
    await writers.close()
    file.close()
    await client.close()
    path.unlink()
    return table.size / MB / used


async def _read_table(source: ImageSource, layer: Descriptor) -> DeviceTable:
    toc = parse_annotations(layer.annotations, layer.size)
    if toc is None:
        raise ValueError(f"{layer.digest} is not zstd:chunked")
    stored = await source.read_blob(layer, toc.offset, toc.length)
    return parse_toc(toc.decode(stored), end=toc.data_end).table


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
