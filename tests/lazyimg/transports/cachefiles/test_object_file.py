"""An object's fd, played by a memory file: it takes writes and tells data from holes."""

from __future__ import annotations

import fcntl
import os
from errno import EBADF, EDQUOT, EINVAL, EIO, ENOBUFS, ENOSPC
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import KernelError, StorageError
from lazyimg.host.space import CacheLimits, CacheSpace
from lazyimg.transports.cachefiles import object_file
from lazyimg.transports.cachefiles.object_file import (
    BUFFER_SIZE,
    ObjectFile,
    find_present,
    new_buffer,
    when_ready,
)
from lazyimg_formats.cachefiles.layout import IOC_READ_COMPLETE

if TYPE_CHECKING:
    from pathlib import Path

K = 1024


@pytest.fixture
def file() -> ObjectFile:
    return ObjectFile(os.memfd_create("object", 0))


def content(file: ObjectFile) -> bytes:
    return os.pread(file.fd, 1 << 30, 0)


def test_fd_is_closed_on_exec(file: ObjectFile) -> None:
    assert fcntl.fcntl(file.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_write_of_whole_blocks(file: ObjectFile) -> None:
    file.write(8 * K, [b"x" * K, b"", b"y" * 3 * K], new_buffer())
    assert content(file) == bytes(8 * K) + b"x" * K + b"y" * 3 * K


def test_write_larger_than_the_buffer(file: ObjectFile) -> None:
    data = os.urandom(2 * BUFFER_SIZE + 100)
    buffer = new_buffer()
    file.write(4 * K, [data[:1000], data[1000:], bytes(BUFFER_SIZE - 100)], buffer)
    assert content(file) == bytes(4 * K) + data + bytes(BUFFER_SIZE - 100)


def test_write_of_a_buffer_as_it_is(file: ObjectFile) -> None:
    buffer = new_buffer()
    buffer[: 8 * K] = b"x" * 8 * K
    file.write_aligned(4 * K, buffer[: 8 * K])
    assert content(file) == bytes(4 * K) + b"x" * 8 * K
    with pytest.raises(ValueError, match="100 bytes at 0 are not whole blocks"):
        file.write_aligned(0, buffer[:100])
    file.close()
    with pytest.raises(OSError, match="the kernel has closed this object"):
        file.write_aligned(0, buffer[: 4 * K])


def test_write_that_the_kernel_takes_in_parts(
    file: ObjectFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[: 4 * K], offset))
    file.write(0, [b"x" * 12 * K], new_buffer())
    assert content(file) == b"x" * 12 * K


def test_write_that_ends_in_the_middle_of_a_block(
    file: ObjectFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system's own blocks are smaller; it is full now, and has room again later."""
    real = os.pwrite
    taken = [6 * K, 2 * K]
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[: taken.pop(0)], at))
    with pytest.raises(OSError, match="No space left on device"):
        file.write(0, [b"x" * 12 * K], new_buffer())
    assert content(file) == b"x" * 6 * K
    monkeypatch.undo()
    file.write(0, [b"x" * 12 * K], new_buffer())
    assert content(file) == b"x" * 12 * K


@pytest.mark.parametrize("number", [ENOSPC, EDQUOT])
def test_file_system_that_refuses_space(space: CacheSpace, number: int) -> None:
    said = f"object: cannot write to the cache: {os.strerror(number)}"
    with pytest.raises(StorageError, match=f"^{said}$"):
        when_ready(Kernel(1, number), "object", space)


@pytest.mark.parametrize(("offset", "length"), [(1, 4096), (512, 4096), (0, 4095)])
def test_write_of_a_part_of_a_block(file: ObjectFile, offset: int, length: int) -> None:
    with pytest.raises(ValueError, match=rf"{length} bytes at {offset} are not whole blocks"):
        file.write(offset, [bytes(length)], new_buffer())


def test_closed(file: ObjectFile) -> None:
    file.close()
    file.close()
    with pytest.raises(OSError, match="the kernel has closed this object") as raised:
        file.write(0, [bytes(4 * K)], new_buffer())
    assert raised.value.errno == EBADF
    with pytest.raises(OSError, match="the kernel has closed this object"):
        file.present(4 * K)
    assert not file.complete(1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.fd)


def test_close_during_a_write_waits_for_it(
    file: ObjectFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        file.close()
        os.fstat(fd)
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    file.write(0, [bytes(4 * K)], new_buffer())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.fd)


