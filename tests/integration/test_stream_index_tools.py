"""Layers as the real compressors write them are indexed, and each span decodes by itself.

Needs the Debian packages gzip, pigz, zopfli and zstd.
"""

from __future__ import annotations

import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from lazyimg.fill.decode import decode_spans
from lazyimg.layers.indexer import LayerIndexer
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.stream_index import parse_stream_index
from scripts.benchmarks.tars import tar_of_machine
from tests.fakes.gzip_layer import make_tar

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 24_000_000


@pytest.fixture(scope="module")
def tar() -> bytes:
    return tar_of_machine(SIZE)


def make(tar: bytes, blob: bytes, path: Path) -> bytes:
    with path.open("w+b") as file:
        indexer = LayerIndexer(Digest.of(blob), Digest.of(tar), file)
        with closing(indexer):
            for at in range(0, len(blob), 1 << 20):
                indexer.feed(blob[at : at + (1 << 20)])
            indexer.finish()
    return path.read_bytes()


def pack(data: bytes, *command: str) -> bytes:
    return subprocess.run(command, input=data, check=True, capture_output=True, timeout=300).stdout


@pytest.mark.parametrize(
    "command",
    ["gzip -1", "gzip -9", "pigz", "pigz -i", "pigz -9 -b 64"],
)
@pytest.mark.parametrize("members", [1, 2])
def test_gzip(tar: bytes, command: str, members: int, tmp_path: Path) -> None:
    half = len(tar) // members
    parts = [tar[at : at + half] for at in range(0, len(tar), half)]
    blob = b"".join(pack(part, *command.split(), "-c") for part in parts)
    index = make(tar, blob, tmp_path / "index")
    table = parse_stream_index(index).table
    assert decode_spans(table, range(table.span_count), 0, blob)[1] == {}
    assert table.span_count >= 5
    assert len(index) < len(blob) * 0.015


def test_zopfli(tmp_path: Path) -> None:
    tar = make_tar({"a": b"".join(b"%d " % n for n in range(40_000)), "b": bytes(1000)})
    (tmp_path / "tar").write_bytes(tar)
    blob = pack(b"", "zopfli", "--i1", "-c", str(tmp_path / "tar"))
    table = parse_stream_index(make(tar, blob, tmp_path / "index")).table
    assert decode_spans(table, range(table.span_count), 0, blob)[1] == {}


def test_zstd(tar: bytes, tmp_path: Path) -> None:
    blob = b"".join(
        pack(tar[at : at + 4_000_000], "zstd", "-19", "-c") for at in range(0, len(tar), 4_000_000)
    )
    table = parse_stream_index(make(tar, blob, tmp_path / "index")).table
    assert decode_spans(table, range(table.span_count), 0, blob)[1] == {}
    assert table.span_count >= 5


@pytest.mark.parametrize("options", [["-1"], ["--long=27"]])
def test_zstd_of_one_frame(tar: bytes, options: list[str], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="zstd: a frame of over 16 MiB; nothing in a frame can"):
        make(tar, pack(tar, "zstd", *options, "-c"), tmp_path / "index")
