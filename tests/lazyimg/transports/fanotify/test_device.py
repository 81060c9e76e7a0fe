"""The system calls on a group. A socket stands for it: what the kernel does is tested on it."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from errno import EACCES, EINVAL, EIO, EMFILE, ENOENT, ENOSYS, EOPNOTSUPP, EPERM
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CacheUnsuitableError, KernelError, LazyimgError, NotRootError
from lazyimg.transports.fanotify import device
from lazyimg.transports.fanotify.device import MAX_FDS, READ_SIZE, Group, mark_error, open_group
from lazyimg_formats.fanotify.messages import allow

if TYPE_CHECKING:
    from collections.abc import Iterator


class Pair:
    """A group, and the other end of its fd."""

    def __init__(self) -> None:
        ours, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)  # noqa: FBT003 - positional only
        self.group = Group(ours.detach())


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.group.close()
    pair.kernel.close()


class Calls:
    """Stands for libc: gives `result`, sets `errno`, keeps what it was called with."""

    def __init__(self, result: int = 0, errno: int = 0) -> None:
        self.result = result
        self.errno = errno
        self.calls: list[tuple[object, ...]] = []

    def fanotify_init(self, *arguments: object) -> int:
        return self._call("init", *arguments)

    def fanotify_mark(self, *arguments: object) -> int:
        return self._call("mark", *arguments)

    def _call(self, *arguments: object) -> int:
        self.calls.append(arguments)
        ctypes.set_errno(self.errno)
        return self.result


def patched(monkeypatch: pytest.MonkeyPatch, result: int = 0, errno: int = 0) -> Calls:
    calls = Calls(result, errno)
    monkeypatch.setattr(device, "_libc", calls)
    return calls


def test_events_are_waited_for_and_read(pair: Pair) -> None:
    pair.group.wake()
    assert not pair.group.wait()
    assert pair.group.read_events() == b""
    pair.kernel.send(b"events")
    assert pair.group.wait()
    assert pair.group.read_events() == b"events"
    assert not os.get_inheritable(pair.group.fd)
    assert READ_SIZE > 4096


def test_answer_goes_out_before_the_fd_is_closed(pair: Pair, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert pair.group.node_of(fd) == (tmp_path / "file").stat().st_ino
    assert pair.group.answer(fd, allow(fd))
    assert pair.kernel.recv(100) == struct.pack("=iI", fd, 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("number", [ENOENT, EINVAL])
def test_answer_that_is_not_taken(
    pair: Pair, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)

    def refuse(_: int, __: bytes) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        if number == ENOENT:
            assert not pair.group.answer(fd, allow(fd))
        else:
            with pytest.raises(OSError, match="Invalid argument"):
                pair.group.answer(fd, allow(fd))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_everything_is_denied_but_what_is_spared(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []

    def write(_: int, data: bytes) -> int:
        written.append(data)
        if struct.unpack_from("=i", data)[0] != 3:
            raise OSError(ENOENT, os.strerror(ENOENT))
        return len(data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        assert pair.group.deny_everything(EIO, spare={5, 6}) == 1
    numbers = [struct.unpack_from("=i", data)[0] for data in written]
    assert numbers == [number for number in range(MAX_FDS) if number not in {5, 6}]
    assert {struct.unpack_from("=I", data, 4)[0] for data in written} == {2 | EIO << 24}


def test_denying_everything_of_a_group_that_is_none(pair: Pair) -> None:
    pair.kernel.close()
    with pytest.raises(BrokenPipeError):
        pair.group.deny_everything(EIO)


def test_marks(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = patched(monkeypatch)
    pair.group.mark(7)
    pair.group.unmark(7)
    fd = pair.group.fd
    assert calls.calls == [("mark", fd, 1, 0x100000, 7, None), ("mark", fd, 2, 0x100000, 7, None)]


def test_file_without_a_mark_can_be_unmarked(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = patched(monkeypatch, -1, ENOENT)
    pair.group.unmark(7)
    with pytest.raises(FileNotFoundError):
        pair.group.mark(7)
    calls.errno = EACCES
    with pytest.raises(PermissionError):
        pair.group.unmark(7)


def test_group_has_no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = patched(monkeypatch, 12)
    assert open_group() == 12
    ((_, flags, event_flags),) = calls.calls
    assert flags == 0x1 | 0x2 | 0x8 | 0x10 | 0x20
    assert event_flags == os.O_RDWR | os.O_CLOEXEC | os.O_LARGEFILE


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (EPERM, NotRootError, r"^fanotify: only root may; run the daemon as root$"),
        (EINVAL, KernelError, r"^fanotify: this kernel does not offer it; it came with Linux 6.14"),
        (ENOSYS, KernelError, r"^fanotify: this kernel does not offer it; it came with Linux 6.14"),
        (EMFILE, KernelError, r"^fanotify: cannot be used: Too many open files; it came"),
    ],
)
def test_group_that_cannot_be_made(
    number: int, kind: type[LazyimgError], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched(monkeypatch, -1, number)
    with pytest.raises(kind, match=text):
        open_group()


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (EOPNOTSUPP, CacheUnsuitableError, r"^/c: its file system has no pre-content events"),
        (EINVAL, KernelError, r"^/c: this kernel has no pre-content events; it came with Linux"),
        (EACCES, KernelError, r"^/c: cannot be marked: Permission denied$"),
    ],
)
def test_file_that_cannot_be_marked(number: int, kind: type[LazyimgError], text: str) -> None:
    with pytest.raises(kind, match=text):
        raise mark_error(Path("/c"), OSError(number, os.strerror(number)))
