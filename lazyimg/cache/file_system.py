"""Whether a directory lies on a file system that can hold the cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from lazyimg.errors import CacheUnsuitableError
from lazyimg.host.mount_table import find_mount, parse_mount_table

_REMEDY: Final = "put it on ext4, xfs or btrfs"

_REASONS: Final = {
    "tmpfs": "EROFS cannot be mounted from files in memory",
    "ramfs": "EROFS cannot be mounted from files in memory",
    "overlay": "EROFS cannot be mounted from files of an overlay",
    "fuse": "EROFS would wait for the process that serves them",
}


def check_directory(directory: Path) -> None:
    """Refuse a directory on a file system from whose files EROFS cannot be mounted.

    Raises:
        CacheUnsuitableError: it is one, or the directory cannot be written to.
        OSError: the mount table cannot be read.
        KernelError: it is not understood.
    """
    table = parse_mount_table(Path("/proc/self/mountinfo").read_bytes())
    mount = find_mount(table, os.path.realpath(directory))
    kind = "" if mount is None else mount.fs_type
    reason = _REASONS.get(kind.partition(".")[0])
    if reason is not None:
        raise CacheUnsuitableError(str(directory), f"it lies on {kind}: {reason}", _REMEDY)
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise CacheUnsuitableError(
            str(directory), f"no file can be made in it: {error.strerror}", _REMEDY
        ) from error
