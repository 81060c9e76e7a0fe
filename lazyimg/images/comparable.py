"""Times by which containerd can compare two trees without reading their files. Pure.

containerd finds what a container has changed by walking two trees: the image's, and the container's
(vendor/github.com/containerd/continuity/fs/path.go, sameFile). It takes two files of equal size,
owner, mode and time for equal; but if both times are whole seconds, as in most layers, it takes
them for cut short, and reads both files. All that was never read would be fetched for that.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lazyimg_formats.erofs.tree import Node

MARK: Final = 1
"""Nanoseconds that a file's time gets instead of none."""


def mark_times(root: Node) -> None:
    """Change a tree so that no file that has bytes has a time of whole seconds."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.children is not None:
            waiting += node.children.values()
        elif stat.S_ISREG(node.mode) and node.mtime_ns == 0 and node.data is not None:
            node.mtime_ns = MARK
