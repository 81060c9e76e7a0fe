"""Layers as they are: what an index costs to make and to keep, and what decoding its spans costs.

Decoding is compared, in the same round and over the same bytes, with the plain library that makes
the same from them: zlib, and zstandard. Each is measured with sha256 of what comes out, too, since
no span is used without. Seconds are those of the processor.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import time
import zlib
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from unittest.mock import patch

import zstandard

from lazyimg.fill import decode
from lazyimg.layers.indexer import LayerIndexer
from lazyimg.layers.stored_digests import StoredDigests
from lazyimg.layers.stretches import SPACING
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.soci.toc import parse_ztoc
from lazyimg_formats.soci.writer import make_ztoc
from lazyimg_formats.stream_index import parse_stream_index
from lazyimg_formats.tar.writer import END
from lazyimg_formats.zstd_chunked.location import FOOTER_FRAME_SIZE, parse_footer
from lazyimg_formats.zstd_chunked.toc import parse_toc
from scripts.benchmarks.conversion import convert
from scripts.benchmarks.indexing import measure_stargz
from scripts.benchmarks.measure import Figure, ratio
from scripts.benchmarks.tars import tar_of_machine
from tests.fakes.stargz_layer import StargzLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lazyimg_formats.device_table import DeviceTable

MB: Final = 1_000_000
PIECE: Final = 1 << 20
FETCH: Final = 4 << 20  # what a request asks for: its spans are decoded together
PROJECT: Final = Path(__file__).resolve().parents[2]
TIMES: Final = 8  # as often the tar is in the larger layer
FILE: Final = 64 << 10


class Layer(NamedTuple):
    """A blob, and what says where its spans are."""

    blob: bytes
    table: DeviceTable


def measure_formats(work: Path, *, rounds: int, quick: bool) -> list[Figure]:
    """Measure indexing and decoding, on a tar of this machine."""
    tar = tar_of_machine((20 if quick else 160) * MB)
    blob = pack(tar)
    figures = measure_making(work, tar, blob, rounds)
    index = make_index(tar, blob)
    began = time.process_time()
    entries = len(parse_stream_index(index).entries)
    taken = 1e6 * (time.process_time() - began) / entries
    figures.append(Figure("index of gzip to a device, each entry", "us", [taken]))
    runs = [measure_stargz(tar) for _ in range(rounds)]
    figures.append(Figure("TOC of eStargz to a device, each entry", "us", runs, 15.0, most=True))
    ztoc = make_soci(tar, blob)
    runs = [measure_ztoc(ztoc) for _ in range(rounds)]
    figures.append(Figure("zTOC of SOCI to a device, each entry", "us", runs, 40.0, most=True))
    gzip = Layer(blob, parse_stream_index(index).table)
    figures += measure_decoding("gzip, our index", gzip, inflate(blob), rounds)
    soci = Layer(blob, parse_ztoc(ztoc).layer.table)
    figures += measure_decoding("gzip, SOCI's index", soci, inflate(blob), rounds)
    stargz = make_stargz(tar)
    figures += measure_decoding("eStargz", stargz, inflate_spans(stargz), rounds)
    chunked = make_chunked(tar)
    return figures + measure_decoding("zstd:chunked", chunked, decompress_spans(chunked), rounds)


def pack(tar: bytes) -> bytes:
    """Give a layer as most programs make it: one gzip member."""
    packer = zlib.compressobj(6, wbits=31)
    return packer.compress(tar) + packer.flush()


def make_index(tar: bytes, blob: bytes) -> bytes:
    """Give the index of a layer."""
    file = io.BytesIO()
    with closing(LayerIndexer(Digest.of(blob), Digest.of(tar), file)) as indexer:
        for at in range(0, len(blob), PIECE):
            indexer.feed(blob[at : at + PIECE])
        indexer.finish()
    return file.getvalue()


def make_soci(tar: bytes, blob: bytes) -> bytes:
    """Give the zTOC of a layer; its points of entry are those of our own index."""
    file, stored = io.BytesIO(), StoredDigests()
    with closing(LayerIndexer(Digest.of(blob), Digest.of(tar), file, stored=stored)) as indexer:
        indexer.feed(blob)
        indexer.finish()
    return make_ztoc(file.getvalue(), stored.finish(), SPACING)


def measure_ztoc(ztoc: bytes) -> float:
    """Give the microseconds that each entry takes."""
    began = time.process_time()
    entries = len(parse_ztoc(ztoc).layer.entries)
    return 1e6 * (time.process_time() - began) / entries


def make_stargz(tar: bytes) -> Layer:
    """Give an eStargz layer with the same bytes, in files of one size."""
    from lazyimg_formats.estargz.toc import parse_stargz_toc  # noqa: PLC0415  only here

    files = {f"file{at}": tar[at : at + FILE] for at in range(0, len(tar), FILE)}
    layer = StargzLayer(files)
    return Layer(layer.blob, parse_stargz_toc(layer.toc, end=layer.toc_offset).table)


def make_chunked(tar: bytes) -> Layer:
    """Give the layer that `lazyimg convert` makes of a tar."""
    blob = convert(tar, Digest.of(tar))
    location = parse_footer(blob[-FOOTER_FRAME_SIZE:])
    stored = blob[location.offset : location.offset + location.length]
    return Layer(blob, parse_toc(location.decode(stored), end=location.data_end).table)


def measure_making(work: Path, tar: bytes, blob: bytes, rounds: int) -> list[Figure]:
    """Measure making an index, in a process of its own; and of a layer that is much larger."""
    larger = tar.removesuffix(END).rstrip(b"\0")
    larger += bytes(-len(larger) % 512)
    small, large = (work / name for name in ("small", "large"))
    small.write_bytes(blob)
    packer = zlib.compressobj(1, wbits=31)
    with large.open("wb") as file:
        for _ in range(TIMES):
            file.write(packer.compress(larger))
        file.write(packer.compress(END) + packer.flush())
    runs = [run_child(small) for _ in range(rounds)]
    most = [run_child(large) for _ in range(max(1, rounds // 3))]
    return [
        Figure("index of a gzip layer", "MB/s of tar", [one["rate"] for one in runs], 200.0),
        Figure(
            "size of the index", "% of the layer", [one["part"] for one in runs], 1.2, most=True
        ),
        Figure("memory of the process", "MB", [one["memory"] for one in runs], 120.0, most=True),
        Figure(
            f"the same, of a layer {TIMES} times as large", "MB",
            [one["memory"] for one in most], 120.0, most=True,
        ),
    ]  # fmt: skip


def run_child(path: Path) -> dict[str, float]:
    """Give what making an index takes; see `main`."""
    ended = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks.formats", str(path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=PROJECT,
    )
    found: dict[str, float] = json.loads(ended.stdout)
    return found


def main() -> None:
    """Be the child: make one index, and say what it took."""
    (path,) = map(Path, sys.argv[1:])
    blob, diff_id = hashlib.sha256(), hashlib.sha256()
    size = 0
    packed = zlib.decompressobj(31)
    for piece in _read(path):
        blob.update(piece)
        decoded = packed.decompress(piece)
        diff_id.update(decoded)
        size += len(decoded)
    digests = [Digest.parse(f"sha256:{one.hexdigest()}") for one in (blob, diff_id)]
    with (
        (path.parent / "index").open("w+b") as file,
        closing(LayerIndexer(digests[0], digests[1], file)) as indexer,
    ):
        began = time.process_time()
        for piece in _read(path):
            indexer.feed(piece)
        header = indexer.finish()
        taken = time.process_time() - began
    (most,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    part = 100 * header.size / path.stat().st_size
    print(json.dumps({"rate": size / MB / taken, "part": part, "memory": int(most) * 1024 / 1e6}))


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def inflate(blob: bytes) -> Callable[[Callable[[bytes], object]], None]:
    """Give what zlib makes of a whole layer, piece by piece."""

    def run(take: Callable[[bytes], object]) -> None:
        member = zlib.decompressobj(31)
        for at in range(0, len(blob), PIECE):
            take(member.decompress(blob[at : at + PIECE]))

    return run


def inflate_spans(layer: Layer) -> Callable[[Callable[[bytes], object]], None]:
    """Give what zlib makes of each of a layer's members."""
    ranges = sorted({layer.table.blob_range(each) for each in range(layer.table.span_count)})

    def run(take: Callable[[bytes], object]) -> None:
        for offset, length in ranges:
            take(zlib.decompressobj(31).decompress(layer.blob[offset : offset + length]))

    return run


