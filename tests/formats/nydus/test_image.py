"""Bootstraps as images."""

from __future__ import annotations

import stat
import tarfile
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg_formats.device_table import Codec, DeviceTable, Hash
from lazyimg_formats.erofs.reader import Image
from lazyimg_formats.erofs.tree import ChunkData, FlatData
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Kind
from lazyimg_formats.nydus.bootstrap import Bootstrap, parse_bootstrap
from lazyimg_formats.nydus.context import Context, decode_context, parse_context
from lazyimg_formats.nydus.image import ImageIndex, parse_image
from lazyimg_formats.nydus.layout import Compressor, ContextFlags, inode_chunk_addr
from tests.fakes.nydus import (
    BATCHES,
    BLOBS,
    EXTENSION,
    SUPER,
    WHOLE,
    context_bytes,
    context_of,
    field,
    patch,
    sample,
)

if TYPE_CHECKING:
    from random import Random

ZSTD = sample("zstd.boot")
TABLE = field(ZSTD, EXTENSION + 24)


def contexts_of(name: str, bootstrap: Bootstrap) -> dict[int, Context]:
    return {0: context_of(bootstrap.blobs[0], sample(f"{name}.blob"))}


def parse(name: str) -> ImageIndex:
    bootstrap = parse_bootstrap(sample(f"{name}.boot"))
    return parse_image(bootstrap, contexts_of(name, bootstrap))


def spans(table: DeviceTable) -> list[tuple[Codec, int, int]]:
    found = [table.span(number) for number in range(table.span_count)]
    return [(span.codec, span.skip, span.blob_offset) for span in found]


@pytest.mark.parametrize("name", WHOLE)
def test_chunks_that_are_compressed_one_by_one(name: str) -> None:
    found = parse(name)
    codecs = {codec for codec, _, _ in spans(found.tables[0])}
    own = {"none": Codec.RAW, "lz4": Codec.LZ4, "gzip": Codec.GZIP}.get(name, Codec.ZSTD)
    assert codecs == {own, Codec.RAW}
    assert not found.tables[0].has_parts
    kind = Hash.SHA256 if name == "sha256" else Hash.BLAKE3
    assert found.tables[0].hash is kind
    alone = parse_image(parse_bootstrap(sample(f"{name}.boot")), {})  # without its context
    assert (alone.entries, alone.files) == (found.entries, found.files)
    assert alone.tables[0].data == found.tables[0].data


@pytest.mark.parametrize("name", BATCHES)
def test_batches(name: str) -> None:
    table = parse(name).tables[0]
    codecs = {codec for codec, _, _ in spans(table)}
    part = {
        "batch-none": Codec.RAW,
        "batch-lz4": Codec.LZ4_PART,
        "batch-gzip": Codec.GZIP,
        "batch-zstd": Codec.ZSTD_PART,
    }[name]
    assert part in codecs
    assert table.has_parts == (name != "batch-none")


def test_names_are_the_same_however_chunks_are_compressed() -> None:
    assert len({parse(name).names[0] for name in ("none", "lz4", "gzip", "zstd")}) == 1
    assert len({parse(name).names[0] for name in BATCHES}) == 1
    assert parse("sha256").names != parse("zstd").names


def test_gzip_layer() -> None:
    table = parse("zran").tables[0]
    assert {(codec, offset) for codec, _, offset in spans(table)} == {(Codec.DEFLATE_PART, 10)}
    skips = [skip for _, skip, _ in spans(table)]
    assert skips == sorted(set(skips))


