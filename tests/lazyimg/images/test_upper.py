"""One layer's own tree, and what it says of lower layers."""

from __future__ import annotations

import stat
from typing import Any

import pytest

from lazyimg.images.upper import Upper, copy_attributes
from lazyimg_formats.device_table import BLOCK_SIZE, Codec
from lazyimg_formats.erofs.inode import encode_rdev
from lazyimg_formats.erofs.tree import ChunkData, FlatData, Node
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import ChunkMap, Entry, Kind, LayerBuilder, Piece


def upper(*entries: Entry, lower: Node | None = None, device: int = 0) -> Upper:
    builder = LayerBuilder()
    for entry in entries:
        builder.add(entry)
    return Upper(builder.finish(), device, lower)


def directory(path: bytes, mode: int = 0o755, **attributes: Any) -> Entry:
    return Entry(path, Kind.DIRECTORY, mode, **attributes)


def link(path: bytes, target: bytes) -> Entry:
    return Entry(path, Kind.HARDLINK, target=target)


def symlink(path: bytes, target: bytes) -> Entry:
    return Entry(path, Kind.SYMLINK, 0o777, target=target)


def empty(path: bytes, mode: int = 0o644) -> Entry:
    return Entry(path, Kind.REGULAR, mode)


def at(root: Node, path: bytes) -> Node:
    node = root
    for part in path.split(b"/"):
        assert node.children is not None
        node = node.children[part]
    return node


def has(root: Node, path: bytes) -> bool:
    try:
        at(root, path)
    except KeyError:
        return False
    return True


def problem(*entries: Entry, lower: Node | None = None) -> str:
    with pytest.raises(FormatError) as caught:
        upper(*entries, lower=lower)
    return str(caught.value)


def test_every_kind_keeps_its_attributes() -> None:
    xattrs = ((b"security.capability", b"\1"), (b"user.a", b""))
    root = upper(
        Entry(b"c", Kind.CHARACTER, 0o620, 1, 5, -7, 999, major=4, minor=300, xattrs=xattrs),
        Entry(b"b", Kind.BLOCK, 0o660, major=8, minor=1),
        Entry(b"p", Kind.FIFO, 0o600),
        symlink(b"s", b"../x y"),
        Entry(b"r", Kind.REGULAR, 0o4755),
    ).root
    found = at(root, b"c")
    assert (found.mode, found.uid, found.gid) == (stat.S_IFCHR | 0o620, 1, 5)
    assert (found.mtime, found.mtime_ns, found.xattrs) == (-7, 999, xattrs[:1])
    assert found.rdev == encode_rdev(4, 300)
    assert (at(root, b"b").mode, at(root, b"b").rdev) == (stat.S_IFBLK | 0o660, encode_rdev(8, 1))
    assert (at(root, b"p").mode, at(root, b"p").rdev) == (stat.S_IFIFO | 0o600, 0)
    assert (at(root, b"s").mode, at(root, b"s").target) == (stat.S_IFLNK | 0o777, b"../x y")
    assert (at(root, b"r").mode, at(root, b"r").data) == (stat.S_IFREG | 0o4755, None)


def test_only_files_and_directories_have_attributes_of_users() -> None:
    xattrs = ((b"security.a", b"1"), (b"system.nfs4_acl", b"2"), (b"user.b", b"3"))
    root = upper(
        *(
            Entry(str(kind.value).encode(), kind, target=b"t", xattrs=xattrs)
            for kind in (Kind.REGULAR, Kind.DIRECTORY, Kind.SYMLINK, Kind.BLOCK, Kind.FIFO)
        )
    ).root
    assert [len(at(root, b"%d" % kind).xattrs) for kind in (0, 1, 2, 5, 6)] == [2, 2, 1, 1, 1]


