"""Calls of mount(2) and the like, made by processes that hold none of our fds.

A process in such a call waits for answers that this one must give, and cannot be killed meanwhile;
so this one never makes it. A process (`mount_child.py`) makes one call at a time, and is kept for
the next one: starting an interpreter takes longer than all else that a mount takes. What was
cancelled, or took too long, is killed with its process. A process ends by itself with the one that
started it, when it has finished its call.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from lazyimg.errors import KernelError, StorageError
from lazyimg.host import mount_child

if TYPE_CHECKING:
    from pathlib import Path

CALL_TIMEOUT: Final = 120.0
"""Seconds for one call, after which its process is killed."""

KILL_TIMEOUT: Final = 5.0
"""Seconds that a killed process may take to end."""

MAX_REPLY: Final = 1 << 20
"""Bytes of one answer."""

_PAUSE: Final = 0.02  # seconds; a lock announces nothing

_log = logging.getLogger(__name__)


class MountCalls:
    """The processes that make calls for one event loop.

    Args:
        lock: a file on which each process holds a shared lock for as long as it lives; None: none.
        kept: how many idle processes to keep. Calls at the same time have one each.
    """

    def __init__(self, lock: Path | None = None, *, kept: int = 0) -> None:
        self._lock = lock
        self._kept = kept
        self._idle: list[asyncio.subprocess.Process] = []
        self._late: list[asyncio.subprocess.Process] = []

    async def call(self, what: str, request: dict[str, Any]) -> dict[str, Any]:
        """Have a call made; gives the child's answer, {} when all is well.

        Args:
            what: what the call is about, for messages.
            request: as `mount_child` takes it.

        Raises:
            KernelError: it did not end in time, or its process died.
            StorageError: the lock cannot be used.
        """
        process = await self._take()
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                reply = await _exchange(process, request)
        except BaseException as error:
            await _end(process, kill=True)
            self._late = [one for one in (*self._late, process) if one.returncode is None]
            if isinstance(error, TimeoutError):
                raise KernelError(what, f"not done after {CALL_TIMEOUT:g} s") from error
            raise
        if reply is None:
            errors = await _end(process, kill=False)
            said = errors.decode(errors="replace").strip().splitlines()[-1:]
            raise KernelError(what, f"the mounting process ended with {process.returncode}: {said}")
        if len(self._idle) < self._kept:
            self._idle.append(process)
        else:
            await _end(process, kill=False)
        return reply

    async def _take(self) -> asyncio.subprocess.Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
            _log.warning("the mounting process ended with %d", process.returncode)
            await _end(process, kill=False)
        return await self._start()

    async def _start(self) -> asyncio.subprocess.Process:
        with ExitStack() as stack:
            fds = []
            if self._lock is not None:
                fds.append(_open_lock(self._lock))
                stack.callback(os.close, fds[0])
                fcntl.flock(fds[0], fcntl.LOCK_SH)
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                mount_child.__file__,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=fds,
                cwd="/",
                start_new_session=True,  # a signal for the daemon's group is not for it
                limit=MAX_REPLY,
            )

    def late(self) -> list[asyncio.subprocess.Process]:
        """Give the processes that were killed in a call that has not ended, and may yet succeed."""
        return [process for process in self._late if process.returncode is None]

    async def wait_for_others(self) -> bool:
        """Wait until nobody holds the lock; False if somebody does for too long.

        Raises:
            StorageError: the lock cannot be used.
        """
        if self._lock is None:
            return True
        fd = _open_lock(self._lock)
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                while not _try_lock(fd):  # noqa: ASYNC110  nothing announces it
                    await asyncio.sleep(_PAUSE)
        except TimeoutError:
            return False
        finally:
            os.close(fd)
        return True

    async def close(self) -> None:
        """End the processes that make no call."""
        while self._idle:
            await _end(self._idle.pop(), kill=False)


async def _exchange(
    process: asyncio.subprocess.Process, request: dict[str, Any]
) -> dict[str, Any] | None:
    """Send a request and give its answer; None when there is none."""
    assert process.stdin is not None  # noqa: S101 - for the type checker
    assert process.stdout is not None  # noqa: S101 - for the type checker
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        await process.stdin.drain()
        reply: dict[str, Any] = json.loads(await process.stdout.readline())
    except (OSError, ValueError):
        return None
    return reply


async def _end(process: asyncio.subprocess.Process, *, kill: bool) -> bytes:
    """End a process: one that makes a call is killed, another one ends at its end of input.

    Gives what it wrote to its standard error.
    """
    assert process.stdin is not None  # noqa: S101 - for the type checker
    process.stdin.close()
    if process.returncode is None and kill:
        process.kill()
    try:
        async with asyncio.timeout(KILL_TIMEOUT):
            _, errors = await process.communicate()
    except TimeoutError:  # in the kernel, unkillable: it ends when its call does
        _log.warning("process %d does not end", process.pid)
        return b""
    return errors


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(str(path), f"cannot be opened: {error.strerror}") from error


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
