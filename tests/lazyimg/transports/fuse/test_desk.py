"""What a thread answers with: its room, and its pipe."""

from __future__ import annotations

import fcntl
import gc
import os
from errno import EMFILE, EPERM

import pytest

from lazyimg.transports.fuse.desk import PIPE_SIZE, Desk

PAGE = 4096


def test_pipe_takes_a_header_and_its_room() -> None:
    desk = Desk(PAGE)
    assert os.write(desk.entry, bytes(16)) == 16
    assert os.write(desk.entry, bytes(desk.pipe_room)) == desk.pipe_room
    assert desk.pipe_room == PIPE_SIZE // 2


def test_pipe_that_is_emptied() -> None:
    desk = Desk(PAGE)
    before = os.fstat(desk.entry).st_ino
    os.write(desk.entry, b"left")
    desk.empty_pipe()
    os.set_blocking(desk.exit, False)
    with pytest.raises(BlockingIOError):
        os.read(desk.exit, 1)
    assert os.fstat(desk.entry).st_ino != before


def test_pipe_is_closed_with_the_desk() -> None:
    desk = Desk(PAGE)
    fds = desk.entry, desk.exit
    pipe = os.fstat(desk.entry).st_ino
    del desk
    gc.collect()
    for fd in fds:
        try:
            assert os.fstat(fd).st_ino != pipe
        except OSError:
            continue


def test_user_who_may_have_no_larger_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    control = fcntl.fcntl

    def refuse(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            raise OSError(EPERM, os.strerror(EPERM))
        return control(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert Desk(PAGE).pipe_room == 8 * PAGE


def test_no_more_fds(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(PAGE)

    def refuse(_flags: int) -> tuple[int, int]:
        raise OSError(EMFILE, os.strerror(EMFILE))

    monkeypatch.setattr(os, "pipe2", refuse)
    desk.empty_pipe()
    assert (desk.pipe_room, Desk(PAGE).pipe_room) == (0, 0)


def test_desk_without_a_pipe() -> None:
    assert Desk(PAGE, pipe=False).pipe_room == 0


def test_room() -> None:
    desk = Desk(PAGE)
    desk.room(10)[:] = b"0123456789"
    assert bytes(desk.buffer[:10]) == b"0123456789"
    assert len(desk.room(PAGE + 1)) == PAGE + 1