def decompress_spans(layer: Layer) -> Callable[[Callable[[bytes], object]], None]:
    """Give what zstandard makes of each of a layer's frames."""
    ranges = [layer.table.blob_range(each) for each in range(layer.table.span_count)]
    frames = zstandard.ZstdDecompressor()

    def run(take: Callable[[bytes], object]) -> None:
        for offset, length in ranges:
            take(frames.decompress(layer.blob[offset : offset + length]))

    return run


def measure_decoding(
    name: str, layer: Layer, plain: Callable[[Callable[[bytes], object]], None], rounds: int
) -> list[Figure]:
    """Measure decoding all spans of a layer, with the library at hand and with Python's own."""
    ways: dict[str, list[float]] = {"plain": [], "digested": [], "spans": [], "without": []}

    def measure(way: str, work: Callable[[Callable[[bytes], object]], object]) -> None:
        sizes: list[int] = []
        began = time.process_time()
        work(lambda out: sizes.append(len(out)))
        ways[way].append(sum(sizes) / MB / (time.process_time() - began))

    def digested(take: Callable[[bytes], object]) -> None:
        plain(lambda out: take(out) or hashlib.sha256(out).digest())

    requests = list(_plan(layer.table))
    for _ in range(rounds):
        measure("plain", plain)
        measure("digested", digested)
        measure("spans", partial(_decode_all, layer, requests))
        with patch.object(decode, "_inflate", zlib):  # as where there is no ISA-L
            measure("without", partial(_decode_all, layer, requests))
    library = "zstandard" if name.startswith("zstd") else "zlib"
    figures = [
        Figure(f"{name}: {library} alone", "MB/s", ways["plain"]),
        Figure(f"{name}: {library} and sha256", "MB/s", ways["digested"]),
        Figure(f"{name}: spans, checked", "MB/s", ways["spans"]),
        ratio(f"{name}: spans, to {library} and sha256", ways["spans"], ways["digested"], 0.9),
    ]
    if library == "zlib":
        figures.append(
            ratio(f"{name}: the same without ISA-L", ways["without"], ways["digested"], 0.9)
        )
    return figures


def _plan(table: DeviceTable) -> Iterator[tuple[range, int, int]]:
    """Give spans that are fetched and decoded together, and where they lie in the blob."""
    first = 0
    while first < table.span_count:
        start = table.blob_range(first)[0]
        stop = first
        while stop < table.span_count and sum(table.blob_range(stop)) - start <= FETCH:
            stop += 1
        stop = max(stop, first + 1)
        yield range(first, stop), start, sum(table.blob_range(stop - 1))
        first = stop


def _decode_all(
    layer: Layer, requests: Iterable[tuple[range, int, int]], take: Callable[[bytes], object]
) -> None:
    """Decode a layer's spans as fills do: those of a request together."""
    for spans, start, end in requests:
        good, bad = decode.decode_spans(layer.table, spans, start, layer.blob[start:end])
        assert not bad, bad  # noqa: S101 - the figure would be another's
        for each in good.values():
            take(each)


if __name__ == "__main__":
    main()