@pytest.mark.parametrize("name", [*WHOLE, *BATCHES, "zran"])
def test_entries_are_those_of_the_source(name: str) -> None:
    found = parse(name)
    sizes = {file.path: file.size for file in found.files}
    entries = {entry.path: entry for entry in found.entries}
    with tarfile.open(fileobj=BytesIO(sample("zran.original"))) as tar:
        members = tar.getmembers()
    assert {member.name.encode() for member in members} | {b""} == set(entries)
    kinds = {
        tarfile.DIRTYPE: Kind.DIRECTORY,
        tarfile.SYMTYPE: Kind.SYMLINK,
        tarfile.CHRTYPE: Kind.CHARACTER,
        tarfile.FIFOTYPE: Kind.FIFO,
    }
    for member in members:
        entry = entries[member.name.encode()]
        assert (entry.mode, entry.uid, entry.gid) == (member.mode, member.uid, member.gid)
        assert entry.mtime == member.mtime
        if member.name not in {"usr/lib/large", "usr/lib/hard"}:
            assert entry.kind is kinds.get(member.type, Kind.REGULAR)
            assert sizes.get(entry.path, 0) == member.size
    assert entries[b"usr/lib/large"].kind is Kind.HARDLINK  # the names come in order
    assert entries[b"usr/lib/large"].target == b"usr/lib/hard"
    assert entries[b"usr/lib/link"].target == b"../../etc/hostname"
    assert (entries[b"usr/null"].major, entries[b"usr/null"].minor) == (1, 3)
    assert entries[b"usr/cap"].xattrs == (
        (b"security.capability", b"\x01\0\0\x02"), (b"user.color", b"blue")
    )  # fmt: skip


def test_merged_image() -> None:
    found = parse_image(parse_bootstrap(sample("merged.boot")), {})
    assert [table.size for table in found.tables] == [81920, 12288]
    assert len(found.names) == 2
    paths = {entry.path for entry in found.entries}
    assert b"etc/gone" not in paths
    assert b"old/a" not in paths
    data = {file.path: file.data for file in found.files}
    assert data[b"etc/hostname"] == FlatData(1, 0)
    assert data[b"etc/same"] == data[b"etc/copy"]  # the same chunk
    assert found.prefetch == [b"usr/lib/hard", b"old"]


def test_prefetch_hint_of_nothing_is_left_out() -> None:
    merged = sample("merged.boot")
    hints = field(merged, EXTENSION + 40)
    found = parse_image(parse_bootstrap(patch(merged, hints, "I", 1)), {})
    assert found.prefetch == [b"old"]


