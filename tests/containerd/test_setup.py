"""`lazyimg setup`, beside the real containerd and systemd's own checker."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from lazyimg.setup.unit import serialize_unit
from tests.fakes.containerd_configurations import DOCKER, KUBERNETES_1_6
from tests.real.containerd import running_containerd

if TYPE_CHECKING:
    from pathlib import Path

SOCKET = "/run/lazyimg/snapshotter.sock"
CRI = "io.containerd.grpc.v1.cri"


def lazyimg(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lazyimg", *arguments],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LAZYIMG_SNAPSHOTTER_ADDRESS": SOCKET},
        capture_output=True,
        text=True,
        check=False,
    )


def containerd(*arguments: str | Path) -> str:
    command = ["containerd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def effective(file: Path) -> dict[str, Any]:
    return tomllib.loads(containerd("--config", file, "config", "dump"))


def default() -> str:
    return containerd("config", "default")


def set_up(file: Path, action: str) -> str:
    ended = lazyimg("setup", "containerd", "--file", file, action)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("kind", ["default", "kubernetes", "empty"])
def test_apply_and_undo(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "config.toml"
    before = {"default": default(), "kubernetes": KUBERNETES_1_6, "empty": ""}[kind]
    file.write_text(before)
    was = effective(file)
    assert "changed" in set_up(file, "--apply")
    text = file.read_text()
    now = effective(file)
    assert now["proxy_plugins"]["lazyimg"] == {"type": "snapshot", "address": SOCKET}
    cri = now["plugins"][CRI]["containerd"]
    assert (cri["snapshotter"], cri["disable_snapshot_annotations"]) == ("lazyimg", False)
    old = was["plugins"][CRI]["containerd"]
    cri.update({key: old[key] for key in ("snapshotter", "disable_snapshot_annotations")})
    del now["proxy_plugins"]["lazyimg"]
    assert {**now, "imports": 0} == {**was, "imports": 0}
    assert "nothing to change" in set_up(file, "--apply")
    assert file.read_text() == text
    set_up(file, "--undo")
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]


def test_file_of_version_1_without_cri(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(DOCKER)
    set_up(file, "--apply")
    assert effective(file)["proxy_plugins"]["lazyimg"]["address"] == SOCKET


def test_imported_file_that_says_otherwise(tmp_path: Path) -> None:
    file, imported = tmp_path / "config.toml", tmp_path / "more.toml"
    file.write_text('version = 2\nimports = ["more.toml"]\n')
    imported.write_text(f'version = 2\n[plugins."{CRI}".containerd]\nsnapshotter = "native"\n')
    ended = lazyimg("setup", "containerd", "--file", file, "--apply")
    assert ended.returncode == 78
    assert ended.stderr.startswith(f'lazyimg: {file}: [plugins."{CRI}".containerd] snapshotter =')
    assert len(ended.stderr.splitlines()) == 1
    assert file.read_text() == 'version = 2\nimports = ["more.toml"]\n'
    set_up(imported, "--apply")
    assert effective(file)["plugins"][CRI]["containerd"]["snapshotter"] == "lazyimg"


def test_file_that_containerd_refuses(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("version = 2\noom_score = 'much'\n")
    ended = lazyimg("setup", "containerd", "--file", file, "--apply")
    assert ended.returncode == 78
    assert "oom_score" not in file.read_text().replace("oom_score = 'much'", "")
    assert ended.stderr.endswith("; nothing was changed\n")
    assert list(tmp_path.iterdir()) == [file]


def test_containerd_starts_with_it(tmp_path: Path) -> None:
    lines = set_up(tmp_path / "none", "--print")
    with running_containerd(tmp_path / "containerd", lines) as running:
        plugins = running.ctr("plugins", "list").splitlines()
    (line,) = [line.split() for line in plugins if " lazyimg " in line]
    assert (line[0], line[-1]) == ("io.containerd.snapshotter.v1", "ok")


def verify(unit: Path) -> tuple[int, str]:
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stderr


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "lazyimg.service"
    text = lazyimg("setup", "systemd", "--print").stdout
    unit.write_text(text)
    assert verify(unit) == (0, "")
    for right, wrong, complaint in (
        ("KillMode=process", "KillMode=what", "Failed to parse kill mode"),
        ("[Service]", "[Servise]", "Unknown section"),
        ("ExecStart=", "ExecStart=/no/such", "is not executable"),
        ("RestartSec=1", "RestartSecs=1", "Unknown key"),
        ("LimitNOFILE=1048576", "LimitNOFILE=many", "Failed to parse resource value"),
    ):
        unit.write_text(text.replace(right, wrong))
        code, errors = verify(unit)
        assert code != 0
        assert complaint in errors


@pytest.mark.parametrize("name", ["with space", "100%", "dol$lar", "semi;colon", "größe"])
def test_systemd_finds_the_program(tmp_path: Path, name: str) -> None:
    program = tmp_path / name / "lazyimg"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "lazyimg.service"
    unit.write_text(serialize_unit([str(program), "serve", "50%", "$HOME"]))
    assert verify(unit) == (0, "")
