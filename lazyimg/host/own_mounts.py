"""Which mounts are ours; refusing to serve, and to mount on, what this process itself depends on.

A page of the interpreter, of a library, of the cache or of the state that comes from a mount which
this process serves would make it wait for itself: for good, and unkillably.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final

from lazyimg.errors import ConfigurationError, UsageError
from lazyimg.host.domains import is_domain_of
from lazyimg.host.mount_table import MountEntry, find_mount, parse_mount_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SYSTEM_PATHS: Final = ("/dev", "/etc", "/proc", "/run", "/sys", "/tmp")  # noqa: S108 - a name only
"""What any process may look for at any time: devices, name service, certificates, ..."""

_PLACES: Final = ("bootstraps", "loops")


@dataclass(frozen=True, slots=True)
class OwnMounts:
    """How the mount table tells a daemon's mounts from others'.

    Attributes:
        root: the daemon's directory, as the mount table has it.
        domain_id: the first of those in which images are mounted through the kernel's cache.
    """

    root: Path
    domain_id: str

    def is_image(self, mount: MountEntry) -> bool:
        """Whether an entry is a mount of an image, of whatever kind."""
        if mount.fs_type != "erofs":
            return False
        fsid = fsid_of(mount)
        from_file = mount.source in {f"{self.root}/{place}/{fsid}" for place in _PLACES}
        return from_file or is_domain_of(mount.super_option("domain_id"), self.domain_id)

    def is_served(self, mount: MountEntry) -> bool:
        """Whether reading there may wait for the daemon."""
        return self.is_image(mount) or mount.mount_point == f"{self.root}/fuse"


def fsid_of(mount: MountEntry) -> str | None:
    """Give the fsid of the image that a mount shows; None if it shows none.

    An image that is mounted from a file has the file's name: ROOT/bootstraps/FSID; by loop
    devices, ROOT/loops/FSID.
    """
    if mount.fs_type != "erofs":
        return None
    path = PurePath(mount.source)
    return mount.super_option("fsid") or (path.name if path.parent.name in _PLACES else None)


def refuse_own_mounts(own: OwnMounts, directories: Iterable[Path]) -> None:
    """Check that nothing this process needs lies on a mount that it serves.

    Args:
        own: what it is about to serve.
        directories: the cache, the state: what it will use besides what it runs from.

    Looks at no file of a mount: only at names, so that it cannot wait for one.

    Raises:
        ConfigurationError: something does.
        KernelError: the mount table is not understood.
    """
    entries = parse_mount_table(Path("/proc/self/mountinfo").read_bytes())
    paths = [*own_paths(), *map(os.path.abspath, directories)]
    found = find_served(entries, own, paths)
    if found is not None:
        path, entry = found
        raise ConfigurationError(
            path,
            f"it lies on {entry.mount_point}, which this process would serve itself",
            "run lazyimg from, and keep its state on, a file system of the host",
        )


def refuse_covering(directory: str, directories: Sequence[Path]) -> None:
    """Check that a mount of ours on `directory` would hide nothing that this process needs.

    Args:
        directory: absolute and normalized. It is not looked at: it may lie in a mount of ours.
        directories: the cache, the state: what this process uses besides what it runs from. It
            needs whatever is in them.

    Raises:
        UsageError: it would.
    """
    ours = set(map(os.path.abspath, directories)) | set(map(os.path.realpath, directories))
    inside = [path for path in sorted(ours) if directory.startswith(f"{path}/")]
    hidden = [
        path
        for path in [*sorted(ours), *SYSTEM_PATHS, *own_paths()]
        if directory in {"/", path} or path.startswith(f"{directory}/")
    ]
    if inside or hidden:
        place = f"inside {inside[0]}" if inside else f"that hides {hidden[0]}"
        raise UsageError(
            directory,
            f"a mount {place}, which the daemon needs itself, is refused",
            "choose another directory",
        )


def own_paths() -> list[str]:
    """Give the absolute paths that this process runs from: code, libraries, working directory."""
    paths = {sys.executable, sys.prefix, sys.base_prefix, working_directory()}
    paths.update(path for path in sys.path if path.startswith("/"))
    paths.update(parse_mapped_files(Path("/proc/self/maps").read_bytes()))
    return sorted(paths)


def working_directory() -> str:
    """Give the working directory's path, also when it was removed: then with a remark."""
    return str(Path("/proc/self/cwd").readlink())


def parse_mapped_files(text: bytes) -> set[str]:
    """Give the files in the bytes of /proc/self/maps. Source: proc(5)."""
    files = set()
    for line in text.split(b"\n"):
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5].startswith(b"/"):
            files.add(os.fsdecode(fields[5].removesuffix(b" (deleted)")))
    return files


def find_served(
    entries: list[MountEntry], own: OwnMounts, paths: Iterable[str]
) -> tuple[str, MountEntry] | None:
    """Give the first path that lies on a mount that is served, or on an overlay over one."""
    for path in paths:
        entry = find_mount(entries, path)
        if entry is not None and _is_served(entries, entry, own):
            return path, entry
    return None


def _is_served(entries: list[MountEntry], entry: MountEntry, own: OwnMounts) -> bool:
    if entry.fs_type != "overlay":
        return own.is_served(entry)
    lower = entry.super_option("lowerdir") or ""
    below = (find_mount(entries, part) for part in lower.split(":") if part.startswith("/"))
    return any(mount is not None and own.is_served(mount) for mount in below)
