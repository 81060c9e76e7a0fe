"""What is asked of the child, and what its answers mean."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from errno import (
    EBUSY,
    EEXIST,
    EINVAL,
    EIO,
    ELOOP,
    ENOBUFS,
    ENODEV,
    ENOENT,
    ENOTBLK,
    ENOTDIR,
    EPERM,
)
from pathlib import Path
from typing import Any

import pytest

from lazyimg.errors import (
    InUseError,
    KernelError,
    LazyimgError,
    NotFoundError,
    NotRootError,
    StorageError,
    UsageError,
)
from lazyimg.host import mount_child, mounts
from lazyimg.host.mounts import (
    FileMountError,
    bind_mapped,
    bind_mount,
    escape_overlay_path,
    mount_erofs,
    mount_erofs_files,
    mount_overlay,
    mount_table,
    mounts_on,
    switch_loops,
    unmount,
)

CHILD = """
import json, os, sys
fds = sorted(map(int, os.listdir("/proc/self/fd")))
with open({record!r}, "a") as file:
    request = json.loads(sys.stdin.readline())
    json.dump([sys.flags.isolated, os.getcwd(), len(fds), request], file)
    file.write("\\n")
{then}
"""


class Child:
    """A program in place of mount_child.py, which records what it was asked."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.program = directory / "child.py"
        self.record = directory / "record"
        self.then("print('{}')")
        monkeypatch.setattr(mount_child, "__file__", str(self.program))

    def then(self, code: str) -> None:
        self.program.write_text(CHILD.format(record=str(self.record), then=code))

    def fail(self, number: int, call: str = "mount", log: str = "") -> None:
        self.then(f"print({json.dumps({'errno': number, 'call': call, 'log': log})!r})")

    def asked(self) -> list[Any]:
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def request(self) -> dict[str, Any]:
        ((_, _, _, request),) = self.asked()
        assert isinstance(request, dict)
        return request


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    return Child(tmp_path, monkeypatch)


TARGET = Path("/mnt/target")


async def test_erofs(child: Child) -> None:
    await mount_erofs("abc", "domain", TARGET)
    assert child.request() == {
        "call": "mount",
        "source": "none",
        "target": "/mnt/target",
        "fs_type": "erofs",
        "flags": mount_child.MS_RDONLY,
        "options": [["fsid", "abc"], ["domain_id", "domain"]],
    }


async def test_erofs_with_devices(child: Child) -> None:
    await mount_erofs("abc", "domain", TARGET, devices=["d1", "d2"])
    assert child.request()["options"][2:] == [["device", "d1"], ["device", "d2"]]


async def test_erofs_from_files(child: Child) -> None:
    await mount_erofs_files(Path("/b/abc"), [Path("/d/1"), Path("/d,/2")], TARGET)
    assert child.request() == {
        "call": "mount",
        "source": "/b/abc",
        "target": "/mnt/target",
        "fs_type": "erofs",
        "flags": mount_child.MS_RDONLY,
        "options": [["device", "/d/1"], ["device", "/d,/2"]],
        "parts": True,
    }


async def test_erofs_by_loop_devices(child: Child) -> None:
    devices = [Path("/d/1"), Path("/d,/2")]
    await mount_erofs_files(Path("/b/abc"), devices, TARGET, loops=Path("/l/abc"))
    assert child.request() == {
        "call": "mount_loops",
        "name": "/l/abc",
        "source": "/b/abc",
        "target": "/mnt/target",
        "fs_type": "erofs",
        "flags": mount_child.MS_RDONLY,
        "devices": ["/d/1", "/d,/2"],
    }


async def test_erofs_without_loop_devices(child: Child) -> None:
    child.fail(ENOENT, call="loop-control")
    with pytest.raises(KernelError) as caught:
        await mount_erofs_files(Path("/b/abc"), [], TARGET, loops=Path("/l/abc"))
    assert str(caught.value) == (
        "fsid abc: this kernel does not mount EROFS from a file, and has no loop devices;"
        " load the module `loop`; in a container, give it /dev/loop-control"
    )


