"""A layer over a Debian with nginx that does everything a layer may do."""

from __future__ import annotations

import io
import posixpath
import random
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.real.layer_difference import WHITEOUT, Fact, parents, read_facts

if TYPE_CHECKING:
    from pathlib import Path

OPAQUE: Final = ".wh..wh..opq"
DIRECTORY, FILE, SYMLINK, LINK = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
TIME: Final = 1_700_000_000
CAPABILITY: Final = bytes.fromhex("0100000200040000000000000000000000000000")  # net_bind_service


@dataclass
class LayerWriter:
    """Writes a layer over a root with known facts; refuses changes that would change nothing.

    Every directory above a change is in the layer too: the time of one that is not would be that
    of its unpacking.
    """

    tar: tarfile.TarFile
    below: dict[str, Fact]
    _written: set[str] = field(default_factory=set)

    def delete(self, name: str) -> None:
        """Write a whiteout for something that is there."""
        assert name in self.below, f"{name} is not in the layers below"
        directory, base = posixpath.split(name)
        self._write(posixpath.join(directory, WHITEOUT + base), FILE)

    def hide(self, directory: str) -> None:
        """Make a directory opaque that has something in it."""
        assert any(name.startswith(f"{directory}/") for name in self.below), directory
        self._write(f"{directory}/{OPAQUE}", FILE)

    def replace(self, name: str, kind: bytes, content: bytes = b"", **values: object) -> None:
        """Write something of any kind in the place of what is there."""
        assert name in self.below, f"{name} is not in the layers below"
        self._write(name, kind, content, **values)

    def add(self, name: str, kind: bytes, content: bytes = b"", **values: object) -> None:
        """Write something new."""
        assert name not in self.below, f"{name} is in the layers below"
        self._write(name, kind, content, **values)

    def _write(self, name: str, kind: bytes, content: bytes = b"", **values: object) -> None:
        assert name not in self._written, f"{name} is written twice"
        for parent in parents(name):
            if parent not in self._written:
                self._write(parent, DIRECTORY)
        self._written.add(name)
        member = tarfile.TarInfo(name)
        member.type, member.size, member.mtime = kind, len(content), TIME
        member.mode = 0o755 if kind == DIRECTORY else 0o644
        for attribute, value in values.items():
            setattr(member, attribute, value)
        self.tar.addfile(member, io.BytesIO(content))


def write_nasty_layer(target: Path, *below: Path) -> None:
    """Write the layer to `target`, to lie over the layers in the tars `below`."""
    facts: dict[str, Fact] = {}
    for path in below:
        facts |= read_facts(path)
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        layer = LayerWriter(tar, facts)
        write_deletions(layer)
        write_replacements(layer)
        write_opaque_directories(layer)
        write_additions(layer)
        write_many_files(layer)


def write_deletions(layer: LayerWriter) -> None:
    """Delete a file, a symlink, a tree, and one of two names of an inode."""
    linked = min(name for name, fact in layer.below.items() if fact.kind == LINK)
    for name in ("etc/issue", "etc/rc0.d/K01hwclock.sh", "usr/share/common-licenses", linked):
        layer.delete(name)


def write_replacements(layer: LayerWriter) -> None:
    """Put each kind of file in the place of another, and change what only an inode says."""
    layer.replace("etc/issue.net", FILE, b"another text\n")
    layer.replace("etc/debian_version", DIRECTORY, mode=0o711)
    layer.add("etc/debian_version/child", FILE, b"below what was a file\n")
    layer.replace("etc/nginx/snippets", FILE, b"this was a directory with files\n")
    layer.replace("usr/share/base-passwd", SYMLINK, linkname="base-files")
    layer.replace("etc/os-release", FILE, b"this was a symlink\n")
    layer.replace("etc/motd", SYMLINK, linkname="issue.net")
    layer.replace("usr/local/src", tarfile.FIFOTYPE, mode=0o620)
    layer.replace("srv", DIRECTORY, mode=0o2770, uid=1000, gid=33)
    layer.delete("etc/host.conf")
    layer.replace("etc/host.conf", FILE, b"deleted and made in one layer\n")


