"""An image that does everything a tree may have, and what real unpackers make of it.

    nasty = nasty_tree()
    nasty.layout()     # an OCI layout with the tag "nasty"
    nasty.expected()   # what containerd made of "nasty", where it is right

`nasty` has 64 layers and a gigabyte of zeros. containerd unpacks it onto overlayfs, as root, on
this machine; umoci unpacks it too. Where containerd does not say what the image says, umoci's word
is taken: see `expected`. `unrepeated` lacks the one layer of it in which names come twice, which no
later podman takes. `links` has hard links to files of layers below, which containerd takes
with its native snapshotter only (onto overlayfs: no such file).

Made once, in about a minute, and kept below ~/.cache/lazyimg/nasty:

    python -m tests.real.nasty_tree
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.real.containerd import Containerd, running_containerd
from tests.real.nasty_layer import CAPABILITY, OPAQUE, xattr
from tests.real.oci_layout import LayoutWriter
from tests.real.tree_manifest import Tree, dump_tree, load_tree, read_tree

if TYPE_CHECKING:
    from collections.abc import Callable

RECIPE: Final = (
    "containerd.py",
    "nasty_layer.py",
    "nasty_tree.py",
    "oci_layout.py",
    "tree_manifest.py",
)
LAYERS: Final = 64
TIME: Final = 1_600_000_000
GIBIBYTE: Final = 1 << 30
DIRECTORY, FILE, SYMLINK, LINK = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
CHARACTER, BLOCK, FIFO = tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE

IMPLIED: Final = {
    "implied": 0,
    "implied/deep": 0,
    "implied/below": TIME,
    "implied/link": TIME,
    "implied/absolute": TIME,
    "opaque-implied/sub": TIME,
}
"""Directories that the upper layer does not list: the time from below, or none."""

BEYOND: Final = ("times/before-1970", "times/before-1970-and-a-bit", "times/directory-of-1969")
"""containerd gives times before 1970 as 1970."""

RELINKED: Final = ("relinked/kept",)
"""overlayfs counts names that an upper layer hides."""


class NastyTree(NamedTuple):
    """The images, in the cache."""

    directory: Path

    def layout(self, tag: str = "nasty") -> Path:
        """Return the OCI layout that has one of the images."""
        return self.directory / tag

    def made_by(self, unpacker: str, tag: str = "nasty") -> Tree:
        """Return the tree that "containerd" or "umoci" made."""
        return load_tree(self.directory / f"{tag}-{unpacker}.json")

    def expected(self) -> Tree:
        """Return what `nasty` must be: containerd's tree, with these changes.

        - the root's time as its entry has it, which containerd passes over,
        - times before 1970 as the tar has them,
        - of directories that a layer implies the time below, or none: containerd's is its own,
        - links as they are.
        """
        tree = self.made_by("containerd")
        umoci = self.made_by("umoci")
        tree["."] = replace(tree["."], mtime_ns=TIME * 1_000_000_000)
        for path, seconds in IMPLIED.items():
            tree[path] = replace(tree[path], mtime_ns=seconds * 1_000_000_000)
        for path in BEYOND:
            tree[path] = replace(tree[path], mtime_ns=umoci[path].mtime_ns)
        for path in RELINKED:
            tree[path] = replace(tree[path], links=1, same_as=None)
        return tree

    def expected_links(self) -> Tree:
        """Return what `links` must be; both unpackers agree, but for the root's time."""
        tree = self.made_by("containerd", "links")
        tree["."] = self.made_by("umoci", "links")["."]
        return tree


