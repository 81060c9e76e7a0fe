"""What is mounted where: the text of /proc/self/mountinfo as values.

Source: Documentation/filesystems/proc.rst, section 3.5.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lazyimg.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Sequence

_ESCAPE = re.compile(rb"\\([0-7]{3})")
_ESCAPED = re.compile(rb"[ \t\n\\#]")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line: paths are as the file system has them, options are split but not unescaped.

    Attributes:
        mount_id: unique among the mounts that exist.
        parent_id: the mount that this one lies on.
        device: st_dev of its files, as (major, minor).
        root: the directory of the file system that is mounted; not "/" for a bind mount of one.
        mount_point: where it is mounted, as this process sees it.
        options: of this mount: ro, nosuid, ...
        fs_type: such as erofs, overlay.
        source: what was mounted, or any text.
        super_options: of the file system: fsid=..., lowerdir=...
    """

    mount_id: int
    parent_id: int
    device: tuple[int, int]
    root: str
    mount_point: str
    options: tuple[str, ...]
    fs_type: str
    source: str
    super_options: tuple[str, ...]

    def super_option(self, name: str) -> str | None:
        """Give the value of a file system option, or None if it is not set."""
        prefix = f"{name}="
        for option in self.super_options:
            if option.startswith(prefix):
                return option[len(prefix) :]
        return None


def parse_mount_table(text: bytes) -> list[MountEntry]:
    """Give the mounts in the bytes of /proc/self/mountinfo, in its order.

    Raises:
        KernelError: a line that the format does not allow.
    """
    entries = []
    for number, line in enumerate(text.split(b"\n"), 1):
        if line:
            try:
                entries.append(_parse_line(line))
            except (ValueError, IndexError) as error:
                raise KernelError(
                    "/proc/self/mountinfo", f"line {number} is not understood: {line!r}"
                ) from error
    return entries


def parse_mounts_on(text: bytes, mount_point: str) -> list[MountEntry]:
    """Give the mounts on one path: with thousands of others, far less work than all.

    Raises:
        KernelError: a line about it that the format does not allow.
    """
    name = os.fsencode(mount_point)
    if not _ESCAPED.search(name):
        text = b"\n".join(line for line in text.split(b"\n") if b" %b " % name in line)
    return [entry for entry in parse_mount_table(text) if entry.mount_point == mount_point]


def _parse_line(line: bytes) -> MountEntry:
    fields = line.split(b" ")
    separator = fields.index(b"-", 6)  # any number of optional fields comes before it
    fs_type, source, super_options = fields[separator + 1 : separator + 4]
    major, minor = fields[2].split(b":")
    return MountEntry(
        int(fields[0]),
        int(fields[1]),
        (int(major), int(minor)),
        _unescape(fields[3]),
        _unescape(fields[4]),
        tuple(os.fsdecode(fields[5]).split(",")),
        _unescape(fs_type),
        _unescape(source),
        tuple(os.fsdecode(super_options).split(",")),
    )


def _unescape(field: bytes) -> str:
    """Space, tab, newline, backslash and # are written as a backslash and three octal digits."""
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))


def find_mount(entries: list[MountEntry], path: str) -> MountEntry | None:
    """Give the mount that an absolute, normalized path lies on: the last one of the longest match.

    None only if the table has no root.
    """
    best: MountEntry | None = None
    for entry in entries:
        point = entry.mount_point
        inside = point in {"/", path} or path.startswith(f"{point}/")
        if inside and (best is None or len(point) >= len(best.mount_point)):
            best = entry
    return best


def mount_at(entries: Sequence[MountEntry], mount_point: str) -> MountEntry | None:
    """Give the topmost mount whose mount point is exactly this path, or None."""
    for entry in reversed(entries):
        if entry.mount_point == mount_point:
            return entry
    return None
