"""Lower directories as a container with a user namespace sees them: id-mapped mounts.

A container whose root is another user on this machine must find the image's files as its own. No
file is changed for that: each lower directory is shown a second time, read-only, with the ids
shifted by the kernel (MOUNT_ATTR_IDMAP), and the container's overlay stands on these. overlayfs
keeps mounts of its own of them, so a running container needs none of what is here.

    ROOT/snapshotter/mapped/<number>/<name>     one mount for each lower directory of a snapshot
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg.errors import LazyimgError, NotFoundError, StorageError
from lazyimg.host import mounts as host

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lazyimg.snapshotter.lifecycle import IdMaps

_log = logging.getLogger(__name__)


class MappedMounts:
    """The mounts below a directory.

    Args:
        root: of the snapshotter.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve() / "mapped"  # as the mount table has it
        self._shown: set[Path] = set()
        self._lock = asyncio.Lock()

    async def clear(self) -> None:
        """Take off all of them, also those of a process before this one, or of another boot.

        Raises:
            LazyimgError: the mount table cannot be read.
        """
        async with self._lock:
            prefix = f"{self._root}/"
            entries = [entry.mount_point for entry in await host.mount_table()]
            await self._take_off(Path(point) for point in entries if point.startswith(prefix))
            await asyncio.to_thread(_remove_leftovers, self._root)

    async def show(self, number: int, lowers: Sequence[str], maps: IdMaps) -> list[str]:
        """Show a snapshot's lower directories with other ids; gives where.

        Raises:
            LazyimgError: the kernel cannot, for one of their file systems.
        """
        paths = [self._path(number, lower) for lower in lowers]
        async with self._lock:
            for lower, path in zip(lowers, paths, strict=True):
                if path not in self._shown:
                    await asyncio.to_thread(_make, path)
                    await host.bind_mapped(Path(lower), path, maps.uids, maps.gids)
                    self._shown.add(path)
        return [str(path) for path in paths]

    async def release(self, number: int) -> None:
        """Take off a snapshot's. Never raises."""
        async with self._lock:
            parent = self._root / str(number)
            await self._take_off([path for path in self._shown if path.parent == parent])

    def _path(self, number: int, lower: str) -> Path:
        """Where a lower directory is shown: its number, or its fsid, tells it from others."""
        path = Path(lower)
        name = path.parent.name if path.name == "fs" else path.name
        return self._root / str(number) / name

    async def _take_off(self, paths: Iterable[Path]) -> None:
        for path in paths:
            try:
                await host.unmount(path, lazy=True)
            except NotFoundError:
                pass
            except LazyimgError as error:
                _log.warning("%s", error)
                continue
            self._shown.discard(path)
            await asyncio.to_thread(_remove, path)


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(str(path), f"{error.strerror or error}") from error


def _remove_leftovers(root: Path) -> None:
    """Remove the directories on which nothing is mounted; one that is stays, as it is busy."""
    for path in (*root.glob("*/*"), *root.glob("*")):
        with suppress(OSError):
            path.rmdir()


def _remove(path: Path) -> None:
    """Remove a directory and the one above it, where nothing is in it any more."""
    for directory in (path, path.parent):
        try:
            directory.rmdir()
        except OSError:
            return
