"""Where fetched bytes go: to an object's file, written by a few threads."""

from __future__ import annotations

import asyncio
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from lazyimg.errors import KernelError
from lazyimg.host.workers import Workers
from lazyimg.transports.cachefiles.object_file import ObjectFile, new_buffer, when_ready

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazyimg.host.space import CacheSpace

WRITE_THREADS: Final = 4
"""How many writes of fetched bytes go to the disk at a time, in these threads and in others."""


class WriterPool:
    """Threads that write fetched bytes, and the page-aligned buffers of all who do."""

    def __init__(self) -> None:
        self._threads = Workers(WRITE_THREADS, "cachefiles-write")
        self._buffers: SimpleQueue[memoryview] = SimpleQueue()
        for _ in range(WRITE_THREADS):
            self._buffers.put(new_buffer())
        self._closed = False

    async def run(
        self, file: ObjectFile, name: str, space: CacheSpace, offset: int, data: memoryview
    ) -> None:
        """Write `data` to `file`; returns or raises only when the thread is done with `data`."""
        self._check_open(name)
        await self._threads.run(self.write, file, name, space, offset, [data])

    def write(
        self,
        file: ObjectFile,
        name: str,
        space: CacheSpace,
        offset: int,
        parts: Sequence[memoryview],
    ) -> None:
        """Write `parts` to `file` in this thread, as soon as a buffer is free."""
        buffer = self._buffers.get()
        try:
            self._check_open(name)
            when_ready(lambda: file.write(offset, parts, buffer), name, space)
        finally:
            self._buffers.put(buffer)

    def _check_open(self, name: str) -> None:
        if self._closed:
            raise KernelError(name, "is not written any more: the transport has stopped")

    async def close(self) -> None:
        """Refuse any more writes, wait for those in hand, and end the threads."""
        self._closed = True  # in the event loop, so that nothing is given to threads that end
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._threads.close()
        for buffer in [self._buffers.get() for _ in range(WRITE_THREADS)]:
            self._buffers.put(buffer)


class ObjectSink:
    """Where an open object's bytes go; implements `lazyimg.fill.ports.Sink`."""

    def __init__(self, file: ObjectFile, name: str, space: CacheSpace, writers: WriterPool) -> None:
        self._file = file
        self._name = name
        self._space = space
        self._writers = writers

    def __eq__(self, other: object) -> bool:
        """Sinks of one opening of an object are the same."""
        return isinstance(other, ObjectSink) and other._file is self._file

    def __hash__(self) -> int:
        """As `__eq__`."""
        return hash(id(self._file))

    async def write(self, offset: int, data: memoryview) -> None:
        """Write whole blocks in a thread; if cancelled, the write in hand is finished first.

        Raises:
            StorageError: the disk is full or fails.
            KernelError: the object was closed meanwhile.
        """
        await self._writers.run(self._file, self._name, self._space, offset, data)

    def write_now(self, offset: int, parts: Sequence[memoryview]) -> None:
        """Write whole blocks in this thread; raises as `write` does."""
        self._writers.write(self._file, self._name, self._space, offset, parts)
