"""Devices that were made here whole, on their way into the kernel's cache.

The kernel hands out an object's fd only when an image that has it is mounted; what is written there
is the cache's. Until then a device lies in `<dir>/staging`, beside the cache, in a directory of its
own. When the first image is mounted that has it, before anybody sees that mount, it is copied and
removed. A start removes what is left: it is fetched as it is read, then.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections import defaultdict
from errno import EIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lazyimg.errors import StorageError
from lazyimg.fill.prefetch import cut, subtract
from lazyimg.host.removal import remove_tree
from lazyimg.host.space import REMEDY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazyimg.fill.ports import Sink
    from lazyimg.host.space import CacheSpace

_log = logging.getLogger(__name__)

DATA: Final = "data"
"""The file in a directory that holds the device."""

_NEW: Final = ".new-"
_PIECE: Final = 4 << 20  # bytes that are copied in one go


class StagedDevices:
    """The devices beside a cache; implements `lazyimg.images.ports.Staging`.

    Args:
        space: of the cache.
    """

    def __init__(self, space: CacheSpace) -> None:
        self._space = space
        self._directory = space.directory / "staging"
        self._names: set[str] = set()
        self._copying: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def clear(self) -> None:
        """Remove what another process has left. Blocks; raises StorageError."""
        try:
            if self._directory.is_dir():
                remove_tree(self._directory)
        except OSError as error:
            raise StorageError(
                str(self._directory), f"cannot be removed: {error.strerror}"
            ) from error

    def stage(self) -> Path:
        """Give the path of a new file, to write a whole device to. Blocks.

        Raises:
            StorageError: the disk is full or fails.
        """
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=_NEW, dir=self._directory), DATA)
        except OSError as error:
            raise self._error(str(self._directory), error) from error

    def abandon(self, staged: Path) -> None:
        """Remove what `stage` gave, as far as it is there. Blocks; raises OSError."""
        if staged.parent.is_dir():
            remove_tree(staged.parent)

    def publish(self, staged: Path, name: str) -> None:
        """Take a device that was staged whole. Blocks.

        Args:
            staged: what `stage` gave; it is gone afterwards.
            name: the device's.

        Raises:
            StorageError: the disk fails.
        """
        try:
            if name in self._names:
                remove_tree(staged.parent)
            else:
                staged.parent.rename(self._directory / name)
                self._names.add(name)
        except OSError as error:
            raise self._error(name, error) from error

    def shortage(self) -> StorageError | None:
        """Say why nothing is stored now; None if there is room. Blocks; raises OSError."""
        said = self._space.shortage()
        return StorageError("cache", said, REMEDY) if said else None

    def reserve(self) -> int:
        """Give the bytes that stay free beside what is stored. Blocks; raises OSError."""
        return self._space.reserve()

    def has(self, name: str) -> bool:
        """Tell whether a device is here."""
        return name in self._names

    async def copy(self, name: str, sink: Sink, present: Sequence[range]) -> None:
        """Write a device to where the kernel wants it; then it is here no more.

        Args:
            name: the device's, which is here, or was a moment ago.
            sink: takes it.
            present: what that has already, in bytes.

        Raises:
            StorageError: the disk is full or fails.
            KernelError: the kernel has closed it meanwhile.
        """
        async with self._copying[name]:
            if name not in self._names:
                return
            path = self._directory / name
            size = (path / DATA).stat().st_size
            for piece in cut(subtract([range(size)], present), _PIECE):
                await asyncio.to_thread(self._copy, path / DATA, sink, piece)
            self._names.discard(name)
            await asyncio.to_thread(_remove, path)
        self._copying.pop(name, None)

    def _copy(self, path: Path, sink: Sink, piece: range) -> None:
        try:
            data = _read(path, piece)
        except OSError as error:
            raise self._error(str(path), error) from error
        sink.write_now(piece.start, [data])

    @staticmethod
    def _error(what: str, error: OSError) -> StorageError:
        return StorageError(what, f"cannot be staged: {error.strerror}", REMEDY)


def _remove(path: Path) -> None:
    try:
        remove_tree(path)
    except OSError as error:  # the next start tries again
        _log.warning("%s: cannot be removed: %s", path, error.strerror)


def _read(path: Path, piece: range) -> memoryview:
    data = memoryview(bytearray(len(piece)))
    done = 0
    with path.open("rb", buffering=0) as file:
        while done < len(data):
            taken = os.preadv(file.fileno(), [data[done:]], piece.start + done)
            if not taken:
                raise OSError(EIO, "is shorter than it was")
            done += taken
        os.posix_fadvise(file.fileno(), piece.start, len(piece), os.POSIX_FADV_DONTNEED)
    return data
