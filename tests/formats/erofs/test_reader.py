"""Reading: every kind of image, and images that lie.

Images of mkfs.erofs are read elsewhere; here other ones are put together by hand.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg_formats.erofs import reader
from lazyimg_formats.erofs.chunk import Chunk, ChunkFormat, serialize_chunk_format, serialize_chunks
from lazyimg_formats.erofs.dirent import Dirent, serialize_block
from lazyimg_formats.erofs.inode import Inode, serialize_inode
from lazyimg_formats.erofs.layout import (
    MAX_DIRECTORY_SIZE,
    DataLayout,
    FeatureCompat,
    FeatureIncompat,
    FileType,
)
from lazyimg_formats.erofs.reader import DataExtent, Image
from lazyimg_formats.erofs.superblock import (
    DeviceSlot,
    Superblock,
    checksum_range,
    compute_checksum,
    serialize_slots,
    serialize_superblock,
)
from lazyimg_formats.erofs.tree import Device, FlatData, Node
from lazyimg_formats.erofs.writer import serialize_image
from lazyimg_formats.erofs.xattr import serialize_body, serialize_entry
from lazyimg_formats.errors import FormatError
from tests.fakes.erofs_tree import DIRECTORY, FILE, LINK, make_sample, seen_in_image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

META = 4
"""Block where nids count from, in images made by hand: block 0 to 3 hold superblock and slots."""

ROOT = 0


@dataclass
class Forge:
    """An image made by hand: parts at places, and whatever its inodes say."""

    bits: int = 12
    slots: Sequence[DeviceSlot] = ()
    size: int = 16  # in blocks
    changes: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data = bytearray(self.size << self.bits)
        self.superblock = Superblock(
            block_bits=self.bits,
            root_nid=ROOT,
            inodes=1,
            blocks=self.size,
            uuid=bytes(16),
            incompat=FeatureIncompat.DEVICE_TABLE if self.slots else FeatureIncompat(0),
            meta_block=META,
            devices=len(self.slots),
            slot_offset=9,
        )
        self.directory(ROOT)

    def put(self, nid: int, data: bytes) -> None:
        """Put bytes where an inode lies."""
        position = (META << self.bits) + nid * 32
        self.data[position : position + len(data)] = data

    def inode(self, nid: int, tail: bytes = b"", **fields: object) -> Inode:
        """Put an inode and what follows it."""
        values: dict[str, object] = {
            "nid": nid, "extended": False, "layout": DataLayout.FLAT_PLAIN, "mode": FILE | 0o644,
            "uid": 1, "gid": 2, "mtime": 0, "mtime_ns": 0, "nlink": 1, "size": 0,
        }  # fmt: skip
        inode = Inode(**(values | fields))  # type: ignore[arg-type]
        self.put(nid, serialize_inode(inode) + tail)
        return inode

    def directory(
        self,
        nid: int,
        entries: Sequence[tuple[bytes, int, FileType]] = (),
        *,
        parent: int = ROOT,
        **fields: object,
    ) -> None:
        """Put a directory with an inline tail."""
        rows = [*entries, (b".", nid, FileType.DIR), (b"..", parent, FileType.DIR)]
        columns: list[tuple[bytes | int | FileType, ...]] = list(zip(*sorted(rows), strict=True))
        tail = serialize_block(*columns)  # type: ignore[arg-type]
        links = sum(row[2] is FileType.DIR for row in rows)
        values = {"mode": DIRECTORY, "nlink": links, "size": len(tail)} | fields
        self.inode(nid, tail, layout=DataLayout.FLAT_INLINE, **values)

    def image(self, *devices: bytes) -> Image:
        """Give it, opened."""
        superblock = replace(self.superblock, **self.changes)  # type: ignore[arg-type]
        self.data[1024:1152] = serialize_superblock(superblock)
        table = serialize_slots(self.slots)
        self.data[1152 : 1152 + len(table)] = table
        return Image(bytes(self.data), devices)


def walk(image: Image) -> list[bytes]:
    return [path for path, _ in image.walk()]


def small_image() -> bytes:
    children = {
        b"file": Node(FILE, data=b"x" * 5000, xattrs=((b"user.a", b"b"),)),
        b"link": Node(LINK, target=b"t"),
        b"dir": Node(DIRECTORY, children={b"fifo": Node(stat.S_IFIFO)}),
    }
    return serialize_image(Node(DIRECTORY, children=children))


def read_everything(image: Image) -> None:
    seen_in_image(image)


# Sources


def test_source_as_a_function() -> None:
    data = small_image()
    image = Image(lambda offset, length: data[offset : offset + length])
    assert walk(image) == [b"", b"dir", b"dir/fifo", b"file", b"link"]
    assert walk(Image(memoryview(data))) == walk(Image(bytearray(data))) == walk(image)


def test_image_truncated_anywhere() -> None:
    data = small_image()
    for size in [*range(0, 2048, 7), 2048, 4095, 4096, len(data) - 1]:
        with pytest.raises(FormatError, match=r"^image: \d+ bytes at \d+ are not in it$"):
            read_everything(Image(data[:size]))


def test_trailing_bytes_do_not_matter() -> None:
    data = small_image()
    assert seen_in_image(Image(data + b"more")) == seen_in_image(Image(data))


def test_nid_beyond_any_image() -> None:
    calls = []

    def source(offset: int, length: int) -> bytes:
        calls.append(offset)
        return data[offset : offset + length]

    data = small_image()
    image = Image(source)
    calls.clear()
    with pytest.raises(FormatError, match=r"^image: 32 bytes at 590295810358705651680 are not in"):
        image.inode(2**64 - 1)
    assert calls == []


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_changed_byte(data: st.DataObject) -> None:
    """Whatever is changed behind the superblock's checksum: values or a FormatError."""
    image = bytearray(small_image())
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(1024, 1152 + 600))] = data.draw(st.integers(0, 255))
    image[1032] &= 0xFE  # no checksum
    try:
        read_everything(Image(bytes(image)))
    except FormatError:
        return


