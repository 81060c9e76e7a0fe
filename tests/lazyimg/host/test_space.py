"""Limits and what the kernel makes of them."""

from __future__ import annotations

import os
from errno import EDQUOT
from pathlib import Path

import pytest

from lazyimg.errors import ConfigurationError
from lazyimg.host.space import CacheLimits, CacheSpace, find_top


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"brun": 5},
            (
                "cache limits: bstop=1, bcull=5, brun=5 are not in order;"
                " set 0 <= bstop < bcull < brun < 100"
            ),
        ),
        (
            {"frun": 100},
            (
                "cache limits: fstop=1, fcull=5, frun=100 are not in order;"
                " set 0 <= fstop < fcull < frun < 100"
            ),
        ),
        (
            {"bstop": -1},
            (
                "cache limits: bstop=-1, bcull=5, brun=7 are not in order;"
                " set 0 <= bstop < bcull < brun < 100"
            ),
        ),
    ],
)
def test_limits_out_of_order(limits: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        CacheLimits(**limits)
    assert str(raised.value) == message


def disk(blocks: int, free: int, files: int, free_files: int) -> os.statvfs_result:
    return os.statvfs_result(
        (4096, 4096, blocks, free, free, files, free_files, free_files, 0, 255)
    )


LITTLE = "has less than 1 % of its space left (or 1 % of its inodes)"


@pytest.mark.parametrize(
    ("status", "shortage", "below_run"),
    [
        (disk(1000, 70, 1000, 70), "", False),
        (disk(1000, 69, 1000, 70), "", True),
        (disk(1000, 70, 1000, 69), "", True),
        (disk(1000, 10, 1000, 1000), "", True),
        (disk(1000, 9, 1000, 1000), LITTLE, True),
        (disk(1000, 1000, 1000, 9), LITTLE, True),
        (disk(1000, 1000, 0, 0), "", False),  # no fixed number of inodes
    ],
)
def test_space(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    status: os.statvfs_result,
    shortage: str,
    below_run: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    top = Path("/top")  # what the directory itself has is not asked
    monkeypatch.setattr(os, "statvfs", lambda path: {top: status}[path])
    space = CacheSpace(tmp_path, CacheLimits(), top)
    assert space.shortage() == (f"{tmp_path} {shortage}" if shortage else "")
    assert space.below_run() == below_run


@pytest.mark.parametrize(
    ("status", "shortage"),
    [
        (disk(1000, 1, 1000, 1), ""),
        (disk(1000, 0, 1000, 1), "has no space left"),
        (disk(1000, 1, 1000, 0), "has no inode left"),
        (disk(1000, 1, 0, 0), ""),
    ],
)
def test_nothing_is_left_and_no_limit_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: os.statvfs_result, shortage: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: {tmp_path: status}[path])
    space = CacheSpace(
        tmp_path, CacheLimits(bstop=0, bcull=1, brun=2, fstop=0, fcull=1, frun=2), tmp_path
    )
    assert space.shortage() == (f"{tmp_path} {shortage}" if shortage else "")


def test_quota_that_is_used_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(EDQUOT, os.strerror(EDQUOT))

    space = CacheSpace(tmp_path, CacheLimits(bstop=0, fstop=0), tmp_path)
    assert space.shortage() == ""
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert space.shortage() == f"{tmp_path} takes no more: Disk quota exceeded"
    missing = tmp_path / "missing"
    space = CacheSpace(missing, CacheLimits(bstop=0, fstop=0), tmp_path)
    assert space.shortage() == f"{missing} takes no more: No such file or directory"
    assert list(tmp_path.iterdir()) == []


def test_top_is_the_mount_point(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/proc/self")
    assert find_top(link) == find_top(Path("/proc")) == Path("/proc")


def test_space_for_a_large_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _path: disk(100_000, 3000, 1000, 1000))
    space = CacheSpace(tmp_path, CacheLimits(), tmp_path)
    assert space.shortage() == ""
    assert space.shortage(near=True) == f"{tmp_path} {LITTLE}"


@pytest.mark.parametrize(
    ("status", "room", "below_cull"),
    [
        (disk(1000, 50, 1000, 1000), 40 * 4096, False),
        (disk(1000, 49, 1000, 1000), 39 * 4096, True),
        (disk(1000, 5, 1000, 1000), 0, True),
        (disk(1000, 1000, 1000, 10), 990 * 4096, True),
        (disk(1000, 1000, 1000, 9), 0, True),
        (disk(1000, 1000, 0, 0), 990 * 4096, False),
    ],
)
def test_room(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    status: os.statvfs_result,
    room: int,
    below_cull: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _path: status)
    space = CacheSpace(tmp_path, CacheLimits(), tmp_path)
    assert space.room() == room
    assert space.reserve() == status.f_blocks // 100 * 4096
    assert space.below_cull() == below_cull
