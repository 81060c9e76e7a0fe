"""Nodes and what they carry."""

from __future__ import annotations

import pytest

from lazyimg_formats.erofs.tree import ChunkData, Device, FlatData, Node


def test_nodes_with_equal_fields_are_different_files() -> None:
    one, other = Node(0o100644), Node(0o100644)
    assert one != other
    assert len({one, other}) == 2


def test_node_can_be_changed() -> None:
    node = Node(0o40755, children={})
    assert node.children is not None
    node.children[b"x"] = Node(0o100644)
    node.uid = 7
    assert (node.uid, list(node.children)) == (7, [b"x"])


def test_node_has_no_other_fields() -> None:
    with pytest.raises(AttributeError):
        Node(0).owner = 7  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "field"),
    [(Device("a", 1), "blocks"), (FlatData(0, 1), "block"), (ChunkData(12, (1,), 0), "bits")],
)
def test_data_cannot_be_changed(value: object, field: str) -> None:
    with pytest.raises(AttributeError, match=field):
        setattr(value, field, 3)
