"""Contexts of blobs."""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import lz4.block
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.nydus.bootstrap import parse_bootstrap
from lazyimg_formats.nydus.context import decode_context, parse_context, split_context
from lazyimg_formats.nydus.layout import BlobFeatures, Compressor, ContextFlags
from tests.fakes.nydus import (
    BATCHES,
    WHOLE,
    blob_of,
    context_bytes,
    context_file,
    context_of,
    field,
    patch,
    sample,
)

if TYPE_CHECKING:
    from random import Random

BATCH = blob_of("batch-zstd")
BATCH_TABLE, BATCH_HEADER = decode_context(BATCH, context_bytes(BATCH, sample("batch-zstd.blob")))
ZRAN = blob_of("zran")
ZRAN_TABLE, ZRAN_HEADER = decode_context(ZRAN, context_bytes(ZRAN, sample("zran.blob")))


@pytest.mark.parametrize("name", WHOLE)
def test_chunks_are_where_the_bootstrap_says(name: str) -> None:
    bootstrap = parse_bootstrap(sample(f"{name}.boot"))
    context = context_of(bootstrap.blobs[0], sample(f"{name}.blob"))
    for chunk in bootstrap.chunks():
        entry = context.entry(chunk.number)
        assert (entry.offset, entry.stored, entry.address, entry.length) == (
            chunk.compressed_offset,
            chunk.compressed_size,
            chunk.uncompressed_offset,
            chunk.uncompressed_size,
        )
        assert bool(entry.flags) == (entry.stored != entry.length)


@pytest.mark.parametrize("name", BATCHES)
def test_batches(name: str) -> None:
    bootstrap = parse_bootstrap(sample(f"{name}.boot"))
    context = context_of(bootstrap.blobs[0], sample(f"{name}.blob"))
    entries = [context.entry(chunk.number) for chunk in bootstrap.chunks()]
    batched = [entry for entry in entries if ContextFlags.BATCH in entry.flags]
    assert {entry.unit for entry in batched} == set(range(len(context.batches)))
    for number, batch in enumerate(context.batches):
        inside = sorted(entry.inner for entry in batched if entry.unit == number)
        assert inside[0] == 0
        assert sum(entry.length for entry in batched if entry.unit == number) == batch.length


def test_stretch_of_a_gzip_layer() -> None:
    context = context_of(ZRAN, sample("zran.blob"))
    (stretch,) = context.stretches
    assert (stretch.offset, stretch.bits, bytes(stretch.window)) == (10, 0, b"")
    chunks = [context.entry(number) for number in range(context.count)]
    assert all(ContextFlags.ZRAN in entry.flags for entry in chunks)
    assert chunks[-1].inner + chunks[-1].length == stretch.length


def test_largest_numbers_of_version_1() -> None:
    blob = replace(blob_of("none"), data_size=1 << 41)
    table, header = decode_context(blob, context_bytes(blob, sample("none.blob")))
    large = patch(table, 0, "QQ", (1 << 64) - 1, (1 << 64) - 1)
    entry = parse_context(blob, large, header).entry(0)
    assert entry.length == entry.stored == 1 << 24
    assert entry.offset == (1 << 40) - 1
    assert entry.address == (1 << 44) - 4096


def test_file_of_a_bootstrap_layer() -> None:
    file = context_file(BATCH, sample("batch-zstd.blob"))
    assert split_context(BATCH, file) == (BATCH_TABLE, BATCH_HEADER)
    with pytest.raises(FormatError, match="a file of 4096 bytes for"):
        split_context(BATCH, file[4096:])


@pytest.mark.parametrize("compressor", Compressor)
def test_each_compressor_of_contexts(compressor: Compressor) -> None:
    member = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    stored = {
        Compressor.NONE: BATCH_TABLE,
        Compressor.LZ4_BLOCK: lz4.block.compress(BATCH_TABLE, store_size=False),
        Compressor.GZIP: member.compress(BATCH_TABLE) + member.flush(),
        Compressor.ZSTD: context_bytes(BATCH, sample("batch-zstd.blob"))[: BATCH.context_size],
    }[compressor]
    blob = replace(BATCH, context_size=len(stored), context_compressor=compressor)
    assert decode_context(blob, stored + BATCH_HEADER) == (BATCH_TABLE, BATCH_HEADER)


@pytest.mark.parametrize("compressor", [Compressor.LZ4_BLOCK, Compressor.GZIP, Compressor.ZSTD])
def test_context_that_cannot_be_decoded(compressor: Compressor) -> None:
    blob = replace(BATCH, context_compressor=compressor)
    with pytest.raises(FormatError):
        decode_context(blob, b"\xff" * blob.context_size + BATCH_HEADER)


def test_context_of_another_size() -> None:
    data = context_bytes(BATCH, sample("batch-zstd.blob"))
    with pytest.raises(FormatError, match=r"context: \d+ bytes for"):
        decode_context(BATCH, data[:-1])
    with pytest.raises(FormatError, match="bytes for 1099511627776"):
        decode_context(replace(BATCH, context_length=1 << 40), data)


@pytest.mark.parametrize("offset", [0, 8, 12, 16, 24, 32, 4092])
def test_header_that_contradicts_the_bootstrap(offset: int) -> None:
    wrong = patch(BATCH_HEADER, offset, "I", field(BATCH_HEADER, offset, "I") + 1)
    with pytest.raises(FormatError, match="its header is not what the bootstrap says"):
        parse_context(BATCH, BATCH_TABLE, wrong)


