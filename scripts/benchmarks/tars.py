"""Tars to measure with: of this machine's own files, and of many small ones."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACES: Final = (Path(os.__file__).parent, Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/bin"))
LARGE: Final = 16 << 20
"""Bytes; larger files are left out."""


def tar_of_machine(size: int) -> bytes:
    """Give a tar with `size` bytes of files of this machine: Python's library, then programs."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for path, name in _files():
            if target.tell() >= size:
                break
            tar.add(path, name, recursive=False, filter=_as_builders_do)
    return target.getvalue()


def _as_builders_do(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out what most layers leave out: fractions of seconds, and so extended headers."""
    info.mtime = int(info.mtime)
    return info


def _files() -> Iterator[tuple[Path, str]]:
    """Give files and directories, and what to call them, which is not long."""
    for place in PLACES:
        for directory, _, names in os.walk(place):
            top = Path("usr", place.name, Path(directory).relative_to(place))
            yield Path(directory), str(top)
            for name in sorted(names):
                path = Path(directory, name)
                state = path.lstat()
                if stat.S_ISREG(state.st_mode) and state.st_size <= LARGE:
                    yield path, str(top / name)


def tar_of_small_files(entries: int, *, seed: int = 0, per_directory: int = 50) -> bytes:
    """Give a tar with so many entries: directories of small files, no two alike."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(entries):
            directory, index = divmod(number, per_directory)
            info = tarfile.TarInfo(f"usr/share/package{directory:05}")
            info.mtime, info.mode = 1_700_000_000 + number, 0o755
            if index == 0:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
                continue
            info.name += f"/file{index:03}.txt"
            info.mode = 0o644
            data = b"%d %d\n" % (seed, number) * (1 + number % 97)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()
