"""Merging of layers: what overlayfs would show."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lazyimg.images.merge import merge_layers
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Entry, Kind, LayerBuilder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lazyimg_formats.erofs.tree import Node
    from lazyimg_formats.layer import LayerIndex


def layer(*entries: Entry) -> LayerIndex:
    builder = LayerBuilder()
    for entry in entries:
        builder.add(entry)
    return builder.finish()


def directory(path: bytes, **attributes: Any) -> Entry:
    return Entry(path, Kind.DIRECTORY, 0o755, **attributes)


def link(path: bytes, target: bytes) -> Entry:
    return Entry(path, Kind.HARDLINK, target=target)


def text(path: bytes, content: bytes) -> Entry:
    """Give an entry that can be told apart: a symbolic link."""
    return Entry(path, Kind.SYMLINK, 0o777, target=content)


def merged(*layers: LayerIndex) -> Node:
    root = None
    for tree in merge_layers((index, number) for number, index in enumerate(layers)):
        root = tree
    assert root is not None
    return root


def paths(root: Node) -> dict[bytes, bytes]:
    """Give every path: a link's text, or the attribute by which a directory is told apart."""
    found = {}
    todo = [(b"", root)]
    while todo:
        path, node = todo.pop()
        if node.children is None:
            found[path] = node.target
        else:
            found[path] = b"/%d" % node.uid
            todo += [(path + b"/" + name, child) for name, child in node.children.items()]
    return found


def test_one_layer() -> None:
    root = merged(layer(directory(b"etc", uid=3), text(b"etc/hosts", b"one")))
    assert paths(root) == {b"": b"/0", b"/etc": b"/3", b"/etc/hosts": b"one"}


def test_every_prefix_in_turn() -> None:
    layers = [layer(text(b"a", b"1")), layer(text(b"b", b"2")), layer(Entry(b".wh.a", Kind.FIFO))]
    seen = [
        sorted(paths(tree))
        for tree in merge_layers((index, number) for number, index in enumerate(layers))
    ]
    assert seen == [[b"", b"/a"], [b"", b"/a", b"/b"], [b"", b"/b"]]


def test_a_file_replaces_and_its_neighbours_stay() -> None:
    root = merged(
        layer(directory(b"d", uid=1), text(b"d/a", b"old"), text(b"d/b", b"stays")),
        layer(text(b"d/a", b"new")),
    )
    assert paths(root) == {b"": b"/0", b"/d": b"/1", b"/d/a": b"new", b"/d/b": b"stays"}


def test_a_directory_that_is_given_again_takes_the_new_attributes() -> None:
    root = merged(
        layer(directory(b"d", uid=1, mtime=5), text(b"d/a", b"x")),
        layer(directory(b"d", uid=2, mtime=9)),
    )
    assert paths(root) == {b"": b"/0", b"/d": b"/2", b"/d/a": b"x"}
    assert root.children is not None
    assert root.children[b"d"].mtime == 9


def test_root_attributes() -> None:
    root = merged(layer(directory(b"./", uid=7)), layer(text(b"a", b"x")))
    assert root.uid == 7
    assert merged(layer(text(b"a", b"x")), layer(directory(b"", uid=8))).uid == 8


def test_implied_directories_are_reproducible() -> None:
    root = merged(layer(text(b"a/b/c", b"x")))
    assert root.children is not None
    implied = root.children[b"a"]
    assert (implied.mode, implied.uid, implied.gid) == (stat.S_IFDIR | 0o755, 0, 0)
    assert (implied.mtime, implied.mtime_ns) == (0, 0)


def test_whiteout_of_a_file_a_directory_and_nothing() -> None:
    root = merged(
        layer(text(b"a", b"x"), text(b"d/e/f", b"y"), text(b"d/k", b"z")),
        layer(*(Entry(path, Kind.REGULAR) for path in (b".wh.a", b"d/.wh.e", b"d/.wh.none"))),
    )
    assert paths(root) == {b"": b"/0", b"/d": b"/0", b"/d/k": b"z"}