async def test_loop_devices_that_are_switched(child: Child) -> None:
    await switch_loops([1, 3], Path("/fuse/a"), Path("/devices/a/data"))
    assert child.request() == {
        "call": "switch_loops",
        "numbers": [1, 3],
        "source": "/fuse/a",
        "target": "/devices/a/data",
    }
    child.fail(EINVAL, call="LOOP_CHANGE_FD")
    with pytest.raises(KernelError) as caught:
        await switch_loops([1], Path("/fuse/a"), Path("/devices/a/data"))
    assert str(caught.value) == (
        "loop devices of a: LOOP_CHANGE_FD on /devices/a/data failed: Invalid argument"
    )


async def test_erofs_from_a_file_with_a_long_path(child: Child) -> None:
    path = Path("/" + "é" * 128)
    with pytest.raises(UsageError) as caught:
        await mount_erofs_files(Path("/b/abc"), [path], TARGET)
    assert str(caught.value) == f"{path}: its path has more than 255 bytes; use another root"
    assert not child.record.exists()


async def test_child_holds_no_fd_of_ours(child: Child) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(fd, True)  # noqa: FBT003 - positional only
    try:
        await mount_erofs("abc", "domain", TARGET)
    finally:
        os.close(fd)
    ((isolated, directory, fds, _),) = child.asked()
    assert isolated
    assert directory == "/"
    assert fds == 4  # its own three, and the one it lists them with


async def test_overlay(child: Child) -> None:
    await mount_overlay([Path("/a:b"), Path("/c,d")], Path("/u\\p"), Path("/w"), TARGET)
    request = child.request()
    assert request["options"] == [
        ["lowerdir", "/a\\:b:/c\\,d"],
        ["upperdir", "/u\\\\p"],
        ["workdir", "/w"],
        ["index", "off"],
        ["metacopy", "off"],
        ["redirect_dir", "nofollow"],
    ]
    assert (request["fs_type"], request["flags"]) == ("overlay", 0)


def test_escape_is_not_applied_twice() -> None:
    assert escape_overlay_path(Path("/a\\:,")) == "/a\\\\\\:\\,"


async def test_bind(child: Child) -> None:
    await bind_mount(Path("/a"), TARGET, read_only=True)
    assert child.request() == {
        "call": "bind",
        "source": "/a",
        "target": "/mnt/target",
        "read_only": True,
    }


async def test_bind_with_other_owners(child: Child) -> None:
    await bind_mapped(Path("/a"), TARGET, ((0, 1000, 5),), ((0, 2000, 5), (5, 0, 1)))
    assert child.request() == {
        "call": "map",
        "source": "/a",
        "target": "/mnt/target",
        "uids": [[0, 1000, 5]],
        "gids": [[0, 2000, 5], [5, 0, 1]],
    }


async def test_file_system_that_cannot_show_other_owners(child: Child) -> None:
    child.fail(EINVAL)
    with pytest.raises(KernelError) as raised:
        await bind_mapped(Path("/a"), TARGET, ((0, 1000, 5),), ((0, 2000, 5),))
    assert str(raised.value) == (
        "/a with other owners: its file system cannot show other owners (id-mapped mounts), or the"
        " ids overlap; run the container without a user namespace"
    )


async def test_unmount(child: Child) -> None:
    await unmount(TARGET, lazy=True)
    assert child.request() == {"call": "unmount", "target": "/mnt/target", "lazy": True}


