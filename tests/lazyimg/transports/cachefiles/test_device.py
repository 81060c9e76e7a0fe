"""The control fd, played by one end of a socket pair that keeps message boundaries."""

from __future__ import annotations

import os
import socket
import threading
import time
from errno import EACCES, EBUSY, EEXIST, EINVAL, EIO, ENOENT, EOPNOTSUPP, EPERM, EROFS
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import (
    CacheUnsuitableError,
    ConfigurationError,
    KernelBusyError,
    KernelError,
    LazyimgError,
    NotRootError,
)
from lazyimg.host.space import CacheLimits
from lazyimg.transports.cachefiles.device import (
    Device,
    bind_cache,
    limit_commands,
    open_device,
    restore_cache,
)
from lazyimg.transports.cachefiles.ports import Ready

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ends() -> Iterator[tuple[Device, socket.socket]]:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    device = Device(ours.detach())
    with kernel:
        yield device, kernel
        device.close()


def test_wait_for_a_request(ends: tuple[Device, socket.socket]) -> None:
    device, kernel = ends
    kernel.send(b"one")
    kernel.send(b"two")
    assert device.wait(culling=False, timeout=None) == Ready(requests=True, culling=False)
    assert device.read_message() == b"one"
    assert device.read_message() == b"two"


def test_wait_for_culling(ends: tuple[Device, socket.socket]) -> None:
    device, _ = ends  # a socket takes writes at once: POLLOUT
    assert device.wait(culling=True, timeout=None) == Ready(requests=False, culling=True)


def test_wait_ends_in_time(ends: tuple[Device, socket.socket]) -> None:
    device, _ = ends
    started = time.monotonic()
    assert device.wait(culling=False, timeout=0.02) == Ready(requests=False, culling=False)
    assert time.monotonic() - started >= 0.015


def test_wake_ends_one_wait(ends: tuple[Device, socket.socket]) -> None:
    device, _ = ends
    threading.Timer(0.01, device.wake).start()
    assert device.wait(culling=False, timeout=10) == Ready(requests=False, culling=False)
    started = time.monotonic()
    device.wait(culling=False, timeout=0.02)
    assert time.monotonic() - started >= 0.015


def test_command_is_one_write(ends: tuple[Device, socket.socket]) -> None:
    device, kernel = ends
    device.write_command(b"copen 1,2")
    assert kernel.recv(100) == b"copen 1,2"


def test_fds_are_closed_on_exec_and_by_close() -> None:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = ours.detach()
    os.set_inheritable(fd, True)  # noqa: FBT003 - positional only
    device = Device(fd)
    assert not os.get_inheritable(fd)
    device.close()
    assert kernel.recv(1) == b""
    kernel.close()


def test_adopt(ends: tuple[Device, socket.socket]) -> None:
    device, _ = ends
    file = device.adopt(os.memfd_create("object", 0))
    assert not os.get_inheritable(file.fd)
    file.close()


@pytest.mark.parametrize(
    ("number", "expected", "message"),
    [
        (ENOENT, KernelError, "this kernel does not offer it; load cachefiles.ko built with"),
        (EBUSY, KernelBusyError, "another process has it open; stop the other daemon"),
        (EACCES, NotRootError, "only root may open it; run the daemon as root"),
        (EPERM, NotRootError, "only root may open it; run the daemon as root"),
        (EIO, KernelError, "cannot open: Input/output error"),
    ],
)
def test_device_that_cannot_be_opened(
    monkeypatch: pytest.MonkeyPatch, number: int, expected: type[LazyimgError], message: str
) -> None:
    def refuse(_path: str, _flags: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LazyimgError) as raised:
        open_device()
    assert type(raised.value) is expected
    assert str(raised.value).startswith(f"/dev/cachefiles: {message}")


def test_device_is_opened_for_this_process_only(tmp_path: Path) -> None:
    path = tmp_path / "cachefiles"
    path.touch()
    fd = open_device(str(path))
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_bind(tmp_path: Path) -> None:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, kernel:
        bind_cache(ours.fileno(), tmp_path, "tag", CacheLimits(brun=9))
        ours.close()
        commands = []
        while command := kernel.recv(4096):
            commands.append(command)
    assert commands[:-3] == limit_commands(CacheLimits(brun=9))
    assert commands[-3:] == [f"dir {tmp_path}".encode(), b"tag tag", b"bind ondemand"]


