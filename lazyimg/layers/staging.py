"""A layer's device, written as its tar arrives: files without their headers, each in its place.

Files lie on the device in the order of the tar, so it is written from its beginning to its end, in
large pieces. What no file covers is left out, and zero.
"""

from __future__ import annotations

import os
from collections import deque
from errno import ENOSPC
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import IO

_BATCH: Final = 1 << 20
"""Bytes that are written at a time."""

_GAP: Final = 64 << 10
"""Bytes of zeros between two files that are written with them."""


class DeviceWriter:
    """Takes a tar piece by piece.

    Args:
        file: takes the device: new and empty.
        reserve: bytes that stay free where it is; a tar may be much larger than it came.
    """

    def __init__(self, file: IO[bytes], reserve: int = 0) -> None:
        self._fd = file.fileno()
        self._reserve = reserve
        self._extents: deque[tuple[int, int, int]] = deque()  # (tar offset, end there, device's)
        self._position = 0  # in the tar
        self._start = 0  # on the device, of what is in `_batch`
        self._batch = bytearray()

    def place(self, device_offset: int, length: int, _span: int, tar_offset: int) -> None:
        """Say where bytes of the tar, that come yet, go; as `LayerBuilder` takes it."""
        self._extents.append((tar_offset, tar_offset + length, device_offset))

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the tar. Raises OSError."""
        begin = self._position
        self._position += len(data)
        view = memoryview(data)
        while self._extents and self._extents[0][0] < self._position:
            start, end, device = self._extents[0]
            first = max(start, begin)
            last = min(end, self._position)
            self._put(device + first - start, view[first - begin : last - begin])
            if end > self._position:
                break
            self._extents.popleft()

    def _put(self, offset: int, data: memoryview) -> None:
        gap = offset - self._start - len(self._batch)
        if gap > _GAP:
            self._flush()
            self._start, gap = offset, 0
        self._batch += bytes(gap)
        self._batch += data
        if len(self._batch) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        space = os.fstatvfs(self._fd)
        left_free = space.f_bavail * space.f_frsize - len(self._batch)
        if space.f_blocks and left_free < self._reserve:  # some do not say how large they are
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        with memoryview(self._batch) as left:
            done = 0
            while done < len(left):
                done += os.pwrite(self._fd, left[done:], self._start + done)
        self._start += len(self._batch)
        self._batch.clear()

    def finish(self, size: int) -> None:
        """Write what is left; nothing follows. Raises OSError.

        Args:
            size: bytes of the device.
        """
        self._flush()
        os.ftruncate(self._fd, size)
        os.fsync(self._fd)