ALREADY = "fsid abc: already mounted; bind mount the directory that it is on"
NOT_GIVEN = (
    "fsid abc: the cache does not give it: there is no such image, or its first blocks cannot be"
    " read; prepare the image first; if it is there, see the daemon's log"
)


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (EBUSY, InUseError, ALREADY),
        (EEXIST, InUseError, ALREADY),
        (
            ENOENT,
            NotFoundError,
            "fsid abc: no such image, or /mnt/target does not exist; check both",
        ),
        (ENOBUFS, NotFoundError, NOT_GIVEN),
        (EIO, NotFoundError, NOT_GIVEN),
        (EINVAL, KernelError, "fsid abc: the kernel refuses it or its options; `dmesg` says why"),
        (
            ENODEV,
            KernelError,
            "fsid abc: this kernel does not have the file system; `lazyimg doctor` says more",
        ),
        (ENOTDIR, UsageError, "fsid abc: /mnt/target is not a directory"),
        (EPERM, NotRootError, "fsid abc: only root may mount; run the daemon as root"),
        (
            ELOOP,
            KernelError,
            "fsid abc: mount on /mnt/target failed: Too many levels of symbolic links (it said)",
        ),
    ],
)
async def test_erofs_that_is_refused(
    child: Child, number: int, kind: type[LazyimgError], text: str
) -> None:
    child.fail(number, log="it said")
    with pytest.raises(LazyimgError) as raised:
        await mount_erofs("abc", "domain", TARGET)
    assert type(raised.value) is kind
    assert str(raised.value) == text


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (ENOENT, NotFoundError, "it, one of its devices or /mnt/target does not exist"),
        (EINVAL, KernelError, "the kernel refuses it; `dmesg` says why"),
        (
            ENOTBLK,
            FileMountError,
            (
                "this kernel does not mount EROFS from a file, or not from one on that file"
                " system; `lazyimg doctor` says more"
            ),
        ),
        (EPERM, NotRootError, "only root may mount; run the daemon as root"),
        (EIO, KernelError, "mount on /mnt/target failed: Input/output error (it said)"),
    ],
)
async def test_erofs_from_files_that_is_refused(
    child: Child, number: int, kind: type[LazyimgError], text: str
) -> None:
    child.fail(number, log="it said")
    with pytest.raises(LazyimgError) as raised:
        await mount_erofs_files(Path("/b/abc"), [], TARGET)
    assert type(raised.value) is kind
    assert str(raised.value) == f"fsid abc: {text}"


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (EBUSY, InUseError, "its upper or work directory is in use"),
        (ENOENT, NotFoundError, "one of its directories does not exist"),
        (EINVAL, KernelError, "the kernel refuses the directories; `dmesg` says why"),
    ],
)
async def test_overlay_that_is_refused(
    child: Child, number: int, kind: type[LazyimgError], text: str
) -> None:
    child.fail(number)
    with pytest.raises(LazyimgError) as raised:
        await mount_overlay([Path("/a")], Path("/u"), Path("/w"), TARGET)
    assert type(raised.value) is kind
    assert str(raised.value) == f"overlay on /mnt/target: {text}"


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (ENOENT, NotFoundError, "it or /mnt/target does not exist"),
        (EINVAL, KernelError, "the kernel refuses to show it on /mnt/target"),
    ],
)
async def test_bind_that_is_refused(
    child: Child, number: int, kind: type[LazyimgError], text: str
) -> None:
    child.fail(number)
    with pytest.raises(LazyimgError) as raised:
        await bind_mount(Path("/a"), TARGET)
    assert type(raised.value) is kind
    assert str(raised.value) == f"bind mount of /a: {text}"


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (
            EBUSY,
            InUseError,
            "/mnt/target is in use; end the processes that use it, or unmount lazily",
        ),
        (EINVAL, NotFoundError, "nothing is mounted there"),
        (ENOENT, NotFoundError, "/mnt/target does not exist"),
    ],
)
async def test_unmount_that_is_refused(
    child: Child, number: int, kind: type[LazyimgError], text: str
) -> None:
    child.fail(number, "umount2")
    with pytest.raises(LazyimgError) as raised:
        await unmount(TARGET)
    assert type(raised.value) is kind
    assert str(raised.value) == f"unmount of /mnt/target: {text}"


