"""The guard process, see `guard`: how it is started, and how it is known that it lives."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from lazyimg.errors import KernelBusyError, KernelError, StorageError
from lazyimg.transports.fanotify import guard

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.transports.ports import Keeper

START_TIMEOUT: Final = 30.0
"""Seconds that the guard may take to start."""

END_TIMEOUT: Final = 30.0
"""Seconds that a guard may take to give up what a daemon before this one has left."""

NAME: Final = "fanotify-guard"
"""What the fd is called that is kept."""

LOCK: Final = "guard"
"""The name of the file that a guard has locked while it lives."""

_PLACE: Final = guard.__file__.rpartition("/lazyimg/")[0]
_PROGRAM: Final = (
    "import sys; sys.path.append(sys.argv[1]);"
    " from lazyimg.transports.fanotify.guard import main; sys.exit(main(sys.argv[2:]))"
)
_PAUSE: Final = 0.02  # seconds; a lock announces nothing

_log = logging.getLogger(__name__)


def start_guard(group: int, devices: Path, directory: Path) -> tuple[int, subprocess.Popen[bytes]]:
    """Start the guard of a group; gives the fd that it watches, and its process. Blocks.

    Args:
        group: the group's fd.
        devices: the cache's directory.
        directory: the transport's.

    Raises:
        KernelError: it cannot be started.
    """
    ours, theirs = socket.socketpair()
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, _PLACE, str(group), os.fspath(devices)],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            pass_fds=[group, lock],
            cwd="/",
            start_new_session=True,  # a signal for the daemon's group is not for it
        )
    except OSError as error:
        ours.close()
        raise KernelError("fanotify", f"its guard cannot be started: {error.strerror}") from error
    finally:
        theirs.close()
        os.close(lock)
    ours.settimeout(START_TIMEOUT)
    try:
        ready = ours.recv(1)
    except TimeoutError:
        ready = b""
    if not ready:
        ours.close()
        process.kill()
        process.wait()
        raise KernelError("fanotify", "its guard has not started")
    return ours.detach(), process


class Guarded:
    """Sees to it that a group has a guard, from `start` to `stop`.

    Args:
        keeper: keeps the fd that the guard watches.
        group: the group's fd.
        devices: the cache's directory.
        directory: the transport's.
    """

    def __init__(self, keeper: Keeper, group: int, devices: Path, directory: Path) -> None:
        self._keeper = keeper
        self._group = group
        self._devices = devices
        self._directory = directory
        self._fd = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, fd: int | None = None) -> None:
        """Have a guard; `fd`: what one watches that a process before this one has started.

        Raises:
            KernelError: it cannot be started.
        """
        if fd is None:
            await self._begin()
        else:
            os.set_inheritable(fd, False)  # noqa: FBT003 - positional only
            self._fd = fd
        asyncio.get_running_loop().add_reader(self._fd, self._ended)

    async def _begin(self) -> None:
        started = await asyncio.to_thread(start_guard, self._group, self._devices, self._directory)
        self._fd, self._process = started
        self._keeper.forget(NAME)
        self._keeper.keep(NAME, self._fd)

    def _ended(self) -> None:
        """Take it that the guard is gone: it says nothing, so this was the end."""
        _log.error("the guard of fanotify has ended; another is started")
        loop = asyncio.get_running_loop()
        self._close()
        self._task = loop.create_task(self._begin_again())

    async def _begin_again(self) -> None:
        await self._reap()
        try:
            await self.start()
        except KernelError as error:
            _log.critical("there is no guard: %s", error)

    async def stop(self) -> None:
        """Let the guard end, if nobody else has its fd."""
        if self._task is not None:
            await asyncio.wait([self._task])
        self._keeper.forget(NAME)
        self._close()
        await self._reap()

    def _close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    async def _reap(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            await asyncio.to_thread(process.wait, END_TIMEOUT)
        except subprocess.TimeoutExpired:
            _log.warning("the guard of fanotify, process %d, has not ended", process.pid)


async def wait_for_guards(directory: Path) -> None:
    """Wait until no guard lives of a daemon that ended: it may be cutting files.

    Raises:
        KernelBusyError: one goes on living.
        StorageError: the directory cannot be used.
    """
    try:
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(str(directory), f"cannot be used: {error.strerror}") from error
    try:
        async with asyncio.timeout(END_TIMEOUT):
            while True:
                if _try_lock(lock):
                    return
                await asyncio.sleep(_PAUSE)
    except TimeoutError as error:
        raise KernelBusyError(
            "fanotify",
            "the guard of another daemon lives",
            "end what is left of that daemon; `fuser` on the file shows who has it",
        ) from error
    finally:
        os.close(lock)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
