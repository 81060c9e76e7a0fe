"""Written images. What they hold is read back with the reader; the kernel reads them elsewhere."""

from __future__ import annotations

import gc
import hashlib
import stat
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg_formats.erofs import writer
from lazyimg_formats.erofs.layout import DataLayout, FeatureCompat, FeatureIncompat
from lazyimg_formats.erofs.reader import DataExtent, Image
from lazyimg_formats.erofs.superblock import DeviceSlot
from lazyimg_formats.erofs.tree import ChunkData, Device, FlatData, Node
from lazyimg_formats.erofs.writer import serialize_image
from lazyimg_formats.errors import FormatError
from tests.fakes.erofs_tree import DIRECTORY, FILE, LINK, Sample, make_sample, seen_in_image

DEVICES = [Device("a", 10), Device("none", 0), Device("b", 20)]


def folder(**children: Node) -> Node:
    return Node(DIRECTORY, children={name.encode(): node for name, node in children.items()})


def image_of(node: Node) -> Image:
    return Image(serialize_image(folder(x=node), DEVICES))


def test_every_kind_of_file() -> None:
    sample = make_sample(names=1000, depth=1100)
    image = Image(serialize_image(sample.root, sample.devices), list(filter(None, sample.contents)))
    expected = sample.seen()
    found = seen_in_image(image)
    assert found.keys() == expected.keys()
    for path, seen in expected.items():
        assert found[path] == seen, path


def test_smallest_image() -> None:
    data = serialize_image(Node(DIRECTORY, children={}))
    assert len(data) == 4096
    superblock = Image(data).superblock
    assert replace(superblock, uuid=b"", checksum=0) == replace(
        superblock,
        uuid=b"",
        checksum=0,
        root_nid=1152 // 32,
        inodes=1,
        blocks=1,
        compat=FeatureCompat.SB_CHKSUM | FeatureCompat.MTIME,
        incompat=FeatureIncompat(0),
        devices=0,
        slot_offset=0,
        epoch=0,
    )
    assert data[:1024] == bytes(1024)
    assert data[1152:1156] == bytes.fromhex("0500 0000")  # extended, inline, no attributes
    assert data[1216:1243] == bytes.fromhex(
        "2400000000000000 1800 02 00 2400000000000000 1900 02 00 2e2e2e"
    )
    assert not any(data[1243:])


def test_bytes_never_change() -> None:
    """Caches hold images by the digest of their bytes. A new layout needs a reason."""
    sample = make_sample()
    data = serialize_image(sample.root, sample.devices)
    assert data == serialize_image(sample.root, sample.devices)
    assert hashlib.sha256(data).hexdigest() == (
        "a85d72f7dbb24ad0b96c9a37ee114e8b6b5164c44e940f0922a02589a47f4205"
    )


def test_order_of_names_does_not_matter() -> None:
    one = folder(a=Node(FILE), b=Node(LINK, target=b"x"))
    other = folder(b=Node(LINK, target=b"x"), a=Node(FILE))
    assert serialize_image(one) == serialize_image(other)


def test_uuid_depends_on_the_content() -> None:
    one = Image(serialize_image(folder(a=Node(FILE)))).superblock
    other = Image(serialize_image(folder(a=Node(FILE, mtime=1)))).superblock
    again = Image(serialize_image(folder(a=Node(FILE)), [Device("a", 1)])).superblock
    assert len({one.uuid, other.uuid, again.uuid}) == 3


def test_devices_follow_the_image() -> None:
    image = image_of(Node(FILE, size=5000, data=FlatData(2, 7)))
    assert image.superblock.blocks == 1
    assert image.slots == (DeviceSlot(b"a", 10, 1), DeviceSlot(b"b", 20, 11))
    assert image.superblock.incompat == FeatureIncompat.DEVICE_TABLE
    inode = image.lookup(b"x")
    assert inode is not None
    assert (inode.layout, inode.start) == (DataLayout.FLAT_PLAIN, 18)
    assert image.extents(inode) == [DataExtent(0, 5000, 2, 7 * 4096)]