def test_whiteout_does_not_touch_its_own_layer_whatever_the_order() -> None:
    below = layer(text(b"d/old", b"x"))
    expected = {b"": b"/0", b"/d": b"/4", b"/d/new": b"y"}
    own = (directory(b"d", uid=4), text(b"d/new", b"y"))
    whiteout = Entry(b".wh.d", Kind.REGULAR)
    assert paths(merged(below, layer(whiteout, *own))) == expected
    assert paths(merged(below, layer(*own, whiteout))) == expected


def test_opaque_directory_keeps_only_its_own_layer() -> None:
    below = layer(directory(b"d", uid=1), text(b"d/old", b"x"), text(b"other", b"z"))
    marker = Entry(b"d/.wh..wh..opq", Kind.REGULAR)
    root = merged(below, layer(text(b"d/new", b"y"), marker))
    assert paths(root) == {b"": b"/0", b"/d": b"/1", b"/d/new": b"y", b"/other": b"z"}
    root = merged(below, layer(marker, directory(b"d", uid=2)))
    assert paths(root) == {b"": b"/0", b"/d": b"/2", b"/other": b"z"}


def test_opaque_root() -> None:
    below = layer(directory(b"", uid=5), text(b"a", b"x"))
    marker = Entry(b".wh..wh..opq", Kind.REGULAR)
    assert paths(merged(below, layer(marker))) == {b"": b"/5"}
    assert paths(merged(below, layer(marker, directory(b"", uid=6)))) == {b"": b"/6"}


def test_opaque_directory_with_nothing_below() -> None:
    root = merged(layer(), layer(Entry(b"d/.wh..wh..opq", Kind.REGULAR)))
    assert paths(root) == {b"": b"/0", b"/d": b"/0"}


def test_file_becomes_directory_and_back() -> None:
    as_file = layer(text(b"p", b"file"))
    as_directory = layer(directory(b"p", uid=1), text(b"p/q", b"x"))
    assert paths(merged(as_file, as_directory)) == {b"": b"/0", b"/p": b"/1", b"/p/q": b"x"}
    assert paths(merged(as_file, as_directory, as_file)) == {b"": b"/0", b"/p": b"file"}


def test_implied_directory_over_a_link_of_a_lower_layer_replaces_it() -> None:
    root = merged(layer(text(b"lib", b"usr/lib")), layer(text(b"lib/x", b"y")))
    assert paths(root) == {b"": b"/0", b"/lib": b"/0", b"/lib/x": b"y"}


@pytest.mark.parametrize("target", [b"usr/lib", b"/usr/lib", b"./usr/../alias", b"alias"])
def test_implied_directory_over_a_link_to_a_directory_is_like_that_one(target: bytes) -> None:
    root = merged(
        layer(
            directory(b"usr/lib", uid=7, mtime=5),
            text(b"alias", b"/usr/lib"),
            text(b"lib", target),
        ),
        layer(text(b"lib/x", b"y")),
    )
    assert paths(root)[b"/lib"] == b"/7"
    assert paths(root)[b"/lib/x"] == b"y"
    assert paths(root)[b"/usr/lib"] == b"/7"
    assert root.children is not None
    assert root.children[b"lib"].mtime == 5


@pytest.mark.parametrize(
    ("target", "way"), [(b"file", b"d"), (b"none", b"d"), (b"../..", b"d"), (b"own", b"d")]
)
def test_implied_directory_over_a_link_to_anything_else(target: bytes, way: bytes) -> None:
    below = layer(directory(b""), text(b"file", b"x"), text(b"d", target))
    root = merged(below, layer(directory(b"own", uid=3), text(b"d/x", b"y")))
    assert paths(root)[b"/" + way] == b"/0"


