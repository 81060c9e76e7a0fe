"""Superblocks, blobs and chunks of bootstraps."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.nydus.bootstrap import parse_bootstrap
from lazyimg_formats.nydus.layout import BlobFeatures, Compressor, Hash
from tests.fakes.nydus import (
    BATCHES,
    BLOBS,
    EXTENSION,
    SLOTS,
    SUPER,
    WHOLE,
    digest,
    field,
    patch,
    sample,
)

if TYPE_CHECKING:
    from random import Random

ZSTD = sample("zstd.boot")
TABLE = field(ZSTD, EXTENSION + 24)  # of chunks


def test_blobs_of_each_compressor() -> None:
    found = [parse_bootstrap(sample(f"{name}.boot")).blobs[0] for name in WHOLE]
    assert [blob.compressor for blob in found] == [*Compressor, Compressor.ZSTD]
    assert [blob.hash for blob in found] == [Hash.BLAKE3] * 4 + [Hash.SHA256]
    assert [blob.id for blob in found] == [digest(sample(f"{name}.blob")) for name in WHOLE]
    assert {blob.features for blob in found} == {BlobFeatures.ALIGNED | BlobFeatures.CAP_TAR_TOC}
    assert not any(blob.needs_context or blob.separate for blob in found)
    assert [blob.chunk_count for blob in found] == [20, 20, 20, 20, 16]
    assert found[3].data_size == found[3].context_offset


def test_blobs_with_batches_need_their_context() -> None:
    found = [parse_bootstrap(sample(f"{name}.boot")).blobs[0] for name in BATCHES]
    assert all(blob.needs_context and not blob.separate for blob in found)


def test_blob_that_is_a_gzip_layer() -> None:
    (blob,) = parse_bootstrap(sample("zran.boot")).blobs
    assert blob.needs_context
    assert blob.separate
    assert blob.id == digest(sample("zran.original"))
    assert blob.meta_digest.hex() == digest(sample("zran.blob"))
    assert blob.data_size == len(sample("zran.original"))


def test_merged_bootstrap() -> None:
    merged = parse_bootstrap(sample("merged.boot"))
    assert [blob.id for blob in merged.blobs] == [
        digest(sample("toc.blob")), digest(sample("toc-upper.blob"))
    ]  # fmt: skip
    assert merged.explicit_ids
    assert len(merged.prefetch) == 2
    assert merged.chunk_size == 4096
    assert [chunk.blob for chunk in merged.chunks()].count(1) == 3
    tar_header = 512
    assert merged.blobs[0].data_size == merged.blobs[0].context_offset - tar_header


def test_prefetch_hints_end_at_zero() -> None:
    merged = sample("merged.boot")
    hints = field(merged, EXTENSION + 40)
    assert parse_bootstrap(patch(merged, hints + 4, "I", 0)).prefetch == (
        field(merged, hints, "I"),
    )
    assert parse_bootstrap(patch(merged, hints, "I", 0)).prefetch == ()


def test_sizes_of_old_images_and_of_those_without_context() -> None:
    old = parse_bootstrap(patch(ZSTD, BLOBS + 84, "I", 1)).blobs[0]
    assert old.data_size == old.compressed_size
    nothing = patch(patch(ZSTD, BLOBS + 72, "I", 0), BLOBS + 112, "QQQ", 7, 0, 0)
    assert parse_bootstrap(nothing).blobs[0].data_size == old.compressed_size
    version_2 = patch(patch(ZSTD, BLOBS + 84, "I", 5), BLOBS + 128, "Q", 20 * 24)
    assert parse_bootstrap(version_2).blobs[0].chunk_count == 20


def test_no_tables() -> None:
    empty = patch(patch(ZSTD, EXTENSION + 8, "QI", 4096, 0), EXTENSION + 32, "Q", 0)
    found = parse_bootstrap(empty)
    assert found.blobs == ()
    assert list(found.chunks()) == []


def test_version_5() -> None:
    with pytest.raises(FormatError, match="RAFS: version 5 is not supported, only version 6"):
        parse_bootstrap(sample("v5.boot"))


def test_no_version_at_all() -> None:
    with pytest.raises(FormatError, match="RAFS: no image of version 6"):
        parse_bootstrap(patch(ZSTD, SUPER + 8, "I", 0x2))


@pytest.mark.parametrize(
    ("offset", "layout", "value", "message"),
    [
        (SUPER, "I", 1, "magic is 0x1"),
        (SUPER + 4, "I", 5, "a field of the superblock is impossible"),
        (SUPER + 12, "B", 9, "blocks of 512 bytes \\(tarfs\\) are not supported"),
        (SUPER + 13, "B", 1, "a field of the superblock is impossible"),
        (SUPER + 16, "Q", 0, "a field of the superblock is impossible"),
        (SUPER + 40, "I", 77, "a field of the superblock is impossible"),
        (SUPER + 44, "I", 1, "a field of the superblock is impossible"),
        (SUPER + 80, "I", 0x8, "incompatible features 0x8"),
        (SUPER + 84, "H", 1, "a field of the superblock is impossible"),
        (SUPER + 86, "H", 0, "a field of the superblock is impossible"),
        (SUPER + 86, "H", 2, "names that are not 64 characters, or used twice"),
        (SUPER + 88, "H", 12, "device slots at 1536"),
        (SLOTS, "B", 0xC3, "names that are not 64 characters, or used twice"),
        (SLOTS + 64, "I", 0, "a device without blocks"),
        (EXTENSION, "Q", 1 << 20 | 0x84, "unknown flags 0x100084"),
        (EXTENSION, "Q", 0x85, "flags 0x85 contradict each other"),
        (EXTENSION, "Q", 0x8C, "flags 0x8c contradict each other"),
        (EXTENSION, "Q", 0x200_0084, "RAFS: encrypted images are not supported"),
        (EXTENSION, "Q", 0x284, "RAFS: images of plain tars \\(tarfs\\) are not supported"),
        (EXTENSION + 20, "I", 4097, "chunks of 4097 bytes"),
        (EXTENSION + 20, "I", 1 << 25, "chunks of 33554432 bytes"),
        (EXTENSION + 8, "Q", 0, "blob table of 256 bytes at 0 cannot be"),
        (EXTENSION + 8, "Q", 4100, "blob table of 256 bytes at 4100 cannot be"),
        (EXTENSION + 8, "Q", 1 << 40, "blob table of 256 bytes at 1099511627776 cannot be"),
        (EXTENSION + 16, "I", 255, "blob table of 255 bytes at 4096 cannot be"),
        (EXTENSION + 16, "I", 512, "a field of blob 1 is impossible"),
        (EXTENSION + 24, "Q", 4096, "tables overlap"),
        (EXTENSION + 32, "Q", 79, "chunk table of 79 bytes"),
        (EXTENSION + 40, "QI", (4098, 4), "tables overlap"),
        (EXTENSION + 40, "QI", (8192, 5), "prefetch table of 5 bytes at 8192 cannot be"),
        (BLOBS, "B", 0xC3, "blob 0: 'ascii' codec"),
        (BLOBS + 64, "I", 1, "a field of blob 0 is impossible"),
        (BLOBS + 68, "I", 8192, "a field of blob 0 is impossible"),
        (BLOBS + 72, "I", (1 << 24) + 1, "a field of blob 0 is impossible"),
        (BLOBS + 76, "I", 4, "blob 0: 4 is not a valid Compressor"),
        (BLOBS + 80, "I", 2, "blob 0: 2 is not a valid Hash"),
        (BLOBS + 84, "I", 0x1001, "blob 0 has unknown features 0x1001"),
        (BLOBS + 84, "I", 0, "a field of blob 0 is impossible"),
        (BLOBS + 84, "I", 0x101, "blob 0 is encrypted: that is not supported"),
        (BLOBS + 84, "I", 0x801, "blob 0 lies outside of the registry: that is not supported"),
        (BLOBS + 84, "I", 0x41, "blob 0 is a tar of its own \\(tarfs\\): that is not supported"),
        (BLOBS + 84, "I", 0x201, "blob 0 is of a generated chunk dictionary: that"),
        (BLOBS + 84, "I", 0x81, "a field of blob 0 is impossible"),
        (BLOBS + 84, "I", 0x5, "a field of blob 0 is impossible"),
        (BLOBS + 84, "I", 0x85, "a field of blob 0 is impossible"),
        (BLOBS + 88, "Q", 1 << 41, "a field of blob 0 is impossible"),
        (BLOBS + 96, "Q", 1 << 45, "a field of blob 0 is impossible"),
        (BLOBS + 112, "Q", 1 << 41, "a field of blob 0 is impossible"),
        (BLOBS + 120, "Q", 4096, "a field of blob 0 is impossible"),
        (BLOBS + 128, "Q", 336, "a field of blob 0 is impossible"),
        (BLOBS + 216, "I", 1, "blob 0 is encrypted: that is not supported"),
    ],
)  # fmt: skip
def test_impossible_field(
    offset: int, layout: str, value: int | tuple[int, ...], message: str
) -> None:
    values = value if isinstance(value, tuple) else (value,)
    with pytest.raises(FormatError, match=message):
        parse_bootstrap(patch(ZSTD, offset, layout, *values))


@pytest.mark.parametrize(
    ("offset", "layout", "value", "message"),
    [
        (32, "I", 1, "blob 1 of 1"),
        (36, "I", 2, "flags 0x2 are not supported"),
        (36, "I", 5, "flags 0x5 are not supported"),
        (44, "I", 0, "0 bytes at \\d+ cannot be"),
        (44, "I", 4097, "4097 bytes at \\d+ cannot be"),
        (56, "Q", 1, "\\d+ bytes at 1 cannot be"),
        (56, "Q", 81920, "\\d+ bytes at 81920 cannot be"),
    ],
)
def test_impossible_chunk(offset: int, layout: str, value: int, message: str) -> None:
    found = parse_bootstrap(patch(ZSTD, TABLE + offset, layout, value))
    with pytest.raises(FormatError, match=message):
        list(found.chunks())


def test_too_many_blobs() -> None:
    many = ZSTD + bytes(256 * 4096)
    with pytest.raises(FormatError, match="255 blobs, at most 254"):
        parse_bootstrap(patch(many, EXTENSION + 8, "QI", len(ZSTD), 255 * 256))


@pytest.mark.parametrize("length", [0, 1, 1024, 4095, 4097, 8191])
def test_length_that_no_bootstrap_has(length: int) -> None:
    with pytest.raises(FormatError, match=f"a bootstrap of {length} bytes"):
        parse_bootstrap(ZSTD[:length])


def test_cut_after_any_block() -> None:
    for end in range(4096, len(ZSTD), 4096):
        with pytest.raises(FormatError):
            list(parse_bootstrap(ZSTD[:end]).chunks())


@settings(max_examples=50)
@given(st.randoms(), st.integers(1, 6))
def test_any_damage_is_a_format_error(chance: Random, count: int) -> None:
    damaged = bytearray(ZSTD)
    for _ in range(count):
        damaged[chance.randrange(1024, 4096 + 256)] = chance.randrange(256)
    with suppress(FormatError):
        list(parse_bootstrap(bytes(damaged)).chunks())
