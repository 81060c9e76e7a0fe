"""What this machine has, and what it lacks, for lazy mounts: each finding with its remedy.

Every check looks and changes nothing. A finding that is `needed` must be ok for images to be
mounted lazily; the rest is good to know. Whether a transport works is not looked up but tried
(`lazyimg.transports.trial`).
"""

from __future__ import annotations

import gzip
import os
import platform
import resource
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EACCES, EBUSY, EPERM
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lazyimg.host.mount_table import find_mount, parse_mount_table

if TYPE_CHECKING:
    from collections.abc import Iterator

FSCACHE_PAGE_SIZE: Final = 4096
"""Bytes: EROFS over fscache wants blocks as large as a page, and blocks are 4 KiB."""

MIN_OPEN_FILES: Final = 4096
"""Open files: the daemon has one for each object that is mounted."""

MIN_MEMORY: Final = 256 << 20
"""Bytes of available memory."""

CACHE_FILE_SYSTEMS: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs"})

_DEVICE_LINKS: Final = frozenset({"/dev/cachefiles", "anon_inode:[cachefiles]"})

_ONDEMAND_REMEDY: Final = (
    "use Linux 6.1 to 7.1 with cachefiles.ko and erofs.ko built with CONFIG_CACHEFILES_ONDEMAND"
    " and CONFIG_EROFS_FS_ONDEMAND (the two modules alone can be built against the kernel's"
    " headers)"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        ok: whether it is as it should be.
        detail: what was found.
        remedy: what to do about it; "" if it is ok.
        needed: nothing can be mounted lazily without it.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    needed: bool = True


@dataclass(frozen=True, slots=True)
class Machine:
    """What the checks look at.

    Attributes:
        cache_directory: where the cache is, or will be.
        stop_percent: free space below which the kernel refuses to write to the cache.
        root: prefix of /proc, /dev, /boot and /lib.
        release: of the kernel, such as 6.1.0-30-amd64.
        page_size: bytes.
        user: effective user ID.
    """

    cache_directory: Path
    stop_percent: int = 1
    root: Path = Path("/")
    release: str = field(default_factory=platform.release)
    page_size: int = field(default_factory=lambda: os.sysconf("SC_PAGE_SIZE"))
    user: int = field(default_factory=os.geteuid)

    @property
    def version(self) -> tuple[int, int]:
        """The kernel's version, as far as its release tells; (0, 0) if it does not."""
        parts = self.release.split("-")[0].split(".")
        if len(parts) < 2 or not (parts[0].isdecimal() and parts[1].isdecimal()):
            return (0, 0)
        return (int(parts[0]), int(parts[1]))


def run_checks(machine: Machine) -> list[Check]:
    """Give all findings, the needed ones first. Blocks: reads a few small files."""
    checks = [
        _check_root(machine),
        _check_file_system(machine, "erofs", needed=True),
        _check_file_system(machine, "overlay", needed=False),
        _check_cache_file_system(machine),
        _check_cache_space(machine),
        _check_open_files(),
        _check_memory(machine),
    ]
    return sorted(checks, key=lambda check: not check.needed)


def explain_cachefiles(machine: Machine) -> list[Check]:
    """Give what on-demand cachefiles wants of the kernel. Blocks: reads a few small files."""
    return [
        _check_kernel(machine),
        _check_page_size(machine),
        _check_device(machine),
        _check_configuration(machine),
    ]


def _finding(name: str, detail: str, remedy: str, *, ok: bool, needed: bool = True) -> Check:
    return Check(name, ok, detail, "" if ok else remedy, needed)


def _check_root(machine: Machine) -> Check:
    return _finding(
        "root", f"user ID {machine.user}", "run the daemon as root", ok=machine.user == 0
    )


def _check_kernel(machine: Machine) -> Check:
    return _finding(
        "kernel version",
        f"Linux {machine.release}; on-demand cachefiles, with domains, is in 6.1 to 7.1",
        _ONDEMAND_REMEDY,
        ok=(6, 1) <= machine.version <= (7, 1),
        needed=False,
    )


def _check_page_size(machine: Machine) -> Check:
    return _finding(
        "page size",
        f"{machine.page_size} bytes",
        f"use a kernel with pages of {FSCACHE_PAGE_SIZE} bytes",
        ok=machine.page_size == FSCACHE_PAGE_SIZE,
        needed=False,
    )


def _check_device(machine: Machine) -> Check:
    path = machine.root / "dev/cachefiles"
    name = "/dev/cachefiles"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == EBUSY:
            return check_holders(machine)
        if error.errno in {EACCES, EPERM}:
            return _finding(name, "only root may open it", "run as root", ok=False, needed=False)
        built = _module_built(machine, "cachefiles")
        remedy = "`modprobe cachefiles`; if it is still missing: " if built else ""
        return _finding(name, "missing", remedy + _ONDEMAND_REMEDY, ok=False, needed=False)
    return Check(name, ok=True, detail="can be opened", needed=False)


def check_holders(machine: Machine) -> Check:
    """Say who has /dev/cachefiles open; lazyimg may."""
    holders = sorted(_find_holders(machine))
    text = ", ".join(f"{command} (process {pid})" for pid, command in holders)
    return _finding(
        "/dev/cachefiles",
        f"in use by {text or 'a process that cannot be seen'}",
        "stop the process that holds it; only one can",
        ok=bool(holders) and all("lazyimg" in command for _, command in holders),
        needed=False,
    )


def _find_holders(machine: Machine) -> Iterator[tuple[int, str]]:
    """Processes with the device, or an object of it, open."""
    for process in (machine.root / "proc").glob("[0-9]*"):
        if not _DEVICE_LINKS.isdisjoint(_open_files(process)):
            with suppress(OSError):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                yield int(process.name), os.fsdecode(command.strip()[:80])


def _open_files(process: Path) -> Iterator[str]:
    with suppress(OSError):  # it ended, or is not ours to look at
        for link in (process / "fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                yield os.fspath(link.readlink())


def _module_built(machine: Machine, name: str) -> bool:
    try:
        text = (machine.root / "lib/modules" / machine.release / "modules.dep").read_text()
    except OSError:
        return False
    return any(
        line.split(":")[0].split("/")[-1].startswith(f"{name}.ko") for line in text.split("\n")
    )


def _check_file_system(machine: Machine, name: str, *, needed: bool) -> Check:
    try:
        lines = (machine.root / "proc/filesystems").read_text().split("\n")
    except OSError as error:
        lines, problem = [], f"/proc/filesystems cannot be read: {error.strerror}"
    else:
        problem = "not known to the kernel"
    found = any(line.split()[-1:] == [name] for line in lines)
    loadable = _module_built(machine, name)
    detail = "known to the kernel" if found else "a module, not loaded" if loadable else problem
    return _finding(
        f"{name} file system",
        detail,
        f"load {name}.ko, or use a kernel that has it",
        ok=found or loadable,
        needed=needed,
    )


def nearest_directory(path: Path) -> Path:
    """Give the nearest that there is, and that this user may know of."""
    while not os.path.isdir(path) and path != path.parent:  # noqa: PTH112  says no, never raises
        path = path.parent
    return path


def _check_cache_file_system(machine: Machine) -> Check:
    name = "cache file system"
    directory = nearest_directory(machine.cache_directory)
    text = (machine.root / "proc/self/mountinfo").read_bytes()
    mount = find_mount(parse_mount_table(text), os.path.realpath(directory))
    if mount is None:
        detail = f"{directory} lies on no mount that is visible"
        return Check(name, ok=False, detail=detail, remedy="run it outside of this chroot")
    return _finding(
        name,
        f"{machine.cache_directory} is on {mount.fs_type}",
        "put the cache on ext4 or xfs, on a loop device if need be",
        ok=mount.fs_type in CACHE_FILE_SYSTEMS,
    )


def _check_cache_space(machine: Machine) -> Check:
    free = os.statvfs(nearest_directory(machine.cache_directory))
    percent = 100 * free.f_bavail / max(free.f_blocks, 1)
    return _finding(
        "cache space",
        f"{free.f_bavail * free.f_frsize / 1e9:.1f} GB free ({percent:.0f} %);"
        f" the kernel stops writing below {machine.stop_percent} %",
        "free some space",
        ok=percent > machine.stop_percent,
    )


def _check_open_files() -> Check:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    unlimited = hard == resource.RLIM_INFINITY
    return _finding(
        "open files",
        "no limit" if unlimited else f"at most {hard}",
        f"raise the limit to {MIN_OPEN_FILES} or more (LimitNOFILE= in the unit)",
        ok=unlimited or hard >= MIN_OPEN_FILES,
        needed=False,
    )


def _check_memory(machine: Machine) -> Check:
    available = 0
    for line in (machine.root / "proc/meminfo").read_text().split("\n"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    return _finding(
        "memory",
        f"{available / 1e6:.0f} MB available",
        f"have {MIN_MEMORY >> 20} MiB available",
        ok=available >= MIN_MEMORY,
        needed=False,
    )


def _check_configuration(machine: Machine) -> Check:
    name = "kernel configuration"
    wanted = ("CONFIG_CACHEFILES_ONDEMAND", "CONFIG_EROFS_FS_ONDEMAND")
    text = _read_configuration(machine)
    if text is None:
        return Check(name, ok=True, detail="not readable", needed=False)
    lines = set(text.split("\n"))
    missing = [option for option in wanted if f"{option}=y" not in lines]
    return _finding(
        name,
        f"without {', '.join(missing)}" if missing else "on-demand mode is on",
        f"{_ONDEMAND_REMEDY}; modules built apart from the kernel may have it nevertheless",
        ok=not missing,
        needed=False,
    )


def _read_configuration(machine: Machine) -> str | None:
    try:
        return gzip.decompress((machine.root / "proc/config.gz").read_bytes()).decode()
    except OSError:
        pass
    try:
        return (machine.root / f"boot/config-{machine.release}").read_text()
    except OSError:
        return None