def large(data: bytes = ZSTD) -> tuple[list[int], int]:
    """Give the numbers of the chunks of the largest file, and where its indexes begin."""
    file = max(parse_image(parse_bootstrap(data), {}).files, key=lambda file: file.size)
    assert isinstance(file.data, FlatData)
    first = file.data.block
    numbers = {
        chunk.uncompressed_offset // 4096: chunk.number for chunk in parse_bootstrap(data).chunks()
    }
    found = [numbers[first + index] for index in range(-(-file.size // 4096))]
    start = data.find(b"".join(index(number, first + at) for at, number in enumerate(found)))
    assert start > 0
    return found, start


def index(number: int, block: int, blob: int = 0) -> bytes:
    return inode_chunk_addr.pack(number & 0xFFFF, number >> 16 << 8 | blob + 1, block)


def test_file_whose_chunks_do_not_follow_each_other() -> None:
    _, start = large()
    changed = patch(ZSTD, start, "16s", ZSTD[start + 8 : start + 16] + ZSTD[start : start + 8])
    found = parse_image(parse_bootstrap(changed), {})
    (file,) = [file for file in found.files if isinstance(file.data, ChunkData)]
    assert isinstance(file.data, ChunkData)
    first = file.data.blocks[1]
    assert list(file.data.blocks) == [first + 1, first, first + 2, first + 3]
    assert (file.data.bits, file.data.device, file.data.devices) == (12, 0, None)


def twice(data: bytes = ZSTD) -> Bootstrap:
    """Give a bootstrap whose blob is there a second time, with one byte less."""
    bootstrap = parse_bootstrap(data)
    own = list(bootstrap.chunks())
    bootstrap.blobs = (bootstrap.blobs[0], replace(bootstrap.blobs[0], id="x"))
    both = [*own, *(chunk._replace(blob=1) for chunk in own)]
    bootstrap.chunks = lambda: iter(both)  # type: ignore[method-assign]
    return bootstrap


def test_two_blobs_with_the_same_bytes_have_one_device() -> None:
    found = parse_image(twice(), {})
    assert len(found.tables) == 2
    assert found.names == [found.tables[0].name]


def test_file_whose_chunks_lie_on_several_devices() -> None:
    numbers, start = large()
    block = field(ZSTD, start + 4, "I")
    bootstrap = twice(patch(ZSTD, start, "8s", index(numbers[0], block, 1)))
    both = list(bootstrap.chunks())
    both[-1] = both[-1]._replace(digest=bytes(32))  # so that they are two devices
    bootstrap.chunks = lambda: iter(both)  # type: ignore[method-assign]
    found = parse_image(bootstrap, {})
    assert len(found.names) == 2
    (file,) = [file for file in found.files if isinstance(file.data, ChunkData)]
    assert isinstance(file.data, ChunkData)
    assert list(file.data.devices or ()) == [1, 0, 0, 0]
    assert list(file.data.blocks) == [block, block + 1, block + 2, block + 3]


def test_blob_without_chunks_has_no_device() -> None:
    bootstrap = parse_bootstrap(ZSTD)
    bootstrap.blobs = (*bootstrap.blobs, replace(bootstrap.blobs[0], id="x"))
    found = parse_image(bootstrap, {})
    assert [table.size for table in found.tables] == [81920, 0]
    assert len(found.names) == 1


def test_owners_that_are_not_given() -> None:
    found = parse_image(parse_bootstrap(patch(ZSTD, EXTENSION, "Q", 0x84)), {})
    assert {(entry.uid, entry.gid) for entry in found.entries} == {(0, 0)}


@pytest.mark.parametrize("change", [index(0, 0, 1), index(1 << 20, 3), index(3, 70)])
def test_chunk_that_no_blob_has(change: bytes) -> None:
    _, start = large()
    with pytest.raises(FormatError, match="b'usr/lib/hard' has a chunk that no blob has"):
        parse_image(parse_bootstrap(patch(ZSTD, start, "8s", change)), {})


def test_chunk_that_is_too_short_for_its_place() -> None:
    numbers, start = large()
    last = ZSTD[start + 24 : start + 32]
    assert len(numbers) == 4
    with pytest.raises(FormatError, match="b'usr/lib/hard' has a chunk that no blob has"):
        parse_image(parse_bootstrap(patch(ZSTD, start, "8s", last)), {})


def inode_at(path: bytes) -> int:
    """Give where an inode of the sample begins."""
    image = Image(ZSTD)
    inode = image.lookup(path)
    assert inode is not None
    return (image.superblock.meta_block << 12) + inode.nid * 32


def test_file_without_chunks() -> None:
    at = inode_at(b"etc/hostname")
    flat = patch(ZSTD, at, "H", field(ZSTD, at, "H") & 1)
    with pytest.raises(FormatError, match="RAFS: b'etc/hostname' has no chunks"):
        parse_image(parse_bootstrap(flat), {})


def test_more_chunks_than_any_image_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyimg_formats.nydus.image.MAX_CHUNKS", 5)
    with pytest.raises(FormatError, match="RAFS: over 5 chunks of files"):
        parse_image(parse_bootstrap(ZSTD), {})


def test_file_of_a_size_that_nothing_has() -> None:
    at = inode_at(b"etc/hostname")
    assert field(ZSTD, at + 8) & 0xFFFF_FFFF == 6
    with pytest.raises(FormatError):
        parse_image(parse_bootstrap(patch(ZSTD, at + 8, "I", 0x7FFF_FFFF)), {})


def test_socket() -> None:
    at = inode_at(b"usr/pipe")
    image = Image(ZSTD)
    folder = image.lookup(b"usr")
    assert folder is not None
    start = ZSTD.find(image.read(folder))
    names = [dirent.name for dirent in image.read_directory(folder)]
    kind = start + names.index(b"pipe") * 12 + 10
    data = patch(patch(ZSTD, at + 4, "H", stat.S_IFSOCK | 0o644), kind, "B", 6)
    with pytest.raises(FormatError, match="RAFS: b'usr/pipe' is a socket"):
        parse_image(parse_bootstrap(data), {})


def test_directory_that_is_reached_twice() -> None:
    image = Image(ZSTD)
    root = image.root
    start = ZSTD.find(image.read(root))
    names = [dirent.name for dirent in image.read_directory(root)]
    cycle = patch(ZSTD, start + names.index(b"usr") * 12, "Q", root.nid)
    with pytest.raises(FormatError, match="hard link b'usr' to the root"):
        parse_image(parse_bootstrap(cycle), {})


def test_context_is_missing() -> None:
    for name in ("batch-zstd", "zran"):
        with pytest.raises(FormatError, match="context: blob 0 has none"):
            parse_image(parse_bootstrap(sample(f"{name}.boot")), {})
    with pytest.raises(FormatError, match="context: blob 0 has none"):
        parse_image(parse_bootstrap(patch(ZSTD, TABLE + 36, "I", 9)), {})


def test_chunks_overlap() -> None:
    with pytest.raises(FormatError, match="chunks overlap at 0"):
        parse_image(
            parse_bootstrap(patch(patch(ZSTD, TABLE + 56, "Q", 0), TABLE + 136, "Q", 0)), {}
        )


@pytest.mark.parametrize(("flags", "stored"), [(1, 1 << 30), (0, 5)])
def test_chunk_that_its_blob_cannot_have(flags: int, stored: int) -> None:
    with pytest.raises(FormatError, match=rf"chunk: \d+ bytes in {stored} at \d+ cannot be"):
        parse_image(parse_bootstrap(patch(ZSTD, TABLE + 36, "II", flags, stored)), {})


def test_chunk_without_stored_bytes() -> None:
    with pytest.raises(FormatError, match="span: impossible position"):
        parse_image(parse_bootstrap(patch(ZSTD, TABLE + 36, "II", 1, 0)), {})


def parse_with(name: str, change: bytes, at: int) -> ImageIndex:
    """Parse a sample whose context's table has other bytes."""
    bootstrap = parse_bootstrap(sample(f"{name}.boot"))
    blob = bootstrap.blobs[0]
    table, header = decode_context(blob, context_bytes(blob, sample(f"{name}.blob")))
    changed = table[:at] + change + table[at + len(change) :]
    return parse_image(bootstrap, {0: parse_context(blob, changed, header)})


def test_context_of_another_chunk() -> None:
    with pytest.raises(FormatError, match="chunk 0 is another one than the bootstrap's"):
        parse_with("none", b"\x00\x70", 0)
    with pytest.raises(FormatError, match="chunk 0 is elsewhere than in the bootstrap"):
        parse_with("none", b"\x07", 8)


def test_batch_behind_its_blob() -> None:
    context = contexts_of("batch-zstd", parse_bootstrap(sample("batch-zstd.boot")))[0]
    number = next(
        number
        for number in range(context.count)
        if ContextFlags.BATCH in context.entry(number).flags
    )
    with pytest.raises(FormatError, match="batch 0 ends behind its blob's chunks"):
        parse_with("batch-zstd", context.blob.data_size.to_bytes(5, "little"), number * 24 + 8)


def test_batch_that_is_not_compressed_but_shorter() -> None:
    bootstrap = parse_bootstrap(sample("batch-zstd.boot"))
    contexts = contexts_of("batch-zstd", bootstrap)
    bootstrap.blobs = (replace(bootstrap.blobs[0], compressor=Compressor.NONE),)
    chunks = [
        chunk
        for chunk in bootstrap.chunks()
        if ContextFlags.BATCH in contexts[0].entry(chunk.number).flags
    ]
    bootstrap.chunks = lambda: iter(chunks)  # type: ignore[method-assign]
    with pytest.raises(FormatError, match=r"context: a batch of \d+ bytes in \d+"):
        parse_image(bootstrap, contexts)


def test_window_of_a_stretch_is_kept_once() -> None:
    bootstrap = parse_bootstrap(sample("zran.boot"))
    (context,) = contexts_of("zran", bootstrap).values()
    window = bytes(range(256)) * 128
    stretch = context.stretches[0]._replace(bits=3, window=memoryview(window))
    table = parse_image(bootstrap, {0: replace(context, stretches=(stretch,))}).tables[0]
    assert {table.window(number) for number in range(table.span_count)} == {window}
    assert len(table.data) < 2 * len(window)
    assert {(span.bit, span.blob_offset) for span in map(table.span, range(table.span_count))} == {
        (5, 9)
    }


@settings(max_examples=40)
@given(st.randoms(), st.integers(1, 4))
def test_any_damage_is_a_format_error(chance: Random, count: int) -> None:
    damaged = bytearray(ZSTD)
    for _ in range(count):
        damaged[chance.randrange(SUPER, len(damaged))] = chance.randrange(256)
    with suppress(FormatError):
        parse_image(parse_bootstrap(bytes(damaged)), {})


def test_extension_of_the_sample() -> None:
    assert field(ZSTD, EXTENSION + 8) == BLOBS