# Superblock and slots


def test_wrong_checksum() -> None:
    data = bytearray(small_image())
    data[3000] ^= 1
    with pytest.raises(FormatError, match=r"^erofs_super_block: checksum is 0x.{8}, expected 0x"):
        Image(bytes(data))


@pytest.mark.parametrize("bits", [10, 11, 14, 16])
def test_checksum_of_other_block_sizes(bits: int) -> None:
    changes: dict[str, object] = {"compat": FeatureCompat.SB_CHKSUM}
    forge = Forge(bits, changes=changes)
    with pytest.raises(FormatError, match=r"expected 0x00000000$"):
        forge.image()
    covered = checksum_range(bits)
    changes["checksum"] = compute_checksum(forge.data[covered.start : covered.stop])
    assert walk(forge.image()) == [b""]


def test_image_without_a_checksum() -> None:
    assert walk(Forge().image()) == [b""]


def test_slots_are_ignored_without_their_feature() -> None:
    assert Forge(changes={"devices": 3}).image().slots == ()


def test_slots_beyond_the_image() -> None:
    forge = Forge(slots=[DeviceSlot(b"a", 1, 0)], changes={"slot_offset": 512})
    with pytest.raises(FormatError, match=r"^image: 128 bytes at 65536 are not in it$"):
        forge.image()


def test_overlapping_slots() -> None:
    slots = [DeviceSlot(b"a", 10, 30), DeviceSlot(b"b", 11, 20), DeviceSlot(b"c", 9, 0)]
    with pytest.raises(
        FormatError, match=r"^erofs_deviceslot: devices overlap in the unified space$"
    ):
        Forge(slots=slots).image()


def test_root_that_is_no_directory() -> None:
    forge = Forge()
    forge.inode(ROOT)
    with pytest.raises(FormatError, match=r"^root: nid 0 has mode 0o100644$"):
        _ = forge.image().root


@pytest.mark.parametrize("bits", [9, 10, 13, 16])
def test_block_sizes(bits: int) -> None:
    forge = Forge(bits)
    content = bytes(range(256)) * (1 << bits >> 7)
    forge.directory(ROOT, [(b"f", 20, FileType.REG_FILE), (b"i", 30, FileType.REG_FILE)])
    forge.inode(20, size=len(content), start=10)
    forge.data[10 << bits : (10 << bits) + len(content)] = content
    forge.inode(30, b"end", layout=DataLayout.FLAT_INLINE, size=(1 << bits) + 3, start=10)
    image = forge.image()
    inodes = dict(image.walk())
    assert image.read(inodes[b"f"]) == content
    assert image.read(inodes[b"i"]) == content[: 1 << bits] + b"end"


