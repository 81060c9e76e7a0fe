"""The device's fd on a socket in its place, and what the kernel's refusals mean.

Mounts are tried on the real kernel: tests/transports.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from errno import EACCES, EINVAL, EIO, ENODEV, ENOENT, EPERM, ESTALE
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import KernelError, NotRootError
from lazyimg.transports.fuse.device import (
    READ_SIZE,
    Device,
    ask_again,
    mount_tree,
    open_device,
    unmount_tree,
)
from lazyimg_formats.fuse.layout import DEV_IOC_BACKING_CLOSE, DEV_IOC_BACKING_OPEN
from lazyimg_formats.fuse.messages import reply, resend
from tests.fakes.fuse import FakeKernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    kernel = FakeKernel()
    yield kernel
    kernel.close()


@pytest.fixture
def device(kernel: FakeKernel) -> Iterator[Device]:
    device = Device(kernel.fd)
    yield device
    device.close()


def fail(*numbers: int) -> Callable[..., int]:
    """Fail with each, then give 5."""
    left = list(numbers)

    def call(*_arguments: object) -> int:
        if left:
            number = left.pop(0)
            raise OSError(number, os.strerror(number))
        return 5

    return call


def test_message_and_answer(kernel: FakeKernel, device: Device) -> None:
    kernel.send(b"message")
    buffer = bytearray(READ_SIZE)
    assert device.read(buffer) == 7
    assert buffer[:7] == b"message"
    assert device.write(reply(8), memoryview(b""))
    assert kernel.answer() == (8, 0, b"")


def test_connection_that_has_ended(kernel: FakeKernel, device: Device) -> None:
    kernel.end()
    assert device.read(bytearray(READ_SIZE)) == 0


def test_reading_goes_on_after_requests_that_vanish(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "readv", fail(ENOENT))
    assert device.read(bytearray(READ_SIZE)) == 5
    monkeypatch.setattr(os, "readv", fail(ENODEV))
    assert device.read(bytearray(READ_SIZE)) == 0
    monkeypatch.setattr(os, "readv", fail(EIO))
    with pytest.raises(OSError, match="Input/output error"):
        device.read(bytearray(READ_SIZE))


def test_answer_that_nobody_waits_for(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "writev", fail(ENOENT, ENODEV, EINVAL))
    assert not device.write(b"")
    assert not device.write(b"")
    with pytest.raises(OSError, match="Invalid argument"):
        device.write(b"")


def test_answer_in_a_pipe(
    kernel: FakeKernel, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    exit_, entry = os.pipe()
    os.write(entry, reply(8, b"data"))
    assert device.splice(exit_, 20)
    assert kernel.answer() == (8, 0, b"data")
    os.close(exit_)
    os.close(entry)
    monkeypatch.setattr(os, "splice", fail(ENOENT, ENODEV, EINVAL))
    assert not device.splice(0, 5)
    assert not device.splice(0, 5)
    with pytest.raises(OSError, match="Invalid argument"):
        device.splice(0, 5)


def test_backing_files(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, bytes]] = []

    def ioctl(fd: int, number: int, argument: bytes) -> int:
        assert fd == device.fd
        calls.append((number, bytes(argument)))
        return 3

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert device.open_backing(9) == 3
    device.close_backing(3)
    assert calls == [
        (DEV_IOC_BACKING_OPEN, b"\x09" + bytes(15)),
        (DEV_IOC_BACKING_CLOSE, b"\x03\0\0\0"),
    ]


def test_fd_is_not_inherited(device: Device) -> None:
    assert not os.get_inheritable(device.fd)


def test_asking_again(kernel: FakeKernel, device: Device) -> None:
    assert ask_again(device)
    assert resend() == kernel.receive()


@pytest.mark.parametrize("number", [EPERM, ENODEV])
def test_asking_again_what_is_not_mounted(
    device: Device, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "writev", fail(number))
    with pytest.raises(KernelError, match=r"^/dev/fuse: the kernel has ended the connection$"):
        ask_again(device)


@pytest.mark.parametrize("can", [True, False])
def test_asking_again_where_it_has_ended(
    kernel: FakeKernel, device: Device, monkeypatch: pytest.MonkeyPatch, *, can: bool
) -> None:
    # The kernel takes, or refuses, a notification, and does not say that it has ended.
    monkeypatch.setattr(os, "writev", fail(*([] if can else [EINVAL] * 2)))
    assert ask_again(device) == can
    kernel.close()
    with pytest.raises(KernelError, match=r"^/dev/fuse: the kernel has ended the connection$"):
        ask_again(device)


def test_asking_again_that_fails(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "writev", fail(ESTALE))
    with pytest.raises(KernelError, match=r"^/dev/fuse: cannot be taken over: Stale file handle$"):
        ask_again(device)


def test_open(tmp_path: Path) -> None:
    path = tmp_path / "fuse"
    path.touch()
    fd = open_device(str(path))
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_machine_without_fuse(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"this kernel does not offer it; load the module `fuse`"):
        open_device(str(tmp_path / "fuse"))


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (EACCES, NotRootError, "only root may open it; run the daemon as root"),
        (EIO, KernelError, "cannot open: Input/output error"),
    ],
)
def test_device_that_cannot_be_opened(
    monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], text: str
) -> None:
    monkeypatch.setattr(os, "open", fail(number))
    with pytest.raises(kind, match=rf"^/dev/fuse: {text}$"):
        open_device()


class Libc:
    """A C library whose calls fail with these numbers, in turn; 0: it succeeds."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)
        self.calls: list[tuple[object, ...]] = []

    def mount(self, *arguments: object) -> int:
        self.calls.append(arguments)
        return -1 if self.numbers[0] else self.numbers.pop(0)

    umount2 = mount


def use(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> Libc:
    libc = Libc(*numbers)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: libc)
    monkeypatch.setattr(ctypes, "get_errno", lambda: libc.numbers.pop(0))
    return libc


def test_mount_is_read_only_and_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    libc = use(monkeypatch, 0, 0)
    mount_tree(9, tmp_path)
    first, second = libc.calls
    assert first[:3] == (b"lazyimg", bytes(tmp_path), b"fuse.lazyimg")
    options = b"rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    assert first[4] == b"fd=9," + options
    assert second[0] is None


def test_mount_that_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, EINVAL)
    with pytest.raises(KernelError, match=r"mount\(2\) of FUSE: Invalid argument$"):
        mount_tree(9, tmp_path)


def test_unmounting_whatever_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    libc = use(monkeypatch, 0, 0, EINVAL)
    unmount_tree(tmp_path)
    assert libc.calls == [(bytes(tmp_path), 1 | 2 | 8)] * 3
    use(monkeypatch, EPERM)
    with pytest.raises(KernelError, match=r"umount2\(2\): Operation not permitted$"):
        unmount_tree(tmp_path)