def test_implied_directory_where_this_layer_deletes_one() -> None:
    whiteout = Entry(b".wh.d", Kind.REGULAR)
    root = merged(layer(directory(b"d", uid=7)), layer(whiteout, text(b"d/x", b"y")))
    assert paths(root) == {b"": b"/0", b"/d": b"/0", b"/d/x": b"y"}


def test_implied_directory_in_an_opaque_one() -> None:
    below = layer(directory(b"d/e", uid=7), text(b"d/e/old", b"x"))
    marker = Entry(b"d/.wh..wh..opq", Kind.REGULAR)
    root = merged(below, layer(marker, text(b"d/e/new", b"y")))
    assert paths(root) == {b"": b"/0", b"/d": b"/0", b"/d/e": b"/7", b"/d/e/new": b"y"}


def zeros(path: bytes) -> Entry:
    return Entry(path, Kind.CHARACTER)


BELOW = (text(b"a", b"below"), directory(b"d", uid=1), text(b"d/below", b"below"))


@pytest.mark.parametrize(
    ("entries", "left"),
    [
        ([zeros(b"a")], {b"/d": b"/1", b"/d/below": b"below"}),
        ([text(b"a", b"x"), zeros(b"a"), zeros(b"d")], {}),
        ([directory(b"d"), text(b"d/x", b"x"), zeros(b"d"), zeros(b"a")], {}),
        ([zeros(b"d"), zeros(b"a"), text(b"a", b"x")], {b"/a": b"x"}),
        (
            [zeros(b"a"), zeros(b"d"), directory(b"d", uid=2), text(b"d/x", b"x")],
            {b"/d": b"/2", b"/d/below": b"below", b"/d/x": b"x"},
        ),
        ([text(b"x", b"x"), link(b"a", b"x"), zeros(b"x"), zeros(b"d")], {b"/a": b"x"}),
        ([zeros(b"x"), link(b"a", b"x"), link(b"d", b"a")], {}),
        ([zeros(b"a"), zeros(b"new/a")], {b"/d": b"/1", b"/d/below": b"below", b"/new": b"/0"}),
    ],
)
def test_character_device_zero_zero_is_replaced_replaces_and_hides_in_the_end(
    entries: list[Entry], left: dict[bytes, bytes]
) -> None:
    assert paths(merged(layer(*BELOW), layer(*entries))) == {b"": b"/0"} | left


def test_character_device_zero_zero_in_the_lowest_layer() -> None:
    assert paths(merged(layer(zeros(b"a"), text(b"b", b"x")))) == {b"": b"/0", b"/b": b"x"}
    assert paths(merged(layer(zeros(b"a"), text(b"a", b"x")))) == {b"": b"/0", b"/a": b"x"}


def test_other_devices_are_kept() -> None:
    devices = [Entry(b"null", Kind.CHARACTER, major=1, minor=3), Entry(b"disk", Kind.BLOCK)]
    assert set(paths(merged(layer(*devices)))) == {b"", b"/null", b"/disk"}


@pytest.mark.parametrize("path", [b"a/x", b"d/x/y"])
def test_entry_below_a_character_device_zero_zero(path: bytes) -> None:
    with pytest.raises(FormatError, match="is a parent of an entry, but no directory"):
        merged(layer(*BELOW), layer(zeros(b"a"), zeros(b"d/x"), text(path, b"x")))


def test_hard_link_to_what_is_below_a_file_of_this_layer() -> None:
    with pytest.raises(FormatError, match="which is deleted"):
        merged(layer(*BELOW), layer(zeros(b"d"), link(b"b", b"d/below")))


def test_hard_link_across_layers_is_copied_up() -> None:
    root = merged(
        layer(text(b"d/a", b"x"), link(b"also", b"d/a")),
        layer(link(b"b", b"d/a")),
    )
    assert root.children is not None
    assert root.children[b"d"].children is not None
    assert root.children[b"b"] is root.children[b"d"].children[b"a"]
    assert root.children[b"also"] is not root.children[b"b"]  # overlayfs breaks that link
    assert paths(root)[b"/also"] == b"x"


