"""Findings about machines that are directories."""

from __future__ import annotations

import gzip
import os
import resource
from errno import EACCES, EBUSY, EPERM
from pathlib import Path

import pytest

from lazyimg.host.preflight import Check, Machine, explain_cachefiles, run_checks

ONDEMAND = "CONFIG_CACHEFILES_ONDEMAND=y\nCONFIG_EROFS_FS_ONDEMAND=y\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine that has everything."""
    root = tmp_path / "root"
    files = {
        "dev/cachefiles": "",
        "proc/filesystems": "nodev\ttmpfs\n\text4\n\terofs\nnodev\toverlay\n",
        "proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable:    8000000 kB\n",
        "proc/self/mountinfo": "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n",
        "boot/config-6.1.0-30-amd64": ONDEMAND,
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    cache = tmp_path / "var" / "cache"
    return Machine(
        cache, stop_percent=0, root=root, release="6.1.0-30-amd64", page_size=4096, user=0
    )


def find(machine: Machine, name: str) -> Check:
    checks = [*run_checks(machine), *explain_cachefiles(machine)]
    (check,) = [check for check in checks if check.name == name]
    return check


def with_values(machine: Machine, **values: int | str | Path) -> Machine:
    fields = {name: getattr(machine, name) for name in Machine.__dataclass_fields__}
    return Machine(**{**fields, **values})


def test_machine_that_has_everything(machine: Machine) -> None:
    checks = run_checks(machine)
    assert [check for check in checks if check.needed and not check.ok] == []
    assert all(check.ok or check.name == "open files" for check in checks)
    assert [check.needed for check in checks] == sorted(
        (check.needed for check in checks), reverse=True
    )
    more = explain_cachefiles(machine)
    assert all(check.ok and not check.needed for check in more)
    assert len({check.name for check in [*checks, *more]}) == len(checks) + len(more)


def test_this_machine() -> None:
    machine = Machine(Path("/var/lib/lazyimg/cache"))
    assert len(run_checks(machine)) == 7
    assert len(explain_cachefiles(machine)) == 4


def test_cache_directory_that_cannot_be_looked_at(machine: Machine, tmp_path: Path) -> None:
    unknowable = tmp_path / ("x" * 300) / "cache"
    check = find(with_values(machine, cache_directory=unknowable), "cache file system")
    assert (check.ok, check.detail) == (True, f"{unknowable} is on ext4")


def test_not_root(machine: Machine) -> None:
    check = find(with_values(machine, user=1000), "root")
    assert (check.ok, check.detail, check.remedy) == (
        False,
        "user ID 1000",
        "run the daemon as root",
    )


@pytest.mark.parametrize(
    ("release", "ok"),
    [
        ("5.19.0", False),
        ("6.0.19", False),
        ("6.1.0-30-amd64", True),
        ("7.1.3", True),
        ("7.2.0-rc1", False),
        ("6", False),
        ("custom-kernel.x", False),
    ],
)
def test_kernel_version(
    machine: Machine,
    release: str,
    ok: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    check = find(with_values(machine, release=release), "kernel version")
    assert check.ok is ok
    assert bool(check.remedy) is not ok


def test_page_size(machine: Machine) -> None:
    check = find(with_values(machine, page_size=65536), "page size")
    assert (check.ok, check.detail) == (False, "65536 bytes")


def test_device_is_missing(machine: Machine) -> None:
    (machine.root / "dev/cachefiles").unlink()
    check = find(machine, "/dev/cachefiles")
    assert (check.ok, check.detail) == (False, "missing")
    assert check.remedy.startswith("use Linux 6.1 to 7.1 with cachefiles.ko and erofs.ko built")


def test_device_is_missing_but_its_module_is_there(machine: Machine) -> None:
    (machine.root / "dev/cachefiles").unlink()
    add_modules(machine, "kernel/fs/cachefiles/cachefiles.ko.xz: kernel/fs/netfs/netfs.ko.xz\n")
    remedy = find(machine, "/dev/cachefiles").remedy
    assert remedy.startswith("`modprobe cachefiles`; if it is still missing: use Linux")


def add_modules(machine: Machine, text: str) -> None:
    directory = machine.root / "lib/modules" / machine.release
    directory.mkdir(parents=True)
    (directory / "modules.dep").write_text(text)


def refuse_open(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = os.open

    def refuse(path: str | Path, flags: int, mode: int = 0o777, **rest: int) -> int:
        if str(path).endswith("dev/cachefiles"):
            raise OSError(number, os.strerror(number))
        return real(path, flags, mode, **rest)

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("number", [EACCES, EPERM])
def test_device_only_for_root(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_open(monkeypatch, number)
    check = find(machine, "/dev/cachefiles")
    assert (check.ok, check.detail) == (False, "only root may open it")


def add_process(machine: Machine, pid: int, link: str, command: bytes) -> None:
    process = machine.root / "proc" / str(pid)
    (process / "fd").mkdir(parents=True)
    (process / "fd" / "0").symlink_to("/dev/null")
    (process / "fd" / "1").write_text("not a link")
    (process / "fd" / "2").symlink_to(link)
    (process / "cmdline").write_bytes(command)


def test_device_in_use_by_the_daemon(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_open(monkeypatch, EBUSY)
    add_process(machine, 12, "/dev/cachefiles", b"python\0lazyimg\0serve\0")
    add_process(machine, 14, "/dev/zero", b"other\0")
    (machine.root / "proc/13").mkdir()
    check = find(machine, "/dev/cachefiles")
    assert (check.ok, check.detail) == (True, "in use by python lazyimg serve (process 12)")


def test_device_in_use_by_others(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_open(monkeypatch, EBUSY)
    check = find(machine, "/dev/cachefiles")
    assert (check.ok, check.detail) == (False, "in use by a process that cannot be seen")
    add_process(machine, 12, "anon_inode:[cachefiles]", b"cachefilesd\0")
    check = find(machine, "/dev/cachefiles")
    assert (check.ok, check.detail) == (False, "in use by cachefilesd (process 12)")
    assert check.remedy == "stop the process that holds it; only one can"


def test_file_systems(machine: Machine) -> None:
    filesystems = machine.root / "proc/filesystems"
    filesystems.write_text("\text4\n")
    assert find(machine, "erofs file system").detail == "not known to the kernel"
    assert not find(machine, "erofs file system").ok
    add_modules(machine, "kernel/fs/erofs/erofs.ko:\n")
    check = find(machine, "erofs file system")
    assert (check.ok, check.detail) == (True, "a module, not loaded")
    overlay = find(machine, "overlay file system")
    assert (overlay.ok, overlay.needed) == (False, False)
    filesystems.unlink()
    assert find(machine, "overlay file system").detail == (
        "/proc/filesystems cannot be read: No such file or directory"
    )


@pytest.mark.parametrize("fs_type", ["tmpfs", "overlay", "nfs4"])
def test_cache_on_an_unsuitable_file_system(machine: Machine, fs_type: str) -> None:
    (machine.root / "proc/self/mountinfo").write_text(f"1 0 0:1 / / rw - {fs_type} x rw\n")
    check = find(machine, "cache file system")
    assert (check.ok, check.detail) == (False, f"{machine.cache_directory} is on {fs_type}")
    assert check.remedy == "put the cache on ext4 or xfs, on a loop device if need be"


def test_cache_on_no_mount(machine: Machine) -> None:
    (machine.root / "proc/self/mountinfo").write_text("")
    check = find(machine, "cache file system")
    assert not check.ok
    assert check.detail.endswith("lies on no mount that is visible")
    assert check.remedy == "run it outside of this chroot"


def test_cache_space(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = os.statvfs_result((4096, 4096, 1_000_000, 20_000, 20_000, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: disk)
    check = find(with_values(machine, stop_percent=1), "cache space")
    assert (check.ok, check.detail) == (
        True,
        "0.1 GB free (2 %); the kernel stops writing below 1 %",
    )
    assert not find(with_values(machine, stop_percent=2), "cache space").ok


@pytest.mark.parametrize(
    ("limit", "ok", "detail"),
    [
        (1024, False, "at most 1024"),
        (4096, True, "at most 4096"),
        (resource.RLIM_INFINITY, True, "no limit"),
    ],
)
def test_open_files(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    ok: bool,  # noqa: FBT001 - a parameter of the table
    detail: str,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, limit))
    check = find(machine, "open files")
    assert (check.ok, check.detail) == (ok, detail)


def test_memory(machine: Machine) -> None:
    (machine.root / "proc/meminfo").write_text("MemAvailable: 1000 kB\n")
    check = find(machine, "memory")
    assert (check.ok, check.detail, check.needed) == (False, "1 MB available", False)
    (machine.root / "proc/meminfo").write_text("MemTotal: 1000 kB\n")
    assert not find(machine, "memory").ok


def test_configuration(machine: Machine) -> None:
    assert find(machine, "kernel configuration").detail == "on-demand mode is on"
    config = machine.root / "proc/config.gz"
    config.write_bytes(gzip.compress(b"CONFIG_EROFS_FS_ONDEMAND=y\n# CONFIG_X is not set\n"))
    check = find(machine, "kernel configuration")
    assert (check.ok, check.detail) == (False, "without CONFIG_CACHEFILES_ONDEMAND")
    assert check.remedy.endswith("built apart from the kernel may have it nevertheless")
    config.unlink()
    (machine.root / "boot/config-6.1.0-30-amd64").unlink()
    check = find(machine, "kernel configuration")
    assert (check.ok, check.detail) == (True, "not readable")
