"""What is culled, and in which order."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from errno import EBUSY, EIO, ENOENT
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg.host.space import CacheLimits, CacheSpace
from lazyimg.transports.cachefiles import cull
from lazyimg.transports.cachefiles.cull import (
    Candidate,
    Culled,
    cull_until,
    find_candidates,
    run_culling,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def cached(top: Path, name: str, used: int, size: int = 4096) -> Path:
    path = top / "cache" / "Ierofs,domain" / f"@{used:02x}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, ns=(used, used))
    return path


def test_candidates_are_the_longest_unread_first(tmp_path: Path) -> None:
    new, old, middle = (
        cached(tmp_path, name, used) for name, used in (("Dn", 9), ("Do", 1), ("Dm", 5))
    )
    found = find_candidates(tmp_path / "cache")
    assert [Path(item.directory, item.name) for item in found] == [old, middle, new]
    assert [item.used_ns for item in found] == [1, 5, 9]
    assert all(item.size >= 4096 for item in found)


def test_candidates_leave_out_what_no_command_can_name(tmp_path: Path) -> None:
    for name in ("Da b", "D\n", "D\xe4"):
        cached(tmp_path, name, 1)
    path = cached(tmp_path, "Dgood", 1)
    (path.parent / "directory").mkdir()
    (path.parent / "link").symlink_to("/etc/passwd")
    (tmp_path / "cache" / "file").touch()
    assert [item.name for item in find_candidates(tmp_path / "cache")] == ["Dgood"]


def test_candidates_leave_out_what_vanishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for used in range(4):
        cached(tmp_path, f"D{used}", used)
    scandir = os.scandir

    class Vanishing:
        """Loses one directory, and one file of another, once they are listed."""

        def __init__(self, path: str) -> None:
            self.entries = scandir(path)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            found = list(self.entries)
            for entry in found:
                if entry.name == "D2":
                    Path(entry.path).unlink()
                if entry.name == "@03":
                    shutil.rmtree(entry.path)
            return iter(found)

        def __exit__(self, *_: object) -> None:
            self.entries.close()

    monkeypatch.setattr(os, "scandir", Vanishing)
    assert [item.name for item in find_candidates(tmp_path / "cache")] == ["D0", "D1"]


def test_no_cache(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_candidates(tmp_path / "cache")


class Kernel:
    """Culls a name in the working directory, as the kernel does."""

    def __init__(self, errors: dict[str, int] | None = None) -> None:
        self.errors = errors or {}
        self.culled: list[Path] = []

    def __call__(self, command: bytes) -> None:
        word, name = command.decode().split(" ")
        assert word == "cull"
        if name in self.errors:
            raise OSError(self.errors[name], os.strerror(self.errors[name]))
        path = Path.cwd() / name
        path.unlink()
        self.culled.append(path)


@pytest.fixture
def directory_is_kept() -> Iterator[None]:
    before = Path.cwd()
    yield
    os.chdir(before)


@pytest.mark.usefixtures("directory_is_kept")
def test_culls_until_it_is_enough(tmp_path: Path) -> None:
    paths = [cached(tmp_path, f"D{used}", used) for used in range(5)]
    kernel = Kernel({"D0": EBUSY, "D1": ENOENT})
    candidates = find_candidates(tmp_path / "cache")
    culled = cull_until(lambda: len(kernel.culled) == 2, candidates, kernel)
    assert kernel.culled == paths[2:4]
    assert culled == Culled(2, sum(item.size for item in candidates[2:4]), 1)


@pytest.mark.usefixtures("directory_is_kept")
def test_culls_all_that_there_is(tmp_path: Path) -> None:
    paths = [cached(tmp_path, f"D{used}", used) for used in range(3)]
    kernel = Kernel()
    cull_until(lambda: False, find_candidates(tmp_path / "cache"), kernel)
    assert kernel.culled == paths


@pytest.mark.usefixtures("directory_is_kept")
def test_kernel_that_refuses_ends_the_round(tmp_path: Path) -> None:
    cached(tmp_path, "D0", 0)
    with pytest.raises(OSError, match="Input/output error"):
        cull_until(lambda: False, find_candidates(tmp_path / "cache"), Kernel({"D0": EIO}))
    gone = Candidate(str(tmp_path / "gone"), "D0", 0, 0)
    assert cull_until(lambda: False, [gone], Kernel()) == Culled(0, 0, 0)


def full_space(tmp_path: Path) -> CacheSpace:
    return CacheSpace(tmp_path, CacheLimits(brun=99, bcull=98, frun=99, fcull=98), tmp_path)


def test_round_has_a_working_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tmp_path, "D0", 0)
    kernel, before = Kernel(), Path.cwd()
    monkeypatch.setattr(CacheSpace, "below_run", lambda _self: True)
    results: list[Culled | None] = []
    thread = threading.Thread(
        target=lambda: results.append(run_culling(full_space(tmp_path), kernel))
    )
    thread.start()
    thread.join()
    assert [result.files for result in results if result is not None] == [1]
    assert [path.name for path in kernel.culled] == ["D0"]
    assert Path.cwd() == before


def test_round_that_cannot_be_done_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results: list[Culled | None] = []
    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(
            target=lambda: results.append(run_culling(full_space(tmp_path), Kernel()))
        )
        thread.start()
        thread.join()
    assert results == [None]
    assert f"cannot cull the cache in {tmp_path}: " in caplog.text


def test_rounds_that_remove_nothing_are_not_logged_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cached(tmp_path, "D0", 0)
    monkeypatch.setattr(CacheSpace, "below_run", lambda _self: True)
    caplog.set_level(logging.INFO)

    def rounds() -> None:
        for _ in range(5):
            run_culling(full_space(tmp_path), Kernel({"D0": EBUSY}))

    thread = threading.Thread(target=rounds)
    thread.start()
    thread.join()
    assert [record.getMessage() for record in caplog.records] == [
        "culled 0 files (0 MB) from the cache; 1 are in use"
    ]


def test_thread_that_gets_no_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cached(tmp_path, "D0", 0)
    monkeypatch.setattr(cull, "_CLONE_FS", 1)  # not a flag that unshare(2) knows
    kernel = Kernel()
    assert run_culling(full_space(tmp_path), kernel) is None
    assert kernel.culled == []
    assert "unshare(CLONE_FS): Invalid argument" in caplog.text
