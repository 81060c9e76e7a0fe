"""A layer's index is made in the pass that checks it."""

from __future__ import annotations

import gc
import gzip
import io
import random
import weakref
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import zstandard

from lazyimg.errors import CorruptError
from lazyimg.fill.decode import decode_spans
from lazyimg.layers import indexer as module
from lazyimg.layers.indexer import LayerIndexer
from lazyimg_formats.device_table import Codec
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Kind
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.stream_index import HEADER_SIZE, parse_header, parse_stream_index
from tests.fakes.gzip_layer import make_tar

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazyimg_formats.stream_index import StreamHeader

CHANCE = random.Random(3)  # noqa: S311 - the same bytes in every run
FILES = {f"file{number}": CHANCE.randbytes(700) * (number % 80) for number in range(200)}
TAR = make_tar(FILES)
BLOB = gzip.compress(TAR, 6, mtime=0)


def make(
    blob: bytes, tar: bytes, step: int = 10_000, spacing: int = 100_000
) -> tuple[bytes, StreamHeader]:
    file = io.BytesIO()
    indexer = LayerIndexer(Digest.of(blob), Digest.of(tar), file, spacing)
    with closing(indexer):
        for at in range(0, len(blob), step):
            indexer.feed(blob[at : at + step])
        header = indexer.finish()
    return file.getvalue(), header


def test_what_a_layer_took_is_freed_at_once() -> None:
    """One process takes many layers, and its memory is limited."""
    indexer = LayerIndexer(Digest.of(BLOB), Digest.of(TAR), io.BytesIO())
    gone = weakref.ref(indexer)
    gc.disable()
    try:
        indexer.feed(BLOB)
        indexer.close()
        del indexer
        assert gone() is None
    finally:
        gc.enable()


def read_files(index: bytes, blob: bytes) -> dict[str, bytes]:
    layer = parse_stream_index(index)
    table = layer.table
    device = bytearray(table.size)
    good, bad = decode_spans(table, range(table.span_count), 0, blob)
    assert bad == {}
    for number in range(table.extent_count):
        extent = table.extent(number)
        data = good[extent.span][extent.inner_offset : extent.inner_offset + extent.length]
        device[extent.device_offset : extent.device_offset + extent.length] = data
    files = {}
    for entry in layer.entries:
        start = entry.data or 0
        assert entry.kind is Kind.REGULAR
        assert isinstance(start, int)
        files[entry.path.decode()] = bytes(device[start : start + entry.size])
    return files


@pytest.mark.parametrize(
    ("compress", "codec"),
    [
        (lambda tar: gzip.compress(tar, mtime=0), Codec.DEFLATE),
        (lambda tar: gzip.compress(tar[:99_999]) + gzip.compress(tar[99_999:]), Codec.DEFLATE),
        (lambda tar: b"".join(map(zstandard.compress, (tar[:77_777], tar[77_777:]))), Codec.ZSTD),
        (lambda tar: tar, Codec.RAW),
    ],
    ids=["gzip", "two-members", "zstd", "raw"],
)
@pytest.mark.parametrize("step", [61, 10_000, 1 << 30])
def test_every_file_comes_out(compress: Callable[[bytes], bytes], codec: Codec, step: int) -> None:
    blob = compress(TAR)
    index, header = make(blob, TAR, step)
    assert read_files(index, blob) == FILES
    assert header == parse_header(index)
    assert header.codec is codec
    assert (header.blob, header.blob_size) == (Digest.of(blob), len(blob))
    assert (header.diff_id, header.tar_size) == (Digest.of(TAR), len(TAR))
    assert header.spans > 1


def test_same_bytes_however_they_arrive() -> None:
    assert make(BLOB, TAR, 13)[0] == make(BLOB, TAR, 1 << 30)[0]


def test_name_of_the_device_does_not_depend_on_windows_or_compression() -> None:
    """Spans of the same decoded bytes are the same, however they are entered."""
    whole = parse_stream_index(make(BLOB, TAR, spacing=1 << 30)[0])
    other = gzip.compress(TAR, 1, mtime=0)
    assert parse_stream_index(make(other, TAR, spacing=1 << 30)[0]).table.name == whole.table.name


def test_blob_of_another_digest() -> None:
    indexer = LayerIndexer(Digest.of(b"other"), Digest.of(TAR), io.BytesIO())
    indexer.feed(BLOB[:-1])
    with closing(indexer), pytest.raises(CorruptError) as caught:
        indexer.finish()
    assert str(caught.value) == (
        f"blob {Digest.of(b'other')}: came as {len(BLOB) - 1} bytes with the digest"
        f" {Digest.of(BLOB[:-1])}"
    )


def test_tar_of_another_digest() -> None:
    with pytest.raises(FormatError) as caught:
        make(BLOB, b"other")
    assert str(caught.value) == (
        f"diff ID: its tar has {Digest.of(TAR)}, its image says {Digest.of(b'other')}"
    )


@pytest.mark.parametrize(
    ("blob", "tar", "problem"),
    [
        (b"", b"", "layer: a blob of 0 bytes holds none"),
        (b"abc", b"abc", "layer: a blob of 3 bytes holds none"),
        (gzip.compress(b"x" * 600), b"x" * 600, "tar header: "),
        (gzip.compress(TAR[:700]), TAR[:700], "tar: cut short after 700 bytes"),
        (BLOB[:-1], TAR, "gzip: cut short"),
        (b"BZh91AY&SY", b"", "layer: compressed with bzip2; gzip, zstd and none are known"),
        (gzip.compress(make_tar({"a/../b": b""})), make_tar({"a/../b": b""}), "contains '..'"),
    ],
    ids=["empty", "short", "no-tar", "cut-tar", "cut-gzip", "bzip2", "path"],
)
def test_layer_of_which_there_is_no_index(blob: bytes, tar: bytes, problem: str) -> None:
    for step in (7, 1 << 30):
        with pytest.raises(FormatError, match=problem):
            make(blob, tar, step)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SPANS", 2)
    with pytest.raises(FormatError, match="layer: over 2 gzip members or zstd frames"):
        make(BLOB, TAR)
    monkeypatch.setattr(module, "MAX_STORED_SPAN_SIZE", 10_000)
    with pytest.raises(FormatError, match=r"layer: a span of \d+ bytes"):
        make(BLOB, TAR)


def test_whiteouts_and_sparse_files_are_checked_too() -> None:
    tar = make_tar({".wh.gone": b"bytes of a whiteout", "file": b"a"})
    index, _ = make(gzip.compress(tar), tar)
    kinds = [entry.kind for entry in parse_stream_index(index).entries]
    assert kinds == [Kind.WHITEOUT, Kind.REGULAR]
    assert len(index) > HEADER_SIZE
