"""Mounting and unmounting, each by a child process that holds none of our fds.

Directories must be absolute and normalized. Nothing here looks at a target before it is mounted:
stat(2) on a directory of ours could wait for ourselves.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import sys
from contextlib import contextmanager
from errno import (
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    ENOBUFS,
    ENODEV,
    ENOENT,
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
    StorageError,
    UsageError,
)
from lazyimg.host import mount_child
from lazyimg.host.mount_table import MountEntry, parse_mount_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CALL_TIMEOUT: Final = 120.0
"""Seconds for one mount or unmount, after which the child is killed."""

_CALLS_PAUSE: Final = 0.02  # seconds; a lock announces nothing

KILL_TIMEOUT: Final = 5.0
"""Seconds that a killed child may take to end."""

BDI: Final = Path("/sys/class/bdi")
"""Where the kernel keeps the read-ahead of each mounted file system."""

SUPERBLOCKS: Final = Path("/sys/fs/erofs")
"""Where the kernel lists its EROFS file systems, those that are detached and in use as well."""

_log = logging.getLogger(__name__)

_calls_lock: Path | None = None


@contextmanager
def calls_known_by(path: Path) -> Iterator[None]:
    """Let each call hold a shared lock on a file for as long as its process lives.

    Calls outlive the process that makes them: whoever follows it waits for them by this file.
    """
    global _calls_lock  # noqa: PLW0603  as the mounts, it belongs to the process
    _calls_lock = path
    try:
        yield
    finally:
        _calls_lock = None


async def wait_for_calls() -> bool:
    """Wait until no call is being made by any process that knows our file; False if one stays.

    Raises:
        StorageError: the file cannot be used.
    """
    if _calls_lock is None:
        return True
    fd = _open_lock(_calls_lock)
    try:
        async with asyncio.timeout(CALL_TIMEOUT):
            while not _try_lock(fd):  # noqa: ASYNC110  nothing announces it
                await asyncio.sleep(_CALLS_PAUSE)
    except TimeoutError:
        return False
    finally:
        os.close(fd)
    return True


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(str(path), f"cannot be opened: {error.strerror}") from error


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _input_of_call() -> Iterator[int]:
    """Give what a call's process has as standard input: it keeps the lock until it ends."""
    if _calls_lock is None:
        yield asyncio.subprocess.DEVNULL
        return
    fd = _open_lock(_calls_lock)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield fd
    finally:
        os.close(fd)


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


async def superblocks() -> list[tuple[str, str]]:
    """Give (domain, fsid) of each EROFS file system that the kernel keeps, mounted or not."""
    try:
        names = await asyncio.to_thread(os.listdir, SUPERBLOCKS)
    except FileNotFoundError:
        return []
    parts = [name.partition(",") for name in names]
    return [(domain, fsid) for domain, comma, fsid in parts if comma]


async def _call(what: str, target: Path, request: dict[str, Any]) -> None:
    with _input_of_call() as given:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            mount_child.__file__,
            json.dumps(request),
            stdin=given,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
            start_new_session=True,  # a signal for the daemon's group is not for it
        )
    try:
        async with asyncio.timeout(CALL_TIMEOUT):
            output, errors = await child.communicate()
    except TimeoutError as error:
        raise KernelError(what, f"not done after {CALL_TIMEOUT:g} s") from error
    finally:
        if child.returncode is None:
            await _kill(child)
    try:
        reply = json.loads(output)
    except ValueError as error:
        said = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise KernelError(
            what, f"the mounting process ended with {child.returncode}: {said}"
        ) from error
    if reply:
        raise _call_error(what, target, request.get("fs_type", request["call"]), reply)


async def _kill(child: asyncio.subprocess.Process) -> None:
    child.kill()
    try:
        await asyncio.wait_for(child.wait(), KILL_TIMEOUT)
    except TimeoutError:  # in the kernel, unkillable: it ends when its call does
        _log.warning("process %d does not end", child.pid)


def _call_error(what: str, target: Path, call: str, reply: dict[str, Any]) -> LazyimgError:
    number = reply["errno"]
    explained = _ERRORS.get((call, number)) or _ERRORS.get(("any", number))
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
    ("overlay", EBUSY): (InUseError, "its upper or work directory is in use", ""),
    ("overlay", ENOENT): (NotFoundError, "one of its directories does not exist", ""),
    ("overlay", EINVAL): (KernelError, "the kernel refuses the directories", "`dmesg` says why"),
    ("bind", ENOENT): (NotFoundError, "it or {target} does not exist", ""),
    ("bind", EINVAL): (KernelError, "the kernel refuses to show it on {target}", ""),
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
