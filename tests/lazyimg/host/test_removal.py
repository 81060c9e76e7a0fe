"""Removing directories: deep, with links, and while somebody else is in them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lazyimg.host import removal
from lazyimg.host.removal import remove_tree

if TYPE_CHECKING:
    from pathlib import Path


def test_everything_goes(tmp_path: Path) -> None:
    top, kept = tmp_path / "top", tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    for path in ("a/b/c", "a/d", "e"):
        (top / path).mkdir(parents=True)
        (top / path / "file").write_text("x")
    (top / "link").symlink_to(kept)
    (top / "a/link").symlink_to(kept / "file")
    (top / "dangling").symlink_to("nowhere")
    os.mkfifo(top / "a/b/pipe")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    remove_tree(top)
    assert not top.exists()
    assert (kept / "file").exists()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_deeper_than_a_path_can_be(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("a", dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        child = os.open("a", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = child
    os.close(fd)
    remove_tree(top)
    assert not top.exists()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        remove_tree(tmp_path / "top")


def test_link_to_a_directory(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "top").symlink_to(tmp_path / "kept")
    with pytest.raises(NotADirectoryError):
        remove_tree(tmp_path / "top")
    assert (tmp_path / "kept").exists()


def test_directory_that_becomes_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top, kept = tmp_path / "top", tmp_path / "kept"
    (top / "a").mkdir(parents=True)
    kept.mkdir()
    (kept / "file").touch()
    listed = removal._remove_files

    def swap(fd: int) -> list[str]:
        names = listed(fd)
        if names == ["a"]:
            (top / "a").rmdir()
            (top / "a").symlink_to(kept)
        return names

    monkeypatch.setattr(removal, "_remove_files", swap)
    remove_tree(top)
    assert not top.exists()
    assert (kept / "file").exists()


def test_directory_that_is_moved_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top, other = tmp_path / "top", tmp_path / "other"
    (top / "a/b").mkdir(parents=True)
    other.mkdir()
    (other / "b").mkdir()
    listed = removal._remove_files

    def move(fd: int) -> list[str]:
        names = listed(fd)
        if not names:
            (top / "a/b").rename(other / "moved")
        return names

    monkeypatch.setattr(removal, "_remove_files", move)
    with pytest.raises(OSError, match="somebody moves it while it is removed: 'b'"):
        remove_tree(top)
    assert (other / "b").exists()
