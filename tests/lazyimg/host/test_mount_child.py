"""The child's system calls, with a C library that records them; tests/kernel does them for real."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from errno import EINVAL, EISDIR, ENODATA, ENOENT, EPERM
from typing import TYPE_CHECKING, Any

import pytest

from lazyimg.host import mount_child
from lazyimg.host.mount_child import MS_BIND, MS_RDONLY, MS_REMOUNT, CallError, main

if TYPE_CHECKING:
    from pathlib import Path


class Library:
    """Records calls; `errors` gives the errno of the n-th one."""

    def __init__(self, errors: dict[int, int] | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.errors = errors or {}

    def _call(self, *call: Any) -> int:
        self.calls.append(call)
        number = self.errors.get(len(self.calls) - 1, 0)
        ctypes.set_errno(number)
        return -1 if number else 7

    def mount(self, *arguments: Any) -> int:
        return min(self._call("mount", *arguments), 0)

    def umount2(self, *arguments: Any) -> int:
        return min(self._call("umount2", *arguments), 0)

    def syscall(self, *arguments: Any) -> int:
        return self._call(*(argument.value for argument in arguments))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    monkeypatch.setattr(mount_child, "_libc", library)
    return library


def request(call: str, **arguments: Any) -> list[str]:
    return ["mount_child.py", json.dumps({"call": call, **arguments})]


def mount_request(*options: list[str], flags: int = MS_RDONLY) -> list[str]:
    return request(
        "mount", source="none", target="/mnt", fs_type="erofs", flags=flags, options=options
    )


def test_mount(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(mount_request(["fsid", "abc"], ["user_xattr"])) == 0
    assert library.calls == [
        ("mount", b"none", b"/mnt", b"erofs", MS_RDONLY, b"fsid=abc,user_xattr")
    ]
    assert capsys.readouterr().out == "{}"


def test_mount_that_fails(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    library.errors = {0: ENOENT}
    assert main(mount_request()) == 1
    assert json.loads(capsys.readouterr().out) == {"errno": ENOENT, "call": "mount", "log": ""}


def many() -> list[list[str]]:
    return [["fsid", "abc"], ["flag"], *(["device", f"{n:064}"] for n in range(55))]


def test_options_that_fill_the_page_exactly(library: Library) -> None:
    options = many()
    missing = 4095 - len(",".join("=".join(option) for option in options))
    options.append(["x" * (missing - 1)])
    assert main(mount_request(*options)) == 0
    assert library.calls[0][0] == "mount"
    assert len(library.calls[0][-1]) == 4095


def test_options_that_do_not_fit_in_the_page(library: Library) -> None:
    assert main(mount_request(*many(), ["x" * 300])) == 0
    first, source, read_only, fsid, flag, *devices = library.calls[:-3]
    assert first == (430, b"erofs", 1)
    assert source == (431, 7, 1, b"source", b"none", 0)
    assert read_only == (431, 7, 0, b"ro", None, 0)
    assert fsid == (431, 7, 1, b"fsid", b"abc", 0)
    assert flag == (431, 7, 0, b"flag", None, 0)
    assert len(devices) == 56
    assert library.calls[-3:] == [
        (431, 7, 6, None, None, 0),
        (432, 7, 1, MS_RDONLY),
        (429, 7, b"", -100, b"/mnt", 4),
    ]


def test_parts_of_a_writable_mount(library: Library) -> None:
    assert main(mount_request(*many(), ["x" * 300], flags=0)) == 0
    assert (431, 7, 0, b"ro", None, 0) not in library.calls
    assert library.calls[-2] == (432, 7, 1, 0)


def test_kernel_that_says_why(
    library: Library, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [b"e erofs: first\n", b"e erofs: second\n"]

    def read(fd: int, _size: int) -> bytes:
        assert fd == 7
        if not said:
            raise OSError(ENODATA, "")
        return said.pop(0)

    monkeypatch.setattr(os, "read", read)
    library.errors = {61: EINVAL}
    assert main(mount_request(*many(), ["x" * 300])) == 1
    assert json.loads(capsys.readouterr().out) == {
        "errno": EINVAL,
        "call": "fsconfig",
        "log": "e erofs: first; e erofs: second",
    }


def test_bind(library: Library) -> None:
    assert main(request("bind", source="/a", target="/b", read_only=False)) == 0
    assert library.calls == [("mount", b"/a", b"/b", None, MS_BIND, b"")]


def test_bind_read_only(library: Library) -> None:
    assert main(request("bind", source="/a", target="/b", read_only=True)) == 0
    flags = MS_REMOUNT | MS_BIND | MS_RDONLY
    assert library.calls[1:] == [("mount", b"none", b"/b", None, flags, b"")]


def test_bind_that_cannot_be_made_read_only_is_taken_back(
    library: Library, capsys: pytest.CaptureFixture[str]
) -> None:
    library.errors = {1: EPERM}
    assert main(request("bind", source="/a", target="/b", read_only=True)) == 1
    assert library.calls[2:] == [("umount2", b"/b", 2 | 8)]
    assert json.loads(capsys.readouterr().out)["errno"] == EPERM


@pytest.mark.parametrize(("lazy", "flags"), [(False, 8), (True, 8 | 2)])
def test_unmount(
    library: Library,
    lazy: bool,  # noqa: FBT001 - a parameter of the table
    flags: int,
) -> None:
    assert main(request("unmount", target="/a b", lazy=lazy)) == 0
    assert library.calls == [("umount2", b"/a b", flags)]


def test_read(library: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    assert main(request("read", path=str(tmp_path / "file"), offset=3)) == 0
    assert main(request("read", path=str(tmp_path / "none"), offset=0)) == 1
    assert main(request("read", path=str(tmp_path), offset=0)) == 1
    replies = capsys.readouterr().out.replace("}{", "}\n{").split("\n")
    facts = [json.loads(reply) for reply in replies[1:]]
    assert facts == [
        {"errno": ENOENT, "call": "open", "log": ""},
        {"errno": EISDIR, "call": "pread", "log": ""},
    ]
    assert library.calls == []


def test_error_carries_its_facts() -> None:
    error = CallError("mount", ENOENT, "log")
    assert (error.call, error.number, error.log) == ("mount", ENOENT, "log")


def test_process_of_its_own() -> None:
    """A real child, a real system call that fails, for root and anybody else alike."""
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            mount_child.__file__,
            request("unmount", target="/nonexistent/directory", lazy=False)[1],
        ],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    reply = json.loads(done.stdout)
    assert reply["call"] == "umount2"
    assert reply["errno"] in {ENOENT, EPERM}
    assert done.stderr == b""
