"""Upper and work directories of read-write mounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CorruptError, StorageError
from lazyimg.images.scratch import prepare_scratch, remove_scratch
from tests.fakes.image_mounts import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_first_mount_gets_the_root_of_the_image(root: Path) -> None:
    upper, work = prepare_scratch(root / "scratch" / "s", root / "bootstraps" / ("a" * 64))
    assert upper == root / "scratch" / "s" / "upper"
    assert work.parent == upper.parent
    assert upper.stat().st_mode == ROOT.mode
    assert upper.stat().st_mtime == ROOT.mtime
    assert list(work.iterdir()) == []


def test_later_mount_keeps_what_was_written_and_takes_another_work_directory(root: Path) -> None:
    bootstrap = root / "bootstraps" / ("a" * 64)
    upper, work = prepare_scratch(root / "scratch" / "s", bootstrap)
    upper.chmod(0o700)
    (upper / "written").touch()
    again, other = prepare_scratch(root / "scratch" / "s", bootstrap)
    assert again == upper
    assert other != work
    assert (upper / "written").exists()
    assert upper.stat().st_mode & 0o7777 == 0o700


def test_bootstrap_that_is_damaged(root: Path) -> None:
    bootstrap = root / "bootstraps" / "x"
    bootstrap.write_bytes(b"x" * 4096)
    with pytest.raises(CorruptError, match=r"remove it, and mount again$"):
        prepare_scratch(root / "scratch" / "s", bootstrap)


def test_scratch_that_cannot_be_made(root: Path) -> None:
    with pytest.raises(StorageError, match="cannot be made: No such file or directory"):
        prepare_scratch(root / "no" / "s", root / "bootstraps" / ("a" * 64))


def test_removal(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scratch = root / "scratch" / "s"
    prepare_scratch(scratch, root / "bootstraps" / ("a" * 64))
    remove_scratch(scratch)
    remove_scratch(scratch)
    assert not scratch.exists()
    assert caplog.messages == []

    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr("lazyimg.images.scratch.remove_tree", refuse)
    remove_scratch(scratch)
    assert caplog.messages == [
        f"{scratch}: cannot be removed: [Errno 1] Operation not permitted: '{scratch}'"
    ]