def test_data_lies_on_the_layers_device() -> None:
    builder = LayerBuilder()
    span = builder.add_span(0, 10, 5000, bytes(32), Codec.ZSTD)
    builder.add(Entry(b"one", Kind.REGULAR, size=5000), [Piece(0, 5000, span)])
    span = builder.add_span(10, 10, 3, bytes(32), Codec.ZSTD)
    builder.add(Entry(b"two", Kind.REGULAR, size=3), [Piece(0, 3, span)])
    sparse = 3 << 20
    span = builder.add_span(20, 10, 1, bytes(32), Codec.ZSTD)
    builder.add(Entry(b"sparse", Kind.REGULAR, size=sparse), [Piece(sparse - 1, 1, span)])
    index = builder.finish()
    root = Upper(index, 7, None).root
    assert at(root, b"one").data == FlatData(7, 0)
    assert at(root, b"two").data == FlatData(7, 8192 // BLOCK_SIZE)
    chunks = index.entries[2].data
    assert isinstance(chunks, ChunkMap)
    assert at(root, b"sparse").data == ChunkData(chunks.bits, chunks.blocks, 7)
    assert at(root, b"sparse").size == sparse


def test_later_file_replaces_an_earlier_one() -> None:
    assert at(upper(empty(b"f", 0o600), empty(b"f", 0o640)).root, b"f").mode & 0o777 == 0o640


def test_directory_given_twice_keeps_its_children() -> None:
    layer = upper(directory(b"d", uid=1), empty(b"d/f"), directory(b"d", 0o700, uid=2))
    found = at(layer.root, b"d")
    assert (found.mode, found.uid) == (stat.S_IFDIR | 0o700, 2)
    assert has(layer.root, b"d/f")


def test_file_replaces_a_directory_with_all_below() -> None:
    layer = upper(empty(b"d/f"), symlink(b"d", b"e"), empty(b"d/g"))
    assert stat.S_ISLNK(at(layer.root, b"d").mode)
    assert not has(layer.root, b"e/f")
    assert has(layer.root, b"e/g")


def test_directory_replaces_a_link_and_is_not_followed_any_more() -> None:
    layer = upper(symlink(b"d", b"e"), empty(b"d/f"), directory(b"d"), empty(b"d/g"))
    assert has(layer.root, b"e/f")
    assert not has(layer.root, b"e/g")
    assert has(layer.root, b"d/g")


def test_missing_parents_are_implied_until_an_entry_gives_them() -> None:
    layer = upper(empty(b"a/b/f"), directory(b"a/b", 0o700))
    outer, inner = at(layer.root, b"a"), at(layer.root, b"a/b")
    assert layer.is_implied(layer.root)
    assert layer.is_implied(outer)
    assert outer.mode == stat.S_IFDIR | 0o755
    assert not layer.is_implied(inner)
    assert inner.mode == stat.S_IFDIR | 0o700


def test_root_given_by_its_entry() -> None:
    layer = upper(empty(b"f"), directory(b"./", 0o711, gid=9))
    assert not layer.is_implied(layer.root)
    assert (layer.root.mode, layer.root.gid) == (stat.S_IFDIR | 0o711, 9)
    assert has(layer.root, b"f")


def test_whiteouts_and_opaque_directories_are_only_recorded() -> None:
    layer = upper(empty(b"d/.wh.gone"), empty(b"d/.wh.also"), empty(b"o/.wh..wh..opq"))
    assert layer.whiteouts(at(layer.root, b"d")) == {b"gone", b"also"}
    assert layer.whiteouts(at(layer.root, b"o")) == set()
    assert layer.is_opaque(at(layer.root, b"o"))
    assert not layer.is_opaque(at(layer.root, b"d"))
    assert at(layer.root, b"d").children == {}


def test_opaque_root() -> None:
    layer = upper(empty(b".wh..wh..opq"))
    assert layer.is_opaque(layer.root)


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (b"real", b"real/f"),
        (b"/real", b"real/f"),
        (b"x/../real", b"real/f"),
        (b"../../../real", b"real/f"),
        (b"./real/.", b"real/f"),
        (b"/", b"f"),
        (b"missing/deep", b"missing/deep/f"),
    ],
)
def test_parent_that_is_a_link_is_followed_inside_the_root(target: bytes, found: bytes) -> None:
    layer = upper(directory(b"real"), directory(b"x"), symlink(b"l", target), empty(b"l/f"))
    assert has(layer.root, found)


def test_relative_link_starts_where_it_lies() -> None:
    layer = upper(directory(b"a/b"), symlink(b"a/l", b"b/../b"), empty(b"a/l/f"))
    assert has(layer.root, b"a/b/f")


def test_parent_that_is_a_file() -> None:
    assert problem(empty(b"f"), empty(b"f/x")) == (
        "layer: b'f' is a parent of an entry, but no directory"
    )
    assert problem(empty(b"f"), empty(b"f/x/y")) == (
        "layer: b'f/x' is a parent of an entry, but no directory"
    )


def test_links_in_a_circle() -> None:
    assert problem(symlink(b"a", b"b"), symlink(b"b", b"a"), empty(b"a/f")) == (
        "layer: too many symbolic links in b'a'"
    )


def test_forty_links_are_followed_and_one_more_is_not() -> None:
    chain = [symlink(b"l%d" % number, b"l%d" % (number + 1)) for number in range(41)]
    layer = upper(*chain, directory(b"l41"), empty(b"l1/f"))
    assert has(layer.root, b"l41/f")
    assert "too many" in problem(*chain, directory(b"l41"), empty(b"l0/f"))


def test_hard_link_joins_its_targets_node() -> None:
    root = upper(empty(b"a/f", 0o600), link(b"g", b"a/f"), link(b"h", b"g")).root
    assert at(root, b"g") is at(root, b"a/f") is at(root, b"h")


def test_hard_link_gives_its_inode_what_its_header_says() -> None:
    xattrs = ((b"user.a", b"1"), (b"user.b", b"2"))
    root = upper(
        Entry(b"f", Kind.REGULAR, 0o644, 1, 2, 3, 4, size=0, xattrs=xattrs),
        Entry(b"x", Kind.HARDLINK, 0o4711, 5, 6, -7, 8, target=b"f", xattrs=((b"user.b", b""),)),
        Entry(b"y", Kind.HARDLINK, 0o4711, 5, 6, -7, 8, target=b"f"),
    ).root
    found = at(root, b"f")
    assert found is at(root, b"x") is at(root, b"y")
    assert (found.mode, found.uid, found.gid) == (stat.S_IFREG | 0o4711, 5, 6)
    assert (found.mtime, found.mtime_ns) == (-7, 8)
    assert found.xattrs == ((b"user.a", b"1"), (b"user.b", b""))