@pytest.mark.parametrize(("number", "known"), [(0, True), (EINVAL, False)])
def test_complete(
    file: ObjectFile,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    known: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    calls = []

    def ioctl(fd: int, request: int, argument: int) -> int:
        calls.append((fd, request, argument))
        if number:
            raise OSError(number, "")
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert file.complete(7) is known
    assert calls == [(file.fd, IOC_READ_COMPLETE, 7)]


def test_complete_that_fails_otherwise(file: ObjectFile) -> None:
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        file.complete(7)  # a memory file has no such ioctl
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.fd)


def test_present(file: ObjectFile) -> None:
    os.ftruncate(file.fd, 64 * K)
    os.pwrite(file.fd, b"x" * 4 * K, 8 * K)
    os.pwrite(file.fd, b"x" * 8 * K, 32 * K)
    assert file.present(64 * K) == [range(8 * K, 12 * K), range(32 * K, 40 * K)]


def test_present_up_to_the_end(file: ObjectFile) -> None:
    file.write(0, [b"x" * 8 * K], new_buffer())
    assert file.present(8 * K) == [range(8 * K)]
    assert file.present(5 * K) == [range(5 * K)]
    assert file.present(0) == []


def test_nothing_present(file: ObjectFile) -> None:
    assert file.present(64 * K) == []


def test_present_counts_whole_blocks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {(0, os.SEEK_DATA): 1 * K, (1 * K, os.SEEK_HOLE): 10 * K}
    answers |= {(10 * K, os.SEEK_DATA): 13 * K, (13 * K, os.SEEK_HOLE): 15 * K}
    answers |= {(15 * K, os.SEEK_DATA): 17 * K, (17 * K, os.SEEK_HOLE): 22 * K}
    monkeypatch.setattr(os, "lseek", lambda _fd, offset, whence: answers[offset, whence])
    assert find_present(0, 21 * K) == [range(4 * K, 8 * K), range(20 * K, 21 * K)]


def test_present_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def lseek(_fd: int, _offset: int, _whence: int) -> int:
        raise OSError(EIO, "Input/output error")

    monkeypatch.setattr(os, "lseek", lseek)
    with pytest.raises(OSError, match="Input/output error"):
        find_present(0, 4096)


class Kernel:
    """Gives ENOBUFS a number of times, then another error or nothing."""

    def __init__(self, times: int, number: int = 0) -> None:
        self.times = times
        self.number = number

    def __call__(self) -> str:
        if self.times:
            self.times -= 1
            raise OSError(ENOBUFS, "No buffer space available")
        if self.number:
            raise OSError(self.number, os.strerror(self.number))
        return "done"


@pytest.fixture
def space(tmp_path: Path) -> CacheSpace:
    return CacheSpace(tmp_path, CacheLimits(bstop=0, fstop=0), tmp_path)


def test_ready_after_a_while(space: CacheSpace) -> None:
    assert when_ready(Kernel(3), "object", space) == "done"


def test_never_ready(space: CacheSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_file, "READY_WAIT", 0.01)
    with pytest.raises(StorageError) as raised:
        when_ready(Kernel(1 << 30), "object", space)
    assert str(raised.value) == "object: the kernel took no data within 0.01 s of the opening"


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = CacheSpace(tmp_path, CacheLimits(), tmp_path)
    full = os.statvfs_result((4096, 4096, 100, 0, 0, 100, 100, 100, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    with pytest.raises(StorageError) as raised:
        when_ready(Kernel(1), "object", space)
    assert str(raised.value) == (
        f"object: {tmp_path} has less than 1 % of its space left (or 1 % of its inodes);"
        " free some, or lower the cache's limits"
    )


@pytest.mark.parametrize(
    ("free", "said"), [(3000, "has less than 1 % of its space left"), (4000, "took no data")]
)
def test_no_space_for_a_large_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, said: str
) -> None:
    space = CacheSpace(tmp_path, CacheLimits(), tmp_path)
    status = os.statvfs_result((4096, 4096, 100_000, free, free, 100, 100, 100, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: status)
    monkeypatch.setattr(object_file, "READY_WAIT", 0.01)
    assert not space.shortage()
    with pytest.raises(StorageError, match=said):
        when_ready(Kernel(1 << 30), "object", space)


def test_failing_disk(space: CacheSpace) -> None:
    with pytest.raises(StorageError, match=r"^object: cannot write to the cache: Input/output err"):
        when_ready(Kernel(0, EIO), "object", space)


def test_closed_meanwhile(space: CacheSpace) -> None:
    with pytest.raises(KernelError, match=r"^object: the kernel has closed this object meanwhile$"):
        when_ready(Kernel(1, EBADF), "object", space)
