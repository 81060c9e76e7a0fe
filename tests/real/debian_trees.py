"""What the trees of the Debian images are, where umoci does not say it as containerd does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.real.debian_images import DebianImages
    from tests.real.tree_manifest import Tree


def expected_tree(images: DebianImages, tag: str) -> Tree:
    """Return umoci's tree, with what containerd and podman do and umoci does not."""
    tree = images.tree(tag)
    if tag == "nginx":
        for name in ("first-name", "second-name", "below/third-name"):  # the links' headers say so
            tree[f"opt/{name}"] = replace(tree[f"opt/{name}"], mode="0644")
        empty = replace(tree["opt/not-annotated"], xattrs={"user.gone": ""})
        tree["opt/not-annotated"] = empty
    return tree
