"""One layer, converted: the same tar, a TOC that is right, the same bytes every time."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
from zstandard import ZstdCompressor, ZstdDecompressor

from lazyimg.convert.layer import ConvertedLayer, LayerConversion
from lazyimg.errors import CorruptError
from lazyimg_formats.layer import ChunkMap, Entry, Kind, LayerIndex
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.tar.writer import END, padding, serialize_header
from lazyimg_formats.zstd_chunked.location import FOOTER_FRAME_SIZE, parse_footer
from lazyimg_formats.zstd_chunked.toc import parse_toc
from lazyimg_formats.zstd_frames import decode_frame, iterate_frames
from tests.formats.tar.test_scanner import leading, old_sparse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator
    from concurrent.futures import Executor

MIB = 1 << 20
NOISE = random.Random(1).randbytes(MIB)  # noqa: S311 - the same each time


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


def file(path: bytes, data: bytes) -> bytes:
    entry = Entry(path, Kind.REGULAR, 0o644, size=len(data))
    return serialize_header(entry) + data + padding(len(data))


def other(path: bytes, kind: Kind, target: bytes = b"") -> bytes:
    return serialize_header(Entry(path, kind, 0o755, target=target))


CONTENTS = {
    b"etc/small": b"hello\n",
    b"etc/empty": b"",
    b"etc/piece": NOISE[: 128 << 10],
    b"usr/large": NOISE[:700_001],
    b"usr/zeros": bytes(3 * MIB),
    b"usr/mixed": NOISE[:300_000] + bytes(2 * MIB) + NOISE[:5000],
    b"usr/\xff\xfe": b"strange name",
}
TAR = (
    other(b"etc/", Kind.DIRECTORY)
    + b"".join(file(path, data) for path, data in CONTENTS.items())
    + other(b"usr/link", Kind.SYMLINK, b"large")
    + other(b"usr/hard", Kind.HARDLINK, b"usr/large")
    + END
    + bytes(8192)
)


async def convert(
    executor: Executor, data: bytes, *, tar: bytes = TAR, step: int = 300_000, level: int = 3
) -> tuple[bytes, ConvertedLayer]:
    async def source() -> AsyncIterator[bytes]:
        for at in range(0, len(data), step):
            yield data[at : at + step]

    conversion = LayerConversion(
        "app@sha256:1", Digest.of(tar), level=level, executor=executor, depth=2
    )
    blob = b"".join([piece async for piece in conversion.convert(source())])
    assert (conversion.read, conversion.written) == (len(data), len(blob))
    return blob, conversion.result


def read_index(blob: bytes, made: ConvertedLayer) -> LayerIndex:
    toc = made.toc.decode(blob[made.toc.offset :][: made.toc.length])
    return parse_toc(toc, end=made.toc.data_end)


def read_device(blob: bytes, index: LayerIndex) -> bytes:
    table = index.table
    device = bytearray(table.size)
    for number in range(table.extent_count):
        extent = table.extent(number)
        span = table.span(extent.span)
        data = decode_frame(blob[span.blob_offset :][: span.blob_length], span.length)
        assert hashlib.sha256(data).digest() == span.digest
        part = data[extent.inner_offset :][: extent.length]
        device[extent.device_offset : extent.device_offset + extent.length] = part
    return bytes(device)


def read_file(device: bytes, entry: Entry) -> bytes:
    if isinstance(entry.data, ChunkMap):
        chunk = 1 << entry.data.bits
        return b"".join(device[block * 4096 :][:chunk] for block in entry.data.blocks)[: entry.size]
    return device[entry.data or 0 :][: entry.size]


async def test_the_tar_is_the_same(executor: Executor) -> None:
    blob, made = await convert(executor, gzip.compress(TAR))
    with ZstdDecompressor().stream_reader(blob, read_across_frames=True) as reader:
        assert reader.read() == TAR
    name = b"usr/\xff\xfe"
    problem = f"{name!r} has a name or time that its JSON cannot say"
    assert made == ConvertedLayer(Digest.of(blob), len(blob), made.toc, problem)
    assert made.toc.tar_split is None


@pytest.mark.parametrize(
    ("tar", "problem"),
    [
        (file(b"a", b"x") + END, ""),
        (file(b"a", b"x") + END + b"more", "something follows its end"),
        (file(b"a", b"x") + file(b"a", b"y") + END, "two members are b'a'"),
    ],
)
async def test_tar_split_data(executor: Executor, tar: bytes, problem: str) -> None:
    _, made = await convert(executor, tar, tar=tar)
    assert made.problem == problem
    assert (made.toc.tar_split is None) == bool(problem)


async def test_the_index_gives_every_file(executor: Executor) -> None:
    blob, made = await convert(executor, gzip.compress(TAR))
    index = read_index(blob, made)
    device = read_device(blob, index)
    files = {entry.path: entry for entry in index.entries if entry.kind is Kind.REGULAR}
    assert {path: read_file(device, entry) for path, entry in files.items()} == CONTENTS
    assert [(entry.path, entry.kind) for entry in index.entries][-2:] == [
        (b"usr/link", Kind.SYMLINK),
        (b"usr/hard", Kind.HARDLINK),
    ]


async def test_the_frames(executor: Executor) -> None:
    blob, made = await convert(executor, TAR)
    frames = list(iterate_frames(blob))
    assert all(frame.content_size is not None for frame in frames)
    assert max(frame.content_size or 0 for frame in frames) == 128 << 10
    assert [frame.skippable for frame in frames[-3:]] == [False, True, True]
    assert parse_footer(blob[-FOOTER_FRAME_SIZE:]).offset == made.toc.offset
    table = read_index(blob, made).table
    starts = {frame.offset: frame.length for frame in frames}
    for number in range(table.span_count):
        span = table.span(number)
        assert starts[span.blob_offset] == span.blob_length


async def test_runs_of_zeros_are_never_fetched(executor: Executor) -> None:
    blob, made = await convert(executor, TAR)
    index = read_index(blob, made)
    sizes = {entry.path: entry.data for entry in index.entries if entry.size > 2 * MIB}
    assert all(isinstance(data, ChunkMap) for data in sizes.values())
    spans = sum(index.table.span(number).length for number in range(index.table.span_count))
    assert spans < sum(len(data) for data in CONTENTS.values()) - 4.5 * MIB


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(TAR, 1),
        gzip.compress(TAR[:MIB]) + gzip.compress(TAR[MIB:]),
        ZstdCompressor(level=1).compress(TAR),
        TAR,
    ],
)
@pytest.mark.parametrize("step", [100_000, 10 * MIB])
async def test_the_same_bytes_however_it_arrives(
    executor: Executor, data: bytes, step: int
) -> None:
    assert await convert(executor, data, step=step) == await convert(executor, TAR)


async def test_converted_again(executor: Executor) -> None:
    blob, made = await convert(executor, TAR)
    assert await convert(executor, blob) == (blob, made)


async def test_another_level(executor: Executor) -> None:
    blob, made = await convert(executor, TAR, level=9)
    assert made.digest != (await convert(executor, TAR))[1].digest
    assert read_device(blob, read_index(blob, made))


@pytest.mark.parametrize("tar", [END, b"\0" * 512, b"\0" * 10_240])
async def test_empty_tar(executor: Executor, tar: bytes) -> None:
    blob, made = await convert(executor, gzip.compress(tar), tar=tar)
    index = read_index(blob, made)
    assert (index.entries, index.table.size) == ([], 0)


async def test_sparse_files(executor: Executor) -> None:
    tar = (
        old_sparse([(8192, 10), (5 * MIB, 7)], 9 * MIB, b"a" * 10 + b"b" * 7)
        + leading(b"0\n", b"", 20 * MIB, name=b"hole")
        + leading(b"1\n0\n3\n", b"abc", 3, name=b"dense")
        + END
    )
    blob, made = await convert(executor, tar, tar=tar)
    index = read_index(blob, made)
    device = read_device(blob, index)
    sparse, hole, dense = (read_file(device, entry) for entry in index.entries)
    expected = bytearray(9 * MIB)
    expected[8192:8202] = b"a" * 10
    expected[5 * MIB : 5 * MIB + 7] = b"b" * 7
    assert sparse == expected
    assert hole == bytes(20 * MIB)
    assert dense == b"abc"
    assert index.table.size < MIB


async def test_many_small_files(executor: Executor) -> None:
    tar = b"".join(file(b"d/%d" % number, b"%d" % number) for number in range(3000)) + END
    blob, made = await convert(executor, gzip.compress(tar, 1), tar=tar)
    index = read_index(blob, made)
    device = read_device(blob, index)
    assert [read_file(device, entry) for entry in index.entries] == [
        b"%d" % number for number in range(3000)
    ]


@pytest.mark.parametrize(
    ("data", "tar", "problem"),
    [
        (TAR, TAR + b"x", r"layer: its tar has sha256:\w+, not sha256:\w+"),
        (b"", b"", r"layer: it has no bytes"),
        (b"x", b"x", r"tar: cut short after 1 bytes"),
        (b"\x1f\x8b", b"", r"gzip: cut short"),
        (gzip.compress(TAR)[:-20], TAR, r"gzip: cut short"),
        (gzip.compress(TAR[:MIB]), TAR[:MIB], rf"tar: cut short after {MIB} bytes"),
        (b"BZh91AY", b"", r"layer: compressed with bzip2; gzip, zstd and none are known"),
        (b"not a tar" * 100, b"", r"tar header: .*"),
        (other(b"a/../b", Kind.FIFO), other(b"a/../b", Kind.FIFO), r"layer entry: path .*'\.\.'"),
    ],
)
async def test_what_is_no_layer(executor: Executor, data: bytes, tar: bytes, problem: str) -> None:
    with pytest.raises(CorruptError, match=f"^app@sha256:1: {problem}$"):
        await convert(executor, data, tar=tar)


async def test_a_toc_that_nobody_takes(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyimg_formats.zstd_chunked.writer.MAX_TOC", 1000)
    with pytest.raises(CorruptError, match="its TOC is over the 1000 bytes that readers take"):
        await convert(executor, TAR)


async def test_a_file_of_more_chunks_than_are_held(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lazyimg.convert.layer._MAX_CHUNKS", 4)
    with pytest.raises(CorruptError, match="a file of over 4 chunks"):
        await convert(executor, TAR)


async def test_a_source_that_fails(executor: Executor) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield TAR[:MIB]
        raise OSError("gone")

    conversion = LayerConversion("x", Digest.of(TAR), level=3, executor=executor, depth=2)
    with pytest.raises(OSError, match="gone"):
        _ = [piece async for piece in conversion.convert(source())]
    with pytest.raises(RuntimeError, match="the conversion has not ended"):
        _ = conversion.result


async def test_stopped_half_way(executor: Executor) -> None:
    closed = asyncio.Event()

    async def source() -> AsyncGenerator[bytes]:
        try:
            for _ in range(1000):
                yield file(b"f", NOISE)
        finally:
            closed.set()

    conversion = LayerConversion("x", Digest.of(TAR), level=1, executor=executor, depth=1)
    stream = source()
    async with aclosing(stream), aclosing(conversion.convert(stream)) as pieces:
        async for piece in pieces:
            assert piece
            break
    assert closed.is_set()
    assert conversion.read < 100 * MIB