def nasty_tree() -> NastyTree:
    """Return the images, which are made first where the cache lacks them."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lazyimg/nasty"
    recipe = hashlib.sha256()
    for name in RECIPE:
        recipe.update(Path(__file__).with_name(name).read_bytes())
    nasty = NastyTree(cache / recipe.hexdigest()[:16])
    if nasty.directory.exists():
        return nasty
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not nasty.directory.exists():
            make(nasty.directory)
    return nasty


def make(directory: Path) -> None:
    """Make everything aside, then rename it; what other recipes made goes."""
    for outdated in directory.parent.glob("*/"):
        shutil.rmtree(outdated)
    with tempfile.TemporaryDirectory(dir=directory.parent) as aside:
        made = Path(aside, "made")
        made.mkdir()
        images: dict[str, list[Callable[[Layer], None]]]
        images = {"nasty": nasty_layers(), "links": [below_links, links_across_layers]}
        unrepeated = [write for write in nasty_layers() if write is not zeros_in_order]
        for tag, layers in (*images.items(), ("unrepeated", unrepeated)):
            write_image(LayoutWriter(made / tag), Path(aside), tag, layers)
        with running_containerd(Path(aside, "containerd")) as containerd:
            name = import_image(containerd, made / "nasty", "overlayfs")
            with containerd.mounted(f"{name}:nasty") as root:
                dump_tree(read_tree(root), made / "nasty-containerd.json")
            import_image(containerd, made / "links", "native")
            dump_tree(read_tree(containerd.native_tree()), made / "links-containerd.json")
        for tag in images:
            bundle = Path(aside, "bundle")
            command = ["umoci", "unpack", "--image", f"{made / tag}:{tag}", str(bundle)]
            ended = subprocess.run(command, check=False, capture_output=True, text=True)
            assert ended.returncode == 0, ended.stderr
            dump_tree(read_tree(bundle / "rootfs"), made / f"{tag}-umoci.json")
            shutil.rmtree(bundle)
        made.rename(directory)


def import_image(containerd: Containerd, layout: Path, snapshotter: str) -> str:
    """Import and unpack an image from a layout; return its name without the tag."""
    archive = containerd.directory / "image.tar"
    subprocess.run(["tar", "-C", str(layout), "-cf", str(archive), "."], check=True)
    name = f"127.0.0.1/{snapshotter}"
    containerd.ctr("image", "import", "--base-name", name, "--snapshotter", snapshotter, archive)
    archive.unlink()
    return name


class Layer:
    """A layer under construction; every member's time is TIME unless it says another."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def add(self, name: str, kind: bytes = FILE, content: bytes = b"", **values: object) -> None:
        """Add a member."""
        member = tarfile.TarInfo(name)
        member.type, member.size, member.mtime = kind, len(content), TIME
        member.mode = 0o755 if kind == DIRECTORY else 0o644
        for attribute, value in values.items():
            setattr(member, attribute, value)
        self._tar.addfile(member, io.BytesIO(content))

    def add_zeros(self, name: str, size: int, marks: dict[int, bytes]) -> None:
        """Add a file that has only zeros but for some bytes at some offsets."""
        member = tarfile.TarInfo(name)
        member.size, member.mtime = size, TIME
        self._tar.addfile(member, Zeros(size, marks))  # type: ignore[arg-type] # only read


class Zeros:
    """A file of zeros with marks in it, as something to read."""

    def __init__(self, size: int, marks: dict[int, bytes]) -> None:
        self._left, self._at, self._marks = size, 0, marks

    def read(self, size: int) -> bytes:
        """Give the next bytes."""
        size = min(size, self._left)
        data = bytearray(size)
        for offset, mark in self._marks.items():
            if self._at <= offset < self._at + size:
                data[offset - self._at : offset - self._at + len(mark)] = mark
        self._at += size
        self._left -= size
        return bytes(data)


