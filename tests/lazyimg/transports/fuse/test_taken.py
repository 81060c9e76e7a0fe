"""What is taken, as the process after this one finds it."""

from __future__ import annotations

import os
import struct

import pytest

from lazyimg.errors import KernelError
from lazyimg.transports.fuse import taken as module
from lazyimg.transports.fuse.taken import THREADS, Taken
from lazyimg_formats.fuse.layout import Opcode
from lazyimg_formats.fuse.messages import LookupRequest, ReadRequest

READ = struct.pack("=QQIIQII", 0, 8192, 4096, 0, 0, 0, 0)


def message(opcode: int, unique: int, body: bytes) -> bytes:
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, 7, 0, 0, 0, 0, 0) + body


def following(taken: Taken) -> Taken:
    """Give what the next process has, of the same memory."""
    return Taken(os.dup(taken.fd))


def test_nothing_at_first() -> None:
    taken = Taken()
    assert not os.get_inheritable(taken.fd)
    assert len(taken.buffers) == THREADS
    assert following(taken).left() == ([], [])
    taken.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(taken.fd)


def test_reads_that_wait() -> None:
    taken = Taken()
    assert taken.note(4, 7, 0, 4096)
    assert taken.note(6, 8, 1 << 40, 1 << 20)
    assert taken.note(1 << 63 | 2, 9, 0, 4096)
    taken.forget(4)
    taken.forget(4)
    assert following(taken).left() == (
        [], [ReadRequest(6, 8, 0, 1 << 40, 1 << 20), ReadRequest(1 << 63 | 2, 9, 0, 0, 4096)]
    )  # fmt: skip


def test_what_is_in_hand() -> None:
    taken = Taken()
    taken.buffers[0][:92] = message(Opcode.READ, 4, READ) + b"of what was before"[:12]
    lookup = message(Opcode.LOOKUP, 6, b"name\0")
    taken.buffers[1][: len(lookup)] = lookup
    taken.buffers[2][:40] = bytes([39]) + bytes(39)  # no request
    after = following(taken)
    in_hand, reads = after.left()
    assert in_hand == [LookupRequest(6, 7, b"name")]
    assert reads == [ReadRequest(4, 7, 0, 8192, 4096)]
    after.buffers[0][:40] = bytes(40)  # the thread takes something else
    assert following(after).left()[1] == reads
    after.forget(4)
    assert following(after).left()[1] == []


def test_read_that_is_in_hand_and_waits_is_one() -> None:
    taken = Taken()
    taken.buffers[0][:80] = message(Opcode.READ, 4, READ)
    taken.note(4, 7, 8192, 4096)
    after = following(taken)
    assert after.left() == ([], [ReadRequest(4, 7, 0, 8192, 4096)])
    after.forget(4)
    after.buffers[0][:40] = bytes(40)
    assert following(after).left() == ([], [])


def test_read_that_is_noted_twice_is_one() -> None:
    taken = Taken()
    assert taken.note(4, 7, 0, 4096)
    assert taken.note(4, 7, 0, 4096)
    taken.forget(4)
    assert taken.left() == ([], [])


def test_room_that_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING", 2)
    monkeypatch.setattr(module, "_SIZE", module._BUFFERS + 2 * 32)
    taken = Taken()
    assert [taken.note(unique, 7, 0, 4096) for unique in (2, 4, 6)] == [True, True, False]
    taken.forget(2)
    assert taken.note(6, 7, 0, 4096)
    assert [read.unique for read in following(taken).left()[1]] == [4, 6]


def test_memory_of_another_version() -> None:
    fd = os.memfd_create("other")
    with pytest.raises(KernelError, match=r"^fuse-taken: another version of lazyimg has left it$"):
        Taken(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "memfd_create", fail)
    with pytest.raises(KernelError, match=r"^memfd_create\(2\): failed: Cannot allocate memory$"):
        Taken()
