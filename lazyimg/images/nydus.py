"""A Nydus image's index -> its tree. Pure."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from lazyimg.images.merge import merge_layers
from lazyimg_formats.device_table import DeviceColumns, DeviceTable
from lazyimg_formats.layer import LayerIndex

if TYPE_CHECKING:
    from lazyimg_formats.erofs.tree import Node
    from lazyimg_formats.nydus.image import ImageIndex


def build_tree(index: ImageIndex) -> Node:
    """Give the root of an image's tree; its files lie on the devices of `index.names`.

    What hides files in a layer (names that begin with ``.wh.``, character devices 0/0) is not in
    it: there is nothing below an image.

    Raises:
        FormatError: entries that contradict each other.
    """
    layer = LayerIndex(index.entries, DeviceTable(DeviceColumns().serialize(0)))
    (root,) = merge_layers([(layer, 0)])
    for file in index.files:
        node: Node | None = root
        for part in file.path.split(b"/"):
            node = node.children.get(part) if node is not None and node.children else None
        if node is not None and stat.S_ISREG(node.mode):
            node.size, node.data = file.size, file.data
    return root
