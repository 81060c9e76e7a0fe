"""A machine that has no device for any transport: what its user is told."""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING

from tests.real.lazyimg_process import COMMAND, Lazyimg

if TYPE_CHECKING:
    from pathlib import Path


def run_without_devices(lazyimg: Lazyimg, verb: str) -> subprocess.CompletedProcess[str]:
    """Run a verb where /dev is empty but for what every program needs."""
    script = (
        f"mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec {shlex.quote(COMMAND)} {verb}"
    )
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env=lazyimg.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_serve(tmp_path: Path) -> None:
    lazyimg = Lazyimg(tmp_path / "state")
    ended = run_without_devices(lazyimg, "serve")
    assert ended.returncode == 71, ended.stderr
    assert ended.stderr.startswith(
        "lazyimg: transport: none works here: cachefiles: /dev/cachefiles: "
    )
    assert "; fuse: " in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (lazyimg.root / "socket").exists()


def test_doctor(tmp_path: Path) -> None:
    ended = run_without_devices(Lazyimg(tmp_path / "state"), "doctor")
    assert ended.returncode == 71, ended.stderr
    assert "/dev/cachefiles" in ended.stdout
    assert "CONFIG_CACHEFILES_ONDEMAND" in ended.stdout
