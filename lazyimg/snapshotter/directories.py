"""The directories of snapshots: made, measured, moved out of the way, removed.

Methods block for as long as the disk takes. What is removed is renamed first and removed by a
thread of its own, so nobody waits for it.
"""

from __future__ import annotations

import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from lazyimg.errors import StorageError
from lazyimg.host.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from pathlib import Path

FS_MODE: Final = 0o755
"""Of the directory that shows as the root of what is written, as with containerd's overlayfs."""

WORK_MODE: Final = 0o711

_BLOCK: Final = 512  # bytes, in which stat(2) counts

_log = logging.getLogger(__name__)


class Directories:
    """The directories below `root`.

    Args:
        root: of the snapshotter; made when missing.

    Raises:
        StorageError: from every method, when the disk refuses.
    """

    def __init__(self, root: Path) -> None:
        self._snapshots = root / "snapshots"
        self._removed = root / "removed"
        self._remover = ThreadPoolExecutor(1, thread_name_prefix="remove-snapshots")
        self._removing: dict[str, Future[None]] = {}
        try:
            for path in (root, self._snapshots, self._removed):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _failed(error, root) from error

    def close(self) -> None:
        """End what is being removed; the rest is removed at the next start."""
        self._remover.shutdown(cancel_futures=True)

    def upper(self, number: int) -> Path:
        """Where a snapshot's own files are."""
        return self._snapshots / str(number) / "fs"

    def work(self, number: int) -> Path:
        """What overlayfs needs beside them."""
        return self._snapshots / str(number) / "work"

    def make(self, number: int, owner: tuple[int, int] | None, *, writable: bool) -> None:
        """Make a snapshot's directories; nothing is left of them when that fails.

        Args:
            number: of the snapshot.
            owner: uid and gid of its root; None: ours.
            writable: whether it gets a work directory.
        """
        path = self._snapshots / str(number)
        try:
            self._set_aside(path)  # of a call that failed and could not be undone
            path.mkdir(mode=0o700)
            try:
                upper = self.upper(number)
                upper.mkdir()
                upper.chmod(FS_MODE)  # whatever the umask is
                if owner is not None:
                    os.chown(upper, *owner)
                if writable:
                    self.work(number).mkdir()
                    self.work(number).chmod(WORK_MODE)
            except BaseException:
                remove_tree(path)
                raise
        except OSError as error:
            raise _failed(error, path) from error

    def owner(self, number: int) -> tuple[int, int]:
        """Give uid and gid of a snapshot's root."""
        try:
            found = self.upper(number).stat()
        except OSError as error:
            raise _failed(error, self.upper(number)) from error
        return found.st_uid, found.st_gid

    def usage(self, number: int) -> tuple[int, int]:
        """Give the bytes on the disk and the number of inodes of a snapshot's own files."""
        linked: set[tuple[int, int]] = set()  # what has one name only need not be remembered
        size = inodes = 0
        for found in _walk(self.upper(number)):
            if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                inode = (found.st_dev, found.st_ino)
                if inode in linked:
                    continue
                linked.add(inode)
            inodes += 1
            size += found.st_blocks * _BLOCK
        return size, inodes

    def discard(self, number: int) -> None:
        """Move a snapshot's directories out of the way, and have them removed soon."""
        path = self._snapshots / str(number)
        try:
            self._set_aside(path)
        except OSError as error:
            raise _failed(error, path) from error

    def sweep(self, known: set[int]) -> None:
        """Discard what no record knows, and go on with what was being removed.

        Args:
            known: the numbers of all snapshots; none is made meanwhile.
        """
        names = {str(number) for number in known}
        try:
            for path in self._snapshots.iterdir():
                if path.name not in names:
                    self._set_aside(path)
            for path in self._removed.iterdir():
                self._remove_soon(path)
        except OSError as error:
            raise _failed(error, self._snapshots) from error

    def removing(self) -> list[Future[None]]:
        """Give what ends when each thing is removed that was discarded. Does not block."""
        return list(self._removing.values())

    def _set_aside(self, path: Path) -> None:
        aside = self._removed / f"{path.name}-{uuid4().hex}"
        try:
            path.rename(aside)
        except FileNotFoundError:
            return
        self._remove_soon(aside)

    def _remove_soon(self, path: Path) -> None:
        if path.name not in self._removing:
            future = self._remover.submit(_remove, path)
            self._removing[path.name] = future
            future.add_done_callback(lambda _: self._removing.pop(path.name, None))


def _remove(path: Path) -> None:
    try:
        remove_tree(path)
    except FileNotFoundError:
        return
    except OSError as error:  # the next Cleanup or start tries again
        _log.warning("%s: cannot be removed: %s: %s", path, error.strerror, error.filename)


def _walk(top: Path) -> Iterator[os.stat_result]:
    """Give the status of a directory and of all below it; what goes away meanwhile is left out."""
    waiting = [os.fspath(top)]
    try:
        yield top.stat()
    except OSError as error:
        raise _failed(error, top) from error
    while waiting:
        path = waiting.pop()
        try:
            with _opened(path) as fd, os.scandir(fd) as entries:
                for entry in entries:
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    yield found
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append(f"{path}/{entry.name}")
        except (FileNotFoundError, NotADirectoryError):  # it has become something else
            continue
        except OSError as error:
            raise _failed(error, top) from error


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """Open a directory, and not what a link leads to."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _failed(error: OSError, path: Path) -> StorageError:
    return StorageError(str(error.filename or path), f"{error.strerror or error}")
