"""What doctor says of containerd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.host.preflight import Check
from lazyimg.setup.edit import edit_configuration
from lazyimg.setup.findings import check_containerd
from lazyimg.setup.settings import settings_for
from tests.fakes.containerd_configurations import DEFAULT_1_7
from tests.fakes.containerd_program import install_containerd

if TYPE_CHECKING:
    from pathlib import Path

ADDRESS = "/run/x.sock"
REMEDY = "'lazyimg setup containerd --diff' shows them, --apply puts them in"


def check(file: Path, address: str = ADDRESS) -> Check:
    return check_containerd(address=address, root="/var/x", file=file)


def finding(detail: str, remedy: str) -> Check:
    return Check("containerd", ok=False, detail=detail, remedy=remedy, needed=False)


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install containerd 1.7.0; gives its configuration, which is empty."""
    return install_containerd(tmp_path / "bin", monkeypatch, "1.7.0")


def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check(tmp_path) == Check("containerd", ok=True, detail="not installed", needed=False)


def test_snapshotter_is_off(configuration: Path) -> None:
    assert check(configuration, "") == finding(
        "1.7.0; lazyimg's snapshotter is off", "set snapshotter.address"
    )


def test_lines_are_missing(configuration: Path) -> None:
    configuration.write_text(
        'version = 2\n[proxy_plugins.lazyimg]\ntype = "snapshot"\naddress = "/other"\n'
        '[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "lazyimg"\n'
    )
    assert check(configuration) == finding(
        '1.7.0; its configuration lacks [proxy_plugins.lazyimg] address = "/run/x.sock",'
        ' [plugins."io.containerd.grpc.v1.cri".containerd] disable_snapshot_annotations = false',
        REMEDY,
    )


def test_nothing_is_missing(configuration: Path) -> None:
    settings = settings_for(2, (1, 7, 0), address=ADDRESS, root="/var/x")
    configuration.write_text(edit_configuration(DEFAULT_1_7, 2, settings))
    assert check(configuration) == Check(
        "containerd", ok=True, detail="1.7.0; calls lazyimg", needed=False
    )


def test_file_that_containerd_refuses_is_read(configuration: Path) -> None:
    configuration.write_text('refuse = 1\nversion = 2\ndisabled_plugins = ["cri"]\n')
    assert check(configuration) == finding(
        f'1.7.0; {configuration} lacks [proxy_plugins.lazyimg] type = "snapshot",'
        ' [proxy_plugins.lazyimg] address = "/run/x.sock"',
        REMEDY,
    )


def test_file_that_nobody_can_read(configuration: Path, tmp_path: Path) -> None:
    configuration.write_text("refuse")
    assert check(configuration).detail.startswith("configuration: is not TOML: Expected")
    assert check(configuration).remedy == "repair it"
    gone = tmp_path / "gone"
    assert check(gone) == finding(
        f"{gone}: does not exist",
        "name the file that containerd uses (--file), or make an empty one",
    )


def test_version_that_is_not_known(configuration: Path) -> None:
    configuration.write_text("version = 3\n")
    assert check(configuration) == finding("version: expected 1 to 2, got 3", "repair it")