def test_table_that_is_cut() -> None:
    with pytest.raises(FormatError, match="its header is not what the bootstrap says"):
        parse_context(BATCH, BATCH_TABLE[:-1], BATCH_HEADER)


def test_no_entries() -> None:
    blob = replace(BATCH, chunk_count=0)
    with pytest.raises(FormatError, match="its header is not what the bootstrap says"):
        parse_context(blob, BATCH_TABLE, patch(BATCH_HEADER, 12, "I", 0))


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [(40, "Q", 0), (48, "Q", 1), (48, "Q", 1 << 40), (56, "I", 1 << 30)],
)
def test_units_that_cannot_be(offset: int, layout: str, value: int) -> None:
    for blob, table, header in (
        (BATCH, BATCH_TABLE, BATCH_HEADER),
        (ZRAN, ZRAN_TABLE, ZRAN_HEADER),
    ):
        with pytest.raises(FormatError, match=r"units at \d+ cannot be"):
            parse_context(blob, table, patch(header, offset, layout, value))


@pytest.mark.parametrize(("stored", "length"), [(0, 5), (6, 5), (5, (16 << 20) + 1)])
def test_batch_that_cannot_be(stored: int, length: int) -> None:
    start = field(BATCH_HEADER, 40)
    with pytest.raises(FormatError, match=f"a batch of {length} bytes in {stored}"):
        parse_context(BATCH, patch(BATCH_TABLE, start, "II", stored, length), BATCH_HEADER)


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        (0, "Q", 1 << 40),
        (16, "Q", 1 << 62),
        (24, "I", 0),
        (24, "I", 1 << 31),
        (28, "I", 0),
        (28, "I", (16 << 20) + 1),
        (32, "I", 1),
        (32, "I", 32769),
        (37, "B", 8),
    ],
)
def test_stretch_that_cannot_be(offset: int, layout: str, value: int) -> None:
    start = field(ZRAN_HEADER, 40)
    with pytest.raises(FormatError, match=r"a stretch of \d+ bytes at \d+ cannot be"):
        parse_context(ZRAN, patch(ZRAN_TABLE, start + offset, layout, value), ZRAN_HEADER)


def test_stretch_at_the_blobs_start_has_no_bits() -> None:
    start = field(ZRAN_HEADER, 40)
    zero = patch(patch(ZRAN_TABLE, start, "Q", 0), start + 37, "B", 1)
    with pytest.raises(FormatError, match=r"a stretch of \d+ bytes at 0 cannot be"):
        parse_context(ZRAN, zero, ZRAN_HEADER)


def entry_with(decoded: int, stored: int, data: int, features: int = 0) -> None:
    blob = replace(BATCH, features=BATCH.features | BlobFeatures(features), data_size=10_000)
    table = patch(BATCH_TABLE, 0, "QQQ", decoded, stored, data)
    parse_context(blob, table, BATCH_HEADER).entry(0)


@pytest.mark.parametrize(
    ("flags", "stored", "data", "message"),
    [
        (0x8, 5, 0, "chunk 0 is encrypted"),
        (0x0, 5, 0, "chunk 0 has 5 bytes for 4"),
        (0x1, 0, 0, "chunk 0 has no bytes"),
        (0x11, 5, 1 << 32, "chunk 0 has no checksum"),
        (0x3, 5, 0, "chunk 0 is in unit 0 of 0"),
        (0x5, 0, 99 << 32, "chunk 0 is in unit 99 of"),
        (0x5, 0, 0xFFFF_FFFF, "chunk 0 ends behind its unit"),
        (0x1, 10_001, 0, "chunk 0 ends behind its blob's chunks"),
    ],
)
def test_entry_that_cannot_be(flags: int, stored: int, data: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        entry_with(flags << 56 | 3 << 32, stored << 40, data)


def test_entries_that_can_be() -> None:
    entry_with(0x11 << 56 | 3 << 32, 5 << 40, 1)
    entry_with(0x0 << 56 | 3 << 32, 4 << 40, 0)
    entry_with(0x1 << 56 | 3 << 32, 0, 0, BlobFeatures.SEPARATE)


def test_entry_that_is_not_there() -> None:
    context = parse_context(BATCH, BATCH_TABLE, BATCH_HEADER)
    with pytest.raises(FormatError, match=f"chunk {context.count} of {context.count}"):
        context.entry(context.count)


@settings(max_examples=50)
@given(st.sampled_from(["batch", "zran", "none"]), st.randoms())
def test_any_damage_is_a_format_error(kind: str, chance: Random) -> None:
    blob = {"batch": BATCH, "zran": ZRAN, "none": blob_of("none")}[kind]
    name = {"batch": "batch-zstd", "zran": "zran", "none": "none"}[kind]
    table, header = map(
        bytearray, decode_context(blob, context_bytes(blob, sample(f"{name}.blob")))
    )
    for _ in range(4):
        table[chance.randrange(len(table))] = chance.randrange(256)
        header[chance.choice(range(60))] ^= chance.choice([0, 0, 0, 1])
    with suppress(FormatError):
        context = parse_context(blob, bytes(table), bytes(header))
        for number in range(context.count):
            context.entry(number)