def test_hard_link_to_a_symbolic_link_keeps_its_mode() -> None:
    xattrs = ((b"security.x", b"1"), (b"user.b", b""))
    root = upper(
        symlink(b"s", b"t"),
        Entry(b"x", Kind.HARDLINK, 0o644, 5, target=b"s", xattrs=xattrs),
    ).root
    found = at(root, b"s")
    assert (found.mode, found.uid, found.xattrs) == (stat.S_IFLNK | 0o777, 5, xattrs[:1])


def test_hard_link_through_a_linked_directory() -> None:
    root = upper(empty(b"a/f"), symlink(b"l", b"a"), link(b"g", b"l/f")).root
    assert at(root, b"g") is at(root, b"a/f")


def test_hard_link_to_a_symbolic_link_is_one() -> None:
    root = upper(symlink(b"s", b"nowhere"), link(b"t", b"s")).root
    assert at(root, b"t") is at(root, b"s")


def test_hard_link_that_replaces_a_directory_ends_its_use_as_a_parent() -> None:
    entries = (symlink(b"e", b"other"), empty(b"d/f"), link(b"d", b"e"), empty(b"d/g"))
    root = upper(*entries).root
    assert has(root, b"other/g")


def test_hard_link_to_a_lower_layers_file_copies_it_up() -> None:
    lower = upper(empty(b"a/f", 0o640), link(b"a/same", b"a/f")).root
    below = at(lower, b"a/f")
    layer = upper(link(b"x", b"a/f"), link(b"y", b"a/f"), lower=lower)
    copied = at(layer.root, b"x")
    assert copied is at(layer.root, b"a/f") is at(layer.root, b"y")
    assert copied is not below
    assert copied.mode == below.mode
    assert layer.is_implied(at(layer.root, b"a"))
    assert not has(layer.root, b"a/same")


def test_hard_link_to_nothing() -> None:
    gone = "layer: b'x' is a hard link to b'a/f', which is no file"
    assert problem(link(b"x", b"a/f")) == gone
    assert problem(link(b"x", b"a/f"), lower=upper(empty(b"a")).root) == gone
    assert problem(link(b"x", b"a/f"), lower=upper(directory(b"a/f")).root) == gone


def test_hard_link_to_a_directory_of_its_own_layer() -> None:
    assert problem(directory(b"d"), link(b"x", b"d")) == (
        "layer: b'x' is a hard link to directory b'd'"
    )


def test_hard_link_to_itself() -> None:
    assert problem(empty(b"f"), link(b"f", b"f")) == "layer: b'f' is a hard link to itself"


@pytest.mark.parametrize("marker", [b"a/b/.wh.f", b"a/.wh.b", b".wh.a", b"a/.wh..wh..opq"])
def test_hard_link_to_what_the_same_layer_deletes(marker: bytes) -> None:
    lower = upper(empty(b"a/b/f")).root
    assert problem(empty(marker), directory(b"a"), link(b"x", b"a/b/f"), lower=lower) == (
        "layer: b'x' is a hard link to b'a/b/f', which is deleted"
    )


def test_hard_link_beside_what_the_same_layer_deletes() -> None:
    lower = upper(empty(b"a/b/f"), empty(b"a/b/g")).root
    layer = upper(empty(b"a/b/.wh.g"), link(b"x", b"a/b/f"), lower=lower)
    assert at(layer.root, b"x") is at(layer.root, b"a/b/f")


def test_copied_attributes_leave_children_alone() -> None:
    source = Node(stat.S_IFDIR | 0o700, 1, 2, 3, 4, xattrs=((b"a", b"b"),), children={})
    child = Node(stat.S_IFREG)
    target = Node(stat.S_IFDIR, children={b"c": child})
    copy_attributes(source, target)
    assert target.children == {b"c": child}
    assert (target.mode, target.uid, target.gid) == (stat.S_IFDIR | 0o700, 1, 2)
    assert (target.mtime, target.mtime_ns, target.xattrs) == (3, 4, ((b"a", b"b"),))


def test_mode_of_a_symbolic_link_is_the_one_that_links_have() -> None:
    root = upper(Entry(b"l", Kind.SYMLINK, 0o644, target=b"t")).root
    assert at(root, b"l").mode == stat.S_IFLNK | 0o777


def test_attributes_of_other_systems_are_left_out() -> None:
    kept = ((b"security.capability", b"c"), (b"user.a", b"x"))
    foreign = ((b"com.apple.quarantine", b"q"), (b"system.nfs4_acl", b"n"))
    root = upper(Entry(b"f", Kind.REGULAR, xattrs=(*foreign, *kept))).root
    assert at(root, b"f").xattrs == kept
