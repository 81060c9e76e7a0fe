"""Layers to zstd:chunked: megabytes of tar per second of CPU, of all threads together."""

from __future__ import annotations

import asyncio
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import zstandard

from lazyimg.convert.layer import LayerConversion
from lazyimg_formats.oci.digest import Digest
from scripts.benchmarks.measure import Figure
from scripts.benchmarks.tars import tar_of_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

MB: Final = 1_000_000
GOALS: Final = {"gzip": 100.0, "zstd": 150.0, "tar": 150.0}
LEVEL: Final = 3
PIECE: Final = 1 << 18
THREADS: Final = 2


def measure_conversion(*, rounds: int, quick: bool) -> list[Figure]:
    """Convert the same tar from each compression, one after the other, `rounds` times."""
    tar = tar_of_machine((40 if quick else 200) * MB)
    layers = {
        "gzip": _gzip(tar),
        "zstd": zstandard.ZstdCompressor(level=3).compress(tar),
        "tar": tar,
    }
    diff_id = Digest.of(tar)
    rates: dict[str, list[float]] = {kind: [] for kind in layers}
    for _ in range(rounds):
        for kind, layer in layers.items():
            begin = time.process_time()
            _convert(layer, diff_id, len)  # whoever pushes the blob does not keep it
            rates[kind].append(len(tar) / (time.process_time() - begin) / MB)
    return [
        Figure(
            f"convert from {kind}, zstd level {LEVEL}", "MB/s of tar per core", kept, GOALS[kind]
        )
        for kind, kept in rates.items()
    ]


def _gzip(data: bytes) -> bytes:
    compressor = zlib.compressobj(6, wbits=zlib.MAX_WBITS | 16)
    return compressor.compress(data) + compressor.flush()


def convert(layer: bytes, diff_id: Digest) -> bytes:
    """Convert one layer, from memory; gives the blob."""
    pieces: list[bytes] = []
    _convert(layer, diff_id, pieces.append)
    return b"".join(pieces)


def _convert(layer: bytes, diff_id: Digest, take: Callable[[bytes], object]) -> None:
    async def source() -> AsyncIterator[bytes]:
        for at in range(0, len(layer), PIECE):
            yield layer[at : at + PIECE]

    async def run() -> None:
        with ThreadPoolExecutor(THREADS) as threads:
            conversion = LayerConversion(
                "layer", diff_id, level=LEVEL, executor=threads, depth=THREADS
            )
            async for piece in conversion.convert(source()):
                take(piece)

    asyncio.run(run())