# Data


def test_unified_address() -> None:
    """A flat file's block is that of the slot that it is mapped from, or the image's own."""
    slots = [DeviceSlot(b"a", 4, 32), DeviceSlot(b"unmapped", 9, 0), DeviceSlot(b"c", 4, 16)]
    forge = Forge(slots=slots)
    image = forge.image()
    found = []
    for start in (15, 16, 19, 32, 35):
        inode = forge.inode(20, size=4096, start=start)
        found.append(image.extents(inode))
    assert found == [
        [DataExtent(0, 4096, 0, 15 * 4096)],
        [DataExtent(0, 4096, 3, 0)],
        [DataExtent(0, 4096, 3, 3 * 4096)],
        [DataExtent(0, 4096, 1, 0)],
        [DataExtent(0, 4096, 1, 3 * 4096)],
    ]


@pytest.mark.parametrize(
    ("start", "size", "problem"),
    [
        (15, 4097, "4097 bytes from block 15 on do not fit in the 16 of device 0"),
        (19, 4097, "4097 bytes from block 3 on do not fit in the 4 of device 2"),
        (20, 1, "1 bytes from block 20 on do not fit in the 16 of device 0"),
        (2**32 - 2, 1, "1 bytes from block 4294967294 on do not fit in the 16 of device 0"),
        (16, 2**63 - 1, f"{2**63 - 1} bytes from block 0 on do not fit in the 4 of device 2"),
    ],
)
def test_data_that_is_nowhere(start: int, size: int, problem: str) -> None:
    forge = Forge(slots=[DeviceSlot(b"a", 4, 32), DeviceSlot(b"c", 4, 16)])
    inode = forge.inode(20, extended=True, size=size, start=start)
    with pytest.raises(FormatError) as caught:
        forge.image().extents(inode)
    assert str(caught.value) == f"data of a file: {problem}"


def test_file_without_data() -> None:
    inode = Forge().inode(20, size=0, start=99, layout=DataLayout.FLAT_INLINE)
    assert Forge().image().extents(inode) == []
    assert Forge().image().read(inode) == b""


def test_flat_hole() -> None:
    inode = Forge().inode(20, size=10, start=2**32 - 1)
    image = Forge().image()
    assert image.extents(inode) == [DataExtent(0, 10, None, 0)]
    assert image.read(inode) == bytes(10)


def test_hole_that_is_too_large_to_read_at_once() -> None:
    inode = Forge().inode(20, extended=True, size=1 << 60, start=2**32 - 1)
    image = Forge().image()
    assert image.read(inode, (1 << 60) - 2, 9) == b"\0\0"
    assert image.read(inode, 5, 1 << 20) == bytes(1 << 20)
    with pytest.raises(
        FormatError, match=r"^data of a file: 268435457 bytes at once, at most 268435456$"
    ):
        image.read(inode, 1, 268_435_457)
    with pytest.raises(FormatError, match=r"at once, at most 268435456$"):
        image.read(inode)


def test_device_that_is_not_at_hand() -> None:
    forge = Forge(slots=[DeviceSlot(b"a", 1, 32), DeviceSlot(b"b", 1, 33)])
    inode = forge.inode(20, size=4, start=33)
    assert forge.image(b"aaaa", b"bbbb").read(inode) == b"bbbb"
    with pytest.raises(FormatError, match=r"^image: data lies on device 2, which is not at hand$"):
        forge.image(b"aaaa").read(inode)
    with pytest.raises(FormatError, match=r"^device 2: 4 bytes at 0 are not in it$"):
        forge.image(b"aaaa", b"bbb").read(inode)


@pytest.mark.parametrize("layout", [DataLayout.COMPRESSED_FULL, DataLayout.COMPRESSED_COMPACT])
def test_compressed_file(layout: DataLayout) -> None:
    inode = Forge().inode(20, size=1, layout=layout)
    with pytest.raises(FormatError) as caught:
        Forge().image().read(inode)
    assert str(caught.value) == f"inode: nid 20 is compressed ({layout.name})"


