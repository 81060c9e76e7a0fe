"""Trees of Nydus images."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from lazyimg.images.nydus import (
    MissingContext,
    NydusSource,
    build_nydus,
    build_tree,
    measure_first,
)
from lazyimg_formats.device_table import DeviceTable
from lazyimg_formats.erofs.tree import ChunkData, FlatData, Node
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Entry, Kind
from lazyimg_formats.nydus.bootstrap import parse_bootstrap
from lazyimg_formats.nydus.image import ImageIndex, PlacedFile, parse_image
from tests.fakes.nydus import (
    BLOBS,
    EXTENSION,
    context_file,
    digest,
    pack_layer,
    patch,
    sample,
)

if TYPE_CHECKING:
    from pathlib import Path


def find(root: Node, path: str) -> Node:
    for part in path.split("/"):
        assert root.children is not None
        root = root.children[part.encode()]
    return root


def test_files_are_where_their_chunks_are() -> None:
    root = build_tree(parse_image(parse_bootstrap(sample("merged.boot")), {}))
    hostname = find(root, "etc/hostname")
    assert (hostname.size, hostname.data) == (6, FlatData(1, 0))
    assert find(root, "etc/empty").data is None
    assert find(root, "usr/lib/large") is find(root, "usr/lib/hard")
    assert find(root, "usr/lib/large").size == 14_000


def test_what_hides_files_is_not_there() -> None:
    entries = [
        Entry(b"", Kind.DIRECTORY, 0o755),
        Entry(b"blank", Kind.CHARACTER),
        Entry(b"file", Kind.REGULAR),
        Entry(b"folder", Kind.DIRECTORY, 0o755),
    ]
    names = [b"file", b".wh.gone", b"folder", b"file/below", b"nowhere/at/all"]
    files = [PlacedFile(name, 5, FlatData(0, 0)) for name in names]
    root = build_tree(ImageIndex(entries, files, [], [], []))
    assert root.children is not None
    assert set(root.children) == {b"file", b"folder"}
    assert find(root, "file").size == 5
    assert stat.S_ISDIR(find(root, "folder").mode)
    assert find(root, "folder").size == 0


def index_of(files: dict[bytes, FlatData | ChunkData], *hints: bytes) -> ImageIndex:
    placed = [PlacedFile(name, 5000, data) for name, data in files.items()]
    return ImageIndex([], placed, [], [], list(hints))


def test_what_is_wanted_first_is_a_devices_start() -> None:
    files: dict[bytes, FlatData | ChunkData] = {
        b"a/b": FlatData(0, 0),
        b"a/c": FlatData(0, 4),  # nothing of the image lies between
        b"b": FlatData(0, 6),
        b"a/d": FlatData(0, 8),
        b"a/e": ChunkData(12, [0, 1], 1, [1, 3]),
        b"f": ChunkData(12, [1, 7], 2),
    }
    assert measure_first(index_of(files)) == {}
    assert measure_first(index_of(files, b"a", b"none")) == {0: 6 * 4096, 1: 4096, 3: 8192}
    assert measure_first(index_of(files, b"")) == {0: 10 * 4096, 1: 4096, 2: 8 * 4096, 3: 8192}
    assert measure_first(index_of(files, b"f")) == {2: 8 * 4096}
    assert measure_first(index_of(files, b"b")) == {}


def source_of(root: Path, boot: bytes, contexts: dict[str, bytes] | None = None) -> NydusSource:
    (root / "tables").mkdir()
    (root / "layer").write_bytes(pack_layer({"image/image.boot": boot, **(contexts or {})}))
    return NydusSource(str(root / "layer"), "name", str(root / "tables"))


def test_built_image(tmp_path: Path) -> None:
    built = build_nydus(source_of(tmp_path, sample("merged.boot")))
    assert built.missing == []
    assert built.root is not None
    assert [device.blocks for device in built.devices] == [20, 3]
    assert [blob.blob for blob in built.blobs] == [
        digest(sample("toc.blob")), digest(sample("toc-upper.blob"))
    ]  # fmt: skip
    for blob in built.blobs:
        table = DeviceTable((tmp_path / "tables" / blob.table).read_bytes())
        assert (table.name, table.size) == (blob.device, blob.size)
    assert DeviceTable((tmp_path / "tables" / "name").read_bytes()).size == 0


def test_context_that_is_missing(tmp_path: Path) -> None:
    built = build_nydus(source_of(tmp_path, sample("zran.boot")))
    assert built.root is None
    assert built.missing == [
        MissingContext(digest(sample("zran.original")), separate=True, offset=0, length=4396)
    ]


def test_context_in_the_layer_that_contradicts_the_bootstrap(tmp_path: Path) -> None:
    wrong = {f"{digest(sample('none.blob'))}.blob.meta": bytes(8192)}
    with pytest.raises(FormatError, match="its header is not what the bootstrap says"):
        build_nydus(source_of(tmp_path, sample("none.boot"), wrong))


def test_blob_without_chunks_has_no_table(tmp_path: Path) -> None:
    """Its context is not looked at, nor is a device made."""
    boot = sample("merged.boot")
    more = boot + bytes(4096)
    table = len(boot)
    more = patch(more, table, "512s", boot[BLOBS : BLOBS + 512])
    entry = boot[BLOBS : BLOBS + 256]
    more = patch(more, table + 512, "256s", entry)
    more = patch(more, table + 512 + 64, "I", 2)
    more = patch(more, table + 512 + 72, "I", 0)
    more = patch(more, table + 512 + 120, "QQ", 0, 0)
    more = patch(more, EXTENSION + 8, "QI", table, 768)
    name = f"{digest(sample('toc.blob'))}.blob.meta"
    context = context_file(parse_bootstrap(boot).blobs[0], sample("toc.blob"))
    built = build_nydus(source_of(tmp_path, more, {name: context}))
    assert len(built.blobs) == 2
