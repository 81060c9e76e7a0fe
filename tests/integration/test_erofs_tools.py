"""erofs-utils: fsck.erofs accepts what we write, and we read what mkfs.erofs writes."""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lazyimg_formats.erofs.layout import DataLayout, FeatureIncompat
from lazyimg_formats.erofs.reader import Image
from lazyimg_formats.erofs.tree import Device, FlatData, Node
from lazyimg_formats.erofs.writer import serialize_image
from lazyimg_formats.errors import FormatError
from tests.fakes.erofs_tree import (
    ACL,
    DIRECTORY,
    FILE,
    Sample,
    Seen,
    make_sample,
    seen_at,
    seen_in_image,
)

if TYPE_CHECKING:
    from pathlib import Path


def fsck(image: Path, *arguments: str) -> tuple[int, str]:
    """Give fsck.erofs's status, and what it says: some errors do not change the status."""
    done = subprocess.run(
        ["fsck.erofs", *arguments, image], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def check(sample: Sample, folder: Path) -> None:
    """Let fsck.erofs look at a sample."""
    (folder / "image").write_bytes(serialize_image(sample.root, sample.devices))
    arguments = []
    for number, content in enumerate(sample.contents):
        if content:
            (folder / f"{number}").write_bytes(content)
            arguments.append(f"--device={folder / str(number)}")
    assert fsck(folder / "image", *arguments) == (0, "")


def test_fsck_accepts_every_kind_of_file(tmp_path: Path) -> None:
    check(make_sample(names=12_000), tmp_path)  # much deeper and its stack overflows


def test_fsck_accepts_an_empty_root(tmp_path: Path) -> None:
    check(Sample(Node(DIRECTORY, children={}), [], []), tmp_path)


def test_fsck_accepts_many_slots(tmp_path: Path) -> None:
    contents = [bytes(4096)] * 60
    devices = [Device(f"{number:064x}", 1) for number in range(60)]
    children = {
        b"%d" % number: Node(FILE, size=4096, data=FlatData(number, 0)) for number in range(60)
    }
    check(Sample(Node(DIRECTORY, children=children), devices, contents), tmp_path)


def test_fsck_finds_what_is_wrong(tmp_path: Path) -> None:
    """The check above would fail."""
    image = bytearray(serialize_image(Node(DIRECTORY, children={})))
    image[1100] ^= 1
    (tmp_path / "image").write_bytes(image)
    assert "failed to verify superblock checksum" in fsck(tmp_path / "image")[1]


def make_source(folder: Path) -> None:
    """Make a directory with what mkfs.erofs must pack."""
    (folder / "many").mkdir(parents=True)
    for number in range(700):
        (folder / "many" / f"{number}-{'n' * (number % 200)}").write_bytes(b"%d" % number)
    (folder / "blocks").write_bytes(os.urandom(3 * 4096))
    (folder / "large").write_bytes(os.urandom(1_000_001))
    (folder / "tail").write_bytes(b"t" * 5000)
    (folder / "empty").touch()
    (folder / "none").mkdir(mode=0o3700)
    os.link(folder / "tail", folder / "none" / "hard")
    (folder / "link").symlink_to("x" * 300)
    os.mkfifo(folder / "fifo")
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(folder / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    os.chown(folder / "blocks", 70_000, 80_000)
    os.utime(folder / "large", ns=(0, 1_234_567_891_000_000_001))
    for number in range(6):  # the same ones in many places: shared
        for name in ("blocks", "large", "tail", "empty", "none"):
            os.setxattr(folder / name, f"user.shared{number}", b"v" * 200)
    os.setxattr(folder / "empty", "user.own", b"o" * 2000)
    os.setxattr(folder / "link", "trusted.own", b"", follow_symlinks=False)
    os.setxattr(folder / "none", "system.posix_acl_default", ACL)
    os.setxattr(folder / "none", "security.other", b"s")


def pack(source: Path, folder: Path, *options: str) -> Image:
    """Let mkfs.erofs make an image of a directory; its device is folder/blob."""
    done = subprocess.run(
        ["mkfs.erofs", *options, folder / "image", source], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    blob = folder / "blob"
    devices = [blob.read_bytes()] if blob.exists() else []
    return Image((folder / "image").read_bytes(), devices)


def sorted_names(seen: dict[bytes, Seen]) -> dict[bytes, Seen]:
    return {path: replace(one, names=one.names and sorted(one.names)) for path, one in seen.items()}


@pytest.mark.parametrize(
    "options",
    [
        ["-Eforce-inode-extended"],
        ["-Eforce-inode-extended,noinline_data"],
        ["-Eforce-inode-extended", "-x0"],
        ["-Eforce-inode-extended", "-x1"],
        ["-Eforce-inode-extended,force-chunk-indexes", "--chunksize=4096"],
        ["-Eforce-inode-extended", "--chunksize=65536"],
        ["-Eforce-inode-extended", "--chunksize=16384", "--blobdev={blob}"],
    ],
    ids=["plain", "not-inline", "all-shared", "some-shared", "indexes", "block-map", "device"],
)
def test_read_what_mkfs_wrote(tmp_path: Path, options: list[str]) -> None:
    source = tmp_path / "source"
    make_source(source)
    blob = tmp_path / "blob"
    image = pack(source, tmp_path, *[option.format(blob=blob) for option in options])
    assert bool(image.slots) == blob.exists()
    expected = sorted_names(seen_at(bytes(source)))
    found = seen_in_image(image)
    assert found.keys() == expected.keys()
    for path, seen in expected.items():
        assert found[path] == seen, path


def test_read_compact_inodes(tmp_path: Path) -> None:
    """Each of them has the time of the superblock."""
    source = tmp_path / "source"
    make_source(source)
    os.chown(source / "blocks", 1, 2)
    image = pack(source, tmp_path, "-Eforce-inode-compact", "-T1600000000")
    assert not any(inode.extended for _, inode in image.walk())
    expected = sorted_names(seen_at(bytes(source)))
    assert seen_in_image(image) == {
        path: replace(seen, mtime=1_600_000_000 * 10**9) for path, seen in expected.items()
    }


def test_refuse_a_compressed_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "zeros").write_bytes(bytes(1 << 20))
    (source / "small").write_bytes(b"small")
    image = pack(source, tmp_path, "-zlz4hc")
    assert image.superblock.incompat & FeatureIncompat.ZERO_PADDING
    small, zeros = image.lookup(b"/small"), image.lookup(b"zeros")
    assert small is not None
    assert image.read(small) == b"small"
    assert zeros is not None
    assert zeros.layout is DataLayout.COMPRESSED_COMPACT
    with pytest.raises(FormatError, match=r"inode: nid \d+ is compressed \(COMPRESSED_COMPACT\)"):
        image.read(zeros)
