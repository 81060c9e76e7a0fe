"""Times by which trees are compared."""

from __future__ import annotations

import stat

from lazyimg.images.comparable import MARK, mark_times
from lazyimg_formats.erofs.tree import FlatData, Node

DATA = FlatData(0, 0)


def test_only_files_with_bytes_and_whole_seconds_are_marked() -> None:
    whole = Node(stat.S_IFREG | 0o644, mtime=7, size=1, data=DATA)
    exact = Node(stat.S_IFREG | 0o644, mtime=7, mtime_ns=500, size=1, data=DATA)
    empty = Node(stat.S_IFREG | 0o644, mtime=7)
    link = Node(stat.S_IFLNK | 0o777, mtime=7, target=b"whole")
    inner = Node(stat.S_IFDIR | 0o755, mtime=7, children={b"whole": whole, b"again": whole})
    root = Node(
        stat.S_IFDIR | 0o755,
        children={b"inner": inner, b"exact": exact, b"empty": empty, b"link": link},
    )
    mark_times(root)
    nodes = [whole, exact, empty, link, inner, root]
    assert [node.mtime_ns for node in nodes] == [MARK, 500, 0, 0, 0, 0]
    assert whole.mtime == 7
