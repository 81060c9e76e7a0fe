"""Devices made in memory: a blob, the table that describes it, and the bytes that must come out."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import lz4.block
import zstandard
from hypothesis import strategies as st

from lazyimg_formats.device_table import (
    BLOCK_SIZE,
    INPUTS,
    PARTS,
    STRETCHES,
    Codec,
    DeviceTable,
    Extent,
    Span,
    serialize_device_table,
)
from lazyimg_formats.gzip_spans import digest_input

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass
class SpanPlan:
    """One span: its bytes, how they are stored, and where its parts go.

    Attributes:
        content: decoded.
        codec: how it is stored.
        gap: bytes of the blob before it that belong to nobody.
        extents: (bytes of zeros before it on the device, inner offset, length) of each extent.
        skip: bytes decoded before it, of a codec in `PARTS`.
        joined: it is another part of what the span before it is a part of.
    """

    content: bytes
    codec: Codec = Codec.RAW
    gap: int = 0
    extents: Sequence[tuple[int, int, int]] = ()
    skip: int = 0
    joined: bool = False


class Device:
    """A device with its blob and its reference bytes."""

    def __init__(self, table: DeviceTable, blob: bytes, content: bytes) -> None:
        self.table = table
        self.blob = blob
        self.content = content

    @property
    def name(self) -> str:
        return self.table.name

    def __repr__(self) -> str:
        """Show the layout, not the bytes."""
        table = self.table
        extents = [
            (extent.device_offset, extent.length, extent.span, extent.inner_offset)
            for extent in map(table.extent, range(table.extent_count))
        ]
        spans = [
            (*table.blob_range(i), table.span_length(i), table.span(i).codec.name)
            for i in range(table.span_count)
        ]
        return f"Device(size={table.size}, extents={extents}, spans={spans})"


def encode(content: bytes, codec: Codec) -> bytes:
    if codec in {Codec.ZSTD, Codec.ZSTD_PART}:
        return zstandard.ZstdCompressor(level=1).compress(content)
    if codec is Codec.GZIP:
        return gzip.compress(content, compresslevel=1, mtime=0)
    if codec in {Codec.LZ4, Codec.LZ4_PART}:
        stored: bytes = lz4.block.compress(content, store_size=False)
        return stored
    if codec in STRETCHES:
        return zlib.compress(content, level=1, wbits=-zlib.MAX_WBITS)
    return content


def make_device(plans: Sequence[SpanPlan], tail: int = 0, shift: int = 0) -> Device:
    """Lay out spans one behind the other; `shift` moves them in the blob, not on the device."""
    blob = bytearray(b"~" * shift)
    content = bytearray()
    extents, spans = [], []
    skip = 0
    for number, plan in enumerate(plans):
        if not plan.joined:
            blob += b"~" * plan.gap
            offset, skip = len(blob), 0
            blob += (stored := _encode_group(plans, number))
        skip += plan.skip
        length, digest = len(plan.content), hashlib.sha256(plan.content).digest()
        if plan.codec in INPUTS:
            digest = digest_input(hashlib.sha256(stored).digest(), hashlib.sha256().digest())
        spans.append(Span(offset, len(stored), length, digest, plan.codec, skip))
        skip += length if plan.codec in PARTS else 0
        for zeros, inner, length in plan.extents or [(0, 0, len(plan.content))]:
            content += bytes(zeros)
            extents.append(Extent(len(content), length, number, inner))
            content += plan.content[inner : inner + length]
    content += bytes(tail)
    content += bytes(-len(content) % BLOCK_SIZE)
    table = DeviceTable(serialize_device_table(len(content), extents, spans))
    return Device(table, bytes(blob), bytes(content))


def _encode_group(plans: Sequence[SpanPlan], first: int) -> bytes:
    """Give what is stored for a span and those that are joined to it."""
    codec = plans[first].codec
    if codec not in PARTS:
        return encode(plans[first].content, codec)
    stop = first + 1
    while stop < len(plans) and plans[stop].joined:
        stop += 1
    parts = [b"-" * plan.skip + plan.content for plan in plans[first:stop]]
    return encode(b"".join(parts) + b"behind", codec)


def pattern(length: int, seed: int) -> bytes:
    """Give bytes that differ at every offset and for every seed, and compress a little."""
    word = b"%08x" % seed
    return b"".join(b"%s%08x" % (word, i) for i in range(-(-length // 16)))[:length]


def aligned_device(spans: int, length: int = 2 * BLOCK_SIZE, **settings: int) -> Device:
    """Give a device of equal spans that start on blocks, stored as they are."""
    return make_device(
        [SpanPlan(pattern(length, number), gap=settings.get("gap", 0)) for number in range(spans)],
        shift=settings.get("shift", 0),
    )


@st.composite
def devices(draw: st.DrawFn) -> Device:
    """Small devices, aligned or not, with zeros, shared blocks and spans used in part."""
    plans: list[SpanPlan] = []
    for number in range(draw(st.integers(0, 12))):
        length = draw(st.sampled_from([1, 7, 500, 4096, 4097, 8192, 12_000, 20_480]))
        parts: list[tuple[int, int, int]] = []
        inner = 0
        for _ in range(draw(st.integers(1, 3))):
            zeros = draw(st.sampled_from([0, 0, 0, 1, 3000, 4096, 9000, 70_000]))
            used = draw(st.integers(1, length - inner))
            parts.append((zeros, inner, used))
            inner += used
            if inner == length:
                break
        codec = draw(st.sampled_from(list(Codec)))
        gap = draw(st.sampled_from([0, 0, 10, 5000]))
        skip = draw(st.sampled_from([0, 600])) if codec in PARTS else 0
        joined = codec in PARTS and bool(plans) and plans[-1].codec is codec and draw(st.booleans())
        plans.append(SpanPlan(pattern(length, number), codec, gap, parts, skip, joined))
    return make_device(plans, tail=draw(st.sampled_from([0, 100, 10_000])))


@dataclass
class MemoryBlob:
    """A BlobReader over bytes.

    Attributes:
        data: the blob.
        reads: (offset, length) of every read that began.
        fault: called before a read answers; may raise.
        gate: a read answers only while it is set.
        at_hand: `peek` gives it, each time in the same place.
        released: how often it was told that nobody reads.
        peeks: how often it was asked for what is at hand.
        mirrors: how often it says that reading again may help.
        distrusted: (offset, length) of what turned out to be wrong.
    """

    data: bytes
    reads: list[tuple[int, int]] = field(default_factory=list)
    fault: Callable[[int, int], None] = lambda _offset, _length: None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    at_hand: bool = False
    mirrors: int = 0
    peeks: int = 0
    released: int = 0
    distrusted: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()
        self.place = bytearray(len(self.data))

    async def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        self.started.set()
        await self.gate.wait()
        self.fault(offset, length)
        return self.data[offset : offset + length]

    def peek(self, offset: int, length: int) -> memoryview | None:
        self.peeks += 1
        if not self.at_hand:
            return None
        found = self.data[offset : offset + length]
        place = memoryview(self.place)[: len(found)]
        place[:] = found
        return place

    def release(self) -> None:
        self.released += 1

    def distrust(self, offset: int, length: int) -> bool:
        self.distrusted.append((offset, length))
        if not self.mirrors:
            return False
        self.mirrors -= 1
        return True


@dataclass(eq=False)
class MemorySink:
    """A Sink over memory that holds the transport's rules: whole blocks, page-aligned offsets.

    Attributes:
        data: what was written; grows.
        blocks: numbers of the blocks that were written.
        writes: (offset, length) of every write.
        fault: called before a write; may raise.
    """

    data: bytearray = field(default_factory=bytearray)
    blocks: set[int] = field(default_factory=set)
    writes: list[tuple[int, int]] = field(default_factory=list)
    fault: Callable[[int, int], None] = lambda _offset, _length: None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop | None = None

    def __post_init__(self) -> None:
        self.gate.set()
        with contextlib.suppress(RuntimeError):
            self.loop = asyncio.get_running_loop()

    async def write(self, offset: int, data: memoryview) -> None:
        assert offset % BLOCK_SIZE == 0
        assert len(data) % BLOCK_SIZE == 0
        assert data.nbytes
        self.started.set()
        await self.gate.wait()
        self.fault(offset, len(data))
        self.writes.append((offset, len(data)))
        end = offset + len(data)
        self.data += bytes(max(0, end - len(self.data)))
        self.data[offset:end] = data
        self.blocks.update(range(offset // BLOCK_SIZE, end // BLOCK_SIZE))

    def write_now(self, offset: int, parts: Sequence[memoryview]) -> None:
        assert self.loop is not None
        data = memoryview(b"".join(parts))
        asyncio.run_coroutine_threadsafe(self.write(offset, data), self.loop).result()

    def has(self, offset: int, length: int) -> bool:
        """Say whether a range of whole blocks was written."""
        return self.blocks >= set(range(offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)))

    def agrees(self, content: bytes) -> bool:
        """Say whether every written block equals the reference (zeros past its end)."""
        padded = content + bytes(max(0, len(self.data) - len(content)))
        return all(
            self.data[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]
            == padded[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]
            for block in self.blocks
        )
