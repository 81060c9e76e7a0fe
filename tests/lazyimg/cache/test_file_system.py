"""Directories that cannot hold the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazyimg.cache.file_system import check_directory
from lazyimg.errors import CacheUnsuitableError

TABLE = "36 35 98:0 / {} rw,noatime - {} source rw\n"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("tmpfs", "EROFS cannot be mounted from files in memory"),
        ("ramfs", "EROFS cannot be mounted from files in memory"),
        ("overlay", "EROFS cannot be mounted from files of an overlay"),
        ("fuse", "EROFS would wait for the process that serves them"),
        ("fuse.sshfs", "EROFS would wait for the process that serves them"),
    ],
)
def test_file_systems_that_erofs_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, reason: str
) -> None:
    table = TABLE.format(tmp_path, kind).encode()
    monkeypatch.setattr(Path, "read_bytes", lambda _self: table)
    with pytest.raises(CacheUnsuitableError) as raised:
        check_directory(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path}: it lies on {kind}: {reason}; put it on ext4, xfs or btrfs"
    )


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "fuseblk"])
def test_file_systems_that_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    table = TABLE.format(tmp_path, kind).encode()
    monkeypatch.setattr(Path, "read_bytes", lambda _self: table)
    check_directory(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_directory_that_takes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = TABLE.format("/", "ext4").encode()
    monkeypatch.setattr(Path, "read_bytes", lambda _self: table)
    missing = tmp_path / "missing"
    with pytest.raises(CacheUnsuitableError) as raised:
        check_directory(missing)
    assert str(raised.value) == (
        f"{missing}: no file can be made in it: No such file or directory;"
        " put it on ext4, xfs or btrfs"
    )