def test_chunks() -> None:
    data = ChunkData(16, [0, 4, 0], 2)
    image = image_of(Node(FILE, size=140_000, data=data, xattrs=((b"user.a", b"12345"),)))
    both = FeatureIncompat.DEVICE_TABLE | FeatureIncompat.CHUNKED_FILE
    assert image.superblock.incompat == both
    inode = image.lookup(b"x")
    assert inode is not None
    assert (inode.layout, inode.start) == (DataLayout.CHUNK_BASED, 0x24)
    assert image.extents(inode) == [
        DataExtent(0, 65_536, 2, 0),
        DataExtent(65_536, 65_536, 2, 16_384),
        DataExtent(131_072, 8_928, 2, 0),
    ]
    assert image.xattrs(inode) == ((b"user.a", b"12345"),)


def test_chunks_of_several_devices() -> None:
    image = image_of(Node(FILE, size=9000, data=ChunkData(12, [0, 4, 1], 1, [0, 2, 0])))
    inode = image.lookup(b"x")
    assert inode is not None
    assert image.extents(inode) == [
        DataExtent(0, 4096, 1, 0),
        DataExtent(4096, 4096, 2, 16_384),
        DataExtent(8192, 808, 1, 4096),
    ]
    assert image.read_chunk_array(inode, 2) == struct.pack("<HHIHHI", 0, 1, 0, 0, 2, 4)
    with pytest.raises(FormatError):
        image_of(Node(FILE, size=9000, data=ChunkData(12, [0, 4, 1], 0, [0, 2, 1])))


@pytest.mark.parametrize("size", [1, 4031, 4032])
def test_target_in_the_block_of_its_inode(size: int) -> None:
    inode = image_of(Node(LINK, target=b"t" * size)).lookup(b"x")
    assert inode is not None
    assert inode.layout is DataLayout.FLAT_INLINE
    assert (inode.nid * 32) % 4096 + 64 + size <= 4096


@pytest.mark.parametrize("size", [4033, 4095])
def test_target_in_a_block_of_its_own(size: int) -> None:
    image = image_of(Node(LINK, target=b"t" * size))
    inode = image.lookup(b"x")
    assert inode is not None
    assert inode.layout is DataLayout.FLAT_PLAIN
    assert image.extents(inode) == [DataExtent(0, size, 0, 4096)]
    assert image.target(inode) == b"t" * size


def test_attributes_take_the_place_of_a_target() -> None:
    attributes = ((b"trusted.a", b"v" * 4000),)
    inode = image_of(Node(LINK, target=b"t" * 100, xattrs=attributes)).lookup(b"x")
    assert inode is not None
    assert inode.layout is DataLayout.FLAT_PLAIN


def test_directory_with_blocks_and_a_tail() -> None:
    children = {
        b"%05d" % number: Node(FILE) for number in range(300)
    }  # and the dots: 241 in a block
    image = image_of(Node(DIRECTORY, children=children))
    inode = image.lookup(b"x")
    assert inode is not None
    assert (inode.layout, inode.size) == (DataLayout.FLAT_INLINE, 4096 + 61 * 17)
    assert [dirent.name for dirent in image.read_directory(inode)][2:] == sorted(children)


def test_directory_whose_tail_is_too_long() -> None:
    children = {b"%05d" % number: Node(FILE) for number in range(239)}
    image = image_of(Node(DIRECTORY, children=children))
    inode = image.lookup(b"x")
    assert inode is not None
    assert (inode.layout, inode.size) == (DataLayout.FLAT_PLAIN, 17 * 239 + 27)


def test_root_is_its_own_parent_wherever_it_is() -> None:
    children = {b"n" * 200 + b"%d" % number: Node(FILE) for number in range(15)}
    image = Image(serialize_image(Node(DIRECTORY, children=children)))
    assert image.superblock.root_nid == 4096 // 32  # it did not fit behind the superblock
    dots = [dirent.nid for dirent in image.read_directory(image.root)[:2]]
    assert dots == [128, 128]


def test_root_behind_the_longest_table() -> None:
    devices = [Device(f"{number}", 1) for number in range(4096)]
    image = Image(serialize_image(folder(x=Node(FILE, size=1, data=FlatData(4095, 0))), devices))
    assert image.superblock.root_nid == (1152 + 4096 * 128) // 32
    assert len(image.slots) == 4096
    inode = image.lookup(b"x")
    assert inode is not None
    assert image.extents(inode) == [DataExtent(0, 1, 4096, 0)]