def test_inline_data_across_blocks() -> None:
    forge = Forge()
    inode = forge.inode(100, b"x" * 900, layout=DataLayout.FLAT_INLINE, size=864)
    assert forge.image().read(inode) == b"x" * 864
    longer = replace(inode, size=865)
    with pytest.raises(FormatError, match=r"^inode: the inline data of nid 100 crosses a block$"):
        forge.image().read(longer)


def test_chunks() -> None:
    slots = [DeviceSlot(b"a", 8, 0), DeviceSlot(b"b", 0, 0), DeviceSlot(b"c", 4, 16)]
    forge = Forge(slots=slots)
    chunks = ChunkFormat(13, indexes=True)
    array = [
        Chunk(1, 0), Chunk(1, 2), Chunk(1, 6), Chunk(0, None), Chunk(1, None), Chunk(2, 7),
        Chunk(0, 16), Chunk(3, 2), Chunk(0, 4), Chunk(0xFFF8 | 1, 7),
    ]  # fmt: skip
    inode = forge.inode(
        20,
        serialize_body([(b"user.a", b"v")]) + b"????" + serialize_chunks(array, chunks),
        layout=DataLayout.CHUNK_BASED,
        size=9 * 8192 + 5,
        start=serialize_chunk_format(chunks, 12),
        xattr_count=3,
    )
    image = forge.image()
    assert image.extents(inode) == [
        DataExtent(0, 16384, 1, 0),
        DataExtent(16384, 8192, 1, 24576),
        DataExtent(24576, 16384, None, 0),
        DataExtent(40960, 8192, 2, 28672),
        DataExtent(49152, 16384, 3, 0),
        DataExtent(65536, 8192, 0, 16384),
        DataExtent(73728, 5, 1, 28672),
    ]


def test_block_map_behind_an_odd_number_of_words() -> None:
    forge = Forge()
    chunks = ChunkFormat(12, indexes=False)
    forge.data[9 * 4096 : 11 * 4096] = b"9" * 4096 + b"A" * 4096
    inode = forge.inode(
        20,
        serialize_body([(b"user.a", b"v")]) + serialize_chunks([Chunk(0, 10), Chunk(0, 9)], chunks),
        layout=DataLayout.CHUNK_BASED,
        size=4098,
        xattr_count=3,
    )
    image = forge.image()
    assert image.read(inode) == b"A" * 4096 + b"99"
    assert image.read(inode, 4000, 97) == b"A" * 96 + b"9"
    assert image.read(inode, 4097) == b"9"
    assert image.read(inode, 0, 0) == image.read(inode, 5000, 3) == b""


def test_chunk_of_an_unknown_device() -> None:
    forge = Forge(slots=[DeviceSlot(b"a", 8, 0), DeviceSlot(b"b", 8, 0)])
    chunks = ChunkFormat(12, indexes=True)
    inode = forge.inode(
        20,
        serialize_chunks([Chunk(3, 0)], chunks),
        layout=DataLayout.CHUNK_BASED,
        size=1,
        start=serialize_chunk_format(chunks, 12),
    )
    with pytest.raises(FormatError, match=r"^erofs_inode_chunk_index: device 3 of 2$"):
        forge.image().extents(inode)


def test_chunks_beyond_the_image() -> None:
    forge = Forge()
    inode = forge.inode(
        20, extended=True, layout=DataLayout.CHUNK_BASED, size=4096 << 24, start=0x20
    )
    with pytest.raises(FormatError, match=r"^image: 134217728 bytes at \d+ are not in it$"):
        forge.image().extents(inode)
    with pytest.raises(FormatError, match=r"16777217 chunks, at most 16777216$"):
        forge.image().extents(replace(inode, size=(4096 << 24) + 1))


def test_target() -> None:
    forge = Forge()
    inline = DataLayout.FLAT_INLINE
    link = forge.inode(20, b"target", layout=inline, mode=LINK, size=6)
    assert forge.image().target(link) == b"target"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"mode": FILE, "size": 1}, "nid 20 has mode 0o100000, size 1"),
        ({"mode": LINK, "size": 0}, "nid 20 has mode 0o120777, size 0"),
        ({"mode": LINK, "size": 4096}, "nid 20 has mode 0o120777, size 4096"),
        ({"mode": LINK, "size": 3}, r"impossible target b'a\x00b'"),
    ],
)
def test_impossible_target(fields: dict[str, int], problem: str) -> None:
    forge = Forge()
    inode = forge.inode(20, b"a\0b", layout=DataLayout.FLAT_INLINE, **fields)
    with pytest.raises(FormatError) as caught:
        forge.image().target(inode)
    assert str(caught.value) == f"symbolic link: {problem}"