class RefusingKernel:
    """Takes commands until one that begins with `word`."""

    def __init__(self, word: bytes, number: int) -> None:
        self.word = word
        self.number = number

    def write(self, _fd: int, command: bytes) -> int:
        if command.startswith(self.word):
            raise OSError(self.number, os.strerror(self.number))
        return len(command)


@pytest.mark.parametrize(
    ("word", "number", "expected"),
    [
        (b"bind", EOPNOTSUPP, (CacheUnsuitableError, "{}: its file system cannot hold a cache")),
        (b"bind", EROFS, (CacheUnsuitableError, "{}: its file system is mounted read-only")),
        (b"bind", ENOENT, (ConfigurationError, "{}: the cache directory does not exist")),
        (b"bind", EBUSY, (KernelBusyError, "{}: a cache in this directory is in use")),
        (b"bind", EEXIST, (KernelBusyError, "{}: a cache with this tag is in use")),
        (b"bind", EINVAL, (KernelError, "/dev/cachefiles: this kernel's cachefiles has no on-dem")),
        (b"bind", EIO, (KernelError, "{}: the kernel cannot use it: Input/output error")),
        (b"tag", EEXIST, (KernelError, "/dev/cachefiles: refuses `tag tag`: File exists")),
    ],
)
def test_setup_that_the_kernel_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    word: bytes,
    number: int,
    expected: tuple[type[LazyimgError], str],
) -> None:
    kind, message = expected
    monkeypatch.setattr(os, "write", RefusingKernel(word, number).write)
    with pytest.raises(LazyimgError) as raised:
        bind_cache(-1, tmp_path, "tag", CacheLimits())
    assert type(raised.value) is kind
    assert str(raised.value).startswith(message.format(tmp_path))


@pytest.mark.parametrize("directory", [Path("relative"), Path("/nonexistent/cache")])
def test_directory_that_does_not_exist(directory: Path) -> None:
    with pytest.raises(ConfigurationError, match="must be an absolute path that exists"):
        bind_cache(-1, directory, "tag", CacheLimits())


def test_directory_with_a_name_that_is_no_line(tmp_path: Path) -> None:
    for name in ("new\nline", "space "):
        directory = tmp_path / name
        directory.mkdir()
        with pytest.raises(ConfigurationError, match="takes no cache directory with such a name"):
            bind_cache(-1, directory, "tag", CacheLimits())


@pytest.mark.parametrize("tag", ["", "two words", "t\xe4g", "a\nb"])
def test_tag_that_is_not_one_word(tmp_path: Path, tag: str) -> None:
    with pytest.raises(ConfigurationError, match="is not one printable word"):
        bind_cache(-1, tmp_path, tag, CacheLimits())


def test_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda _, data: written.append(data))
    restore_cache(-1)
    assert written == [b"restore"]


def test_kernel_without_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", RefusingKernel(b"restore", EOPNOTSUPP).write)
    with pytest.raises(KernelError) as raised:
        restore_cache(-1)
    assert str(raised.value) == (
        "/dev/cachefiles: this kernel hands nothing over: Operation not supported;"
        " `restore` came with Linux 6.8 and 6.1.192"
    )


class KernelLimits:
    """The checks of cachefiles_daemon_{b,f}{run,cull,stop}, from the kernel's defaults on."""

    def __init__(self, *, run: int, cull: int, stop: int) -> None:
        self.values = {
            f"{unit}{name}": percent
            for unit in "bf"
            for name, percent in (("run", run), ("cull", cull), ("stop", stop))
        }

    def set(self, command: bytes) -> None:
        name, percent = command.decode().removesuffix("%").split(" ")
        values = {**self.values, name: int(percent)}
        unit = name[0]
        assert 0 <= values[unit + "stop"] < values[unit + "cull"] < values[unit + "run"] < 100
        self.values = values


@pytest.mark.parametrize(
    "limits",
    [
        CacheLimits(),
        CacheLimits(brun=99, bcull=98, bstop=97, frun=2, fcull=1, fstop=0),
        CacheLimits(brun=3, bcull=2, bstop=0, frun=50, fcull=40, fstop=30),
    ],
)
@pytest.mark.parametrize("before", [(7, 5, 1), (99, 98, 97), (2, 1, 0)])
def test_commands_are_valid_one_by_one(limits: CacheLimits, before: tuple[int, int, int]) -> None:
    run, cull, stop = before
    kernel = KernelLimits(run=run, cull=cull, stop=stop)
    for command in limit_commands(limits):
        kernel.set(command)
    assert kernel.values == {
        name: getattr(limits, name) for name in ("brun", "bcull", "bstop", "frun", "fcull", "fstop")
    }
