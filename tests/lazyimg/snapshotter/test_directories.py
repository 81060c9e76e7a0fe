"""Directories of snapshots: made, measured, set aside, removed."""

from __future__ import annotations

import os
import stat
import sys
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

import pytest

from lazyimg.errors import StorageError
from lazyimg.snapshotter.directories import Directories

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def directories(root: Path) -> Iterator[Directories]:
    opened = Directories(root)
    yield opened
    opened.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_active_one(directories: Directories, root: Path) -> None:
    mask = os.umask(0o077)
    try:
        directories.make(7, None, writable=True)
    finally:
        os.umask(mask)
    assert names(root / "snapshots/7") == ["fs", "work"]
    assert (mode(root / "snapshots/7"), mode(directories.upper(7))) == (0o700, 0o755)
    assert mode(directories.work(7)) == 0o711


def test_view(directories: Directories, root: Path) -> None:
    directories.make(7, (os.getuid(), os.getgid()), writable=False)
    assert names(root / "snapshots/7") == ["fs"]
    assert directories.owner(7) == (os.getuid(), os.getgid())


def test_what_lay_there_is_set_aside(directories: Directories, root: Path) -> None:
    (root / "snapshots/7/fs/old").mkdir(parents=True)
    directories.make(7, None, writable=False)
    assert names(directories.upper(7)) == []
    wait(directories.removing())
    assert names(root / "removed") == []


def test_failure_leaves_nothing(
    directories: Directories, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted", "fs")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(StorageError, match=r"^fs: Operation not permitted$"):
        directories.make(7, (1, 1), writable=True)
    assert names(root / "snapshots") == []


def test_usage_counts_inodes_once(directories: Directories) -> None:
    directories.make(7, None, writable=False)
    top = directories.upper(7)
    size, inodes = directories.usage(7)
    assert inodes == 1
    (top / "a").write_bytes(b"x" * 100_000)
    os.link(top / "a", top / "b")
    (top / "d").mkdir()
    (top / "d/link").symlink_to("/nowhere")
    more, count = directories.usage(7)
    assert count == 4
    blocks = sum(path.lstat().st_blocks for path in (top, top / "a", top / "d", top / "d/link"))
    assert more == blocks * 512
    assert more - size >= 100_000


@pytest.mark.parametrize("link", [True, False])
def test_usage_while_a_directory_becomes_something_else(
    directories: Directories, root: Path, monkeypatch: pytest.MonkeyPatch, *, link: bool
) -> None:
    """As a container may do meanwhile; a link would lead out of it."""
    directories.make(7, None, writable=False)
    changing = directories.upper(7) / "changing"
    changing.mkdir()
    (root / "elsewhere").mkdir()
    (root / "elsewhere/file").touch()
    really_open = os.open

    def change_before(path: object, *arguments: Any) -> int:
        if path == os.fspath(changing):
            changing.rmdir()
            if link:
                changing.symlink_to(root / "elsewhere")
            else:
                changing.touch()
        return really_open(path, *arguments)  # type: ignore[arg-type]  # whatever it is

    monkeypatch.setattr(os, "open", change_before)
    assert directories.usage(7)[1] == 2


def test_usage_of_nothing(directories: Directories) -> None:
    with pytest.raises(StorageError, match=r"/snapshots/7/fs: No such file or directory$"):
        directories.usage(7)


def test_owner_of_nothing(directories: Directories) -> None:
    with pytest.raises(StorageError, match=r"/snapshots/7/fs: No such file or directory$"):
        directories.owner(7)


def test_discard(directories: Directories, root: Path) -> None:
    directories.make(7, None, writable=True)
    (directories.upper(7) / "file").write_text("x")
    directories.discard(7)
    assert names(root / "snapshots") == []
    wait(directories.removing())
    assert names(root / "removed") == []
    directories.discard(7)  # there is nothing left to do


def test_sweep(root: Path) -> None:
    first = Directories(root)
    for number in (1, 2):
        first.make(number, None, writable=True)
    first.close()
    (root / "snapshots/new-thing").mkdir()
    (root / "removed/9-half").mkdir()
    second = Directories(root)
    second.sweep({2})
    wait(second.removing())
    second.close()
    assert names(root / "snapshots") == ["2"]
    assert names(root / "removed") == []


def test_what_cannot_be_removed_is_said(
    directories: Directories,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    directories.make(7, None, writable=False)
    monkeypatch.setattr("lazyimg.snapshotter.directories.remove_tree", refuse)
    directories.discard(7)
    wait(directories.removing())
    assert "cannot be removed: Operation not permitted" in caplog.text


def test_directories_as_deep_as_a_container_likes(directories: Directories) -> None:
    directories.make(7, None, writable=True)
    fd = os.open(directories.upper(7), os.O_RDONLY)
    for _ in range(2 * sys.getrecursionlimit()):
        os.mkdir("a", dir_fd=fd)
        child = os.open("a", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = child
    os.close(fd)
    directories.discard(7)
    removing = directories.removing()
    wait(removing)
    assert [one.exception() for one in removing] == [None]
    assert names(directories.upper(7).parents[2] / "removed") == []


def test_root_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"Not a directory$"):
        Directories(tmp_path / "file/root")