# Directories


def test_directory_of_several_blocks() -> None:
    forge = Forge()
    first = serialize_block([b".", b"..", b"a"], [20, ROOT, 40], [2, 2, 1])
    forge.data[9 * 4096 : 9 * 4096 + len(first)] = first
    tail = serialize_block([b"b"], [50], [7])
    inode = forge.inode(
        20, tail, layout=DataLayout.FLAT_INLINE, mode=DIRECTORY, size=4096 + 13, start=9
    )
    assert forge.image().read_directory(inode)[2:] == [
        Dirent(b"a", 40, FileType.REG_FILE),
        Dirent(b"b", 50, FileType.SYMLINK),
    ]


def test_names_that_do_not_rise_from_block_to_block() -> None:
    forge = Forge()
    block = serialize_block([b"a"], [20], [2])
    forge.data[9 * 4096 : 9 * 4096 + len(block)] = block
    forge.data[10 * 4096 : 10 * 4096 + len(block)] = block
    inode = forge.inode(20, mode=DIRECTORY, size=8192, start=9)
    with pytest.raises(FormatError, match=r"^directory: name b'a' is not behind b'a'$"):
        forge.image().read_directory(inode)


def test_directory_full_of_one_chunk() -> None:
    """A small image cannot claim a large directory."""
    forge = Forge()
    block = serialize_block([b"a"], [20], [2])
    forge.data[9 * 4096 : 9 * 4096 + len(block)] = block
    chunks = ChunkFormat(12, indexes=False)
    inode = forge.inode(
        20,
        serialize_chunks([Chunk(0, 9)] * 400, chunks),
        layout=DataLayout.CHUNK_BASED,
        mode=DIRECTORY,
        size=400 * 4096,
    )
    with pytest.raises(FormatError, match=r"^directory: name b'a' is not behind b'a'$"):
        forge.image().read_directory(inode)


@pytest.mark.parametrize("start", [2**32 - 1, 32])
def test_directory_outside_of_the_image(start: int) -> None:
    forge = Forge(slots=[DeviceSlot(b"a", 8, 32)])
    inode = forge.inode(20, mode=DIRECTORY, size=4096, start=start)
    with pytest.raises(FormatError, match=r"^directory: nid 20 has data outside of the image$"):
        forge.image().read_directory(inode)


def test_what_is_no_directory() -> None:
    with pytest.raises(FormatError, match=r"^directory: nid 20 has mode 0o100644, size 0$"):
        Forge().image().read_directory(Forge().inode(20))


def test_directory_that_is_too_large() -> None:
    inode = Forge().inode(20, mode=DIRECTORY, extended=True, size=MAX_DIRECTORY_SIZE + 1)
    with pytest.raises(FormatError, match=r"^directory: nid 20 has mode 0o40755, size 2147483649$"):
        Forge().image().read_directory(inode)


def test_lookup() -> None:
    image = Image(small_image())
    fifo = image.lookup(b"dir/fifo")
    assert fifo is not None
    assert fifo.file_type is FileType.FIFO
    assert image.lookup(b"/dir//fifo") == fifo
    assert image.lookup(b"") == image.lookup(b"/") == image.lookup(b"dir/..") == image.root
    assert image.lookup(b"missing") is None
    assert image.lookup(b"file/x") is None
    assert image.lookup(b"link/x") is None


# Trees that are none


def test_directory_in_itself() -> None:
    forge = Forge()
    forge.directory(ROOT, [(b"loop", ROOT, FileType.DIR)])
    with pytest.raises(FormatError, match=r"^directory: b'loop' was reached before$"):
        walk(forge.image())


def test_directory_with_two_names() -> None:
    forge = Forge()
    forge.directory(ROOT, [(b"a", 20, FileType.DIR), (b"b", 20, FileType.DIR)])
    forge.directory(20)
    with pytest.raises(FormatError, match=r"^directory: b'b' was reached before$"):
        walk(forge.image())


