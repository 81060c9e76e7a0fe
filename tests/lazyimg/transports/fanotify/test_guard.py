"""The process that seals what nobody serves any more. The kernel's part is tested on the kernel."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

from lazyimg.transports.fanotify import guard
from lazyimg.transports.fanotify.device import MAX_FDS
from lazyimg.transports.fanotify.guard import (
    Denying,
    answers_to,
    deny_everything,
    find_files,
    find_marked,
    seal,
)
from lazyimg_formats.fanotify.messages import allow, deny
from tests.fakes.fanotify import OVERFLOW, access

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

FDINFO = """pos:\t0
flags:\t02004002
mnt_id:\t17
ino:\t1038
fanotify flags:3b event-flags:88002
fanotify ino:ac22bd sdev:fe00000 mflags:0 mask:100000 ignored_mask:0 fhandle-bytes:8
fanotify ino:1f sdev:fe00000 mflags:0 mask:100000 ignored_mask:0 fhandle-bytes:8
"""
EIO = 5


def make_device(cache: Path, name: str, data: bytes = b"data") -> Path:
    path = cache / name / "data"
    path.parent.mkdir()
    path.write_bytes(data)
    return path


def test_its_numbers_are_those_of_the_protocol() -> None:
    assert struct.pack("=iI", 7, guard.ALLOW) == allow(7)
    assert struct.pack("=iI", 7, guard.DENY) == deny(7, EIO)
    assert guard.MAX_FDS == MAX_FDS


def test_marks_of_a_group() -> None:
    assert find_marked(FDINFO) == {0xAC22BD, 0x1F}
    assert find_marked("") == set()


def test_files_by_inode_number(tmp_path: Path) -> None:
    one, other = make_device(tmp_path, "one"), make_device(tmp_path, "other")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert find_files(str(tmp_path), {one.stat().st_ino, 1}) == [str(one)]
    assert find_files(str(tmp_path), {other.stat().st_ino}) == [str(other)]
    assert find_files(str(tmp_path / "missing"), {1}) == []


def test_only_its_own_cut_is_allowed() -> None:
    data = access(7, 0, 4096) + OVERFLOW + access(8, 0, 0, pid=5) + access(9, 0, 0)
    data += access(10, 0, 4096, pid=5) + struct.pack("=IBBHQii", 24, 3, 0, 24, 2, 11, 5)
    assert answers_to(data, 5) == [
        (7, guard.DENY),
        (8, guard.ALLOW),
        (9, guard.DENY),
        (10, guard.DENY),
        (11, guard.DENY),
    ]
    assert answers_to(b"short", 5) == []


def test_everything_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []

    def write(fd: int, data: bytes) -> int:
        assert fd == 99
        number, response = struct.unpack("=iI", data)
        assert response == guard.DENY
        numbers.append(number)
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        deny_everything(99)
    assert numbers == list(range(MAX_FDS))


def test_events_are_denied_until_the_end(tmp_path: Path) -> None:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)  # noqa: FBT003 - positional only
    with ours, kernel:
        with Denying(ours.fileno()):
            fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
            kernel.send(access(fd, 0, 1))
            assert kernel.recv(100) == deny(fd, EIO)
            last = os.open(tmp_path / "file", os.O_RDWR)
            kernel.send(access(last, 0, 0, pid=os.getpid()))
        assert kernel.recv(100) == allow(last)


def test_files_that_are_open_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted, idle, other = (make_device(tmp_path, name) for name in ("mounted", "idle", "other"))
    marked = {path.stat().st_ino for path in (mounted, idle)}
    monkeypatch.setattr(guard, "find_marked", lambda _: marked)
    group = os.eventfd(0, os.EFD_NONBLOCK)
    users = [os.open(path, os.O_RDONLY) for path in (mounted, other)]
    assert seal(group, str(tmp_path)) == [str(mounted)]
    assert [path.read_bytes() for path in (mounted, idle, other)] == [b"", b"data", b"data"]
    for fd in (group, *users):
        os.close(fd)