def write_opaque_directories(layer: LayerWriter) -> None:
    """Hide what directories had: the marker before, after and without new children."""
    layer.hide("usr/share/nginx/html")
    layer.add("usr/share/nginx/html/new.html", FILE, b"<p>new</p>\n")
    layer.add("usr/share/doc/new", FILE, b"the only one here\n")
    layer.hide("usr/share/doc")
    layer.hide("usr/share/bug")
    layer.hide("etc/pam.d")
    layer.replace("etc/pam.d/other", FILE, b"made again below the marker\n")
    layer.hide("usr/share/perl5")
    layer.add("usr/share/perl5/Debconf/new", FILE, b"in a directory made again\n")


def write_additions(layer: LayerWriter) -> None:
    """Add every kind of file, with every kind of attribute."""
    random_bytes = random.Random(1).randbytes  # noqa: S311 - the same bytes every time
    layer.add("opt/empty", FILE)
    layer.add("opt/one-byte", FILE, b"1")
    layer.add("opt/one-block", FILE, random_bytes(4096))
    layer.add("opt/block-and-byte", FILE, random_bytes(4097))
    layer.add("opt/big", FILE, random_bytes(5_000_001))
    layer.add("opt/zeros", FILE, bytes(3_000_000))
    layer.add("opt/zeros-inside", FILE, b"begin" + bytes(2_000_000) + b"end")
    layer.add("opt/first-name", FILE, b"an inode with three names\n", mode=0o600)
    layer.add("opt/second-name", LINK, linkname="opt/first-name")
    layer.add("opt/below/third-name", LINK, linkname="opt/first-name")
    layer.add("opt/fifo", tarfile.FIFOTYPE, uid=33, gid=33)
    layer.add("opt/null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
    layer.add("opt/disk", tarfile.BLKTYPE, devmajor=259, devminor=70_000, gid=6, mode=0o660)
    layer.add("opt/set-id", FILE, b"#!/bin/sh\n", mode=0o6755)
    layer.add("opt/sticky", DIRECTORY, mode=0o1777)
    layer.add("opt/nobody", FILE, uid=65_534, gid=65_534)
    layer.add("opt/high-ids", FILE, uid=2_000_000_000, gid=3_000_000_000)
    layer.add("opt/of-1970", FILE, mtime=0)
    layer.add("opt/of-2100", FILE, mtime=4_102_444_800)
    layer.add("opt/nanoseconds", FILE, pax_headers={"mtime": f"{TIME}.123456789"})
    layer.add("opt/Größe 大小", FILE, b"a name in UTF-8\n")
    layer.add("opt/" + "n" * 255, FILE, b"the longest name\n")
    layer.add("opt/" + "/".join(letter * 90 for letter in "abcdef"), FILE, b"a long path\n")
    layer.add("opt/long-target", SYMLINK, linkname="/".join("t" * 100 for _ in range(20)))
    layer.add("opt/dangling", SYMLINK, linkname="/nowhere", uid=7, gid=8)
    layer.add(
        "opt/capable", FILE, b"#!/bin/sh\n", pax_headers=xattr("security.capability", CAPABILITY)
    )
    annotated = xattr("user.note", b"text") | xattr("user.binary", bytes(range(256)))
    layer.add("opt/annotated", FILE, pax_headers=annotated)
    layer.add("opt/not-annotated", FILE, pax_headers=xattr("user.gone", b""))  # empty: no record
    layer.add("opt/annotated-directory", DIRECTORY, pax_headers=xattr("user.long", b"x" * 1000))


def xattr(name: str, value: bytes) -> dict[str, str]:
    """Return the PAX record of an extended attribute; its bytes travel as surrogates."""
    return {f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")}


def write_many_files(layer: LayerWriter) -> None:
    """Add a directory that needs many blocks of names."""
    for number in range(3000):
        layer.add(f"opt/many/file-with-a-rather-long-name-{number:05}", FILE, b"%d\n" % number)
