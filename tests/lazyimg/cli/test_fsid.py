"""`lazyimg fsid`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lazyimg.api.messages import ImageRequest
from tests.fakes.daemon import FSID, IMAGE, FakeDaemon

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.lazyimg.cli.conftest import Result

COMMAND = f"mount -t erofs none -o fsid={FSID},domain_id=lazyimg DIR"


@pytest.mark.usefixtures("daemon")
def test_fsid_on_the_first_line_and_the_command_on_the_second(run: Callable[..., Result]) -> None:
    assert run("fsid", IMAGE) == (0, f"{FSID}\n{COMMAND}\n", "")


@pytest.mark.usefixtures("daemon")
def test_fsid_as_json(run: Callable[..., Result]) -> None:
    reply = json.loads(run("fsid", IMAGE, "--json").out)
    assert (reply["fsid"], reply["command"]) == (FSID, COMMAND)


@pytest.mark.usefixtures("daemon")
def test_image_that_is_not_there(run: Callable[..., Result]) -> None:
    assert run("fsid", "other") == (2, "", "lazyimg: other: the registry has no such image\n")


def test_layout_reaches_the_daemon_with_its_whole_path(
    run: Callable[..., Result],
    daemon: FakeDaemon,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run("fsid", "oci:dir:tag")
    assert daemon.requests == [ImageRequest(reference=f"oci:{tmp_path}/dir:tag")]
