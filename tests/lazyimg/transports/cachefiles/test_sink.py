"""Writes in threads: finished before anybody goes on."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from errno import ENOBUFS
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import KernelError
from lazyimg.host.space import CacheLimits, CacheSpace
from lazyimg.transports.cachefiles.object_file import ObjectFile
from lazyimg.transports.cachefiles.sink import WRITE_THREADS, ObjectSink, WriterPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BLOCK = 4096


class SlowFile(ObjectFile):
    """Is not ready at first; tells how many threads were in it at a time."""

    def __init__(self, not_ready: int = 0) -> None:
        super().__init__(os.memfd_create("object", 0))
        self.not_ready = not_ready
        self.inside = 0
        self.most = 0
        self._count = threading.Lock()
        self.full = threading.Event()

    def _write_buffer(self, offset: int, buffer: memoryview) -> None:
        if self.not_ready:
            self.not_ready -= 1
            raise OSError(ENOBUFS, "No buffer space available")
        with self._count:
            self.inside += 1
            self.most = max(self.most, self.inside)
            if self.inside == WRITE_THREADS:
                self.full.set()
        self.full.wait(0.2)
        super()._write_buffer(offset, buffer)
        with self._count:
            self.inside -= 1


@pytest.fixture
async def pool() -> AsyncIterator[WriterPool]:
    pool = WriterPool()
    yield pool
    await pool.close()


def sink_of(file: ObjectFile, pool: WriterPool, directory: Path) -> ObjectSink:
    return ObjectSink(
        file, "object", CacheSpace(directory, CacheLimits(bstop=0, fstop=0), directory), pool
    )


async def test_write(pool: WriterPool, tmp_path: Path) -> None:
    file = SlowFile()
    data = os.urandom(3 * BLOCK)
    await sink_of(file, pool, tmp_path).write(BLOCK, memoryview(data))
    assert os.pread(file.fd, 1 << 20, 0) == bytes(BLOCK) + data


async def test_write_in_the_caller_s_thread(pool: WriterPool, tmp_path: Path) -> None:
    file = SlowFile()
    sink_of(file, pool, tmp_path).write_now(
        BLOCK, [memoryview(b"x" * BLOCK), memoryview(b"y" * BLOCK)]
    )
    assert os.pread(file.fd, 1 << 20, 0) == bytes(BLOCK) + b"x" * BLOCK + b"y" * BLOCK


async def test_stopping_waits_for_writes_of_other_threads_and_refuses_more(
    pool: WriterPool, tmp_path: Path
) -> None:
    file = SlowFile()
    sink = sink_of(file, pool, tmp_path)
    block = [memoryview(b"x" * BLOCK)]
    with ThreadPoolExecutor(2 * WRITE_THREADS) as threads:
        calls = [
            threads.submit(sink.write_now, number * BLOCK, block)
            for number in range(2 * WRITE_THREADS)
        ]
        await asyncio.to_thread(file.full.wait)
        await pool.close()
        assert file.inside == 0
        results = [call.exception() for call in calls]
    written = os.pread(file.fd, 1 << 20, 0)
    for number, result in enumerate(results):
        found = written[number * BLOCK : (number + 1) * BLOCK]
        if result is None:
            assert found == b"x" * BLOCK
        else:
            assert str(result) == "object: is not written any more: the transport has stopped"
            assert not any(found)
    with pytest.raises(KernelError, match="the transport has stopped"):
        sink.write_now(0, block)


async def test_nothing_is_written_after_the_end(pool: WriterPool, tmp_path: Path) -> None:
    sink, block = sink_of(SlowFile(), pool, tmp_path), memoryview(bytes(BLOCK))
    await sink.write(0, block)
    await pool.close()
    with pytest.raises(KernelError, match="the transport has stopped"):
        await sink.write(0, block)


async def test_writes_go_on_together_but_not_too_many(pool: WriterPool, tmp_path: Path) -> None:
    file = SlowFile()
    sink = sink_of(file, pool, tmp_path)
    blocks = [bytes([number]) * BLOCK for number in range(5 * WRITE_THREADS)]
    await asyncio.gather(
        *(sink.write(n * BLOCK, memoryview(block)) for n, block in enumerate(blocks))
    )
    assert file.most == WRITE_THREADS
    assert os.pread(file.fd, 1 << 20, 0) == b"".join(blocks)


async def test_part_of_a_block(pool: WriterPool, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="100 bytes at 0 are not whole blocks"):
        await sink_of(SlowFile(), pool, tmp_path).write(0, memoryview(bytes(100)))


async def test_closed_object(pool: WriterPool, tmp_path: Path) -> None:
    file = SlowFile()
    sink = sink_of(file, pool, tmp_path)
    file.close()
    with pytest.raises(KernelError, match=r"^object: the kernel has closed this object meanwhile"):
        await sink.write(0, memoryview(bytes(BLOCK)))


async def test_cancelled_write_is_done_with_the_data(pool: WriterPool, tmp_path: Path) -> None:
    file = SlowFile(not_ready=20)
    data = bytearray(b"x" * BLOCK)
    task = asyncio.create_task(sink_of(file, pool, tmp_path).write(0, memoryview(data)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    data[:] = bytes(BLOCK)
    assert os.pread(file.fd, BLOCK, 0) == b"x" * BLOCK


async def test_write_cancelled_again_and_again(pool: WriterPool, tmp_path: Path) -> None:
    file = SlowFile(not_ready=20)
    sink = sink_of(file, pool, tmp_path)
    task = asyncio.create_task(sink.write(0, memoryview(bytes(BLOCK))))
    while not task.done():
        await asyncio.sleep(0.001)
        task.cancel()
    assert task.cancelled()
    assert file.not_ready == 0
    assert os.pread(file.fd, BLOCK, 0) == bytes(BLOCK)


async def test_cancelled_write_that_fails(pool: WriterPool, tmp_path: Path) -> None:
    file = SlowFile()
    sink = sink_of(file, pool, tmp_path)
    task = asyncio.create_task(sink.write(1, memoryview(bytes(BLOCK))))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_sinks_of_one_opening_are_the_same(pool: WriterPool, tmp_path: Path) -> None:
    one, other = SlowFile(), SlowFile()
    assert sink_of(one, pool, tmp_path) == sink_of(one, pool, tmp_path)
    assert sink_of(one, pool, tmp_path) != sink_of(other, pool, tmp_path)
    assert len({sink_of(one, pool, tmp_path), sink_of(one, pool, tmp_path)}) == 1
