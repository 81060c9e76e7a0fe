"""Records on disk: kept as they are, and refused when they are something else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lazyimg.cache.record import Record, read_record_size, record_size

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 100 * 4096
BITS = bytes(range(1, 14))


def test_record_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "record"
    made = Record(path, SIZE, make=True)
    assert made.read() == bytes(13)
    made.write(0, BITS)
    made.write(3, b"\xff\xfe")
    made.sync()
    again = Record(path, SIZE)
    assert again.read() == BITS[:3] + b"\xff\xfe" + BITS[5:]
    assert again.read_piece(3, 5) == b"\xff\xfe"
    assert read_record_size(path) == SIZE
    assert path.read_bytes()[:16] == b"lazyblk1" + SIZE.to_bytes(8, "little")


def test_record_is_made_once(tmp_path: Path) -> None:
    Record(tmp_path / "record", SIZE, make=True)
    with pytest.raises(FileExistsError):
        Record(tmp_path / "record", SIZE, make=True)
    with pytest.raises(FileNotFoundError):
        Record(tmp_path / "other", SIZE)


def test_anything_else_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "record"
    Record(path, SIZE, make=True)
    assert Record(path, SIZE + 8 * 4096).read() is None
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert Record(path, SIZE).read() is None
    path.write_bytes(b"x" + whole[1:])
    assert Record(path, SIZE).read() is None
    assert read_record_size(path) is None
    assert record_size(b"") is None


def test_fd_is_closed_with_the_record(tmp_path: Path) -> None:
    made = Record(tmp_path / "record", SIZE, make=True)
    fd = made._fd
    os.fstat(fd)
    del made
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
