"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from errno import ENOSPC
from typing import TYPE_CHECKING

import pytest

from lazyimg.host.files import sync_directory, write_file

if TYPE_CHECKING:
    from pathlib import Path


def test_new_file(tmp_path: Path) -> None:
    write_file(tmp_path / "name", b"bytes")
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
    assert (tmp_path / "name").read_bytes() == b"bytes"


def test_views_and_nothing_can_be_written(tmp_path: Path) -> None:
    write_file(tmp_path / "view", memoryview(b"0123")[1:3])
    write_file(tmp_path / "nothing", b"")
    assert (tmp_path / "view").read_bytes() == b"12"
    assert (tmp_path / "nothing").read_bytes() == b""


def test_readers_of_the_file_that_is_replaced_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "name"
    write_file(path, b"old")
    with path.open("rb") as reader:
        write_file(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_name_as_long_as_a_file_system_takes(tmp_path: Path) -> None:
    write_file(tmp_path / ("n" * 255), b"x")
    assert (tmp_path / ("n" * 255)).read_bytes() == b"x"


def test_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "name", b"old")

    def full(_: int) -> None:
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "name", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
    assert (tmp_path / "name").read_bytes() == b"old"


def test_name_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_file(tmp_path / "name", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "none" / "name", b"x")


def test_data_is_synced_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    real = os.fsync

    def watch(handle: int) -> None:
        seen.append((tmp_path / "name").exists())
        real(handle)

    monkeypatch.setattr(os, "fsync", watch)
    write_file(tmp_path / "name", b"x")
    assert seen == [False, True]


def test_syncing_what_is_no_directory(tmp_path: Path) -> None:
    sync_directory(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "file")
