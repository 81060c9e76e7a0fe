"""`lazyimg doctor`."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lazyimg.cli import doctor
from lazyimg.host import preflight
from lazyimg.host.preflight import Check
from lazyimg.setup import findings, kubelet
from lazyimg.transports import trial
from tests.fakes.containerd import running_containerd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lazyimg.host.preflight import Machine
    from tests.lazyimg.cli.conftest import Result

GOOD = Check("root", ok=True, detail="user ID 0")
WISH = Check("memory", ok=False, detail="10 MB", remedy="have more", needed=False)
OTHER = Check("containerd", ok=True, detail="not installed", needed=False)
LACK = Check("/dev/cachefiles", ok=False, detail="missing", remedy="word " * 20 + "end")


WORKS = Check("transport fuse", ok=True, detail="an image was mounted and read", needed=False)
LACKS = Check("transport cachefiles", ok=False, detail="is missing", remedy="get it", needed=False)


def find(
    monkeypatch: pytest.MonkeyPatch, *checks: Check, tried: tuple[Check, ...] = ()
) -> list[Machine]:
    looked: list[Machine] = []

    async def try_transports(_: Path) -> list[Check]:
        return list(tried)

    def run_checks(machine: Machine) -> list[Check]:
        looked.append(machine)
        return list(checks)

    monkeypatch.setattr(preflight, "run_checks", run_checks)
    monkeypatch.setattr(preflight, "explain_cachefiles", lambda _: [WISH] if tried else [])
    monkeypatch.setattr(trial, "try_transports", try_transports)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(findings, "check_containerd", lambda **_: OTHER)
    return looked


def test_nothing_lacks(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    looked = find(monkeypatch, GOOD, WISH)
    monkeypatch.setenv("LAZYIMG_CACHE", "/mnt/cache")
    result = run("doctor")
    assert result.code == 0
    assert result.out.splitlines() == [
        "ok  root        user ID 0",
        "--  memory      10 MB",
        "      -> have more",
        "ok  containerd  not installed",
    ]
    assert str(looked[0].cache_directory) == "/mnt/cache"


def test_something_lacks(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    find(monkeypatch, GOOD, LACK)
    result = run("doctor")
    assert result.code == 71
    assert "NO  /dev/cachefiles  missing\n      -> word word" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert result.out.endswith("end\nok  containerd       not installed\n")


def test_as_json(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    find(monkeypatch, GOOD)
    assert json.loads(run("doctor", "--json").out) == [
        {"name": "root", "ok": True, "detail": "user ID 0", "remedy": "", "needed": True},
        {
            "name": "containerd",
            "ok": True,
            "detail": "not installed",
            "remedy": "",
            "needed": False,
        },
    ]


def test_containerd_is_asked_for_what_is_configured(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    find(monkeypatch, GOOD)
    asked: list[dict[str, str]] = []

    def check_containerd(**wanted: str) -> Check:
        asked.append(wanted)
        return OTHER

    monkeypatch.setattr(findings, "check_containerd", check_containerd)
    monkeypatch.setenv("LAZYIMG_SNAPSHOTTER_ADDRESS", "/run/x.sock")
    monkeypatch.setenv("LAZYIMG_ROOT", "/srv")
    assert run("doctor").code == 0
    assert asked == [{"address": "/run/x.sock", "root": "/srv/snapshotter"}]


def test_transports_are_tried(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    find(monkeypatch, GOOD, tried=(LACKS, WORKS))
    result = run("doctor")
    assert result.code == 0
    assert result.out.splitlines()[1:-1] == [
        "--  transport cachefiles  is missing",
        "      -> get it",
        "ok  transport fuse        an image was mounted and read",
    ]


def test_no_transport_works(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    find(monkeypatch, GOOD, tried=(LACKS,))
    result = run("doctor")
    assert result.code == 71
    assert result.out.splitlines()[1:-1] == [
        "NO  transport cachefiles  is missing",
        "      -> get it",
        "--  memory                10 MB",
        "      -> have more",
    ]


@pytest.mark.parametrize(
    ("wanted", "works", "code"),
    [
        ("auto", "fanotify", 71),
        ("auto", "fuse", 0),
        ("fanotify", "fanotify", 0),
        ("cachefiles", "fuse", 71),
    ],
)
def test_transport_that_serve_would_not_take_is_not_enough(
    run: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    works: str,
    code: int,
) -> None:
    found = replace(WORKS, name=f"transport {works}")
    find(monkeypatch, GOOD, tried=(LACKS, found))
    monkeypatch.setenv("LAZYIMG_TRANSPORT", wanted)
    result = run("doctor")
    assert result.code == code
    assert ("NO  transport cachefiles" in result.out) == (code != 0)


def test_only_root_tries_transports(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    find(monkeypatch, GOOD, tried=(LACKS,))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "transport" not in run("doctor").out


def test_on_this_machine(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # changes nothing
    checks = json.loads(run("doctor", "--json").out)
    assert all(check["ok"] or check["remedy"] for check in checks)


CALLS = Check("containerd", ok=True, detail="2.1.9; calls lazyimg", needed=False)


@pytest.mark.parametrize("known", [True, False])
def test_containerd_that_runs_is_asked(
    run: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    known: bool,  # noqa: FBT001
) -> None:
    find(monkeypatch, GOOD)
    monkeypatch.setattr(findings, "check_containerd", lambda **_: CALLS)
    monkeypatch.setattr(doctor, "SOCKET", str(tmp_path / "socket"))
    monkeypatch.setenv("LAZYIMG_SNAPSHOTTER_ADDRESS", "/run/x.sock")
    with running_containerd(tmp_path / "socket") as containerd:
        containerd.snapshotters = {"lazyimg"} if known else {"overlayfs"}
        result = run("doctor", "--json")
    assert result.code == 0
    _, found = json.loads(result.out)
    if known:
        assert (found["ok"], found["detail"]) == (True, "2.1.9; calls lazyimg")
    else:
        assert not found["ok"]
        assert found["detail"] == (f"containerd at {tmp_path}/socket: has no snapshotter 'lazyimg'")
        assert found["remedy"].startswith("restart containerd")


def test_image_service_is_checked_where_there_is_one(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    find(monkeypatch, GOOD)
    asked: list[dict[str, str]] = []

    def check_image_service(**arguments: str) -> Check:
        asked.append(arguments)
        return Check("image service", ok=False, detail="away", remedy="start it", needed=False)

    monkeypatch.setattr(kubelet, "check_image_service", check_image_service)
    assert "image service" not in run("doctor").out
    monkeypatch.setenv("LAZYIMG_IMAGE_SERVICE_ADDRESS", "/run/images.sock")
    result = run("doctor")
    assert result.code == 0
    assert result.out.endswith("--  image service  away\n      -> start it\n")
    assert asked == [
        {"address": "/run/images.sock", "containerd": "/run/containerd/containerd.sock"}
    ]
