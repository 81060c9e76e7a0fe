"""An open object's anonymous fd: write, complete, and ask what is present.

pwrite(2) on it is O_DIRECT: the buffer's address, the offset and the length must be multiples of
4 KiB here (less is refused, or silently rounded, depending on the kernel). Reading back is not
possible. All methods may be called from any thread; `close` waits for nobody: the last user closes.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from errno import EBADF, EINVAL, ENOBUFS, ENOSPC, ENXIO
from typing import TYPE_CHECKING, Final, TypeVar

from lazyimg.errors import KernelError, StorageError
from lazyimg.host.mutex import Mutex
from lazyimg.host.space import REMEDY
from lazyimg_formats.cachefiles.layout import IOC_READ_COMPLETE
from lazyimg_formats.device_table import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lazyimg.host.space import CacheSpace

BUFFER_SIZE: Final = 1 << 20
"""Bytes of one write buffer: the most that one pwrite(2) writes."""

ZEROS: Final = memoryview(bytes(BUFFER_SIZE))
"""As many zeros as a buffer takes."""

READY_WAIT: Final = 2.0
"""Seconds to wait for the kernel to take an object into use after its OPEN was answered."""

_READY_STEP: Final = 0.001  # seconds; there is no event to wait for
_BLOCK_MASK: Final = BLOCK_SIZE - 1

T = TypeVar("T")


def new_buffer() -> memoryview:
    """Give a page-aligned buffer of `BUFFER_SIZE` bytes, for `ObjectFile.write`."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE  # all pages in one go
    return memoryview(mmap.mmap(-1, BUFFER_SIZE, flags))


class ObjectFile:
    """Owns one anonymous fd, which is made close-on-exec at once."""

    def __init__(self, fd: int) -> None:
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        self.fd = fd
        self._lock = Mutex()
        self._users = 0
        self._closed = False

    def write(self, offset: int, parts: Sequence[bytes | memoryview], buffer: memoryview) -> None:
        """Write `parts`, which follow each other from `offset` on, through `buffer`.

        Raises:
            OSError: EBADF after `close`; ENOBUFS when the object is not ready or space is short.
            ValueError: the range is not a whole number of blocks.
        """
        length = sum(map(len, parts))
        if (offset | length) & _BLOCK_MASK:
            raise ValueError(f"{length} bytes at {offset} are not whole blocks")
        self._enter()
        try:
            filled = 0
            for part in parts:
                view = memoryview(part)
                while view:
                    piece = view[: len(buffer) - filled]
                    buffer[filled : filled + len(piece)] = piece
                    filled += len(piece)
                    view = view[len(piece) :]
                    if filled == len(buffer):
                        self._write_buffer(offset, buffer)
                        offset += filled
                        filled = 0
            if filled:
                self._write_buffer(offset, buffer[:filled])
        finally:
            self._leave()

    def write_aligned(self, offset: int, data: memoryview) -> None:
        """Write the beginning of a buffer as it is, whole blocks; raises as `write`."""
        if (offset | len(data)) & _BLOCK_MASK:
            raise ValueError(f"{len(data)} bytes at {offset} are not whole blocks")
        self._enter()
        try:
            self._write_buffer(offset, data)
        finally:
            self._leave()

    def _write_buffer(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            taken = os.pwrite(self.fd, buffer[done:], offset + done) & ~_BLOCK_MASK
            if not taken:  # the disk became full in the middle of a block
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            done += taken

    def complete(self, msg_id: int) -> bool:
        """Complete a READ; False if the kernel does not know it (any more)."""
        try:
            self._enter()
        except OSError:
            return False
        try:
            fcntl.ioctl(self.fd, IOC_READ_COMPLETE, msg_id)
        except OSError as error:
            if error.errno != EINVAL:
                raise
            return False
        else:
            return True
        finally:
            self._leave()

    def present(self, size: int) -> list[range]:
        """Give the ranges of whole blocks, in bytes below `size`, that hold data.

        Raises:
            OSError: EBADF after `close`; ENOBUFS when the object is not ready.
        """
        self._enter()
        try:
            return find_present(self.fd, size)
        finally:
            self._leave()

    def close(self) -> None:
        """Close the fd once no other thread uses it; later calls raise EBADF."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._users:
                return
        os.close(self.fd)

    def _enter(self) -> None:
        with self._lock:
            if self._closed:
                raise OSError(EBADF, "the kernel has closed this object")
            self._users += 1

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._closed and not self._users
        if last:
            os.close(self.fd)


def find_present(fd: int, size: int) -> list[range]:
    """Give the ranges of whole blocks, in bytes below `size`, that a sparse file holds data in.

    The last block counts when the data reaches `size`. Raises OSError.
    """
    ranges: list[range] = []
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != ENXIO:
                raise
            break
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        first = start + (-start & _BLOCK_MASK)
        last = end if end == size else end & ~_BLOCK_MASK
        if first < last:
            ranges.append(range(first, last))
    return ranges


def when_ready(call: Callable[[], T], name: str, space: CacheSpace) -> T:
    """Give what `call` gives, trying again while the kernel is about to take the object into use.

    Args:
        call: raises OSError ENOBUFS until the object is ready; and for good when space is short.
        name: the object, for messages.
        space: tells the two apart.

    Raises:
        StorageError: the disk is full, or fails, or the kernel never became ready.
        KernelError: the kernel has closed the object.
    """
    deadline = time.monotonic() + READY_WAIT
    while True:
        try:
            return call()
        except OSError as error:
            if error.errno == EBADF:
                raise KernelError(name, "the kernel has closed this object meanwhile") from error
            if error.errno != ENOBUFS:
                raise StorageError(name, f"cannot write to the cache: {error.strerror}") from error
            late = time.monotonic() >= deadline  # meanwhile culling may have made room
            if shortage := space.shortage(near=late):
                raise StorageError(name, shortage, REMEDY) from error
            if late:
                raise StorageError(
                    name, f"the kernel took no data within {READY_WAIT:g} s of the opening"
                ) from error
        time.sleep(_READY_STEP)
