"""The cache's files on disk: `<dir>/cache/Ierofs,<volume>/@xx/D<cookie>`.

For objects that are not open. A file is there once its object was closed; an object that is opened
for the first time is an unlinked file until then.

Source: fs/cachefiles/{volume,key,namei}.c.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lazyimg.transports.cachefiles.object_file import find_present

if TYPE_CHECKING:
    from pathlib import Path


def find_backing_file(directory: Path, domain_id: str, cookie: str) -> Path | None:
    """Give the file of a cookie, or None; `directory` is the one that the kernel was told.

    Raises OSError if the cache cannot be read.
    """
    volume = directory / "cache" / f"Ierofs,{domain_id}"
    try:
        fan_outs = list(volume.iterdir())
    except FileNotFoundError:
        return None
    for fan_out in fan_outs:
        path = fan_out / f"D{cookie}"
        if path.is_file():
            return path
    return None


def present_on_disk(path: Path) -> list[range]:
    """Give the ranges of whole blocks, in bytes, that hold data. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return find_present(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)
