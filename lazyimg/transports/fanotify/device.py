"""The system calls on a fanotify group, with each refusal explained.

Source: fanotify_init(2), fanotify_mark(2), fanotify(7), include/uapi/linux/fanotify.h.
"""

from __future__ import annotations

import ctypes
import os
import select
from errno import EINVAL, ENOENT, ENOSYS, ENOTSUP, EPERM
from typing import TYPE_CHECKING, Final

from lazyimg.errors import CacheUnsuitableError, KernelError, LazyimgError, NotRootError
from lazyimg_formats.fanotify.layout import FAN_PRE_ACCESS
from lazyimg_formats.fanotify.messages import deny

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

FAN_CLOEXEC: Final = 0x01
FAN_NONBLOCK: Final = 0x02
FAN_CLASS_PRE_CONTENT: Final = 0x08
FAN_UNLIMITED_QUEUE: Final = 0x10
FAN_UNLIMITED_MARKS: Final = 0x20
FAN_MARK_ADD: Final = 0x01
FAN_MARK_REMOVE: Final = 0x02

READ_SIZE: Final = 8192
"""Bytes to offer to read(2): 170 events, each of which becomes an open fd."""

MAX_FDS: Final = 1 << 16
"""Fds that a process of ours has at most: a successor denies every number below, one by one."""

_REMEDY: Final = (
    "it came with Linux 6.14 (CONFIG_FANOTIFY_ACCESS_PERMISSIONS); use another transport"
)

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
_libc.fanotify_mark.argtypes = (
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint64,
    ctypes.c_int,
    ctypes.c_char_p,
)


class Group:
    """A group's fd; implements `ports.KernelGroup`.

    Args:
        fd: of the group, owned from now on.
    """

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)  # noqa: FBT003 - positional only
        self.fd = fd
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)

    def wait(self) -> bool:
        """Wait for events or for `wake`; see `KernelGroup`."""
        events = False
        for fd, _ in self._poll.poll():
            if fd == self.fd:
                events = True
            else:
                os.eventfd_read(self._wake)
        return events

    def wake(self) -> None:
        """Make `wait` return."""
        os.eventfd_write(self._wake, 1)

    def read_events(self) -> bytes:
        """Give the bytes of some events, or b"". Raises OSError."""
        try:
            return os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return b""

    def node_of(self, fd: int) -> int:
        """Give the inode number of an event's file. Raises OSError."""
        return os.fstat(fd).st_ino

    def answer(self, fd: int, response: bytes) -> bool:
        """Answer an event, then close its fd; see `KernelGroup`."""
        try:
            os.write(self.fd, response)
        except OSError as error:
            if error.errno != ENOENT:  # the kernel does not know it
                raise
            return False
        else:
            return True
        finally:
            os.close(fd)  # not before: the next event would get its number

    def mark(self, fd: int) -> None:
        """Mark a file. Raises OSError."""
        _mark(self.fd, FAN_MARK_ADD, fd)

    def unmark(self, fd: int) -> None:
        """Take the mark from a file; it need not have one. Raises OSError."""
        try:
            _mark(self.fd, FAN_MARK_REMOVE, fd)
        except OSError as error:
            if error.errno != ENOENT:
                raise

    def deny_everything(self, errno: int, *, spare: AbstractSet[int] = frozenset()) -> int:
        """Deny every event that was read and not answered, by whatever process.

        Answers find their event by the number of its fd alone. So this must be done before the
        first read: afterwards a number may mean two events.
        """
        denied = 0
        for number in range(MAX_FDS):
            if number in spare:
                continue
            try:
                os.write(self.fd, deny(number, errno))
            except OSError as error:
                if error.errno != ENOENT:
                    raise
            else:
                denied += 1
        return denied

    def close(self) -> None:
        """Close the group's fd."""
        fd, self.fd = self.fd, -1
        os.close(fd)
        os.close(self._wake)


def open_group() -> int:
    """Make a group for pre-content events; gives its fd.

    Its queue has no end: where it has one, reads pass when it is full.

    Raises:
        KernelError: this kernel has no such events.
        NotRootError: the caller may not.
    """
    flags = FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK
    flags |= FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS
    fd: int = _libc.fanotify_init(flags, os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_LARGEFILE", 0))
    if fd >= 0:
        return fd
    number = ctypes.get_errno()
    if number == EPERM:
        raise NotRootError("fanotify", "only root may", "run the daemon as root")
    problem = (
        "this kernel does not offer it"
        if number in {ENOSYS, EINVAL}
        else f"cannot be used: {os.strerror(number)}"
    )
    raise KernelError("fanotify", problem, _REMEDY)


def _mark(group: int, operation: int, fd: int) -> None:
    if _libc.fanotify_mark(group, operation, FAN_PRE_ACCESS, fd, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mark_error(path: Path, error: OSError) -> LazyimgError:
    """Explain why a file of the cache could not be marked."""
    if error.errno == ENOTSUP:  # EOPNOTSUPP is the same number
        return CacheUnsuitableError(
            str(path),
            "its file system has no pre-content events (tmpfs and overlay have none)",
            "put the cache on ext4, xfs or btrfs, or use another transport",
        )
    if error.errno == EINVAL:
        return KernelError(str(path), "this kernel has no pre-content events", _REMEDY)
    return KernelError(str(path), f"cannot be marked: {error.strerror}")
