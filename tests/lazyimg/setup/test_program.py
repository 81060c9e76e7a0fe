"""Asking containerd about itself, and having it restarted."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import ConfigurationError, LazyimgError, NotFoundError
from lazyimg.setup import program
from lazyimg.setup.program import find_containerd, restart_containerd
from tests.fakes.containerd_program import install_containerd

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is the only one on the PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def put(path: Path, name: str, script: str) -> None:
    program = path / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_none(path: Path) -> None:
    assert find_containerd() is None


def test_version_and_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = install_containerd(tmp_path / "bin", monkeypatch, "v2.1.4")
    containerd = find_containerd()
    assert containerd
    assert containerd.version == (2, 1, 4)
    assert containerd.effective() == {}
    own.write_text("a = 1\n")
    assert containerd.effective() == {"a": 1}
    other = tmp_path / "other.toml"
    other.write_text("b = 2\n")
    assert containerd.effective(other) == {"b": 2}


def test_configurations_that_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = install_containerd(tmp_path / "bin", monkeypatch, "1.6.20~ds1")
    containerd = find_containerd()
    assert containerd
    own.write_text("refuse = 1\n")
    with pytest.raises(ConfigurationError) as caught:
        containerd.effective()
    assert str(caught.value) == "containerd config dump: containerd: failed to load TOML"
    own.write_text("what?")
    with pytest.raises(ConfigurationError, match="containerd config dump: Expected"):
        containerd.effective()


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("exit 7", "{}/containerd --version: exit code 7"),
        ("echo what", "containerd --version: prints no version: 'what\\n'"),
        ("exec sleep 60", "{}/containerd --version: no answer within 0.01 s"),
    ],
)
def test_no_version(path: Path, monkeypatch: pytest.MonkeyPatch, script: str, text: str) -> None:
    put(path, "containerd", script.replace("sleep", shutil.which("sleep", path="/bin") or ""))
    if "sleep" in script:
        monkeypatch.setattr(program._run, "__kwdefaults__", {"limit": 0.01})
    with pytest.raises(ConfigurationError) as caught:
        find_containerd()
    assert str(caught.value) == text.format(path)


def test_program_that_cannot_be_run(path: Path) -> None:
    (path / "containerd").write_text("neither a script nor a program")
    (path / "containerd").chmod(0o755)
    with pytest.raises(ConfigurationError, match="--version: cannot be run: Exec format error"):
        find_containerd()


def test_restart(path: Path) -> None:
    put(path, "systemctl", f'echo "$@" > {path}/said')
    restart_containerd()
    assert (path / "said").read_text() == "restart containerd.service\n"


def test_restart_that_fails(path: Path) -> None:
    put(path, "systemctl", "echo first >&2; echo Job failed. >&2; exit 1")
    with pytest.raises(LazyimgError) as caught:
        restart_containerd()
    assert str(caught.value) == "systemctl restart containerd: Job failed."


def test_restart_without_systemd(path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        restart_containerd()
    assert str(caught.value) == "systemctl: there is none; restart containerd by hand"
