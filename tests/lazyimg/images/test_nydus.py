"""Trees of Nydus images."""

from __future__ import annotations

import stat

from lazyimg.images.nydus import build_tree
from lazyimg_formats.erofs.tree import FlatData, Node
from lazyimg_formats.layer import Entry, Kind
from lazyimg_formats.nydus.bootstrap import parse_bootstrap
from lazyimg_formats.nydus.image import ImageIndex, PlacedFile, parse_image
from tests.fakes.nydus import sample


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