def test_wrong_parent() -> None:
    forge = Forge()
    forge.directory(ROOT, [(b"a", 20, FileType.DIR)])
    forge.directory(20, parent=20)
    with pytest.raises(FormatError, match=r"^directory: nid 20 has a wrong b'\.\.'$"):
        walk(forge.image())


@pytest.mark.parametrize(
    ("names", "problem"),
    [([b"."], "lacks b'..'"), ([b".."], "lacks b'.'"), ([], "lacks b'. ..'")],
)
def test_missing_dots(names: list[bytes], problem: str) -> None:
    forge = Forge()
    tail = serialize_block([*names, b"x"], [ROOT, ROOT][: len(names) + 1], [2, 1])
    forge.inode(ROOT, tail, layout=DataLayout.FLAT_INLINE, mode=DIRECTORY, size=len(tail))
    with pytest.raises(FormatError) as caught:
        walk(forge.image())
    assert str(caught.value) == f"directory: nid 0 {problem}"


def test_empty_directory_without_dots() -> None:
    forge = Forge()
    forge.inode(ROOT, mode=DIRECTORY)
    with pytest.raises(FormatError, match=r"^directory: nid 0 lacks b'\. \.\.'$"):
        walk(forge.image())


def test_wrong_count_of_subdirectories() -> None:
    forge = Forge()
    forge.directory(ROOT, nlink=3)
    with pytest.raises(FormatError, match=r"^directory: nid 0 counts 3, not 2$"):
        walk(forge.image())
    assert [path for path, _ in forge.image().walk(links=False)] == [b""]
    forge.directory(ROOT, nlink=1)  # its maker did not count
    assert walk(forge.image()) == [b""]


@pytest.mark.parametrize(("nlink", "missing"), [(0, -2), (1, -1), (3, 1), (65535, 65533)])
def test_wrong_count_of_names(nlink: int, missing: int) -> None:
    forge = Forge()
    names = [(b"a", 20, FileType.REG_FILE), (b"b", 20, FileType.REG_FILE)]
    forge.directory(ROOT, names)
    forge.inode(20, nlink=nlink)
    with pytest.raises(FormatError, match=f"^inode: nid 20 counts {missing} names too many$"):
        walk(forge.image())
    assert len(list(forge.image().walk(links=False))) == 3
    forge.inode(20, nlink=2)
    assert walk(forge.image()) == [b"", b"a", b"b"]


def test_name_of_another_type() -> None:
    forge = Forge()
    forge.directory(ROOT, [(b"a", 20, FileType.SYMLINK)])
    forge.inode(20)
    with pytest.raises(
        FormatError, match=r"^erofs_dirent: b'a' is called SYMLINK, its inode REG_FILE$"
    ):
        walk(forge.image())


def test_name_of_an_inode_beyond_the_image() -> None:
    forge = Forge()
    forge.directory(ROOT, [(b"a", 2**63, FileType.REG_FILE)])
    with pytest.raises(FormatError, match=r"^image: 32 bytes at \d+ are not in it$"):
        walk(forge.image())