@pytest.mark.parametrize("marker", [b"d/.wh.a", b"d/.wh..wh..opq"], ids=["whiteout", "opaque"])
def test_hard_link_to_what_this_layer_deletes(marker: bytes) -> None:
    with pytest.raises(FormatError, match=r"b'b' is a hard link to b'd/a', which is deleted$"):
        merged(
            layer(text(b"d/a", b"x")),
            layer(Entry(marker, Kind.REGULAR), link(b"b", b"d/a")),
        )


def test_a_directory_deeper_than_the_interpreter_may_recurse() -> None:
    deep = b"/".join([b"d"] * 2000)
    root = merged(layer(text(deep, b"x")), layer(text(deep, b"y")))
    assert paths(root)[b"/" + deep] == b"y"


names = st.sampled_from([b"a", b"b", b"c"])
tree_paths = st.lists(names, min_size=1, max_size=3).map(b"/".join)
operations = st.one_of(
    st.tuples(st.just("file"), tree_paths),
    st.tuples(st.just("directory"), tree_paths),
    st.tuples(st.just("whiteout"), tree_paths),
)


def _below(paths: Iterable[bytes], path: bytes) -> list[bytes]:
    return [other for other in paths if other.startswith(path + b"/")]


def _own_paths(changes: list[tuple[str, bytes]]) -> dict[bytes, bytes]:
    own: dict[bytes, bytes] = {}
    for number, (action, path) in enumerate(changes):
        parts = path.split(b"/")
        for end in range(1, len(parts)):
            own.setdefault(b"/".join(parts[:end]), b"")
        if action == "file":
            for gone in _below(own, path):
                del own[gone]
            own[path] = b"%d" % number
        elif action == "directory":
            own[path] = b""
    return own


def _apply_plainly(files: dict[bytes, bytes], changes: list[tuple[str, bytes]]) -> None:
    """Apply one layer to {path: text, b"" for directories} the slow and obvious way."""
    hidden: list[bytes] = []
    for action, path in changes:
        if action == "whiteout":
            hidden.append(path)
        elif action == "file":  # a directory that it replaces takes its markers along
            hidden = [other for other in hidden if not other.startswith(path + b"/")]
    for path in hidden:
        for gone in [*_below(files, path), path]:
            files.pop(gone, None)
    for path, content in _own_paths(changes).items():
        if content:
            for gone in _below(files, path):
                del files[gone]
        files[path] = content


@given(st.lists(st.lists(operations, max_size=6), min_size=1, max_size=4))
@example([[("file", b"b/c")], [("whiteout", b"b/c"), ("file", b"b"), ("directory", b"b")]])
def test_any_layers_give_what_applying_them_plainly_gives(
    layers: list[list[tuple[str, bytes]]],
) -> None:
    expected: dict[bytes, bytes] = {}
    indexes = []
    for changes in layers:
        entries = []
        usable = []
        files: set[bytes] = set()
        for number, (action, path) in enumerate(changes):
            if any(path.startswith(file + b"/") for file in files):
                continue  # a file as a parent is refused, see test_upper
            usable.append((action, path))
            head, _, name = path.rpartition(b"/")
            if action == "file":
                files.add(path)
                entries.append(text(path, b"%d" % (len(usable) - 1)))
            elif action == "directory":
                files.discard(path)
                entries.append(directory(path))
            else:
                hidden = (head + b"/" if head else b"") + b".wh." + name
                entries.append(Entry(hidden, Kind.REGULAR))
            assert number < len(changes)
        _apply_plainly(expected, usable)
        indexes.append(layer(*entries))
    found = {
        path[1:]: (b"" if content.startswith(b"/") else content)
        for path, content in paths(merged(*indexes)).items()
        if path
    }
    assert found == expected
