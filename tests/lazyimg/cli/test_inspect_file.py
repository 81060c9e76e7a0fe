"""What local files are said to be."""

from __future__ import annotations

import hashlib
import stat
from typing import TYPE_CHECKING, Any

import pytest

from lazyimg.cli import inspect_file
from lazyimg.cli.inspect_file import describe_file
from lazyimg.errors import CorruptError, UsageError
from lazyimg_formats.device_table import Codec, Extent, Span, serialize_device_table
from lazyimg_formats.erofs.tree import Device, Node
from lazyimg_formats.erofs.writer import serialize_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fakes.registry import FakeRegistry
    from tests.lazyimg.cli.conftest import Result

from tests.fakes.gzip_layer import FILES, make_layer
from tests.fakes.stargz_layer import StargzLayer


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def table() -> bytes:
    span = Span(100, 50, 5000, hashlib.sha256(b"").digest(), Codec.ZSTD)
    return serialize_device_table(8192, [Extent(0, 5000, 0, 0)], [span])


def test_device_table(tmp_path: Path) -> None:
    facts = describe_file(write(tmp_path / "table", table()))
    assert facts["kind"] == "device table"
    assert (facts["device size"], facts["data size"], facts["compressed size"]) == (8192, 5000, 50)
    assert (facts["extents"], facts["spans"]) == (1, 1)
    assert len(facts["device"]) == 64


def test_device_table_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_file, "MAX_TABLE", 10)
    with pytest.raises(CorruptError, match=r"bytes, at most 10$"):
        describe_file(write(tmp_path / "table", table()))


def test_erofs_image(tmp_path: Path) -> None:
    root = Node(mode=stat.S_IFDIR | 0o755, children={})
    image = serialize_image(root, [Device("t" * 64, 3)])
    facts = describe_file(write(tmp_path / "image", image))
    assert facts["kind"] == "EROFS image"
    assert facts["fsid"] == hashlib.sha256(image).hexdigest()
    assert (facts["size"], facts["block size"], facts["inodes"]) == (len(image), 4096, 1)
    assert facts["devices"] == [{"tag": "t" * 64, "size": 3 * 4096}]


def test_damaged_erofs_image(tmp_path: Path) -> None:
    root = Node(mode=stat.S_IFDIR | 0o755, children={})
    image = bytearray(serialize_image(root, []))
    image[1100] ^= 1
    with pytest.raises(CorruptError, match="checksum"):
        describe_file(write(tmp_path / "image", bytes(image)))


def test_converted_layer(
    run: Callable[..., Result], registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add_image("app", "1", make_layer())
    flags = ("-q", "--platform", "linux/amd64")
    run("convert", f"{registry.host}/app:1", f"oci:{tmp_path}/layout:1", *flags)
    blobs = sorted((tmp_path / "layout/blobs/sha256").iterdir(), key=lambda path: path.read_bytes())
    found = {facts["kind"]: facts for facts in map(describe_any, blobs) if facts}
    layer = found["zstd:chunked layer"]
    assert layer["files"] == len(FILES)
    assert layer["data size"] == sum(map(len, FILES.values()))
    manifest = found["image manifest"]
    assert [one["size"] for one in manifest["layers"]] == [layer["size"]]


@pytest.mark.parametrize(
    ("zstd", "kind"), [(False, "eStargz layer"), (True, "zstd:chunked (stargz) layer")]
)
def test_layer_of_stargz_snapshotter(tmp_path: Path, kind: str, *, zstd: bool) -> None:
    layer = StargzLayer({"a": b"first", "b": b"second", "empty": b""}, zstd=zstd, joined=2)
    facts = describe_file(write(tmp_path / "layer", layer.blob))
    assert facts["kind"] == kind
    assert facts["size"] == len(layer.blob)
    assert (facts["entries"], facts["files"], facts["spans"], facts["data size"]) == (3, 3, 2, 11)
    assert 0 < facts["compressed size"] < facts["size"]
    assert 0 < facts["index size"] <= facts["size"] - facts["compressed size"]


def test_estargz_layer_without_its_index(tmp_path: Path) -> None:
    layer = StargzLayer({"a": b"first"}, external=True)
    facts = describe_file(write(tmp_path / "layer", layer.blob))
    assert facts == {
        "kind": "eStargz layer whose table of contents is in another image",
        "size": len(layer.blob),
    }


def test_damaged_estargz_layer(tmp_path: Path) -> None:
    layer = StargzLayer({"a": b"first"})
    data = bytearray(layer.blob)
    data[layer.toc_offset + 30] ^= 1
    with pytest.raises(CorruptError, match="eStargz TOC: "):
        describe_file(write(tmp_path / "layer", bytes(data)))


def describe_any(path: Path) -> dict[str, Any]:
    try:
        return describe_file(path)
    except CorruptError:
        return {}  # the image's config is JSON, but no manifest


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is nothing known"),
        (b"x" * 5000, "is nothing known"),
        (b"\x1f\x8b" + bytes(100), "is a gzip file, but no lazily loadable layer"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "is a zstd file, but no lazily loadable layer"),
    ],
)
def test_other_files(data: bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        describe_file(write(tmp_path / "file", data))
    assert caught.value.problem == problem


def test_json_that_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="schemaVersion"):
        describe_file(write(tmp_path / "file", b'{"a": 1}'))
