"""Mounting and unmounting, by a child process that holds none of our fds (`mount_calls`).

Directories must be absolute and normalized. Nothing here looks at a target before it is mounted:
stat(2) on a directory of ours could wait for ourselves.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import asynccontextmanager
from errno import (
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    ENOBUFS,
    ENODEV,
    ENOENT,
    ENOTBLK,
    ENOTDIR,
    EPERM,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lazyimg.errors import (
    InUseError,
    KernelError,
    LazyimgError,
    NotFoundError,
    NotRootError,
    UsageError,
)
from lazyimg.host import mount_child
from lazyimg.host.mount_calls import MountCalls
from lazyimg.host.mount_table import MountEntry, parse_mount_table, parse_mounts_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

BDI: Final = Path("/sys/class/bdi")
"""Where the kernel keeps the read-ahead of each mounted file system."""

SUPERBLOCKS: Final = Path("/sys/fs/erofs")
"""Where the kernel lists its EROFS file systems, those that are detached and in use as well."""

MAX_VALUE: Final = 255
"""Bytes of a path that is given to fsconfig(2)."""

KEPT_PROCESSES: Final = 1
"""Idle processes that make calls."""

_log = logging.getLogger(__name__)

_calls = MountCalls()


class FileMountError(KernelError):
    """The kernel does not mount that file, or none: EROFS from files came with Linux 6.12."""


@asynccontextmanager
async def calls_known_by(path: Path) -> AsyncIterator[None]:
    """Keep processes for calls, each with a shared lock on a file for as long as it lives.

    Calls outlive the process that makes them: whoever follows it waits for them by this file.
    """
    global _calls
    before, _calls = _calls, MountCalls(path, kept=KEPT_PROCESSES)
    try:
        yield
    finally:
        ended, _calls = _calls, before
        await ended.close()


async def wait_for_calls() -> bool:
    """Wait until no call is being made by any process that knows our file; False if one stays.

    To be called before the first call.

    Raises:
        StorageError: the file cannot be used.
    """
    return await _calls.wait_for_others()


def late_calls() -> list[asyncio.subprocess.Process]:
    """Give the processes of calls that were given up, have not ended, and may yet succeed."""
    return _calls.late()


async def mount_erofs(
    fsid: str,
    domain_id: str,
    target: Path,
    *,
    read_ahead_kb: int | None = None,
    devices: Sequence[str] = (),
) -> None:
    """Mount a bootstrap on a directory, read-only; the kernel asks the transport for it.

    Args:
        fsid: the bootstrap's name.
        domain_id: objects are shared among the mounts of a domain.
        target: where.
        read_ahead_kb: how much the kernel may ask for at a time, in KiB; None leaves its default.
        devices: names of the devices, if the bootstrap's own table does not name them.

    Raises:
        InUseError: it is mounted already; the kernel mounts an fsid once.
        NotFoundError: no such bootstrap, or no such directory.
        LazyimgError: anything else.
    """
    options = [["fsid", fsid], ["domain_id", domain_id], *(["device", name] for name in devices)]
    before = _bdi_names()
    await _mount(
        what=f"fsid {fsid}", source="none", target=target, fs_type="erofs", options=options
    )
    if read_ahead_kb is not None:
        _set_read_ahead(_bdi_names() - before, read_ahead_kb)


async def mount_erofs_files(
    bootstrap: Path, devices: Sequence[Path], target: Path, *, loops: Path | None = None
) -> None:
    """Mount a bootstrap that is a plain file on a directory, read-only.

    Each mount is a file system of its own, also of the same bootstrap.

    Args:
        bootstrap: a complete file, on a file system that is not stacked on another.
        devices: a file for each slot of the bootstrap's table, in its order. They are opened here
            and now, and kept open.
        target: where.
        loops: mount them by loop devices, as kernels before 6.12 need it; then the mount table has
            this path, of which only the last part may be new, in place of the bootstrap's.

    Raises:
        NotFoundError: one of them does not exist.
        FileMountError: the kernel wants a block device.
        LazyimgError: anything else.
    """
    paths = [os.fspath(path) for path in (bootstrap, *devices, *([loops] if loops else []))]
    for path in paths:
        if len(os.fsencode(path)) > MAX_VALUE:
            raise UsageError(path, f"its path has more than {MAX_VALUE} bytes", "use another root")
    request: dict[str, Any] = {
        "call": "mount",
        "source": paths[0],
        "target": os.fspath(target),
        "fs_type": "erofs",
        "flags": mount_child.MS_RDONLY,
    }
    if loops is None:
        request |= {"options": [["device", path] for path in paths[1:]], "parts": True}
    else:
        request |= {"call": "mount_loops", "name": paths[-1], "devices": paths[1:-1]}
    await _call(f"fsid {bootstrap.name}", target, request, kind="files")


async def switch_loops(numbers: Sequence[int], source: Path, target: Path) -> None:
    """Have read-only loop devices read another file of the same bytes, also while mounted.

    Args:
        numbers: of the devices; what is not over `source` is left alone.
        source: the path of their file, which the kernel has.
        target: the other one's.

    Raises:
        LazyimgError: the kernel refuses.
    """
    request = {
        "call": "switch_loops",
        "numbers": list(numbers),
        "source": os.fspath(source),
        "target": os.fspath(target),
    }
    await _call(f"loop devices of {source.name}", target, request)


async def mount_overlay(lower: Sequence[Path], upper: Path, work: Path, target: Path) -> None:
    """Mount a writable overlay on a directory.

    Args:
        lower: read-only directories, the topmost first.
        upper: takes what is written; on a file system with extended attributes.
        work: empty, on the same file system as `upper`.
        target: where.

    Raises:
        LazyimgError: a directory is missing or unsuitable, or the kernel refuses.
    """
    options = [
        ["lowerdir", ":".join(escape_overlay_path(path) for path in lower)],
        ["upperdir", escape_overlay_path(upper)],
        ["workdir", escape_overlay_path(work)],
        ["index", "off"],
        ["metacopy", "off"],
        ["redirect_dir", "nofollow"],
    ]
    await _mount(
        what=f"overlay on {target}",
        source="overlay",
        target=target,
        fs_type="overlay",
        options=options,
        flags=0,
    )


def escape_overlay_path(path: Path) -> str:
    r"""Give a path as overlayfs wants it in its options: `\`, `:` and `,` after a backslash."""
    text = os.fspath(path)
    for character in "\\:,":
        text = text.replace(character, f"\\{character}")
    return text


async def _mount(
    *,
    what: str,
    source: str,
    target: Path,
    fs_type: str,
    options: list[list[str]],
    flags: int = mount_child.MS_RDONLY,
) -> None:
    await _call(
        what,
        target,
        {
            "call": "mount",
            "source": source,
            "target": os.fspath(target),
            "fs_type": fs_type,
            "flags": flags,
            "options": options,
        },
    )


async def bind_mount(source: Path, target: Path, *, read_only: bool = False) -> None:
    """Show the mounted directory `source` at `target` as well.

    Raises:
        NotFoundError: one of them does not exist.
        LazyimgError: anything else; then nothing is mounted.
    """
    request = {
        "call": "bind",
        "source": os.fspath(source),
        "target": os.fspath(target),
        "read_only": read_only,
    }
    await _call(f"bind mount of {source}", target, request)


async def bind_mapped(
    source: Path,
    target: Path,
    uids: Sequence[tuple[int, int, int]],
    gids: Sequence[tuple[int, int, int]],
) -> None:
    """Show the directory `source` at `target` as well, read-only, with other owners.

    Args:
        source: a directory.
        target: where.
        uids: (owner on the file system, owner that is shown, how many).
        gids: likewise.

    Raises:
        LazyimgError: the kernel cannot; then nothing is mounted.
    """
    request = {
        "call": "map",
        "source": os.fspath(source),
        "target": os.fspath(target),
        "uids": uids,
        "gids": gids,
    }
    await _call(f"{source} with other owners", target, request)


async def unmount(target: Path, *, lazy: bool = False) -> None:
    """Take the topmost mount off a directory; `lazy` detaches it even while it is in use.

    Raises:
        InUseError: something in it is in use.
        NotFoundError: nothing is mounted there.
        LazyimgError: anything else.
    """
    request = {"call": "unmount", "target": os.fspath(target), "lazy": lazy}
    await _call(f"unmount of {target}", target, request)


async def read_byte(path: Path, offset: int) -> None:
    """Read a byte of a file that this process serves: the kernel asks for it, if it is absent.

    Raises:
        LazyimgError: it cannot be read.
    """
    request = {"call": "read", "path": os.fspath(path), "offset": offset}
    await _call(f"read at {offset}", path, request)


async def mount_table() -> list[MountEntry]:
    """Give what is mounted, as this process sees it. Raises KernelError."""
    return parse_mount_table(await asyncio.to_thread(Path("/proc/self/mountinfo").read_bytes))


async def mounts_on(path: str) -> list[MountEntry]:
    """Give what is mounted on a path, the topmost last, as this process sees it."""
    return await asyncio.to_thread(_read_mounts_on, path)


def _read_mounts_on(path: str) -> list[MountEntry]:
    return parse_mounts_on(Path("/proc/self/mountinfo").read_bytes(), path)


async def superblocks() -> list[tuple[str, str]]:
    """Give (domain, fsid) of each EROFS file system that the kernel keeps, mounted or not.

    The kernel names them "DOMAIN,FSID" there. Some, such as 6.12, keep the first 36 characters
    only (`s_sysfs_name` in include/linux/fs.h): then the fsid is cut short.
    """
    try:
        names = await asyncio.to_thread(os.listdir, SUPERBLOCKS)
    except FileNotFoundError:
        return []
    parts = [name.partition(",") for name in names]
    return [(domain, fsid) for domain, comma, fsid in parts if comma]


async def _call(what: str, target: Path, request: dict[str, Any], kind: str = "") -> None:
    reply = await _calls.call(what, request)
    if reply:
        raise _call_error(what, target, kind or request.get("fs_type", request["call"]), reply)


def _call_error(what: str, target: Path, call: str, reply: dict[str, Any]) -> LazyimgError:
    number = reply["errno"]
    tables = (reply["call"], call, "any")
    explained = next((_ERRORS[name, number] for name in tables if (name, number) in _ERRORS), None)
    if explained is None:
        said = f" ({reply['log']})" if reply["log"] else ""
        return KernelError(what, f"{reply['call']} on {target} failed: {os.strerror(number)}{said}")
    make, problem, remedy = explained
    return make(what, problem.format(target=target), remedy)


_NO_OBJECT: Final = (
    NotFoundError,
    "the cache does not give it: there is no such image, or its first blocks cannot be read",
    "prepare the image first; if it is there, see the daemon's log",
)

_NO_LOOPS: Final = (
    KernelError,
    "this kernel does not mount EROFS from a file, and has no loop devices",
    "load the module `loop`; in a container, give it /dev/loop-control",
)

_ERRORS: Final[dict[tuple[str, int], tuple[type[LazyimgError], str, str]]] = {
    ("erofs", EBUSY): (InUseError, "already mounted", "bind mount the directory that it is on"),
    ("erofs", EEXIST): (InUseError, "already mounted", "bind mount the directory that it is on"),
    ("erofs", ENOENT): (
        NotFoundError, "no such image, or {target} does not exist", "check both"
    ),
    ("erofs", ENOBUFS): _NO_OBJECT,
    ("erofs", EIO): _NO_OBJECT,
    ("erofs", EINVAL): (
        KernelError, "the kernel refuses it or its options", "`dmesg` says why"
    ),
    ("files", ENOENT): (
        NotFoundError, "it, one of its devices or {target} does not exist", ""
    ),
    ("files", EINVAL): (KernelError, "the kernel refuses it", "`dmesg` says why"),
    ("loop-control", ENOENT): _NO_LOOPS,
    ("loop-control", ENODEV): _NO_LOOPS,
    ("files", ENOTBLK): (
        FileMountError,
        "this kernel does not mount EROFS from a file, or not from one on that file system",
        "`lazyimg doctor` says more",
    ),
    ("overlay", EBUSY): (InUseError, "its upper or work directory is in use", ""),
    ("overlay", ENOENT): (NotFoundError, "one of its directories does not exist", ""),
    ("overlay", EINVAL): (KernelError, "the kernel refuses the directories", "`dmesg` says why"),
    ("bind", ENOENT): (NotFoundError, "it or {target} does not exist", ""),
    ("bind", EINVAL): (KernelError, "the kernel refuses to show it on {target}", ""),
    ("map", EINVAL): (
        KernelError,
        "its file system cannot show other owners (id-mapped mounts), or the ids overlap",
        "run the container without a user namespace",
    ),
    ("unmount", EBUSY): (
        InUseError, "{target} is in use", "end the processes that use it, or unmount lazily"
    ),
    ("unmount", EINVAL): (NotFoundError, "nothing is mounted there", ""),
    ("unmount", ENOENT): (NotFoundError, "{target} does not exist", ""),
    ("any", ENODEV): (
        KernelError, "this kernel does not have the file system", "`lazyimg doctor` says more"
    ),
    ("any", ENOTDIR): (UsageError, "{target} is not a directory", ""),
    ("any", EPERM): (NotRootError, "only root may mount", "run the daemon as root"),
}  # fmt: skip


def _bdi_names() -> set[str]:
    try:
        return {path.name for path in BDI.iterdir() if path.name.startswith("erofs-")}
    except OSError:
        return set()


def _set_read_ahead(names: set[str], kilobytes: int) -> None:
    """Set the read-ahead of what was just mounted: the kernel names no mount's bdi."""
    if not names:
        _log.warning("the kernel shows no read-ahead of the new mount; reads stay small")
    for name in names:
        try:
            (BDI / name / "read_ahead_kb").write_text(f"{kilobytes}\n")
        except OSError as error:
            _log.warning("cannot set the read-ahead of %s: %s", name, error.strerror)