def test_hard_links() -> None:
    shared = Node(FILE, size=1, data=FlatData(0, 0))
    link = Node(LINK, target=b"t")
    image = Image(serialize_image(folder(a=shared, b=folder(c=shared, d=link), e=link), DEVICES))
    inodes = dict(image.walk())
    assert inodes[b"a"] == inodes[b"b/c"]
    assert inodes[b"e"] == inodes[b"b/d"]
    assert [inodes[path].nlink for path in (b"", b"a", b"b", b"e")] == [3, 2, 2, 2]
    assert image.superblock.inodes == 4


def test_children_follow_each_other() -> None:
    image = Image(
        serialize_image(folder(a=folder(b=Node(FILE), c=Node(FILE)), d=folder(e=Node(FILE))))
    )
    inodes = dict(image.walk())
    order = sorted(inodes, key=lambda path: inodes[path].nid)
    assert order == [b"", b"a", b"d", b"a/b", b"a/c", b"d/e"]


@pytest.mark.parametrize("enabled", [True, False])
def test_collector_is_as_it_was(enabled: bool) -> None:  # noqa: FBT001
    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        serialize_image(folder())
        assert gc.isenabled() is enabled
        with pytest.raises(FormatError):
            serialize_image(Node(FILE))
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        (Node(0o644), "inode: mode 0o644 has no known type"),
        (Node(0o170644), "inode: mode 0o170644 has no known type"),
        (Node(DIRECTORY), "directory: it has no children, not even none"),
        (Node(LINK), "symbolic link: impossible target b''"),
        (Node(LINK, target=b"a\0b"), r"symbolic link: impossible target b'a\x00b'"),
        (Node(LINK, target=b"t" * 4096), f"symbolic link: impossible target {b't' * 80!r}"),
        (
            Node(FILE, size=1),
            "data of a file: nothing says where its 1 bytes are",
        ),
        (
            Node(FILE, size=4097, data=FlatData(0, 9)),
            "data of a file: 4097 bytes from block 9 on are not on device 0",
        ),
        (
            Node(FILE, size=1, data=FlatData(1, 0), xattrs=((b"user.a", b""),)),
            "data of a file: 1 bytes from block 0 on are not on device 1",
        ),
        (
            Node(FILE, size=1, data=ChunkData(12, [10], 0)),
            "data of a file: 1 bytes from block 10 on are not on device 0",
        ),
        (
            Node(FILE, size=4097, data=ChunkData(12, [9], 0)),
            "data of a file: 1 chunks of 4096 bytes for 4097",
        ),
        (
            Node(FILE, size=1, data=ChunkData(11, [0], 0)),
            "erofs_inode_chunk_info: chunks of 2**11 bytes",
        ),
        (
            Node(FILE, xattrs=((b"other.a", b""),)),
            "erofs_xattr_entry: no place for an attribute named b'other.a'",
        ),
        (Node(FILE, mtime_ns=1_000_000_000), "inode: 1000000000 nanoseconds"),
        (Node(FILE, mtime_ns=-1), "inode: -1 nanoseconds"),
        (
            Node(DIRECTORY, children={b"a/b": Node(FILE)}),
            "erofs_dirent: impossible name b'a/b'",
        ),
    ],
)
def test_impossible_node(node: Node, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        serialize_image(folder(x=node), DEVICES)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    "node",
    [
        Node(FILE, uid=1 << 32),
        Node(FILE, gid=-1),
        Node(FILE, mtime=1 << 63),
        Node(stat.S_IFCHR, rdev=1 << 32),
        Node(FILE | 1 << 16),
        Node(FILE, size=-1, data=FlatData(0, 0)),
    ],
)
def test_number_that_does_not_fit(node: Node) -> None:
    with pytest.raises(FormatError, match=r"^inode: a number does not fit \(.*\): mode 0o"):
        serialize_image(folder(x=node), DEVICES)


