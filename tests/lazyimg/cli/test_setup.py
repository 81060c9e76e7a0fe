"""`lazyimg setup`."""

from __future__ import annotations

import os
import sys
from errno import EACCES
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg.setup import program
from tests.fakes.containerd_configurations import DEFAULT_1_7, DEFAULT_2_1, KUBERNETES_1_6
from tests.fakes.containerd_program import install_containerd

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lazyimg.cli.conftest import Result

    Run = Callable[..., Result]

SOCKET = "/run/lazyimg/snapshotter.sock"
LINES_1_6 = f"""\
[proxy_plugins.lazyimg]
type = "snapshot"
address = "{SOCKET}"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "lazyimg"
disable_snapshot_annotations = false
"""
NEXT = "next: restart containerd (systemctl restart containerd; its containers run on)\n"


@pytest.fixture(autouse=True)
def address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a snapshotter."""
    monkeypatch.setenv("LAZYIMG_SNAPSHOTTER_ADDRESS", SOCKET)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Give containerd's configuration."""
    path = tmp_path / "config.toml"
    path.write_text(KUBERNETES_1_6)
    return path


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install containerd 1.6; gives the directory of its program."""
    return install_containerd(tmp_path / "bin", monkeypatch, "1.6.20~ds1").parent


def set_up(run: Run, file: Path, *arguments: str) -> Result:
    return run("setup", "containerd", "--file", str(file), *arguments)


@pytest.mark.usefixtures("old")
def test_lines_for_the_containerd_found(run: Run, file: Path) -> None:
    result = set_up(run, file, "--print")
    assert result == (0, f"# For {file} of containerd 1.6.20, version = 2\n{LINES_1_6}", "")
    assert file.read_text() == KUBERNETES_1_6


def test_lines_without_containerd_and_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LAZYIMG_ROOT", "/srv/lazyimg")
    result = set_up(run, tmp_path / "none", "--print")
    assert result.code == 0
    assert result.out.startswith(f"# For {tmp_path}/none, version = 3\n[proxy_plugins.lazyimg]\n")
    assert 'root = "/srv/lazyimg/snapshotter"\n' in result.out
    assert '[[plugins."io.containerd.transfer.v1.local".unpack_config]]\n' in result.out


@pytest.mark.usefixtures("old")
def test_difference(run: Run, file: Path) -> None:
    result = set_up(run, file, "--diff")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[:2] == [f"--- {file}", f"+++ {file}"]
    assert [line for line in lines[2:] if line.startswith("-")] == []
    assert '+      snapshotter = "lazyimg"' in lines
    assert file.read_text() == KUBERNETES_1_6


@pytest.mark.parametrize(
    ("version", "text"),
    [("1.6.20", KUBERNETES_1_6), ("1.7.24", DEFAULT_1_7), ("v2.1.4", DEFAULT_2_1)],
)
def test_apply_twice_and_undo(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, text: str
) -> None:
    install_containerd(tmp_path / "bin", monkeypatch, version)
    file = tmp_path / "config.toml"
    file.write_text(text)
    copy = f"{file}.before-lazyimg"
    changed = f"{file}: changed; {copy} is how it was before\n{NEXT}"
    assert set_up(run, file, "--apply") == (0, changed, "")
    after = file.read_bytes()
    assert b'snapshotter = "lazyimg"\n' in after
    assert set_up(run, file, "--apply") == (0, f"{file}: nothing to change\n", "")
    assert set_up(run, file, "--diff") == (0, "", "")
    assert file.read_bytes() == after
    assert set_up(run, file, "--undo") == (0, f"{file}: as it was before\n{NEXT}", "")
    assert file.read_text() == text
    assert sorted(path.name for path in tmp_path.glob("*toml*")) == ["config.toml"]


@pytest.mark.usefixtures("old")
def test_undo_of_what_is_undone(run: Run, file: Path) -> None:
    set_up(run, file, "--apply")
    file.write_text(KUBERNETES_1_6)
    assert set_up(run, file, "--undo") == (0, f"{file}: nothing to change\n", "")
    assert set_up(run, file, "--undo") == (
        2,
        "",
        f"lazyimg: {file}: lazyimg has not changed it; nothing is to undo\n",
    )


def test_undo_needs_neither_containerd_nor_a_snapshotter(
    run: Run, file: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(run, file, "--apply")
    (old / "containerd").unlink()
    monkeypatch.delenv("LAZYIMG_SNAPSHOTTER_ADDRESS")
    assert set_up(run, file, "--undo").code == 0
    assert file.read_text() == KUBERNETES_1_6


def test_restart_only_after_a_change(run: Run, file: Path, old: Path) -> None:
    systemctl = old / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$@" >> {old}/said\n')
    systemctl.chmod(0o755)
    assert set_up(run, file, "--apply", "--restart").out.endswith("\ncontainerd: restarted\n")
    assert set_up(run, file, "--apply", "--restart").out == f"{file}: nothing to change\n"
    assert set_up(run, file, "--undo", "--restart").out.endswith("\ncontainerd: restarted\n")
    assert (old / "said").read_text() == "restart containerd.service\n" * 2


def test_restart_that_fails(run: Run, file: Path, old: Path) -> None:
    systemctl = old / "systemctl"
    systemctl.write_text("#!/bin/sh\necho Job failed. >&2\nexit 1\n")
    systemctl.chmod(0o755)
    result = set_up(run, file, "--apply", "--restart")
    assert (result.code, result.err) == (1, "lazyimg: systemctl restart containerd: Job failed.\n")
    assert 'snapshotter = "lazyimg"' in file.read_text()


@pytest.mark.usefixtures("old")
def test_file_that_containerd_refuses(run: Run, file: Path) -> None:
    file.write_text("version = 2\nrefuse = true\n")
    assert set_up(run, file, "--apply") == (
        78,
        "",
        (
            f"lazyimg: {file}: containerd config dump: containerd: failed to load TOML; nothing was"
            " changed\n"
        ),
    )
    assert file.read_text() == "version = 2\nrefuse = true\n"
    assert sorted(path.name for path in file.parent.glob("*toml*")) == ["config.toml"]


def test_imported_file_that_says_otherwise(
    run: Run, file: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    effective = program.Containerd.effective

    def import_more(self: program.Containerd, path: Path | None = None) -> dict[str, object]:
        document = effective(self, path)
        document["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["snapshotter"] = "other"
        return document

    monkeypatch.setattr(program.Containerd, "effective", import_more)
    assert set_up(run, file, "--apply") == (
        78,
        "",
        (
            f'lazyimg: {file}: [plugins."io.containerd.grpc.v1.cri".containerd] snapshotter ='
            ' "lazyimg" would have no effect: a file that it imports says otherwise; change that'
            " one (--file); nothing was changed\n"
        ),
    )
    assert file.read_text() == KUBERNETES_1_6


def test_imports_without_containerd(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(file.parent / "nothing"))
    file.write_text('version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n')
    result = set_up(run, file, "--apply")
    assert result.code == 0
    assert result.err == (
        f"lazyimg: {file}: imports other files; what they say of the same tables wins\n"
    )


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\xff", "is not TOML: not UTF-8"),
        (b"a =", "is not TOML: Invalid value (at end of document)"),
        (b"version = 3", "version: expected 1 to 2, got 3"),
        (
            b"version = 2\nproxy_plugins = 1",
            "'proxy_plugins' is no table, as [proxy_plugins.lazyimg] has it",
        ),
    ],
)
def test_file_that_cannot_be_edited(run: Run, file: Path, data: bytes, problem: str) -> None:
    file.write_bytes(data)
    assert set_up(run, file, "--apply") == (78, "", f"lazyimg: {file}: {problem}\n")


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("action", ["--diff", "--apply"])
def test_no_file(run: Run, tmp_path: Path, action: str) -> None:
    assert set_up(run, tmp_path / "none", action) == (
        2,
        "",
        (
            f"lazyimg: {tmp_path}/none: does not exist; name the file that containerd uses"
            " (--file), or make an empty one\n"
        ),
    )


@pytest.mark.usefixtures("old")
def test_symbolic_link(run: Run, file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    assert set_up(run, link, "--apply") == (
        78,
        "",
        f"lazyimg: {link}: is a symbolic link; name the file that it leads to: --file {file}\n",
    )


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("action", ["--print", "--diff", "--apply"])
def test_file_for_root_only(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    real = Path.open

    def refuse(path: Path, mode: str) -> object:
        if path == file:
            raise PermissionError(EACCES, "Permission denied")
        return real(path, mode)

    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(Path, "open", refuse)
    assert set_up(run, file, action) == (
        77,
        "",
        f"lazyimg: {file}: cannot be read: Permission denied; run it as root\n",
    )


@pytest.mark.parametrize("action", ["--print", "--diff", "--apply"])
def test_no_snapshotter(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    monkeypatch.delenv("LAZYIMG_SNAPSHOTTER_ADDRESS")
    assert set_up(run, file, action) == (
        78,
        "",
        (
            "lazyimg: snapshotter.address: is not set: there is no snapshotter for containerd to"
            " call; set it in lazyimg's configuration, such as to /run/lazyimg/snapshotter.sock\n"
        ),
    )


@pytest.mark.parametrize("actions", [(), ("--print", "--apply"), ("--diff", "--undo")])
def test_not_one_action(run: Run, file: Path, actions: tuple[str, ...]) -> None:
    assert set_up(run, file, *actions) == (
        64,
        "",
        "lazyimg: setup containerd: expected one of --print, --diff, --apply, --undo\n",
    )


@pytest.mark.parametrize("action", ["--print", "--diff"])
def test_restart_of_nothing(run: Run, file: Path, action: str) -> None:
    assert set_up(run, file, action, "--restart") == (
        64,
        "",
        "lazyimg: setup containerd: --restart goes with --apply or --undo\n",
    )


def test_unit_for_systemd(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("setup", "systemd", "--print")
    assert (result.code, result.err) == (0, "")
    assert f"ExecStart={sys.executable} -m lazyimg serve\n" in result.out
    installed = tmp_path / "lazyimg"
    installed.touch(0o755)
    assert f"ExecStart={installed} serve\n" in run("setup", "systemd", "--print").out
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ".")
    assert f"ExecStart={os.fspath(installed)} serve\n" in run("setup", "systemd", "--print").out


def test_unit_that_nobody_asked_for(run: Run) -> None:
    assert run("setup", "systemd").code == 64
