"""All devices of this machine's cache."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from lazyimg.cache.device_file import (
    DATA,
    PRESENT,
    WRITTEN,
    DeviceFile,
    make_device,
    make_record,
)
from lazyimg.cache.record import read_record_size
from lazyimg.cache.upkeep import Upkeep
from lazyimg.errors import InUseError, StorageError
from lazyimg.host.files import sync_directory
from lazyimg.host.removal import remove_tree
from lazyimg.host.space import REMEDY, CacheLimits, CacheSpace, find_top

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_SIZE: Final = 1 << 40
"""Bytes of a device that is taken: its record has 32 MiB then."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_NAME: Final = re.compile("[0-9a-f]{64}")
_NEW: Final = ".new-"
_GONE: Final = ".gone-"

_log = logging.getLogger(__name__)


class DeviceCache:
    """The devices below a directory; see the package for the rules.

    Args:
        directory: exists, and is nobody else's; to be tried with `check_directory` before.
        limits: of free space, see `lazyimg.host.space`.
        boot: this machine's boot ID; as the kernel has it if None.

    Attributes:
        culled: devices that were removed because space was short.

    Raises:
        OSError: /proc or the mount table cannot be read.
        KernelError: the mount table is not understood.
    """

    def __init__(
        self, directory: Path, limits: CacheLimits | None = None, *, boot: str | None = None
    ) -> None:
        self.directory = directory
        self.culled = 0
        self._boot = _BOOT_ID.read_text("ascii").strip() if boot is None else boot
        self._space = CacheSpace(directory, limits or CacheLimits(), find_top(directory))
        self._lock = Lock()
        self._files: WeakValueDictionary[str, DeviceFile] = WeakValueDictionary()
        self._used: dict[str, DeviceFile] = {}
        self._nodes: dict[int, str] = {}
        self._culling = False
        self._keeper = Upkeep(self._space, self._cull, self._drop_pages)

    def load(self) -> None:
        """Find out which devices there are, and remove unfinished ones. Blocks.

        What else is in the directory is left alone.

        Raises:
            StorageError: the disk fails.
        """
        try:
            with self._lock:
                self._nodes.clear()
                for path in sorted(self.directory.iterdir()):
                    self._load(path)
        except OSError as error:
            raise StorageError(
                str(self.directory), f"the cache cannot be read: {error.strerror}"
            ) from error

    def _load(self, path: Path) -> None:
        if path.name.startswith((_NEW, _GONE)):
            remove_tree(path)
            return
        try:
            status = (path / DATA).stat()
            fits = read_record_size(path / PRESENT) == status.st_size
        except (FileNotFoundError, NotADirectoryError):
            fits = False
        if not fits:
            if _is_ours(path):
                _log.info("%s: is unfinished; removing it", path)
                remove_tree(path)
            return
        for written in path.glob(f"{WRITTEN}*"):
            if written.name != f"{WRITTEN}{self._boot}":
                written.unlink()
        self._nodes[status.st_ino] = path.name

    def names(self) -> list[str]:
        """Give the devices that there are, sorted."""
        with self._lock:
            return sorted(self._nodes.values())

    def open(self, name: str, size: int) -> DeviceFile:
        """Give a device, which is in use from now on; it is made if there is none. Blocks.

        Args:
            name: the device's, which commits to its bytes.
            size: bytes, whole blocks.

        Raises:
            StorageError: the disk is full or fails, or the device is too large.
        """
        if size > MAX_SIZE:
            raise StorageError(name, f"{size} bytes are more than the cache takes in one device")
        try:
            with self._lock:
                file = self._get(name)
                if file is None or file.size != size:
                    file = self._make(name, size)
                self._used[name] = file
                os.utime(file.path.parent)
                return file
        except OSError as error:
            raise StorageError(
                name, f"cannot be opened in the cache: {error.strerror}", REMEDY
            ) from error

    def find(self, name: str) -> DeviceFile | None:
        """Give a device that there is, or None; it is not removed while it is referred to. Blocks.

        Raises:
            StorageError: the disk fails.
        """
        try:
            with self._lock:
                return self._get(name)
        except OSError as error:
            raise StorageError(name, f"cannot be opened in the cache: {error.strerror}") from error

    def find_node(self, node: int) -> DeviceFile | None:
        """Give the device whose data has this inode number, as `find` does."""
        with self._lock:
            name = self._nodes.get(node)
        return None if name is None else self.find(name)

    def release(self, name: str) -> None:
        """Take note that a device is used no more; whoever refers to it may go on. Blocks."""
        with self._lock:
            file = self._used.pop(name, None)
        if file is not None:
            with suppress(OSError):
                os.utime(file.path.parent)  # the time of its last use

    def remove(self, name: str) -> None:
        """Remove a device, if there is one. Blocks.

        Raises:
            InUseError: it was opened and not released.
            StorageError: the disk fails.
        """
        try:
            with self._lock:
                if name in self._used:
                    raise InUseError(name, "is in use and stays in the cache")
                gone = self._take_name(name)
            if gone is not None:
                remove_tree(gone)
        except OSError as error:
            raise StorageError(name, f"cannot be removed: {error.strerror}") from error

    def stage(self) -> Path:
        """Give the path of a new file, to write a whole device to. Blocks.

        It is to be given to `publish` or `abandon`; what is left is removed at the next start.

        Raises:
            StorageError: the disk is full or fails.
        """
        try:
            return Path(tempfile.mkdtemp(prefix=_NEW, dir=self.directory), DATA)
        except OSError as error:
            raise StorageError(
                str(self.directory), f"cannot be written: {error.strerror}", REMEDY
            ) from error

    def abandon(self, staged: Path) -> None:
        """Remove what `stage` gave, as far as it is there. Blocks; raises OSError."""
        if staged.parent.is_dir():
            remove_tree(staged.parent)

    def publish(self, staged: Path, name: str) -> None:
        """Take a device that was staged whole, and synced. Blocks.

        It is complete then. Where there is one of this name, what that lacks is copied.

        Args:
            staged: what `stage` gave; it is gone afterwards.
            name: the device's.

        Raises:
            StorageError: the disk is full or fails.
        """
        try:
            size = staged.stat().st_size
            with self._lock:
                file = self._get(name)
                if file is None or (file.size != size and name not in self._used):
                    self._take_whole(staged.parent, name, size)
                    return
            file.copy_from(staged)
            remove_tree(staged.parent)
        except OSError as error:
            raise StorageError(
                name, f"cannot be put into the cache: {error.strerror}", REMEDY
            ) from error

    def reserve(self) -> int:
        """Give the bytes that stay free beside what is stored. Blocks; raises OSError."""
        return self._space.reserve()

    def is_used(self, name: str) -> bool:
        """Tell whether a device was opened and not released."""
        with self._lock:
            return name in self._used

    def discard(self, name: str, ranges: Sequence[range]) -> bool:
        """Let ranges of a device be absent, see `DeviceFile.discard`; not of one that is mounted.

        Returns:
            False if it is in use and complete: nobody would ask for what is missing.

        Raises:
            StorageError: the disk fails.
        """
        file = self.find(name)
        with self._lock:
            if file is None or (name in self._used and file.complete):
                return False
            file.discard(ranges)
        return True

    def start_culling(self) -> None:
        """Let devices be removed that are not in use, when space is short.

        To be called once every device of a mount has been opened.
        """
        self._culling = True
        self._keeper.look_for_room()

    def shortage(self) -> StorageError | None:
        """Say why nothing is stored now; None if there is room. Blocks; raises OSError."""
        said = self._space.shortage()
        return StorageError("cache", said, REMEDY) if said else None

    def is_tight(self) -> bool:
        """Tell whether space is short, or about to be, so that only what is read should come.

        Blocks; raises OSError.
        """
        return self._space.below_run()

    async def close(self) -> None:
        """Sync and close everything; nobody may read or write any more."""
        await asyncio.to_thread(self._keeper.close)
        self._used.clear()
        for file in list(self._files.values()):
            file.close()

    # With the lock held.

    def _get(self, name: str) -> DeviceFile | None:
        """Give a device that somebody has open, or that is there."""
        file = self._files.get(name)
        if file is not None:
            return file
        path = self.directory / _checked(name)
        try:
            size = (path / DATA).stat().st_size
            file = DeviceFile(path, size, self._boot, self._keeper)
        except FileNotFoundError:
            return None
        except ValueError as error:
            _log.warning("%s", error)
            return None
        return self._keep(file)

    def _keep(self, file: DeviceFile) -> DeviceFile:
        self._files[file.name] = file
        self._nodes[file.node] = file.name
        return file

    def _make(self, name: str, size: int) -> DeviceFile:
        if name in self._used:
            raise StorageError(name, f"is in use with another size than {size} bytes")
        gone = self._take_name(name)
        if gone is not None:
            remove_tree(gone)
        aside = Path(tempfile.mkdtemp(prefix=_NEW, dir=self.directory))
        try:
            make_device(aside, size)
            path = aside.rename(self.directory / _checked(name))
        except OSError:
            remove_tree(aside)
            raise
        return self._keep(DeviceFile(path, size, self._boot, self._keeper))

    def _take_whole(self, aside: Path, name: str, size: int) -> None:
        gone = self._take_name(name)
        if gone is not None:
            remove_tree(gone)
        make_record(aside, size)
        path = aside.rename(self.directory / _checked(name))
        sync_directory(self.directory)
        self._keep(DeviceFile(path, size, self._boot, self._keeper))

    def _take_name(self, name: str) -> Path | None:
        """Take a device's name away; gives the directory that is left to be removed."""
        file = self._files.pop(name, None)
        if file is not None:
            file.forget()
        self._nodes = {node: other for node, other in self._nodes.items() if other != name}
        path = self.directory / _checked(name)
        if not path.is_dir():
            return None
        gone = Path(tempfile.mkdtemp(prefix=_GONE, dir=self.directory))
        return path.rename(gone)

    # In the thread of the upkeep.

    def _drop_pages(self) -> None:
        """Let the kernel forget pages of devices in use: who reads them has pages of its own."""
        with self._lock:
            used = list(self._used.values())
        for file in used:
            file.drop_pages()

    def _cull(self) -> None:
        """Remove what nobody uses, the longest unused first, if and until there is room."""
        if not self._culling or not self._space.below_cull():
            return
        before = self.culled
        for name in self._unused():
            if not self._space.below_run():
                break
            with self._lock:
                if name in self._used or name in self._files:
                    continue
                gone = self._take_name(name)
            if gone is not None:
                remove_tree(gone)
                self.culled += 1
        if self.culled > before:
            _log.info("removed %d devices from the cache: space is short", self.culled - before)

    def _unused(self) -> Iterator[str]:
        """Give the devices that nobody uses, the one first that has not been used the longest."""
        with self._lock:
            names = set(self._nodes.values()) - self._used.keys() - set(self._files.keys())
        used = {}
        for name in names:
            with suppress(FileNotFoundError):
                used[name] = (self.directory / name).stat().st_mtime_ns
        yield from sorted(used, key=lambda name: used[name])


def _checked(name: str) -> str:
    """Give a name back if it can be a file's here; raises ValueError."""
    if not name or "/" in name or name.startswith("."):
        raise ValueError(f"{name!r} cannot be a device's name")
    return name


def _is_ours(path: Path) -> bool:
    """Tell whether a directory has files of a device, and nothing else; or is an empty device's."""
    if path.is_symlink() or not path.is_dir():
        return False
    names = [entry.name for entry in path.iterdir()]
    if not names:
        return _NAME.fullmatch(path.name) is not None
    return all(name in {DATA, PRESENT} or name.startswith(WRITTEN) for name in names)