def write_image(
    writer: LayoutWriter, work: Path, tag: str, layers: list[Callable[[Layer], None]]
) -> None:
    """Write an image of these layers."""
    stored = []
    for write in layers:
        with tarfile.open(work / "layer.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            write(Layer(tar))
        stored.append(writer.add_layer(work / "layer.tar"))
    writer.add_image(tag, stored, ["/true"])


def nasty_layers() -> list[Callable[[Layer], None]]:
    """Give what writes each of the 64 layers."""
    special: list[Callable[[Layer], None]] = [
        first_layer, names_and_sizes, attributes, second_layer, zeros_in_order, third_layer,
        fourth_layer,
    ]  # fmt: skip

    def filler(number: int) -> Callable[[Layer], None]:
        def write(layer: Layer) -> None:
            layer.add(f"layers/{number:02}", content=b"%d" % number)
            layer.add("layers/last", content=b"%d" % number)
            layer.add("layers", DIRECTORY, mtime=TIME + number)

        return write

    return special + [filler(number) for number in range(len(special), LAYERS)]


def first_layer(layer: Layer) -> None:
    """Write the lowest layer: what the upper ones change."""
    layer.add("./", DIRECTORY, mode=0o755)
    layer.add("changes", DIRECTORY)
    for name in ("file-directory-file", "deleted", "deleted-and-back", "kept", "zero-zero"):
        layer.add(f"changes/{name}", content=f"first {name}".encode())
    layer.add("changes/directory-file-directory", DIRECTORY, mode=0o750)
    layer.add("changes/directory-file-directory/first")
    layer.add("changes/symlink", SYMLINK, linkname="kept")
    for name in ("opaque", "opaque-twice", "opaque-late", "merged"):
        layer.add(f"{name}/", DIRECTORY, mode=0o711, uid=5, gid=6)
        layer.add(f"{name}/first", content=b"first")
        layer.add(f"{name}/sub", DIRECTORY)
        layer.add(f"{name}/sub/first", content=b"first")
    layer.add("implied/below", DIRECTORY, mode=0o700, uid=7, pax_headers=xattr("user.x", b"y"))
    layer.add("implied/link", SYMLINK, linkname="below")
    layer.add("implied/absolute", SYMLINK, linkname="/implied/link")
    layer.add("zeros", DIRECTORY)
    for name in ("last", "first", "linked"):
        layer.add(f"zeros/{name}", content=name.encode())
    for name in ("directory-last", "directory-first"):
        layer.add(f"zeros/{name}", DIRECTORY)
        layer.add(f"zeros/{name}/below", content=b"below")
    layer.add("opaque-implied", DIRECTORY)
    layer.add("opaque-implied/sub", DIRECTORY, mode=0o700, uid=7)
    layer.add("opaque-implied/sub/first")
    layer.add("relinked", DIRECTORY)
    layer.add("relinked/kept", content=b"two names, then one")
    layer.add("relinked/deleted", LINK, linkname="relinked/kept")


def names_and_sizes(layer: Layer) -> None:
    """Write names, sizes and numbers at their limits."""
    layer.add("names", DIRECTORY)
    layer.add("names/" + "n" * 255, content=b"the longest")
    layer.add("names/" + os.fsdecode(b"\xff\xfe not UTF-8 \x80"), content=b"bytes")
    layer.add("names/link", SYMLINK, linkname=os.fsdecode(b"\xc3\x28"))
    layer.add("names/new\nline", content=b"x")
    layer.add("many", DIRECTORY)
    for number in range(10_000):
        layer.add(f"many/{number}", content=b"%d" % number if number % 10 == 0 else b"")
    layer.add("linked", DIRECTORY)
    layer.add("linked/first", content=b"a thousand names")
    for number in range(1, 1000):
        layer.add(f"linked/{number:03}", LINK, linkname="linked/first")
    layer.add("sizes", DIRECTORY)
    noise = random.Random(3)  # noqa: S311 - the same each time
    for size in (0, 1, 4095, 4096, 4097, 131_072, 131_073, 1_000_003):
        layer.add(f"sizes/{size}", content=noise.randbytes(size))
    marks = {0: b"begin", 500_000_000: b"middle", GIBIBYTE - 3: b"end"}
    layer.add_zeros("sizes/gibibyte", GIBIBYTE, marks)


def attributes(layer: Layer) -> None:
    """Write every kind of file and every attribute."""
    layer.add("kinds", DIRECTORY)
    layer.add("kinds/fifo", FIFO, mode=0o620, uid=3)
    layer.add("kinds/null", CHARACTER, devmajor=1, devminor=3, mode=0o666)
    layer.add("kinds/disk", BLOCK, devmajor=259, devminor=70_000, mode=0o660)
    layer.add("kinds/dangling", SYMLINK, linkname="/nowhere", uid=9, gid=9)
    layer.add("kinds/link-to-symlink", LINK, linkname="kinds/dangling", uid=9, gid=9)
    layer.add("modes", DIRECTORY, mode=0o1777)
    layer.add("modes/set-uid", content=b"#!", mode=0o4755)
    layer.add("modes/set-gid", DIRECTORY, mode=0o2770, gid=50)
    layer.add("modes/none", content=b"x", mode=0)
    layer.add("owners", DIRECTORY, uid=70_000, gid=70_001)
    layer.add("owners/high", content=b"x", uid=4_000_000_000, gid=3_999_999_999)
    layer.add("times", DIRECTORY)
    layer.add("times/before-1970", pax_headers={"mtime": "-1000000"})
    layer.add("times/before-1970-and-a-bit", pax_headers={"mtime": "-1.25"})
    layer.add("times/directory-of-1969", DIRECTORY, pax_headers={"mtime": "-5"})
    layer.add("times/of-1970", mtime=0)
    layer.add("times/nanoseconds", pax_headers={"mtime": f"{TIME}.000000001"})
    layer.add("times/of-2100", pax_headers={"mtime": "4102444800.5"})
    layer.add("xattrs", DIRECTORY, pax_headers=xattr("user.directory", b"\0\1"))
    layer.add("xattrs/capable", pax_headers=xattr("security.capability", CAPABILITY), mode=0o755)
    layer.add("xattrs/long", pax_headers=xattr("user.long", bytes(range(256)) * 11 + b"x" * 184))
    layer.add("xattrs/several", pax_headers=xattr("user.a", b"1") | xattr("user.b", b"2"))
    layer.add("xattrs/empty", pax_headers=xattr("user.empty", b""))
    access = acl((1, 6, -1), (2, 4, 1234), (4, 4, -1), (16, 6, -1), (32, 0, -1))
    layer.add("xattrs/acl", pax_headers=xattr("system.posix_acl_access", access), mode=0o660)
    inherited = acl((1, 7, -1), (4, 5, -1), (8, 7, 77), (16, 7, -1), (32, 5, -1))
    layer.add(
        "xattrs/acl-default", DIRECTORY, pax_headers=xattr("system.posix_acl_default", inherited)
    )
    for name, value in (("opaque", b"y"), ("metacopy", b""), ("redirect", b"/kinds")):
        layer.add(f"xattrs/overlay-{name}", pax_headers=xattr(f"trusted.overlay.{name}", value))
    layer.add(
        "xattrs/overlay-directory", DIRECTORY, pax_headers=xattr("trusted.overlay.opaque", b"y")
    )
    layer.add("xattrs/overlay-directory/seen")
    layer.add("pax", DIRECTORY)
    layer.add("pax/deletions", pax_headers={"mtime": "", "uid": "", "path": ""}, uid=12)
    layer.add("pax/linked", content=b"x", mode=0o600, uid=1)
    layer.add("pax/link-says-otherwise", LINK, linkname="pax/linked", mode=0o640, uid=2)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Give an access control list as the kernel takes it: (tag, permissions, id; -1: none)."""
    packed = [struct.pack("<HHI", tag, bits, number & 0xFFFF_FFFF) for tag, bits, number in entries]
    return struct.pack("<I", 2) + b"".join(packed)


def second_layer(layer: Layer) -> None:
    """Change what is below, for the first time."""
    layer.add("changes", DIRECTORY)
    layer.add("changes/file-directory-file", DIRECTORY, mode=0o700)
    layer.add("changes/file-directory-file/second", content=b"second")
    layer.add("changes/directory-file-directory", content=b"now a file")
    layer.add("changes/.wh.deleted")
    layer.add("changes/.wh.deleted-and-back")
    layer.add("changes/symlink", DIRECTORY)
    layer.add("changes/zero-zero", CHARACTER, devmajor=0, devminor=0)
    layer.add("changes/zero-zero-over-nothing", CHARACTER, devmajor=0, devminor=0)
    layer.add("opaque/", DIRECTORY, mode=0o755)
    layer.add(f"opaque/{OPAQUE}")
    layer.add("opaque/second", content=b"second")
    layer.add("opaque-twice", DIRECTORY)
    layer.add(f"opaque-twice/{OPAQUE}")
    layer.add("opaque-twice/second", content=b"second")
    layer.add("opaque-late", DIRECTORY)
    layer.add("opaque-late/second", content=b"second")
    layer.add("merged", DIRECTORY, mode=0o711, uid=5, gid=6)
    layer.add("merged/sub", DIRECTORY)
    layer.add("merged/sub/.wh.first")
    layer.add("merged/sub/second", content=b"second")
    layer.add("implied/deep/file", content=b"two directories that nobody listed")
    layer.add("implied/below/file", content=b"a directory of the layer below")
    layer.add("implied/link/file", content=b"over a link to a directory")
    layer.add("implied/absolute/file", content=b"over a link to the root")
    layer.add("opaque-implied", DIRECTORY)
    layer.add(f"opaque-implied/{OPAQUE}")
    layer.add("opaque-implied/sub/second", content=b"second")
    layer.add("relinked", DIRECTORY)
    layer.add("relinked/.wh.deleted")


def third_layer(layer: Layer) -> None:
    """Change it back."""
    layer.add("changes", DIRECTORY)
    layer.add("changes/file-directory-file", content=b"a file again")
    layer.add("changes/directory-file-directory", DIRECTORY, mode=0o705)
    layer.add("changes/directory-file-directory/third", content=b"third")
    layer.add("changes/deleted-and-back", content=b"back")
    layer.add("opaque", DIRECTORY)
    layer.add("opaque/first", content=b"first again")
    layer.add("opaque/sub", DIRECTORY)
    layer.add("opaque/sub/third", content=b"third")
    layer.add("opaque-twice", DIRECTORY)
    layer.add(f"opaque-twice/{OPAQUE}")
    layer.add("opaque-twice/third", content=b"third")
    layer.add("merged", DIRECTORY)
    layer.add("merged/sub", DIRECTORY)
    layer.add("merged/sub/first", content=b"first again")
    layer.add("merged/sub/.wh.second")


def fourth_layer(layer: Layer) -> None:
    """Hide and delete once more; some of what is deleted is not there."""
    layer.add("changes", DIRECTORY)
    layer.add("changes/.wh.never-was")
    layer.add("changes/.wh.deleted-and-back")
    layer.add("opaque", DIRECTORY)
    layer.add("opaque/sub", DIRECTORY, mode=0o500)
    layer.add(f"opaque/sub/{OPAQUE}")
    layer.add("opaque-late", DIRECTORY)
    layer.add(f"opaque-late/{OPAQUE}")
    layer.add("opaque-late/sub", DIRECTORY)
    layer.add("opaque-late/sub/fourth", content=b"fourth")
    layer.add("merged", DIRECTORY)
    layer.add("merged/sub", DIRECTORY)


def zeros_in_order(layer: Layer) -> None:
    """Write character devices 0/0 before and after what has the same name in the layer."""
    layer.add("zeros", DIRECTORY)
    for name in ("last", "new"):
        layer.add(f"zeros/{name}", content=b"is hidden")
        layer.add(f"zeros/{name}", CHARACTER)
    layer.add("zeros/first", CHARACTER)
    layer.add("zeros/first", content=b"is seen")
    layer.add("zeros/directory-last", DIRECTORY)
    layer.add("zeros/directory-last/above", content=b"is hidden")
    layer.add("zeros/directory-last", CHARACTER)
    layer.add("zeros/directory-first", CHARACTER)
    layer.add("zeros/directory-first", DIRECTORY)
    layer.add("zeros/directory-first/above", content=b"is seen, and what is below")
    layer.add("zeros/target", content=b"by its other name")
    layer.add("zeros/other-name", LINK, linkname="zeros/target")
    layer.add("zeros/target", CHARACTER)
    layer.add("zeros/zeros", CHARACTER)
    layer.add("zeros/linked", LINK, linkname="zeros/zeros")
    layer.add("zeros", DIRECTORY)


def below_links(layer: Layer) -> None:
    """Write the files that a layer above links to."""
    layer.add("./", DIRECTORY)
    layer.add("below", DIRECTORY)
    for name in ("one", "two", "three"):
        layer.add(f"below/{name}", content=name.encode(), mode=0o600, uid=4)
    layer.add("below/symlink", SYMLINK, linkname="one")


def links_across_layers(layer: Layer) -> None:
    """Link to files of the layer below, and of this one."""
    layer.add("above", DIRECTORY)
    layer.add("above/one", LINK, linkname="below/one", mode=0o600, uid=4)
    layer.add("above/one-more", LINK, linkname="above/one", mode=0o600, uid=4)
    layer.add("below", DIRECTORY)
    layer.add("below/two", content=b"another two")
    layer.add("above/two", LINK, linkname="below/two")
    layer.add("above/symlink", LINK, linkname="below/symlink")
    layer.add("above", DIRECTORY)


if __name__ == "__main__":
    print(nasty_tree().directory, file=sys.stderr)  # noqa: T201 - for whoever runs it
