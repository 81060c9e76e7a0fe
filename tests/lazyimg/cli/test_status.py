"""`lazyimg status`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.fakes.daemon import IMAGE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.lazyimg.cli.conftest import Result


@pytest.mark.usefixtures("daemon")
def test_status_without_mounts(run: Callable[..., Result]) -> None:
    assert run("status").out.splitlines() == [
        "version   0.1.0",
        "process   42, up 1 h 2 min",
        "transport cachefiles",
        "root      /var/lib/lazyimg",
        "reads     1000, 1 failed",
        "fetched   12.6 MB in 30 requests",
        "mounts    0",
    ]


@pytest.mark.usefixtures("daemon")
def test_status_with_a_mount(run: Callable[..., Result], tmp_path: Path) -> None:
    run("mount", IMAGE, str(tmp_path))
    lines = run("status").out.splitlines()
    assert lines[6:8] == ["mounts    1", ""]
    assert lines[9].split()[:3] == [IMAGE, str(tmp_path), "ro"]
    status = json.loads(run("status", "--json").out)
    assert status["mounts"][0]["directory"] == str(tmp_path)
    assert status["fetches"] == 30


def test_no_daemon(run: Callable[..., Result]) -> None:
    assert run("status").code == 75
