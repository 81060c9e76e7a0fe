"""System calls: /dev/fuse, the mount of the tree, and a connection's end.

Source: fs/fuse/dev.c, fs/fuse/inode.c, Documentation/filesystems/fuse/fuse.rst.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
from errno import (
    EACCES,
    EAGAIN,
    ECONNABORTED,
    EINTR,
    EINVAL,
    ENODEV,
    ENOENT,
    ENOTCONN,
    ENXIO,
    EPERM,
)
from typing import TYPE_CHECKING, Final

from lazyimg.errors import KernelError, LazyimgError, NotRootError
from lazyimg_formats.fuse.layout import DEV_IOC_BACKING_CLOSE, DEV_IOC_BACKING_OPEN
from lazyimg_formats.fuse.messages import backing_map, resend

if TYPE_CHECKING:
    from pathlib import Path

DEVICE_PATH: Final = "/dev/fuse"

READ_SIZE: Final = 8192
"""Bytes to offer to read(2): FUSE_MIN_READ_BUFFER."""

SOURCE: Final = "lazyimg"
"""What the mount table says that is mounted."""

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_PRIVATE = 1, 2, 4, 8, 1 << 18
_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8
_OPTIONS: Final = "rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
_AGAIN: Final = {EINTR, EAGAIN, ENOENT}  # ENOENT: who asked was gone before it was read
_ENDED: Final = {ENODEV, ENOTCONN, ECONNABORTED}
_MODULE_REMEDY: Final = "load the module `fuse`; `lazyimg doctor` says what this kernel has"


class Device:
    """A connection, mounted or about to be.

    All methods may be called from any thread. All threads use the one fd: a clone of it would fail
    what it has taken, when its process dies, instead of keeping it for the next.

    Args:
        fd: of /dev/fuse, owned from now on.
    """

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)  # noqa: FBT003 - positional only
        self.fd = fd

    def read(self, buffer: bytearray | memoryview) -> int:
        """Wait for a request; gives its bytes, 0 if the connection has ended. Raises OSError."""
        while True:
            try:
                return os.readv(self.fd, [buffer])
            except OSError as error:
                if error.errno in _ENDED:
                    return 0
                if error.errno not in _AGAIN:
                    raise

    def write(self, *parts: bytes | memoryview) -> bool:
        """Give the kernel an answer; False if nobody waits for it any more. Raises OSError."""
        try:
            os.writev(self.fd, parts)
        except OSError as error:
            if error.errno in _ENDED or error.errno == ENOENT:
                return False
            raise
        return True

    def splice(self, pipe: int, length: int) -> bool:
        """Give the kernel an answer that is in a pipe, whole; as `write`."""
        try:
            return os.splice(pipe, self.fd, length) == length
        except OSError as error:
            if error.errno in _ENDED or error.errno == ENOENT:
                return False
            raise

    def has_ended(self) -> bool:
        """Tell whether the kernel has ended the connection; it takes notifications all the same."""
        poll = select.poll()
        poll.register(self.fd, 0)  # POLLERR is always reported
        return bool(poll.poll(0))

    def open_backing(self, fd: int) -> int:
        """Let the kernel read an open file by itself; gives its id. Raises OSError."""
        backing: int = fcntl.ioctl(self.fd, DEV_IOC_BACKING_OPEN, bytearray(backing_map(fd)))
        return backing

    def close_backing(self, backing: int) -> None:
        """Take a file back; files that are open stay so. Raises OSError."""
        fcntl.ioctl(self.fd, DEV_IOC_BACKING_CLOSE, backing.to_bytes(4, "little"))

    def close(self) -> None:
        """Close the fd: if nobody else has it, all that reads the tree gets EIO."""
        os.close(self.fd)


def open_device(path: str = DEVICE_PATH) -> int:
    """Open /dev/fuse and give the fd.

    Raises:
        KernelError: there is none.
        NotRootError: the caller may not.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _open_error(path, error) from error


def _open_error(path: str, error: OSError) -> LazyimgError:
    if error.errno in {ENOENT, ENXIO, ENODEV}:
        return KernelError(path, "this kernel does not offer it", _MODULE_REMEDY)
    if error.errno in {EACCES, EPERM}:
        return NotRootError(path, "only root may open it", "run the daemon as root")
    return KernelError(path, f"cannot open: {error.strerror}")


def ask_again(device: Device) -> bool:
    """Have everything asked again that was asked of a process that died.

    Returns:
        False if this kernel cannot: that came with Linux 6.9.

    Raises:
        KernelError: the connection has ended, or was never mounted.
    """
    again = True
    try:
        ended = not device.write(resend()) or device.has_ended()
    except OSError as error:
        if error.errno == EINVAL:
            again, ended = False, device.has_ended()
        elif error.errno == EPERM:  # nothing was mounted
            ended = True
        else:
            raise KernelError(DEVICE_PATH, f"cannot be taken over: {error.strerror}") from error
    if ended:
        raise KernelError(DEVICE_PATH, "the kernel has ended the connection")
    return again


def mount_tree(fd: int, directory: Path) -> None:
    """Mount the tree of a connection, read-only. Does not wait for anybody's answer.

    Raises:
        KernelError: the kernel refuses.
    """
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    options = f"fd={fd},{_OPTIONS}"
    _mount(SOURCE.encode(), directory, b"fuse.lazyimg", flags, options.encode())
    _mount(None, directory, None, _MS_PRIVATE, None)


def unmount_tree(directory: Path) -> None:
    """End the connections of whatever is mounted on a directory, and detach it.

    What waits for them, and what reads later, gets an error: also EROFS, which keeps files open.
    Needs no answer of anybody.

    Raises:
        KernelError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MNT_FORCE | _MNT_DETACH | _UMOUNT_NOFOLLOW
    while not libc.umount2(os.fsencode(directory), flags):
        pass
    number = ctypes.get_errno()
    if number not in {EINVAL, ENOENT}:  # not mounted, or not any more
        raise KernelError(str(directory), f"umount2(2): {os.strerror(number)}")


def _mount(
    source: bytes | None, target: Path, kind: bytes | None, flags: int, data: bytes | None
) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source, os.fsencode(target), kind, ctypes.c_ulong(flags), data):
        number = ctypes.get_errno()
        raise KernelError(str(target), f"mount(2) of FUSE: {os.strerror(number)}")
