"""The cache's files on disk: `<dir>/cache/Ierofs,<volume>/@xx/D<cookie>`.

For objects that are not open. A file is there once its object was closed; an object that is opened
for the first time is an unlinked file until then.

Source: fs/cachefiles/{volume,key,namei}.c.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lazyimg.host.domains import is_domain_of
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


def find_strays(directory: Path, domain_id: str, first: str, cookies: Iterable[str]) -> set[str]:
    """Give those cookies that another one of our domains has a file of. Raises OSError."""
    wanted = set(cookies)
    found: set[str] = set()
    for other in other_domains(directory, domain_id, first):
        found |= find_linked(directory, other, wanted)
    return found


def move_strays(directory: Path, domain_id: str, first: str, cookies: Iterable[str]) -> None:
    """Let files of our other domains take the places of those in this one, which nothing has open.

    Where a file goes within a domain is the kernel's to say: it has made one there.

    Raises OSError.
    """
    for cookie in cookies:
        place = find_backing_file(directory, domain_id, cookie)
        for other in other_domains(directory, domain_id, first):
            stray = find_backing_file(directory, other, cookie)
            if place is not None and stray is not None:
                stray.rename(place)
                break


def other_domains(directory: Path, domain_id: str, first: str) -> list[str]:
    """Give our domains but this one that the cache has had files of. Raises OSError."""
    try:
        names = [path.name.removeprefix("Ierofs,") for path in (directory / "cache").iterdir()]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if name != domain_id and is_domain_of(name, first))


def present_on_disk(path: Path) -> list[range]:
    """Give the ranges of whole blocks, in bytes, that hold data. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return find_present(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)