class Bdi:
    """/sys/class/bdi, to which the child adds what the kernel would."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory / "bdi"
        self.add("erofs-1")
        self.add("8:0")
        monkeypatch.setattr(mounts, "BDI", self.directory)

    def add(self, name: str) -> Path:
        path = self.directory / name / "read_ahead_kb"
        path.parent.mkdir(parents=True)
        path.write_text("128\n")
        return path


async def test_read_ahead(child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bdi = Bdi(tmp_path, monkeypatch)
    new = bdi.directory / "erofs-2"
    child.then(f"os.mkdir({str(new)!r}); open({str(new / 'read_ahead_kb')!r}, 'w'); print('{{}}')")
    await mount_erofs("abc", "domain", TARGET, read_ahead_kb=1024)
    assert (new / "read_ahead_kb").read_text() == "1024\n"
    assert (bdi.directory / "erofs-1" / "read_ahead_kb").read_text() == "128\n"
    assert (bdi.directory / "8:0" / "read_ahead_kb").read_text() == "128\n"


@pytest.mark.parametrize("present", [True, False])
async def test_read_ahead_that_the_kernel_does_not_show(
    child: Child,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    present: bool,
) -> None:
    bdi = Bdi(tmp_path, monkeypatch)
    if not present:
        monkeypatch.setattr(mounts, "BDI", bdi.directory / "missing")
    await mount_erofs("abc", "domain", TARGET, read_ahead_kb=1024)
    assert "the kernel shows no read-ahead of the new mount" in caplog.text


async def test_read_ahead_that_cannot_be_set(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bdi = Bdi(tmp_path, monkeypatch)
    child.then(f"os.mkdir({str(bdi.directory / 'erofs-2')!r}); print('{{}}')")
    (bdi.directory / "erofs-2").parent.chmod(0o755)
    monkeypatch.setattr(Path, "write_text", refuse)
    await mount_erofs("abc", "domain", TARGET, read_ahead_kb=1024)
    assert "cannot set the read-ahead of erofs-2: Permission denied" in caplog.text


def refuse(_path: Path, _text: str) -> int:
    raise PermissionError(13, "Permission denied")


async def test_mounts_on() -> None:
    table = await mount_table()
    assert await mounts_on("/proc") == [one for one in table if one.mount_point == "/proc"] != []
    assert await mounts_on("/proc/self") == []


async def test_mount_table() -> None:
    assert "/proc" in {entry.mount_point for entry in await mount_table()}
    assert sys.executable


async def test_read_of_a_byte(child: Child) -> None:
    await mounts.read_byte(Path("/mnt/file"), 4096)
    assert child.request() == {"call": "read", "path": "/mnt/file", "offset": 4096}
    child.fail(EIO, "pread")
    with pytest.raises(KernelError, match="read at 4096: pread on /mnt/file failed"):
        await mounts.read_byte(Path("/mnt/file"), 4096)


async def test_calls_are_known_and_their_process_is_kept(child: Child, tmp_path: Path) -> None:
    twice = "print('{}', flush=True); sys.stdin.readline(); print('{}', flush=True)"
    child.then(f"{twice}; sys.stdin.read()")
    async with mounts.calls_known_by(tmp_path / "calls"):
        assert await mounts.wait_for_calls() is True
        await unmount(TARGET)
        await unmount(TARGET)
        assert len(child.asked()) == 1  # it records its start
        fd = os.open(tmp_path / "calls", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it ended
    os.close(fd)
    assert await mounts.wait_for_calls() is True
    await unmount(TARGET)
    assert len(child.asked()) == 2


async def test_file_of_calls_that_cannot_be_used(child: Child, tmp_path: Path) -> None:
    async with mounts.calls_known_by(tmp_path / "no" / "calls"):
        with pytest.raises(StorageError, match="cannot be opened: No such file or directory"):
            await unmount(Path("/target"))


async def test_superblocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("features", "domain,f00", "domain-2,f00", "f01"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(mounts, "SUPERBLOCKS", tmp_path)
    assert sorted(await mounts.superblocks()) == [("domain", "f00"), ("domain-2", "f00")]
    monkeypatch.setattr(mounts, "SUPERBLOCKS", tmp_path / "missing")
    assert await mounts.superblocks() == []
