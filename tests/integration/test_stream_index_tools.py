"""Layers as the real compressors write them are indexed, and each span decodes by itself.

Needs the Debian packages gzip, pigz, zopfli, zstd and umoci, which is a Go program.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from lazyimg.fill.decode import decode_spans
from lazyimg.layers.indexer import LayerIndexer
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.stream_index import parse_stream_index
from lazyimg_formats.tar.scanner import TarScanner
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


def test_go(tar: bytes, tmp_path: Path) -> None:
    """As umoci, and most builders, which are Go programs as well, compress a layer."""
    layout = tmp_path / "layout"
    (tmp_path / "tar").write_bytes(tar)
    for command in (
        ["init", "--layout", layout],
        ["new", "--image", f"{layout}:go"],
        ["raw", "add-layer", "--image", f"{layout}:go", tmp_path / "tar"],
    ):
        subprocess.run(["umoci", *command], check=True, capture_output=True, timeout=300)
    (descriptor,) = json.loads((layout / "index.json").read_text())["manifests"]
    (layer,) = json.loads(read_blob(layout, descriptor["digest"]))["layers"]
    assert layer["mediaType"].endswith("tar+gzip")
    blob = read_blob(layout, layer["digest"])
    table = parse_stream_index(make(tar, blob, tmp_path / "index")).table
    assert decode_spans(table, range(table.span_count), 0, blob)[1] == {}
    assert table.span_count >= 5


def read_blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()


@pytest.mark.parametrize("options", [["-1"], ["-19"], ["--long=27"]])
def test_zstd(tar: bytes, options: list[str], tmp_path: Path) -> None:
    tar = tar[: 6 << 20]
    tar = tar[: tar_end(tar)] + bytes(1024)
    blob = b"".join(
        pack_frame(tar[at : at + 2_000_000], options) for at in range(0, len(tar), 2_000_000)
    )
    table = parse_stream_index(make(tar, blob, tmp_path / "index")).table
    assert decode_spans(table, range(table.span_count), 0, blob)[1] == {}
    assert table.span_count >= 3


def pack_frame(data: bytes, options: list[str]) -> bytes:
    """Give a frame that says how large it is, as of a file; else --long says 128 MiB."""
    return pack(data, "zstd", *options, f"--stream-size={len(data)}", "-c")


def tar_end(data: bytes) -> int:
    """Give where the last member ends that is whole."""
    scanner = TarScanner()
    ends = [one.data_offset + -(-one.data_size // 512) * 512 for one in scanner.feed(data)]
    return max(end for end in ends if end <= len(data))


@pytest.mark.parametrize("options", [["-1"], ["-19"], ["--long=27"]])
def test_zstd_of_one_small_frame(options: list[str], tmp_path: Path) -> None:
    """It is one span, which is fetched and decoded as a whole."""
    tar = make_tar({"a": b"".join(b"%d " % n for n in range(100_000)), "b": bytes(1000)})
    blob = pack_frame(tar, options)
    table = parse_stream_index(make(tar, blob, tmp_path / "index")).table
    assert table.span_count == 1
    assert decode_spans(table, [0], 0, blob)[1] == {}


@pytest.mark.parametrize("options", [["-1"], ["--long=27"]])
def test_zstd_of_one_frame(tar: bytes, options: list[str], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="zstd: a frame of over 16 MiB; nothing in a frame can"):
        make(tar, pack(tar, "zstd", *options, "-c"), tmp_path / "index")
