"""The child's system calls, with a C library that records them; tests/kernel does them for real."""

from __future__ import annotations

import ctypes
import io
import json
import os
import subprocess
import sys
from errno import EINVAL, EIO, EISDIR, ENODATA, ENOENT, EPERM
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
