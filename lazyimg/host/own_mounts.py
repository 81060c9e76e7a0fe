"""Refusing to serve, and to mount on, what this process itself depends on.

A page of the interpreter, of a library, of the cache or of the state that comes from a mount which
this process serves would make it wait for itself: for good, and unkillably.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lazyimg.errors import ConfigurationError, UsageError
from lazyimg.host.domains import is_domain_of
from lazyimg.host.mount_table import MountEntry, find_mount, parse_mount_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SYSTEM_PATHS: Final = ("/dev", "/etc", "/proc", "/run", "/sys", "/tmp")  # noqa: S108 - a name only
"""What any process may look for at any time: devices, name service, certificates, ..."""


def refuse_own_mounts(domain_id: str, directories: Iterable[Path]) -> None:
    """Check that nothing this process needs lies on a mount of our domain.

    Args:
        domain_id: of the mounts that this process is about to serve; the first of them.
        directories: the cache, the state: what it will use besides what it runs from.

    Looks at no file of a mount: only at names, so that it cannot wait for one.

    Raises:
        ConfigurationError: something does.
        KernelError: the mount table is not understood.
    """
    entries = parse_mount_table(Path("/proc/self/mountinfo").read_bytes())
    paths = [*own_paths(), *map(os.path.abspath, directories)]
    found = find_served(entries, domain_id, paths)
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
    entries: list[MountEntry], domain_id: str, paths: Iterable[str]
) -> tuple[str, MountEntry] | None:
    """Give the first path that lies on a mount of the domain, or on an overlay over one."""
    for path in paths:
        entry = find_mount(entries, path)
        if entry is not None and _is_served(entries, entry, domain_id):
            return path, entry
    return None


def _is_served(entries: list[MountEntry], entry: MountEntry, domain_id: str) -> bool:
    if entry.fs_type == "erofs":
        return is_domain_of(entry.super_option("domain_id"), domain_id)
    if entry.fs_type != "overlay":
        return False
    lower = entry.super_option("lowerdir") or ""
    below = (find_mount(entries, part) for part in lower.split(":") if part.startswith("/"))
    return any(
        mount is not None
        and mount.fs_type == "erofs"
        and is_domain_of(mount.super_option("domain_id"), domain_id)
        for mount in below
    )