def test_number_that_does_not_fit_is_told() -> None:
    node = Node(FILE | 0o600, 1 << 32, 2, 3, 4, size=5, data=FlatData(0, 0))
    with pytest.raises(FormatError) as caught:
        serialize_image(folder(x=node), DEVICES)
    assert str(caught.value).endswith(
        ": mode 0o100600, uid 4294967296, gid 2, size 5, rdev 0, mtime 3 s 4 ns"
    )


def test_root_that_is_no_directory() -> None:
    with pytest.raises(FormatError, match=r"^root: mode 0o100000 is not that of a directory$"):
        serialize_image(Node(FILE))


def test_directory_with_two_names() -> None:
    twice = folder()
    with pytest.raises(FormatError, match=r"^directory: it has a second name, b'b'$"):
        serialize_image(folder(a=twice, b=twice))


def test_directory_in_itself() -> None:
    loop = folder()
    assert loop.children is not None
    loop.children[b"loop"] = loop
    with pytest.raises(FormatError, match=r"^directory: it has a second name, b'loop'$"):
        serialize_image(loop)


def test_too_many_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_ENTRIES", 6)
    serialize_image(folder(a=folder(), b=Node(FILE)))
    with pytest.raises(FormatError, match=r"^tree: more than 6 names$"):
        serialize_image(folder(a=folder(), b=Node(FILE), c=Node(FILE)))


def some_bytes(most: int) -> st.SearchStrategy[bytes]:
    """Give short ones at random, and long ones of any length: those cost hypothesis too much."""
    return st.binary(max_size=9) | st.integers(0, most).map(lambda size: b"ab" * (size // 2))


names = st.binary(min_size=1, max_size=20).filter(
    lambda name: not {0, 47} & set(name) and name not in {b".", b".."}
)
seconds = st.integers(-(2**63), 2**63 - 1)
attributes = st.lists(
    st.tuples(
        st.sampled_from([b"user.a", b"trusted.b", b"security.c", b"system.posix_acl_access"]),
        some_bytes(5000),
    ),
    max_size=3,
    unique_by=lambda pair: pair[0],
).map(tuple)
common = {
    "uid": st.integers(0, 2**32 - 1),
    "gid": st.integers(0, 2**32 - 1),
    "mtime": seconds,
    "mtime_ns": st.integers(0, 999_999_999),
    "xattrs": attributes,
}
leaves = st.one_of(
    st.builds(
        Node,
        st.sampled_from([stat.S_IFCHR, stat.S_IFBLK]),
        rdev=st.integers(0, 2**32 - 1),
        **common,
    ),
    st.builds(Node, st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, FILE]), **common),
    st.builds(
        Node,
        st.just(LINK),
        target=st.integers(1, 4095).map(lambda size: b"t" * size),
        **common,
    ),
    st.builds(Node, st.just(FILE | 0o644), data=some_bytes(9000), **common),
    st.builds(
        Node,
        st.just(FILE | 0o755),
        size=st.integers(0, 8 * 4096),
        data=st.builds(FlatData, st.just(0), st.integers(0, 8)),
        **common,
    ),
    st.builds(
        lambda blocks, short, **rest: Node(
            FILE, size=8192 * len(blocks) - short, data=ChunkData(13, blocks, 2), **rest
        ),
        blocks=st.lists(st.integers(0, 14), min_size=1, max_size=20),
        short=st.integers(0, 8191),
        **common,
    ),
)
trees = st.recursive(
    leaves,
    lambda inner: st.builds(
        Node,
        st.just(DIRECTORY),
        children=st.dictionaries(names, inner, max_size=5),
        **common,
    ),
    max_leaves=12,
)
CONTENTS = [bytes(range(256)) * 256, b"", bytes(range(255, -1, -1)) * 256]


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(names, trees, max_size=6))
def test_round_trip(children: dict[bytes, Node]) -> None:
    devices = [Device(str(number), len(data) // 4096) for number, data in enumerate(CONTENTS)]
    sample = Sample(Node(DIRECTORY, children=children), devices, CONTENTS)
    data = serialize_image(sample.root, devices)
    assert len(data) % 4096 == 0
    image = Image(data, list(filter(None, CONTENTS)))
    assert seen_in_image(image) == sample.seen()
    assert image.superblock.blocks * 4096 == len(data)
    assert image.superblock.inodes == len({inode.nid for _, inode in image.walk()})
