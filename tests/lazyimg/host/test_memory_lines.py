"""Lines in memory, which the next process has too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import StorageError
from lazyimg.host import memory_lines
from lazyimg.host.memory_lines import MemoryLines

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def lines() -> Iterator[MemoryLines]:
    opened = MemoryLines("tests")
    yield opened
    opened.close()


def follow(lines: MemoryLines) -> MemoryLines:
    """Give what the next process has."""
    return MemoryLines("tests", os.dup(lines.fd))


def test_next_process_reads_what_was_added(lines: MemoryLines) -> None:
    assert lines.read() == []
    lines.add(b"one")
    lines.add(b"two")
    following = follow(lines)
    assert following.read() == [b"one", b"two"]
    following.add(b"three")
    last = follow(following)
    assert last.read() == [b"one", b"two", b"three"]
    for one in (following, last):
        one.close()


def test_line_cut_at_every_byte(lines: MemoryLines) -> None:
    lines.add(b"one")
    lines.add(b"second")
    data = os.pread(lines.fd, 100, 0)
    for size in range(4, len(data)):
        os.ftruncate(lines.fd, size)
        following = follow(lines)
        assert following.read() == [b"one"]
        following.add(b"other")
        last = follow(following)
        assert last.read() == [b"one", b"other"]
        for one in (following, last):
            one.close()
        os.pwrite(lines.fd, data, 0)


def test_file_has_a_limit(lines: MemoryLines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_lines, "MAX_SIZE", 10)
    lines.add(b"12345")
    assert lines.has_room(b"678")
    assert not lines.has_room(b"6789")
    lines.replace([b"67", b"8"])
    assert os.fstat(lines.fd).st_size == 5
    lines.add(b"9")
    following = follow(lines)
    assert following.read() == [b"67", b"8", b"9"]
    following.close()


def test_file_is_not_for_programs_that_are_started(lines: MemoryLines) -> None:
    assert not os.get_inheritable(lines.fd)
    assert "tests" in str(Path(f"/proc/self/fd/{lines.fd}").readlink())


def test_no_memory() -> None:
    with pytest.raises(StorageError) as caught:
        MemoryLines("tests", -1)
    assert str(caught.value) == "credentials: cannot be kept in memory: Bad file descriptor"
    lines = MemoryLines("tests", os.open("/dev/null", os.O_WRONLY))
    with pytest.raises(StorageError):
        lines.read()
    lines.close()
    lines = MemoryLines("tests", os.open("/dev/null", os.O_RDONLY))
    with pytest.raises(StorageError):
        lines.add(b"line")
    with pytest.raises(StorageError):
        lines.replace([])
    lines.close()
