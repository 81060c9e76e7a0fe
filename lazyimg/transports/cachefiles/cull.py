"""Culling: removing files that nothing uses from the cache, the longest unread first.

The kernel's `cull` command acts on a name in the working directory of the calling thread, and
refuses a file in use (EBUSY). So a round of culling must run in a thread that has given up sharing
the working directory with its process: `run_culling` does both.

Source: fs/cachefiles/daemon.c, fs/cachefiles/namei.c.
"""

from __future__ import annotations

import ctypes
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from errno import EBUSY, ENOENT, ESTALE
from typing import TYPE_CHECKING, Final

from lazyimg.logs import Repeats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from lazyimg.host.space import CacheSpace

_CLONE_FS: Final = 0x200  # include/uapi/linux/sched.h

_log = logging.getLogger(__name__)

_fruitless: Final = Repeats(600.0)  # rounds that removed nothing: one every few seconds


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file of the cache: where it is, when it was last used (ns), the bytes it takes on disk."""

    directory: str
    name: str
    used_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class Culled:
    """What a round did: files and bytes removed, files left because they are in use."""

    files: int
    size: int
    in_use: int


def find_candidates(cache: Path) -> list[Candidate]:
    """Give the files in a cache directory (`<dir>/cache`), the longest unread first.

    What vanishes or cannot be read meanwhile is left out. Raises OSError if the top cannot be read.
    """
    found: list[Candidate] = []
    for volume in _directories(os.fspath(cache)):
        with suppress(OSError):
            for fan_out in _directories(volume):
                with suppress(OSError):
                    found.extend(_files(fan_out))
    found.sort(key=lambda candidate: candidate.used_ns)
    return found


def _directories(top: str) -> list[str]:
    with os.scandir(top) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def _files(fan_out: str) -> Iterator[Candidate]:
    with os.scandir(fan_out) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False) and _can_be_named(entry.name):
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    used = max(status.st_atime_ns, status.st_mtime_ns)
                    yield Candidate(fan_out, entry.name, used, status.st_blocks * 512)


def _can_be_named(name: str) -> bool:
    """A command is one line; the kernel's own names are printable."""
    return name.isascii() and name.isprintable() and " " not in name


def cull_until(
    enough: Callable[[], bool],
    candidates: Sequence[Candidate],
    command: Callable[[bytes], None],
) -> Culled:
    """Remove candidates, in their order, until `enough`; changes the working directory.

    Raises:
        OSError: the kernel refuses culling altogether.
    """
    files = size = in_use = 0
    for candidate in candidates:
        if enough():
            break
        try:
            os.chdir(candidate.directory)
            command(b"cull " + candidate.name.encode())
        except OSError as error:
            if error.errno == EBUSY:
                in_use += 1
            elif error.errno not in {ENOENT, ESTALE}:
                raise
        else:
            files += 1
            size += candidate.size
    return Culled(files, size, in_use)


def run_culling(space: CacheSpace, command: Callable[[bytes], None]) -> Culled | None:
    """Do a round of culling; to be called in a thread of its own, which ends afterwards.

    Gives None, and logs why, if it could not be done.
    """
    try:
        _leave_shared_directory()
        candidates = find_candidates(space.directory / "cache")
        culled = cull_until(lambda: not space.below_run(), candidates, command)
    except OSError as error:
        more = _fruitless.due((space.directory, error.errno))
        if more is not None:
            _log.warning("cannot cull the cache in %s: %s%s", space.directory, error, more)
        return None
    more = "" if culled.files else _fruitless.due(space.directory)
    if more is not None:
        _log.info(
            "culled %d files (%d MB) from the cache; %d are in use%s",
            culled.files,
            culled.size // 1_000_000,
            culled.in_use,
            more,
        )
    return culled


def _leave_shared_directory() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_FS):
        number = ctypes.get_errno()
        raise OSError(number, f"unshare(CLONE_FS): {os.strerror(number)}")
