"""The end of what is watched. A directory that is removed ends as one does that is unmounted."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from errno import EMFILE, ENOENT
from pathlib import Path

import pytest

from lazyimg.host.endings import Endings


def test_what_has_ended_is_told_once(tmp_path: Path) -> None:
    endings = Endings()
    numbers = {}
    for name in ("one", "other", "third"):
        (tmp_path / name).mkdir()
        numbers[name] = endings.watch(str(tmp_path / name))
    assert endings.ended() == set()
    (tmp_path / "third" / "file").touch()
    (tmp_path / "one").rmdir()
    (tmp_path / "other").rmdir()
    assert endings.ended() == {numbers["one"], numbers["other"]}
    assert endings.ended() == set()


def test_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        Endings().watch(str(tmp_path / "none"))
    assert raised.value.errno == ENOENT


def test_user_who_may_have_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def inotify_init1(self, _flags: int) -> int:
            ctypes.set_errno(EMFILE)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_arguments, **_options: Libc())
    with pytest.raises(OSError, match="Too many open files"):
        Endings()


def open_watches() -> int:
    links = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the list's own
            links.append(str(path.readlink()))
    return links.count("anon_inode:inotify")


def test_fd_is_closed_with_the_last_reference() -> None:
    before = open_watches()
    endings = Endings()
    assert open_watches() == before + 1
    del endings
    assert open_watches() == before
