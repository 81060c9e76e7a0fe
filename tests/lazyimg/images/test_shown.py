"""Names and passwords that outlive a process, in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import StorageError
from lazyimg.host import memory_lines
from lazyimg.images.shown import ShownAccess
from lazyimg.registry.ports import Access

if TYPE_CHECKING:
    from collections.abc import Iterator

ALICE = Access(
    username="alice", password="open\nsesame", plain_http=True, authfile=Path("/a"),
    ca_file=Path("/c"), hosts_dir=Path("/h"),
)  # fmt: skip
BOB = Access(username="bob", password="b")
NOBODY = Access(authfile=Path("/a"))


@pytest.fixture
def shown() -> Iterator[ShownAccess]:
    shown = ShownAccess()
    yield shown
    shown.close()


def follow(shown: ShownAccess) -> ShownAccess:
    """Give what the next process has."""
    return ShownAccess(os.dup(shown.fd))


def test_last_one_counts(shown: ShownAccess) -> None:
    assert shown.find("reg/app") is None
    shown.note("reg/app", ALICE)
    shown.note("reg/other", BOB)
    shown.note("reg/app", BOB)
    assert shown.find("reg/app") == shown.find("reg/other") == BOB
    shown.note("reg/app", NOBODY)
    assert shown.find("reg/app") is None


def test_next_process_knows_the_same(shown: ShownAccess) -> None:
    shown.note("reg/app", BOB)
    shown.note("reg/app", ALICE)
    shown.note("reg/gone", BOB)
    shown.note("reg/gone", NOBODY)
    following = follow(shown)
    assert following.find("reg/app") == ALICE
    assert following.find("reg/gone") is None
    following.note("reg/more", BOB)
    last = follow(following)
    assert (last.find("reg/app"), last.find("reg/more")) == (ALICE, BOB)
    for one in (following, last):
        one.close()


def test_what_is_known_is_not_written_again(shown: ShownAccess) -> None:
    shown.note("reg/none", NOBODY)
    assert os.fstat(shown.fd).st_size == 0
    shown.note("reg/app", ALICE)
    size = os.fstat(shown.fd).st_size
    shown.note("reg/app", ALICE)
    assert os.fstat(shown.fd).st_size == size


def test_line_cut_at_every_byte(shown: ShownAccess) -> None:
    shown.note("reg/app", ALICE)
    begin = os.fstat(shown.fd).st_size
    shown.note("reg/app", BOB)
    data = os.pread(shown.fd, 10_000, 0)
    for size in range(begin, len(data)):
        os.ftruncate(shown.fd, 0)
        os.pwrite(shown.fd, data[:size], 0)
        following = follow(shown)
        assert following.find("reg/app") == ALICE
        following.note("reg/more", BOB)
        last = follow(following)
        assert (last.find("reg/app"), last.find("reg/more")) == (ALICE, BOB)
        following.close()
        last.close()


@pytest.mark.parametrize("line", [b"", b"{}", b"\xff", b"[1]", b'{"repository":"reg/app"}'])
def test_line_that_is_none(shown: ShownAccess, line: bytes) -> None:
    os.pwrite(shown.fd, line + b"\n", 0)
    following = follow(shown)
    assert following.find("reg/app") is None
    following.note("reg/app", BOB)
    assert following.find("reg/app") == BOB
    following.close()


def test_file_has_a_limit(shown: ShownAccess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_lines, "MAX_SIZE", 2000)
    shown.note("reg/first", ALICE)
    for number in range(100):
        shown.note("reg/app", Access(username="alice", password=str(number)))
        assert os.fstat(shown.fd).st_size <= 2000
    following = follow(shown)
    assert following.find("reg/first") == ALICE
    found = following.find("reg/app")
    assert found is not None
    assert found.password == "99"
    following.close()


def test_no_memory() -> None:
    with pytest.raises(StorageError) as caught:
        ShownAccess(-1)
    assert str(caught.value) == "credentials: cannot be kept in memory: Bad file descriptor"
    shown = ShownAccess(os.open("/dev/null", os.O_RDONLY))
    with pytest.raises(StorageError, match="cannot be kept in memory"):
        shown.note("reg/app", BOB)
    shown.close()