def test_too_many_names(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image(small_image())
    monkeypatch.setattr(reader, "MAX_ENTRIES", 4)
    assert len(walk(image)) == 5
    monkeypatch.setattr(reader, "MAX_ENTRIES", 3)
    with pytest.raises(FormatError, match=r"^image: over 3 names or 4095 bytes$"):
        walk(image)


def test_path_that_is_too_long() -> None:
    top = Node(DIRECTORY, children={})
    for _ in range(16):
        top = Node(DIRECTORY, children={b"n" * 255: top})
    assert max(map(len, walk(Image(serialize_image(top))))) == 4095
    top = Node(DIRECTORY, children={b"n" * 255: top})
    with pytest.raises(FormatError, match=r"^image: over 8388608 names or 4095 bytes$"):
        walk(Image(serialize_image(top)))


# Extended attributes


def test_shared_attributes() -> None:
    forge = Forge(changes={"xattr_block": 9})
    entry = serialize_entry(b"security.x", b"shared")
    forge.data[9 * 4096 + 40 : 9 * 4096 + 40 + len(entry)] = entry
    body = serialize_body([(b"user.own", b"1")], [10])
    inode = forge.inode(20, body, xattr_count=(len(body) - 8) // 4)
    assert forge.image().xattrs(inode) == ((b"user.own", b"1"), (b"security.x", b"shared"))


def test_shared_attribute_beyond_the_image() -> None:
    forge = Forge()
    inode = forge.inode(20, serialize_body([], [2**32 - 1]), xattr_count=2)
    with pytest.raises(FormatError, match=r"^image: 4 bytes at 17179869180 are not in it$"):
        forge.image().xattrs(inode)


def test_attributes_beyond_the_image() -> None:
    forge = Forge()
    inode = forge.inode(20, xattr_count=65535)
    with pytest.raises(FormatError, match=r"^image: 262148 bytes at \d+ are not in it$"):
        forge.image().xattrs(inode)


def prefixed(forge: Forge, table: bytes, where: int) -> Inode:
    """Put a table of long prefixes, and an inode with an attribute that uses the second one."""
    forge.data[where : where + len(table)] = table
    entry = bytes.fromhex("01 81 0100 78 79 0000")
    return forge.inode(20, bytes(12) + entry, xattr_count=3)


TABLE = b"\x04\0\1abc" + b"\0\0" + b"\x09\0\4overlay."


def test_long_prefixes() -> None:
    changes = {"incompat": FeatureIncompat.XATTR_PREFIXES, "prefix_count": 2, "prefix_start": 9216}
    forge = Forge(changes=changes)
    inode = prefixed(forge, TABLE, 36864)
    image = forge.image()
    assert image.xattrs(inode) == ((b"trusted.overlay.x", b"y"),)
    assert image.xattrs(inode) == ((b"trusted.overlay.x", b"y"),)


def test_long_prefixes_without_their_feature() -> None:
    forge = Forge(changes={"prefix_count": 2, "prefix_start": 9216})
    inode = prefixed(forge, TABLE, 36864)
    with pytest.raises(FormatError, match=r"^erofs_xattr_entry: unknown prefix 129$"):
        forge.image().xattrs(inode)


@pytest.mark.parametrize("plain", [False, True])
def test_long_prefixes_in_the_packed_inode(plain: bool) -> None:  # noqa: FBT001
    changes = {
        "incompat": FeatureIncompat.XATTR_PREFIXES | FeatureIncompat.FRAGMENTS,
        "compat": FeatureCompat.PLAIN_XATTR_PFX if plain else FeatureCompat(0),
        "prefix_count": 2,
        "prefix_start": 9216 if plain else 2,
        "packed_nid": 30,
    }
    forge = Forge(changes=changes)
    forge.inode(30, size=8 + len(TABLE), start=9)
    inode = prefixed(forge, TABLE, 36864 if plain else 36872)
    assert forge.image().xattrs(inode) == ((b"trusted.overlay.x", b"y"),)


def test_packed_inode_that_is_too_short() -> None:
    changes = {
        "incompat": FeatureIncompat.XATTR_PREFIXES | FeatureIncompat.FRAGMENTS,
        "prefix_count": 2,
        "packed_nid": 30,
    }
    forge = Forge(changes=changes)
    forge.inode(30, size=len(TABLE) - 1, start=9)
    inode = prefixed(forge, TABLE, 36864)
    with pytest.raises(FormatError, match=r"^packed inode: 9 bytes at 10 are not in it$"):
        forge.image().xattrs(inode)


# Compact inodes and whole images


def test_compact_inodes_take_the_time_of_the_superblock() -> None:
    forge = Forge(changes={"epoch": -100, "fixed_nsec": 7})
    forge.directory(ROOT, [(b"a", 20, FileType.REG_FILE)])
    forge.inode(20, mtime=3)
    inode = forge.image().lookup(b"a")
    assert inode is not None
    assert (inode.mtime, inode.mtime_ns) == (-97, 7)


def test_extents_of_every_file_are_whole() -> None:
    sample = make_sample()
    image = Image(serialize_image(sample.root, sample.devices))
    for path, inode in image.walk():
        end = 0
        for extent in image.extents(inode):
            assert extent.offset == end, path
            end += extent.length
        assert end == inode.size, path


def test_flat_file_on_its_device() -> None:
    device = Device("d", 4)
    root = Node(DIRECTORY, children={b"f": Node(FILE, size=5, data=FlatData(0, 3))})
    image = Image(serialize_image(root, [device]), [bytes(3 * 4096) + b"hello"])
    inode = image.lookup(b"f")
    assert inode is not None
    assert image.read(inode) == b"hello"
