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
    from collections.abc import Iterable
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


def find_linked(directory: Path, domain_id: str, cookies: Iterable[str]) -> set[str]:
    """Give those cookies that have a file, in one pass over the cache. Raises OSError."""
    volume = directory / "cache" / f"Ierofs,{domain_id}"
    wanted = {f"D{cookie}": cookie for cookie in cookies}
    found: set[str] = set()
    try:
        with os.scandir(volume) as fan_outs:
            for fan_out in fan_outs:
                if fan_out.is_dir():
                    names = os.listdir(fan_out.path)  # noqa: PTH208  256 of them
                    found.update(wanted[name] for name in names if name in wanted)
    except FileNotFoundError:
        return found  # nothing was ever cached
    return found


def present_on_disk(path: Path) -> list[range]:
    """Give the ranges of whole blocks, in bytes, that hold data. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return find_present(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)
