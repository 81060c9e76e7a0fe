"""The system calls on /dev/cachefiles, with each refusal explained."""

from __future__ import annotations

import os
import select
from errno import (
    EACCES,
    EBUSY,
    EEXIST,
    EINVAL,
    ENODEV,
    ENOENT,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EROFS,
)
from typing import TYPE_CHECKING, Final

from lazyimg.errors import (
    CacheUnsuitableError,
    ConfigurationError,
    KernelBusyError,
    KernelError,
    LazyimgError,
    NotRootError,
)
from lazyimg.transports.cachefiles.object_file import ObjectFile
from lazyimg.transports.cachefiles.ports import Ready
from lazyimg_formats.cachefiles.layout import MSG_MAX_SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.host.space import CacheLimits

DEVICE_PATH: Final = "/dev/cachefiles"

_MODULE_REMEDY: Final = (
    "load cachefiles.ko built with CONFIG_CACHEFILES_ONDEMAND (Linux 6.1 to 7.1);"
    " `lazyimg doctor` says what this kernel has"
)


class Device:
    """A control fd; implements `ports.KernelDevice`.

    Args:
        fd: of /dev/cachefiles, owned from now on.
    """

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)  # noqa: FBT003 - positional only
        self.fd = fd
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = {culling: self._new_poll(culling=culling) for culling in (False, True)}

    def _new_poll(self, *, culling: bool) -> select.poll:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN | (select.POLLOUT if culling else 0))
        poll.register(self._wake, select.POLLIN)
        return poll

    def wait(self, *, culling: bool, timeout: float | None) -> Ready:
        """Wait for the kernel or for `wake`; see `KernelDevice`."""
        events = 0
        for fd, event in self._poll[culling].poll(None if timeout is None else timeout * 1000):
            if fd == self.fd:
                events = event
            else:
                os.eventfd_read(self._wake)
        return Ready(bool(events & select.POLLIN), bool(events & select.POLLOUT))

    def wake(self) -> None:
        """Make `wait` return."""
        os.eventfd_write(self._wake, 1)

    def read_message(self) -> bytes:
        """Give one request, or b"" if there is none. Raises OSError."""
        return os.read(self.fd, MSG_MAX_SIZE)

    def write_command(self, command: bytes) -> None:
        """Give the kernel a command. Raises OSError."""
        os.write(self.fd, command)

    def adopt(self, fd: int) -> ObjectFile:
        """Take an object's fd into care."""
        return ObjectFile(fd)

    def close(self) -> None:
        """Close the control fd."""
        os.close(self.fd)
        os.close(self._wake)


def open_device(path: str = DEVICE_PATH) -> int:
    """Open the control device and give its fd.

    Raises:
        KernelError: there is none.
        KernelBusyError: somebody else has it open.
        NotRootError: the caller may not.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _open_error(path, error) from error


def _open_error(path: str, error: OSError) -> LazyimgError:
    if error.errno in {ENOENT, ENXIO, ENODEV}:
        return KernelError(path, "this kernel does not offer it", _MODULE_REMEDY)
    if error.errno == EBUSY:
        return KernelBusyError(
            path,
            "another process has it open",
            "stop the other daemon (lazyimg, cachefilesd, nydusd); `fuser` shows which one",
        )
    if error.errno in {EACCES, EPERM}:
        return NotRootError(path, "only root may open it", "run the daemon as root")
    return KernelError(path, f"cannot open: {error.strerror}")


def limit_commands(limits: CacheLimits) -> list[bytes]:
    """Give the commands that set the limits, in an order that is valid from any state before.

    The kernel checks each against the two others as they are at that moment.
    """
    commands = []
    for unit, stop, cull, run in (
        ("b", limits.bstop, limits.bcull, limits.brun),
        ("f", limits.fstop, limits.fcull, limits.frun),
    ):
        for name, percent in (("stop", 0), ("run", 99), ("cull", cull), ("run", run)):
            commands.append(f"{unit}{name} {percent}%".encode())
        commands.append(f"{unit}stop {stop}%".encode())
    return commands


def bind_cache(fd: int, directory: Path, tag: str, limits: CacheLimits) -> None:
    """Tell the kernel where the cache is, and begin to serve on-demand reads.

    Args:
        fd: of the control device, not bound yet.
        directory: an existing directory on ext4 or xfs, absolute.
        tag: names the cache; one word.
        limits: when to cull, when to stop.

    Raises:
        ConfigurationError: the directory or the tag cannot be used.
        CacheUnsuitableError: the directory's file system cannot hold a cache.
        KernelBusyError: a cache with this tag or in this directory is in use.
        KernelError: the kernel refuses for another reason.
    """
    _check_setup(directory, tag)
    commands = [*limit_commands(limits), b"dir " + os.fsencode(directory), b"tag " + tag.encode()]
    for command in [*commands, b"bind ondemand"]:
        try:
            os.write(fd, command)
        except OSError as error:
            raise _setup_error(command, directory, error) from error


def restore_cache(fd: int) -> None:
    """Take over a bound control fd from a process that died; the kernel asks its requests again.

    Raises:
        KernelError: this kernel cannot; then who waits does so until the fd is closed.
    """
    try:
        os.write(fd, b"restore")
    except OSError as error:
        raise KernelError(
            DEVICE_PATH,
            f"this kernel hands nothing over: {error.strerror}",
            "`restore` came with Linux 6.8 and 6.1.192",
        ) from error


def _check_setup(directory: Path, tag: str) -> None:
    if not directory.is_absolute() or not directory.is_dir():
        raise ConfigurationError(
            str(directory), "the cache directory must be an absolute path that exists"
        )
    raw = os.fsencode(directory)
    if len(raw) > 3000 or b"\n" in raw or raw != raw.strip():
        raise ConfigurationError(
            str(directory), "the kernel takes no cache directory with such a name"
        )
    if not tag.isascii() or not tag.isprintable() or " " in tag or not tag:
        raise ConfigurationError("cache tag", f"{tag!r} is not one printable word")


def _setup_error(command: bytes, directory: Path, error: OSError) -> LazyimgError:
    if not command.startswith(b"bind"):
        return KernelError(DEVICE_PATH, f"refuses `{os.fsdecode(command)}`: {error.strerror}")
    if error.errno == EINVAL:
        return KernelError(
            DEVICE_PATH, "this kernel's cachefiles has no on-demand mode", _MODULE_REMEDY
        )
    make, problem, remedy = _BIND_ERRORS.get(
        error.errno or 0, (KernelError, f"the kernel cannot use it: {error.strerror}", "")
    )
    return make(str(directory), problem, remedy)


_BIND_ERRORS: Final[dict[int, tuple[type[LazyimgError], str, str]]] = {
    EOPNOTSUPP: (
        CacheUnsuitableError,
        "its file system cannot hold a cache (tmpfs, overlay and network file systems cannot)",
        "put the cache on ext4 or xfs, on a loop device if need be",
    ),
    EROFS: (CacheUnsuitableError, "its file system is mounted read-only", ""),
    ENOENT: (ConfigurationError, "the cache directory does not exist", "create it"),
    EBUSY: (KernelBusyError, "a cache in this directory is in use", "stop the other daemon"),
    EEXIST: (KernelBusyError, "a cache with this tag is in use", "stop the other daemon"),
}
