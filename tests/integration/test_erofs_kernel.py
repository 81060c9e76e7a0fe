"""Written images, mounted by this machine's kernel as plain files (Linux 6.12 or later, root)."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg_formats.erofs.tree import Device, FlatData, Node
from lazyimg_formats.erofs.writer import serialize_image
from tests.fakes.erofs_tree import DIRECTORY, FILE, Sample, Seen, make_sample

if TYPE_CHECKING:
    from collections.abc import Iterator

MS_RDONLY = 1
libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def mounted(sample: Sample, folder: Path) -> Iterator[bytes]:
    """Mount a sample; gives the mount point."""
    folder.mkdir(parents=True)
    image = folder / "image"
    image.write_bytes(serialize_image(sample.root, sample.devices))
    options = []
    for number, content in enumerate(sample.contents):
        if content:
            device = folder / f"{number}"
            device.write_bytes(content)
            options.append(f"device={device}")
    target = folder / "mnt"
    target.mkdir()
    data = ",".join(options).encode()
    if libc.mount(bytes(image), bytes(target), b"erofs", MS_RDONLY, data):
        raise OSError(ctypes.get_errno(), f"mount {image} with {len(options)} devices")
    try:
        yield bytes(target)
    finally:
        if libc.umount2(bytes(target), 0):
            raise OSError(ctypes.get_errno(), f"umount {target!r}")
        shutil.rmtree(folder)


def seen_at(target: bytes) -> dict[bytes, Seen]:
    """Give what the kernel shows below a mount point."""
    found = {}
    todo = [b""]
    while todo:
        path = todo.pop()
        found[path] = seen = _seen(target + path)
        todo += [path + b"/" + name for name in seen.names or ()]
    return found


def _seen(path: bytes) -> Seen:
    status = os.lstat(path)
    data = b""
    names = None
    if stat.S_ISDIR(status.st_mode):
        names = os.listdir(path)  # noqa: PTH208  # bytes
    elif stat.S_ISREG(status.st_mode):
        data = Path(os.fsdecode(path)).read_bytes()
    elif stat.S_ISLNK(status.st_mode):
        data = os.readlink(path)  # noqa: PTH115  # bytes
    return Seen(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime=status.st_mtime_ns,
        nlink=status.st_nlink,
        rdev=status.st_rdev,
        size=None if names is not None else status.st_size,
        data=data,
        xattrs={
            os.fsencode(name): os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        },
        names=names,
    )


def test_every_attribute_and_byte(tmp_path: Path) -> None:
    sample = make_sample()
    expected = sample.seen()
    with mounted(sample, tmp_path / "sample") as target:
        found = seen_at(target)
    assert found.keys() == expected.keys()
    for path, seen in expected.items():
        assert found[path] == seen, path


def test_image_without_devices(tmp_path: Path) -> None:
    root = Node(DIRECTORY, children={b"f": Node(FILE, data=b"1" * 10_000)})
    sample = Sample(root, [], [])
    with mounted(sample, tmp_path / "sample") as target:
        assert seen_at(target) == sample.seen()


def test_empty_root(tmp_path: Path) -> None:
    sample = Sample(Node(DIRECTORY, children={}), [], [])
    with mounted(sample, tmp_path / "sample") as target:
        assert seen_at(target) == sample.seen()


@pytest.mark.parametrize("count", [1, 23, 24, 40])
def test_slots_across_the_first_block(tmp_path: Path, count: int) -> None:
    contents = [bytes([number]) * 4096 * (1 + number % 3) for number in range(count)]
    devices = [Device(f"{number:02x}" * 32, 1 + number % 3) for number in range(count)]
    children = {
        b"%d" % number: Node(FILE, size=len(content), data=FlatData(number, 0))
        for number, content in enumerate(contents)
    }
    sample = Sample(Node(DIRECTORY, children=children), devices, contents)
    short = Path("/tmp") / f"erofs-{os.getpid()}"  # noqa: S108  # 40 paths must fit in a page
    with mounted(sample, short) as target:
        assert seen_at(target) == sample.seen()
