"""The transport over a control fd that a socket pair plays; the rest is tested on the kernel."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import KernelError, StorageError
from lazyimg.transports.cachefiles import transport as transport_module
from lazyimg.transports.cachefiles.transport import CachefilesTransport
from lazyimg_formats.cachefiles.layout import Opcode
from tests.fakes.kernel import message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.fill.ports import Sink

COOKIE = "c" * 64


class Filler:
    """Knows one object; nothing is read here."""

    def size(self, cookie: str) -> int | None:
        return 8192 if cookie == COOKIE else None

    def read_local(self, _cookie: str, _offset: int, _length: int, _into: memoryview, /) -> None:
        raise AssertionError

    async def fill(self, _cookie: str, _offset: int, _length: int, _sink: Sink, /) -> None:
        raise AssertionError


class Kernel:
    """One end of a socket pair; the other is the control fd.

    Nothing to read is an error, unlike in the kernel: the loop logs it and goes on.
    """

    def __init__(self) -> None:
        control, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.setblocking(False)  # noqa: FBT003 - positional only
        self.control_fd = control.detach()

    async def open(self, object_id: int, volume: bytes = b"erofs,domain\0") -> bytes:
        fd = os.memfd_create("object", 0)
        keys = volume + COOKIE.encode()
        body = struct.pack("=IIII", len(volume), len(COOKIE), fd, 0) + keys
        self.end.send(message(Opcode.OPEN, object_id, object_id, body))
        return await asyncio.to_thread(self.end.recv, 100)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[CachefilesTransport, Kernel]]:
    kernel = Kernel()
    transport = CachefilesTransport(Filler(), domain_id="domain")
    await transport.start(tmp_path, control_fd=kernel.control_fd)
    assert kernel.end.recv(100) == b"restore"
    yield transport, kernel
    await transport.stop()
    kernel.end.close()


async def test_sink_and_present(served: tuple[CachefilesTransport, Kernel]) -> None:
    transport, kernel = served
    assert transport.sink(COOKIE) is None
    assert transport.present(COOKIE) is None
    assert await kernel.open(1) == b"copen 1,8192"
    sink = transport.sink(COOKIE)
    assert sink is not None
    assert transport.present(COOKIE) == []
    await sink.write(4096, memoryview(bytes(4096)))
    assert transport.present(COOKIE) == [range(4096, 8192)]
    assert transport.counters.opens == 1


async def test_objects_of_other_domains_are_served_but_not_given_out(
    served: tuple[CachefilesTransport, Kernel],
) -> None:
    transport, kernel = served
    assert await kernel.open(1, b"erofs,other\0") == b"copen 1,8192"
    assert transport.sink(COOKIE) is None


async def test_backing_file(served: tuple[CachefilesTransport, Kernel], tmp_path: Path) -> None:
    transport, _ = served
    assert transport.backing_path(COOKIE) is None
    assert transport.present_on_disk(COOKIE) is None
    directory = tmp_path / "cache" / "Ierofs,domain" / "@00"
    directory.mkdir(parents=True)
    (directory / f"D{COOKIE}").write_bytes(bytes(8192))
    assert transport.backing_path(COOKIE) == directory / f"D{COOKIE}"
    assert transport.present_on_disk(COOKIE) == [range(8192)]


async def test_linked(served: tuple[CachefilesTransport, Kernel], tmp_path: Path) -> None:
    transport, kernel = served
    assert transport.control_fd == kernel.control_fd
    assert transport.linked([COOKIE]) == set()
    directory = tmp_path / "cache" / "Ierofs,domain" / "@00"
    directory.mkdir(parents=True)
    (directory / f"D{COOKIE}").touch()
    assert transport.linked([COOKIE, "other"]) == {COOKIE}


async def test_files_of_an_earlier_domain(
    served: tuple[CachefilesTransport, Kernel], tmp_path: Path
) -> None:
    transport, _ = served
    places = [tmp_path / "cache" / f"Ierofs,{name}" / "@00" for name in ("domain", "domain-2")]
    for place in places:
        place.mkdir(parents=True)
    old, new = (place / f"D{COOKIE}" for place in places)
    old.write_bytes(bytes(8192))
    transport.use_domain("domain-2")
    assert transport.linked([COOKIE]) == set()
    assert transport.strays([COOKIE, "other"]) == {COOKIE}
    assert transport.present_on_disk(COOKIE) == [range(8192)]
    new.touch()
    transport.move_strays([COOKIE])
    assert (transport.backing_path(COOKIE), new.stat().st_size) == (new, 8192)
    assert transport.strays([COOKIE]) == set()


async def test_shortage(
    served: tuple[CachefilesTransport, Kernel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, _ = served
    full = os.statvfs_result((4096, 4096, 100, 50, 50, 100, 0, 0, 0, 255))
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _path: full)
        shortage = transport.shortage()
        assert transport.is_tight()
    assert isinstance(shortage, StorageError)
    assert f"cache: {tmp_path} has less than 1 % of its space left" in str(shortage)
    half = os.statvfs_result((4096, 4096, 100, 50, 50, 100, 50, 50, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: half)
    assert transport.shortage() is None
    assert not transport.is_tight()


async def test_kernel_that_hands_nothing_over(tmp_path: Path) -> None:
    kernel = Kernel()
    kernel.end.close()
    transport = CachefilesTransport(Filler(), domain_id="domain")
    with pytest.raises(KernelError, match="this kernel hands nothing over"):
        await transport.start(tmp_path, control_fd=kernel.control_fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kernel.control_fd)


async def test_not_started(tmp_path: Path) -> None:
    transport = CachefilesTransport(Filler(), domain_id="domain")
    assert transport.sink(COOKIE) is None
    assert transport.present(COOKIE) is None
    assert transport.backing_path(COOKIE) is None
    assert transport.shortage() is None
    assert not transport.is_tight()
    assert transport.linked([COOKIE]) == set()
    assert transport.strays([COOKIE]) == set()
    transport.move_strays([COOKIE])
    assert transport.counters.opens == 0
    await transport.stop()


async def test_started_twice(served: tuple[CachefilesTransport, Kernel], tmp_path: Path) -> None:
    transport, _ = served
    with pytest.raises(RuntimeError, match="started already"):
        await transport.start(tmp_path)


async def test_bind_that_fails_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel()
    monkeypatch.setattr(transport_module, "open_device", lambda: kernel.control_fd)

    def refuse(*_arguments: object) -> None:
        raise KernelError("/dev/cachefiles", "refuses")

    monkeypatch.setattr(transport_module, "bind_cache", refuse)
    transport = CachefilesTransport(Filler(), domain_id="domain")
    with pytest.raises(KernelError, match="refuses"):
        await transport.start(tmp_path)
    assert kernel.end.recv(1) == b""
    kernel.end.close()
    await transport.stop()


async def test_opened_waits_for_the_kernel(served: tuple[CachefilesTransport, Kernel]) -> None:
    transport, kernel = served
    waiting = asyncio.create_task(transport.opened(COOKIE))
    await kernel.open(1, b"erofs,other\0")
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await kernel.open(2)
    sink = await waiting
    assert sink == transport.sink(COOKIE) == await transport.opened(COOKIE)
    assert len({sink, transport.sink(COOKIE)}) == 1
    await kernel.open(3)
    assert sink != transport.sink(COOKIE)


async def test_opened_gives_up(
    served: tuple[CachefilesTransport, Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, _ = served
    monkeypatch.setattr(transport_module, "OPEN_DEADLINE", 0.01)
    with pytest.raises(KernelError, match=rf"^{COOKIE}: was not opened by the kernel within 0"):
        await transport.opened(COOKIE)
    await transport.stop()
    with pytest.raises(KernelError, match="is not served: the transport has stopped"):
        await transport.opened(COOKIE)


async def test_device_that_was_made_here(served: tuple[CachefilesTransport, Kernel]) -> None:
    transport, kernel = served
    assert transport.staged is not None
    data = bytes(range(256)) * 32
    path = transport.staged.stage()
    path.write_bytes(data)
    transport.staged.publish(path, COOKIE)
    bringing = asyncio.create_task(transport.bring_staged(["other", COOKIE]))
    await kernel.open(1)
    sink = transport.sink(COOKIE)
    assert sink is not None
    await bringing
    assert transport.present(COOKIE) == [range(8192)]
    assert os.pread(sink._file.fd, 8192, 0) == data
    assert not transport.staged.has(COOKIE)
