"""`lazyimg mount`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from lazyimg.api.messages import MountRequest
from tests.fakes.daemon import DIGEST, FSID, IMAGE, FakeDaemon

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.lazyimg.cli.conftest import Result


def test_mount_prints_digest_and_directory(
    run: Callable[..., Result], daemon: FakeDaemon, tmp_path: Path
) -> None:
    result = run("mount", IMAGE, str(tmp_path))
    assert result == (0, f"{DIGEST} {tmp_path}\n", "")
    assert daemon.requests == [MountRequest(reference=IMAGE, directory=str(tmp_path))]


@pytest.mark.usefixtures("daemon")
def test_mount_as_json(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("mount", IMAGE, str(tmp_path), "--json")
    assert json.loads(result.out) == {
        "reference": IMAGE,
        "digest": DIGEST,
        "fsid": FSID,
        "directory": str(tmp_path),
        "streamed": 0,
    }


def test_first_use_that_was_not_lazy(
    run: Callable[..., Result], daemon: FakeDaemon, tmp_path: Path
) -> None:
    daemon.streamed = 41_200_000
    said = (
        "41.2 MB were downloaded first, of layers without an index; they are local now, and have"
        " one\n"
    )
    assert run("mount", IMAGE, str(tmp_path)) == (0, f"{DIGEST} {tmp_path}\n", said)


def test_flags_and_relative_directory_reach_the_daemon(
    run: Callable[..., Result],
    daemon: FakeDaemon,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path)
    flags = ("--rw", "--platform", "linux/aarch64", "--plain-http", "--creds", "u:p:q")
    assert run("mount", IMAGE, "d", *flags).code == 0
    (request,) = daemon.requests
    assert isinstance(request, MountRequest)
    assert request.directory == str(tmp_path / "d")
    assert request.read_write
    assert request.platform == "linux/arm64"
    assert request.access.plain_http
    assert (request.access.username, request.access.password) == ("u", "p:q")


@pytest.mark.usefixtures("daemon")
def test_without_arguments_lists_the_mounts(run: Callable[..., Result], tmp_path: Path) -> None:
    assert run("mount") == (0, "", "")
    run("mount", IMAGE, str(tmp_path), "--rw")
    result = run("mount")
    head, line = result.out.splitlines()
    assert head.split() == ["IMAGE", "DIRECTORY", "MODE", "SIZE", "LOCAL"]
    assert line.split() == [IMAGE, str(tmp_path), "rw", "104.9", "MB", "25", "%"]
    listed = json.loads(run("mount", "--format", "json").out)
    assert [mount["present"] for mount in listed] == [25 << 20]


def test_remarks_about_mounts(
    run: Callable[..., Result], daemon: FakeDaemon, tmp_path: Path
) -> None:
    run("mount", IMAGE, str(tmp_path))
    place = str(tmp_path)
    whole = daemon.mounts[place]
    daemon.mounts[place] = msgspec.structs.replace(whole, dead=True)
    assert run("mount").out.splitlines()[1].endswith("%  who was in it before is in a dead mount")
    daemon.mounts[place] = msgspec.structs.replace(whole, problem="it is full", dead=True)
    assert run("status").out.splitlines()[-1].endswith("%  not mounted now: it is full")


def test_reference_without_directory(run: Callable[..., Result]) -> None:
    assert run("mount", IMAGE) == (
        64,
        "",
        "lazyimg: mount: expected REF and DIR, or nothing; name a directory\n",
    )


def test_directory_that_is_not_there(run: Callable[..., Result], tmp_path: Path) -> None:
    assert run("mount", IMAGE, str(tmp_path / "no")) == (
        2,
        "",
        f"lazyimg: {tmp_path / 'no'}: is no directory; make it first\n",
    )


def test_bad_reference_asks_no_daemon(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("mount", "UPPER CASE", str(tmp_path))
    assert result.code == 65
    assert result.err.startswith("lazyimg: UPPER CASE: ")
    assert result.err.count("\n") == 1


@pytest.mark.usefixtures("daemon")
def test_failures_of_the_daemon(run: Callable[..., Result], tmp_path: Path) -> None:
    assert run("mount", "other", str(tmp_path)) == (
        2,
        "",
        "lazyimg: other: the registry has no such image\n",
    )
    run("mount", IMAGE, str(tmp_path))
    assert run("mount", IMAGE, str(tmp_path)).code == 79


def test_no_daemon(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("mount", IMAGE, str(tmp_path))
    assert result.code == 75
    assert result.err.endswith("no daemon answers there; start it with: lazyimg serve\n")
