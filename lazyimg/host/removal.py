"""Removing a directory with all that is below it, however deep that is.

shutil.rmtree goes one call deeper for each level, so it fails at some thousand of them; and who
writes into a container decides how many there are. Here one directory is open at a time: from the
last one the way leads back over "..".
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(top: Path) -> None:
    """Remove a directory and all below it; follows no link. Blocks.

    Raises:
        OSError: something cannot be removed; what was removed before that is gone.
    """
    walk = _Walk(os.open(top, _FLAGS))
    try:
        while walk.step():
            pass
    finally:
        os.close(walk.fd)
    top.rmdir()


class _Walk:
    """The way to a directory that is open, and what is left to do in those on it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._way = [("", _identify(fd))]
        self._left = [_remove_files(fd)]

    def step(self) -> bool:
        """Go down into a directory, or back up; tells whether there was anything to do."""
        if self._left[-1]:
            self._go_down(self._left[-1].pop())
            return True
        if len(self._way) == 1:
            return False
        self._go_up()
        return True

    def _go_down(self, name: str) -> None:
        try:
            child = os.open(name, _FLAGS, dir_fd=self.fd)
        except NotADirectoryError:  # since it was looked at
            os.unlink(name, dir_fd=self.fd)
            return
        os.close(self.fd)
        self.fd = child
        self._way.append((name, _identify(child)))
        self._left.append(_remove_files(child))

    def _go_up(self) -> None:
        name, _ = self._way.pop()
        self._left.pop()
        parent = os.open("..", _FLAGS, dir_fd=self.fd)
        os.close(self.fd)
        self.fd = parent
        if _identify(parent) != self._way[-1][1]:
            raise OSError(errno.EBUSY, "somebody moves it while it is removed", name)
        os.rmdir(name, dir_fd=parent)


def _identify(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _remove_files(fd: int) -> list[str]:
    """Remove what is no directory; gives the names of the directories."""
    with os.scandir(fd) as found:
        entries = list(found)
    directories = []
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            directories.append(entry.name)
        else:
            os.unlink(entry.name, dir_fd=fd)
    return directories
