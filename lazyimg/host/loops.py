"""Files below EROFS: as they are, or by loop devices where the kernel mounts block devices only.

A loop device is read-only, reads its file directly (the pages are EROFS's), and frees itself with
its last user: what mounts it closes it, so it is gone with the mount, whoever dies. What it reads
can be exchanged while it is mounted, for a file of the same bytes.

Source: loop(4), drivers/block/loop.c.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lazyimg.host import mounts as host
from lazyimg.host.mounts import FileMountError

if TYPE_CHECKING:
    from collections.abc import Sequence

SYS_BLOCK: Final = Path("/sys/block")
"""Where the kernel says what loop devices there are."""


class FileMounter:
    """Mounts EROFS from files.

    Args:
        how: `file`: as they are; `loop`: by loop devices; `auto`: in the first of these ways that
            works.
        names: a directory for `mount_erofs_files`' names of mounts by loop devices; need not exist.

    Attributes:
        loops: whether the last mount was by loop devices.
    """

    def __init__(self, how: str, names: Path) -> None:
        self._how = how
        self._names = names
        self.loops = False

    async def mount(self, bootstrap: Path, devices: Sequence[Path], target: Path) -> None:
        """Mount an image; see `mount_erofs_files`. Raises as it does."""
        if self._how != "loop":
            try:
                await host.mount_erofs_files(bootstrap, devices, target)
            except FileMountError:
                if self._how == "file":
                    raise
            else:
                return
        await host.mount_erofs_files(bootstrap, devices, target, loops=self._names / bootstrap.name)
        self.loops = True
        self._how = "loop"  # the reason stays


async def exchange_file(source: Path, target: Path) -> int:
    """Have all loop devices over a file read another one of the same bytes; gives their number.

    Raises:
        LazyimgError: the kernel refuses.
    """
    numbers = await asyncio.to_thread(find_loops, source)
    if numbers:
        await host.switch_loops(numbers, source, target)
    return len(numbers)


def find_loops(file: Path) -> list[int]:
    """Give the numbers of the loop devices over a file, which is not looked at."""
    found = []
    for path in SYS_BLOCK.glob("loop*/loop/backing_file"):
        number = path.parts[-3].removeprefix("loop")
        with suppress(OSError):  # it is free, now
            if number.isdecimal() and path.read_bytes().removesuffix(b"\n") == os.fsencode(file):
                found.append(int(number))
    return sorted(found)
