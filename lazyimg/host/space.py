"""When a cache is culled, and when it stops taking data: six percentages.

The kernel, for its cache, looks at the file system that holds it: below `bcull` per cent of free
blocks (or `fcull` of free inodes) it asks for culling, until `brun` (`frun`) are free; below
`bstop` (`fstop`) it refuses writes with ENOBUFS and lets nothing new be mounted. Our own cache
(`lazyimg.cache`) does the same.

Source: Documentation/filesystems/caching/cachefiles.rst, fs/cachefiles/cache.c.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lazyimg.errors import ConfigurationError
from lazyimg.host.mount_table import find_mount, parse_mount_table

REMEDY: Final = "free some, or lower the cache's limits"
"""What to do about a shortage."""

NEAR: Final = 8 << 20
"""Bytes above `bstop`: for each write the kernel counts all those under way as done."""

_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """Free space in per cent: of blocks (b) and of inodes (f); 0 <= stop < cull < run < 100.

    Raises:
        ConfigurationError: the order is another.
    """

    brun: int = 7
    bcull: int = 5
    bstop: int = 1
    frun: int = 7
    fcull: int = 5
    fstop: int = 1

    def __post_init__(self) -> None:
        for unit, stop, cull, run in (
            ("b", self.bstop, self.bcull, self.brun),
            ("f", self.fstop, self.fcull, self.frun),
        ):
            if not 0 <= stop < cull < run < 100:
                raise ConfigurationError(
                    "cache limits",
                    f"{unit}stop={stop}, {unit}cull={cull}, {unit}run={run} are not in order",
                    f"set 0 <= {unit}stop < {unit}cull < {unit}run < 100",
                )


def find_top(directory: Path) -> Path:
    """Give the mount point of the mount that a directory lies on.

    There the kernel asks for the free space (`cachefiles_has_space`). In the directory itself the
    answer may be another: what is left of its project's quota.

    Raises:
        OSError: the mount table cannot be read.
        KernelError: it is not understood.
    """
    table = parse_mount_table(Path("/proc/self/mountinfo").read_bytes())
    mount = find_mount(table, os.path.realpath(directory))
    return directory if mount is None else Path(mount.mount_point)


@dataclass(frozen=True, slots=True)
class CacheSpace:
    """The free space of a cache's file system, as the kernel judges it.

    Attributes:
        directory: the cache's.
        limits: what the kernel was told, or what our own cache shall keep to.
        top: where the kernel looks (`find_top`).
    """

    directory: Path
    limits: CacheLimits
    top: Path

    def shortage(self, *, near: bool = False) -> str:
        """Say why nothing is stored now; "" when there is room. Raises OSError.

        Args:
            near: whether a large write counts as one that there is no room for.
        """
        claimed = NEAR if near else 0
        if self._free_below(self.limits.bstop, self.limits.fstop, claimed):
            return (
                f"{self.directory} has less than {self.limits.bstop} % of its space left"
                f" (or {self.limits.fstop} % of its inodes)"
            )
        now = os.statvfs(self.top)
        if not now.f_bavail:
            return f"{self.directory} has no space left"
        if now.f_files and not now.f_ffree:
            return f"{self.directory} has no inode left"
        return self._refusal()

    def _refusal(self) -> str:
        """Say why the directory takes no file with a block; a quota may be used up."""
        try:
            with os.fdopen(os.open(self.directory, os.O_TMPFILE | os.O_WRONLY, 0o600)) as file:
                os.posix_fallocate(file.fileno(), 0, _BLOCK)
        except OSError as error:
            return f"{self.directory} takes no more: {error.strerror}"
        return ""

    def room(self) -> int:
        """Give the bytes that may be stored until `bstop` is reached. Raises OSError."""
        now = os.statvfs(self.top)
        if now.f_ffree * 100 < now.f_files * self.limits.fstop:
            return 0
        return max(0, (now.f_bavail - now.f_blocks * self.limits.bstop // 100) * now.f_frsize)

    def reserve(self) -> int:
        """Give the bytes that stay free: `bstop`. Raises OSError."""
        now = os.statvfs(self.top)
        return now.f_blocks * self.limits.bstop // 100 * now.f_frsize

    def below_cull(self) -> bool:
        """Tell whether culling should begin. Raises OSError."""
        return self._free_below(self.limits.bcull, self.limits.fcull)

    def below_run(self) -> bool:
        """Tell whether culling, once begun, goes on. Raises OSError."""
        return self._free_below(self.limits.brun, self.limits.frun)

    def _free_below(self, blocks_percent: int, files_percent: int, claimed: int = 0) -> bool:
        """Compare what is free, less `claimed` bytes, with percentages of all."""
        now = os.statvfs(self.top)
        return (
            now.f_bavail - claimed / now.f_frsize
        ) * 100 < now.f_blocks * blocks_percent or now.f_ffree * 100 < now.f_files * files_percent
