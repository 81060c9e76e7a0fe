"""The child's system calls, with a C library that records them; tests/kernel does them for real."""

from __future__ import annotations

import ctypes
import fcntl
import io
import json
import os
import stat
import struct
import subprocess
import sys
from errno import EBUSY, EINVAL, EIO, EISDIR, ENODATA, ENOENT, ENOSPC, ENOTDIR, EPERM
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lazyimg.host import mount_child
from lazyimg.host.mount_child import MS_BIND, MS_RDONLY, MS_REMOUNT, CallError, answer, main

CONTEXT, MOUNT = 7, 8
"""Fds that the kernel gives."""


class Library:
    """Records calls; `errors` gives the errno of the n-th one."""

    def __init__(self, errors: dict[int, int] | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.errors = errors or {}
        self.closed: list[int] = []

    def _call(self, *call: Any) -> int:
        self.calls.append(call)
        number = self.errors.get(len(self.calls) - 1, 0)
        ctypes.set_errno(number)
        return -1 if number else CONTEXT

    def mount(self, *arguments: Any) -> int:
        return min(self._call("mount", *arguments), 0)

    def umount2(self, *arguments: Any) -> int:
        return min(self._call("umount2", *arguments), 0)

    def syscall(self, *arguments: Any) -> int:
        result = self._call(*(argument.value for argument in arguments))
        return MOUNT if arguments[0].value == 432 and result == CONTEXT else result


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    monkeypatch.setattr(mount_child, "_libc", library)
    close = os.close
    monkeypatch.setattr(
        os, "close", lambda fd: library.closed.append(fd) if fd in {CONTEXT, MOUNT} else close(fd)
    )
    return library


def open_fds() -> list[str]:
    """Give what is open; listing it takes one more, always the same."""
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def ask(call: str, **arguments: Any) -> dict[str, Any]:
    reply = answer(json.dumps({"call": call, **arguments}).encode() + b"\n")
    assert reply.count(b"\n") == 1
    parsed: dict[str, Any] = json.loads(reply)
    return parsed


def ask_to_mount(*options: list[str], flags: int = MS_RDONLY) -> dict[str, Any]:
    return ask("mount", source="none", target="/mnt", fs_type="erofs", flags=flags, options=options)


def test_mount(library: Library) -> None:
    assert ask_to_mount(["fsid", "abc"], ["user_xattr"]) == {}
    assert library.calls == [
        ("mount", b"none", b"/mnt", b"erofs", MS_RDONLY, b"fsid=abc,user_xattr")
    ]


def test_mount_that_fails(library: Library) -> None:
    library.errors = {0: ENOENT}
    assert ask_to_mount() == {"errno": ENOENT, "call": "mount", "log": ""}


def many() -> list[list[str]]:
    return [["fsid", "abc"], ["flag"], *(["device", f"{n:064}"] for n in range(55))]


def test_options_that_fill_the_page_exactly(library: Library) -> None:
    options = many()
    missing = 4095 - len(",".join("=".join(option) for option in options))
    options.append(["x" * (missing - 1)])
    assert ask_to_mount(*options) == {}
    assert library.calls[0][0] == "mount"
    assert len(library.calls[0][-1]) == 4095


def test_options_that_do_not_fit_in_the_page(library: Library) -> None:
    assert ask_to_mount(*many(), ["x" * 300]) == {}
    first, source, read_only, fsid, flag, *devices = library.calls[:-3]
    assert first == (430, b"erofs", 1)
    assert source == (431, CONTEXT, 1, b"source", b"none", 0)
    assert read_only == (431, CONTEXT, 0, b"ro", None, 0)
    assert fsid == (431, CONTEXT, 1, b"fsid", b"abc", 0)
    assert flag == (431, CONTEXT, 0, b"flag", None, 0)
    assert len(devices) == 56
    assert library.calls[-3:] == [
        (431, CONTEXT, 6, None, None, 0),
        (432, CONTEXT, 1, MS_RDONLY),
        (429, MOUNT, b"", -100, b"/mnt", 4),
    ]
    assert library.closed == [CONTEXT, MOUNT]


def test_options_that_are_given_one_by_one(library: Library) -> None:
    options = [["device", "/a,b"]]
    assert ask(
        "mount", source="/x", target="/mnt", fs_type="erofs", flags=MS_RDONLY, options=options,
        parts=True,
    ) == {}  # fmt: skip
    assert library.calls[1] == (431, CONTEXT, 1, b"source", b"/x", 0)
    assert library.calls[3] == (431, CONTEXT, 1, b"device", b"/a,b", 0)
    assert library.calls[-1] == (429, MOUNT, b"", -100, b"/mnt", 4)


def test_parts_of_a_mount_that_cannot_be_put_in_its_place(library: Library) -> None:
    library.errors = {63: ENOENT}
    assert ask_to_mount(*many(), ["x" * 300])["call"] == "move_mount"
    assert library.closed == [CONTEXT, MOUNT]


def test_parts_of_a_writable_mount(library: Library) -> None:
    assert ask_to_mount(*many(), ["x" * 300], flags=0) == {}
    assert (431, CONTEXT, 0, b"ro", None, 0) not in library.calls
    assert library.calls[-2] == (432, CONTEXT, 1, 0)


def test_kernel_that_says_why(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [b"e erofs: first\n", b"e erofs: second\n"]

    def read(fd: int, _size: int) -> bytes:
        assert fd == CONTEXT
        if not said:
            raise OSError(ENODATA, "")
        return said.pop(0)

    monkeypatch.setattr(os, "read", read)
    library.errors = {61: EINVAL}
    assert ask_to_mount(*many(), ["x" * 300]) == {
        "errno": EINVAL,
        "call": "fsconfig",
        "log": "e erofs: first; e erofs: second",
    }
    assert library.closed == [CONTEXT]


def test_bind(library: Library) -> None:
    assert ask("bind", source="/a", target="/b", read_only=False) == {}
    assert library.calls == [("mount", b"/a", b"/b", None, MS_BIND, b"")]


def test_bind_read_only(library: Library) -> None:
    assert ask("bind", source="/a", target="/b", read_only=True) == {}
    flags = MS_REMOUNT | MS_BIND | MS_RDONLY
    assert library.calls[1:] == [("mount", b"none", b"/b", None, flags, b"")]


def test_bind_that_cannot_be_made_read_only_is_taken_back(library: Library) -> None:
    library.errors = {1: EPERM}
    reply = ask("bind", source="/a", target="/b", read_only=True)
    assert library.calls[2:] == [("umount2", b"/b", 2 | 8)]
    assert reply["errno"] == EPERM


def test_bind_with_other_owners(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def open_namespace(*ids: object) -> int:
        asked.extend(ids)
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(mount_child, "_open_user_namespace", open_namespace)
    fds = open_fds()
    assert ask("map", source="/a", target="/b", uids=[[0, 1, 2]], gids=[[0, 3, 4]]) == {}
    assert asked == [[[0, 1, 2]], [[0, 3, 4]]]
    opened, changed, moved = library.calls
    assert opened == (428, -100, b"/a", 1 | os.O_CLOEXEC)
    assert changed[:4] == (442, CONTEXT, b"", 0x1000)
    assert changed[5] == 32
    assert moved == (429, CONTEXT, b"", -100, b"/b", 4)
    assert library.closed == [CONTEXT]
    assert open_fds() == fds


def test_other_owners_that_the_file_system_refuses(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_namespace(*_: object) -> int:
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(mount_child, "_open_user_namespace", open_namespace)
    library.errors = {1: EINVAL}
    reply = ask("map", source="/a", target="/b", uids=[[0, 1, 2]], gids=[[0, 3, 4]])
    assert reply == {"errno": EINVAL, "call": "mount_setattr", "log": ""}
    assert library.closed == [CONTEXT]
    assert len(library.calls) == 2


def test_user_namespace() -> None:
    """For real: anybody may make one for the own ids, where the machine allows it."""
    ids = [[0, os.getuid(), 1]], [[0, os.getgid(), 1]]
    fds = open_fds()
    try:
        namespace = mount_child._open_user_namespace(*ids)
    except CallError as error:
        assert error.call in {"unshare", "user_namespaces"}  # noqa: PT017 - either is right
    else:
        assert str(Path(f"/proc/self/fd/{namespace}").readlink()).startswith("user:[")
        os.close(namespace)
    assert open_fds() == fds


def test_user_namespace_whose_process_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_child, "_libc", SimpleNamespace(unshare=os._exit))
    with pytest.raises(CallError) as caught:
        mount_child._open_user_namespace([], [])
    assert (caught.value.call, caught.value.number) == ("unshare", EIO)


def test_user_namespace_whose_ids_overlap() -> None:
    with pytest.raises(CallError):
        mount_child._open_user_namespace([[0, 0, 2], [1, 5, 1]], [[0, 0, 1]])


@pytest.mark.parametrize(("lazy", "flags"), [(False, 8), (True, 8 | 2)])
def test_unmount(
    library: Library,
    lazy: bool,  # noqa: FBT001 - a parameter of the table
    flags: int,
) -> None:
    assert ask("unmount", target="/a b", lazy=lazy) == {}
    assert library.calls == [("umount2", b"/a b", flags)]


def test_read(library: Library, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    assert ask("read", path=str(tmp_path / "file"), offset=3) == {}
    missing = ask("read", path=str(tmp_path / "none"), offset=0)
    assert missing == {"errno": ENOENT, "call": "open", "log": ""}
    directory = ask("read", path=str(tmp_path), offset=0)
    assert directory == {"errno": EISDIR, "call": "pread", "log": ""}
    assert library.calls == []


def test_requests_until_the_end(library: Library) -> None:
    line = b'{"call": "unmount", "target": "/a", "lazy": false}\n'
    replies = io.BytesIO()
    main(io.BytesIO(line * 3), replies)
    assert replies.getvalue() == b"{}\n" * 3
    assert len(library.calls) == 3


def test_error_carries_its_facts() -> None:
    error = CallError("mount", ENOENT, "log")
    assert (error.call, error.number, error.log) == ("mount", ENOENT, "log")


def test_process_of_its_own() -> None:
    """A real child, a real system call that fails, for root and anybody else alike."""
    request = {"call": "unmount", "target": "/nonexistent/directory", "lazy": False}
    with subprocess.Popen(
        [sys.executable, "-I", "-S", mount_child.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for _ in range(2):
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            reply = json.loads(child.stdout.readline())
            assert reply["call"] == "umount2"
            assert reply["errno"] in {ENOENT, EPERM}
        assert child.communicate() == (b"", b"")
    assert child.returncode == 0


# Loop devices. The kernel's side is here a list of numbers; tests/transports has real ones.

GET_FREE, CONFIGURE, CHANGE_FD = 0x4C82, 0x4C0A, 0x4C06


class LoopKernel:
    """Gives free loop devices, and takes files for them.

    Attributes:
        given: numbers of devices that are free, or were a moment ago.
        taken: of those, what somebody else has got first.
        files: what each reads, by its number.
        fail: errno of the ioctl with this number.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given = iter(range(100))
        self.taken: set[int] = set()
        self.files: dict[int, str] = {}
        self.settings: list[bytes] = []
        self.fail: dict[int, int] = {}
        self.nodes = directory / "dev"
        self.block = directory / "block"
        self.nodes.mkdir()
        for number in range(4):
            (self.nodes / f"loop{number}").touch()
            (self.block / f"loop{number}/loop").mkdir(parents=True)
        (self.nodes / "loop-control").touch()
        monkeypatch.setattr(mount_child, "_LOOP_CONTROL", str(self.nodes / "loop-control"))
        monkeypatch.setattr(mount_child, "_LOOP_NODE", str(self.nodes / "loop"))
        monkeypatch.setattr(mount_child, "_SYS_BLOCK", str(self.block))
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)

    def ioctl(self, fd: int, number: int, argument: int | bytes = 0) -> int:
        if number in self.fail:
            raise OSError(self.fail[number], "")
        node = Path(f"/proc/self/fd/{fd}").readlink().name
        if number == GET_FREE:
            assert node == "loop-control"
            return next(self.given)
        loop = int(node.removeprefix("loop"))
        if number == CONFIGURE:
            assert isinstance(argument, bytes)
            if loop in self.taken:
                raise OSError(EBUSY, "")
            self.settings.append(argument[4:])
            file = int.from_bytes(argument[:4], "little")
        else:
            assert number == CHANGE_FD
            assert isinstance(argument, int)
            file = argument
        self.bind(loop, str(Path(f"/proc/self/fd/{file}").readlink()))
        return 0

    def bind(self, loop: int, file: str) -> None:
        self.files[loop] = file
        (self.block / f"loop{loop}/loop/backing_file").write_text(f"{file}\n")


@pytest.fixture
def loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopKernel:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    return LoopKernel(tmp_path, monkeypatch)


def mount_by_loops(directory: Path, **changes: object) -> dict[str, Any]:
    arguments: dict[str, object] = {
        "name": str(directory / "names/abc"),
        "source": str(directory / "a"),
        "target": "/mnt",
        "fs_type": "erofs",
        "flags": MS_RDONLY,
        "devices": [str(directory / "b")],
    }
    return ask("mount_loops", **arguments | changes)


def test_mount_by_loop_devices(loops: LoopKernel, library: Library, tmp_path: Path) -> None:
    fds = open_fds()
    loops.taken = {0, 2}
    assert mount_by_loops(tmp_path) == {}
    assert loops.files == {1: str(tmp_path / "a"), 3: str(tmp_path / "b")}
    settings = struct.pack("=I40x2I4xI176x64x", 4096, 0, 0, 1 | 4 | 16)
    assert len(settings) == 300
    assert loops.settings == [settings] * 2
    name = str(tmp_path / "names/abc").encode()
    assert library.calls[1:4] == [
        (431, CONTEXT, 1, b"source", name, 0),
        (431, CONTEXT, 0, b"ro", None, 0),
        (431, CONTEXT, 1, b"device", str(loops.nodes / "loop3").encode(), 0),
    ]
    assert library.calls[-1] == (429, MOUNT, b"", -100, b"/mnt", 4)
    assert list((tmp_path / "names").iterdir()) == []
    assert open_fds() == fds


def test_name_that_a_process_before_has_left(
    loops: LoopKernel, library: Library, tmp_path: Path
) -> None:
    """It names the first device, as long as the kernel looks."""
    (tmp_path / "names").mkdir()
    (tmp_path / "names/abc").symlink_to("/nowhere")
    seen = []
    library.errors = {}
    call = library._call

    def look(*arguments: Any) -> int:
        seen.append((tmp_path / "names/abc").readlink())
        return call(*arguments)

    library._call = look  # type: ignore[method-assign]
    assert mount_by_loops(tmp_path) == {}
    assert set(seen) == {loops.nodes / "loop0"}


def test_mount_by_loop_devices_that_fails(
    loops: LoopKernel, library: Library, tmp_path: Path
) -> None:
    fds = open_fds()
    library.errors = {4: EINVAL}
    assert mount_by_loops(tmp_path)["call"] == "fsconfig"
    assert list((tmp_path / "names").iterdir()) == []
    assert open_fds() == fds


@pytest.mark.parametrize(
    ("number", "errno", "call"),
    [(GET_FREE, ENOSPC, "LOOP_CTL_GET_FREE"), (CONFIGURE, EINVAL, "LOOP_CONFIGURE")],
)
def test_loop_device_that_is_refused(
    loops: LoopKernel, library: Library, tmp_path: Path, number: int, errno: int, call: str
) -> None:
    fds = open_fds()
    loops.fail = {number: errno}
    assert mount_by_loops(tmp_path) == {"errno": errno, "call": call, "log": ""}
    assert library.calls == []
    assert open_fds() == fds


def test_others_that_take_every_loop_device(
    loops: LoopKernel, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mount_child, "_LOOP_ATTEMPTS", 3)
    loops.taken = {0, 1, 2}
    assert mount_by_loops(tmp_path) == {"errno": EBUSY, "call": "LOOP_CONFIGURE", "log": ""}
    assert library.calls == []


def test_kernel_without_loop_devices(loops: LoopKernel, library: Library, tmp_path: Path) -> None:
    (loops.nodes / "loop-control").unlink()
    assert mount_by_loops(tmp_path) == {"errno": ENOENT, "call": "loop-control", "log": ""}
    assert library.calls == []


def test_file_that_is_missing(loops: LoopKernel, library: Library, tmp_path: Path) -> None:
    reply = mount_by_loops(tmp_path, devices=[str(tmp_path / "none")])
    assert reply == {"errno": ENOENT, "call": "open", "log": ""}
    assert library.calls == []


def test_name_that_cannot_be_made(loops: LoopKernel, library: Library, tmp_path: Path) -> None:
    reply = mount_by_loops(tmp_path, name=str(tmp_path / "a/b/c"))
    assert reply == {"errno": ENOTDIR, "call": "symlink", "log": ""}
    assert loops.files != {}
    assert library.calls == []


def test_node_that_a_container_lacks(
    loops: LoopKernel, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int, int]] = []

    def mknod(path: str, mode: int, device: int) -> None:
        made.append((path, mode, device))
        Path(path).touch()

    monkeypatch.setattr(os, "mknod", mknod)
    (loops.nodes / "loop0").unlink()
    (loops.block / "loop0/dev").write_text("7:16\n")
    assert mount_by_loops(tmp_path, devices=[]) == {}
    assert made == [(str(loops.nodes / "loop0"), stat.S_IFBLK | 0o600, os.makedev(7, 16))]


def test_node_that_cannot_be_made(loops: LoopKernel, library: Library, tmp_path: Path) -> None:
    (loops.nodes / "loop0").unlink()
    reply = mount_by_loops(tmp_path)
    assert reply == {
        "errno": ENOENT,
        "call": f"mknod of {loops.nodes}/loop0",
        "log": "",
    }
    assert library.calls == []


def test_switching(loops: LoopKernel, tmp_path: Path) -> None:
    """Only what is still over the file: another one may have taken its number."""
    fds = open_fds()
    old, new = str(tmp_path / "a"), str(tmp_path / "b")
    loops.bind(0, old)
    loops.bind(1, "/other")
    loops.bind(3, old)
    assert ask("switch_loops", numbers=[0, 1, 2], source=old, target=new) == {}
    assert loops.files == {0: new, 1: "/other", 3: old}
    loops.fail = {CHANGE_FD: EINVAL}
    reply = ask("switch_loops", numbers=[3], source=old, target=new)
    assert reply == {"errno": EINVAL, "call": "LOOP_CHANGE_FD", "log": ""}
    assert open_fds() == fds
