"""`lazyimg umount`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lazyimg.api.messages import UnmountRequest
from tests.fakes.daemon import IMAGE, FakeDaemon

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.lazyimg.cli.conftest import Result


@pytest.mark.parametrize("verb", ["umount", "unmount"])
def test_umount_prints_the_directories(
    verb: str,
    run: Callable[..., Result],
    daemon: FakeDaemon,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
        run("mount", IMAGE, name)
    assert run(verb, "a", "b", "--lazy") == (0, f"{tmp_path}/a\n{tmp_path}/b\n", "")
    assert daemon.mounts == {}
    assert daemon.requests[-1] == UnmountRequest(directory=f"{tmp_path}/b", lazy=True)


def test_directory_under_another_name_is_the_same(
    run: Callable[..., Result], daemon: FakeDaemon, tmp_path: Path
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    assert run("mount", IMAGE, f"{tmp_path}/link/../link").code == 0
    assert list(daemon.mounts) == [f"{tmp_path}/d"]
    assert run("umount", f"{tmp_path}/link/").code == 0
    assert daemon.mounts == {}


@pytest.mark.usefixtures("daemon")
def test_umount_as_json(run: Callable[..., Result], tmp_path: Path) -> None:
    run("mount", IMAGE, str(tmp_path))
    result = run("umount", str(tmp_path), "--json")
    assert json.loads(result.out) == [{"reference": IMAGE, "directory": str(tmp_path)}]


def test_one_failure_does_not_stop_the_others(
    run: Callable[..., Result], daemon: FakeDaemon, tmp_path: Path
) -> None:
    run("mount", IMAGE, str(tmp_path))
    result = run("umount", "/one", str(tmp_path), "/two")
    assert (result.code, result.out) == (2, f"{tmp_path}\n")
    assert result.err == (
        "lazyimg: /two: nothing is mounted there by lazyimg\n"
        "lazyimg: /one: nothing is mounted there by lazyimg\n"
    )
    assert daemon.mounts == {}


def test_missing_daemon_is_said_once(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("--address", str(tmp_path / "none"), "umount", "/one", "/two")
    assert result.code == 75
    assert len(result.err.splitlines()) == 1


@pytest.mark.usefixtures("daemon")
def test_nothing_is_mounted(run: Callable[..., Result]) -> None:
    assert run("umount", "/nowhere") == (
        2,
        "",
        "lazyimg: /nowhere: nothing is mounted there by lazyimg\n",
    )
