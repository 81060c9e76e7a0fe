"""Layers' indexes -> one tree, as overlayfs would show them. Pure.

Each layer becomes an `Upper`; stacking it changes the tree below in place, so that after each step
the tree is the one of a prefix of the image's layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazyimg.images.upper import Upper, copy_attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lazyimg_formats.erofs.tree import Node
    from lazyimg_formats.layer import LayerIndex


def merge_layers(layers: Iterable[tuple[LayerIndex, int]]) -> Iterator[Node]:
    """Give the root of the merged tree after each layer, lowest first.

    Args:
        layers: each layer's index, and the number of its device in the image.

    A tree is valid until the next one is asked for: it is changed in place.

    Raises:
        FormatError: a layer that contradicts itself or the layers below it.
    """
    root: Node | None = None
    for index, device in layers:
        upper = Upper(index, device, root)
        root = _stack(root, upper)
        yield root


def _stack(lower: Node | None, upper: Upper) -> Node:
    """Lay a layer over a tree, changing the tree; gives the root."""
    if lower is None:
        return upper.root
    if upper.is_opaque(upper.root):
        if upper.is_implied(upper.root):
            copy_attributes(lower, upper.root)
        return upper.root
    if not upper.is_implied(upper.root):
        copy_attributes(upper.root, lower)
    pairs = [(lower, upper.root)]
    while pairs:
        below, above = pairs.pop()
        pairs += _stack_directory(below, above, upper)
    return lower


def _stack_directory(below: Node, above: Node, upper: Upper) -> Iterator[tuple[Node, Node]]:
    """Lay one directory over another; gives the pairs of directories still to be merged."""
    children, own = below.children, above.children
    if children is None or own is None:
        raise TypeError("only directories are stacked")
    hidden = upper.whiteouts(above)
    for name in hidden:
        children.pop(name, None)
    for name, child in own.items():
        old = children.get(name)
        if old is None or old.children is None or child.children is None:
            children[name] = child
        elif upper.is_opaque(child):
            if upper.is_implied(child):
                copy_attributes(old, child)
            children[name] = child
        else:
            if not upper.is_implied(child):
                copy_attributes(child, old)
            yield old, child
