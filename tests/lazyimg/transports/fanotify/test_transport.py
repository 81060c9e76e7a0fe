"""The transport, with a real cache and a scripted group."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from errno import EACCES, EIO, EOPNOTSUPP
from functools import partial
from typing import TYPE_CHECKING

import pytest

from lazyimg.cache.device_cache import DeviceCache
from lazyimg.errors import CacheUnsuitableError, KernelBusyError, KernelError, StorageError
from lazyimg.transports.fanotify import transport as module
from lazyimg.transports.fanotify.journal import Journal, Place
from lazyimg.transports.fanotify.transport import JOURNAL, FanotifyTransport
from lazyimg_formats.device_table import BLOCK_SIZE
from tests.fakes.fanotify import ScriptedGroup, access, free_number

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.cache.device_file import DeviceFile
    from lazyimg.fill.ports import Sink

SIZE = 4 * BLOCK_SIZE
A, B = "a" * 64, "b" * 64


class Zeros:
    """A filler whose devices are all zeros."""

    def size(self, cookie: str) -> int | None:
        raise NotImplementedError(cookie)

    def read_local(self, cookie: str, offset: int, length: int, buffer: memoryview) -> int | None:
        assert (cookie in {A, B}, offset + length <= SIZE, length <= len(buffer)) == (True,) * 3
        return None

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        assert cookie in {A, B}
        await sink.write(offset, memoryview(bytes(length)))


async def complete(device: DeviceFile) -> None:
    """Fill a device, and wait until whoever asked for it was told."""
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell() -> None:
        loop.call_soon_threadsafe(done.set)

    device.on_complete(tell)
    await device.write(0, memoryview(bytes(SIZE)))
    await done.wait()


class Node:
    """A transport, and everything around it."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.group = ScriptedGroup()
        self.given: list[int] = []
        self.losses: list[tuple[str, frozenset[str]]] = []
        self.lost = asyncio.Event()
        self.directory = directory / "fanotify"
        self.devices = directory / "devices"
        self.directory.mkdir()
        self.devices.mkdir()
        self.cache = DeviceCache(self.devices)
        self.cache.load()
        self.transport = FanotifyTransport(Zeros(), self.cache, lost=self.lose)
        monkeypatch.setattr(module, "open_group", lambda: 7)
        monkeypatch.setattr(module, "Group", self.take_group)
        monkeypatch.setattr(module, "raise_open_files", lambda most: most)
        monkeypatch.setattr(module, "MAX_FDS", 4096)

    def take_group(self, fd: int) -> ScriptedGroup:
        self.given.append(fd)
        return self.group

    def lose(self, problem: str, names: frozenset[str]) -> None:
        self.losses.append((problem, names))
        self.lost.set()


@pytest.fixture
async def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    """Give a node whose transport is not started."""
    node = Node(tmp_path, monkeypatch)
    yield node
    await node.cache.close()


@pytest.fixture
async def node(stopped: Node) -> AsyncIterator[Node]:
    await stopped.transport.start(stopped.directory)
    yield stopped
    await stopped.transport.stop()


async def test_incomplete_device_is_marked_and_served(node: Node) -> None:
    assert node.given == [7]
    assert node.transport.control_fd == node.group.fd
    paths = await node.transport.prepare({A: SIZE - 1})
    device = node.cache.find(A)
    assert device is not None
    assert paths == {A: device.path}
    assert device.size == SIZE
    assert node.group.marks == {device.fd}
    node.group.nodes[90] = device.node
    node.group.raise_events(access(90, 0, 1))
    assert await asyncio.to_thread(node.group.answered) == (90, "allow")
    assert node.transport.present(A) == [range(BLOCK_SIZE)]
    assert node.transport.present_on_disk(A) == [range(BLOCK_SIZE)]
    assert node.transport.backing_path(A) == device.path
    assert node.transport.sink(A) is device
    assert await node.transport.opened(A) is device
    assert (node.transport.counters.opens, node.transport.counters.reads) == (1, 1)
    await node.transport.prepare({A: SIZE})
    assert node.group.marks == {device.fd}


async def test_device_that_nobody_has(node: Node) -> None:
    assert node.transport.sink(A) is None
    assert node.transport.present(A) is None
    assert node.transport.present_on_disk(A) is None
    assert node.transport.backing_path(A) is None
    with pytest.raises(KernelError, match="is not mounted, or the transport has stopped"):
        await node.transport.opened(A)
    assert node.transport.shortage() is None
    assert not node.transport.is_tight()


async def test_mark_goes_when_the_device_is_complete(node: Node) -> None:
    await node.transport.prepare({A: SIZE})
    device = await node.transport.opened(A)
    await complete(device)
    assert node.group.marks == set()
    await node.transport.release([A])
    paths = await node.transport.prepare({A: SIZE})
    assert paths == {A: device.path}
    assert node.group.marks == set()
    await node.transport.release([A])
    node.cache.remove(A)  # nobody uses it


async def test_mark_that_cannot_be_removed(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    await node.transport.prepare({A: SIZE})
    device = await node.transport.opened(A)
    node.group.refuse = OSError(EACCES, "Permission denied")
    await complete(device)
    assert "its mark cannot be removed: Permission denied" in caplog.text


async def test_released_device_is_let_go(node: Node) -> None:
    """Without the garbage collector; its fd would keep a file system busy."""
    gc.disable()
    try:
        await node.transport.prepare({A: SIZE})
        device = weakref.ref(await node.transport.opened(A))
        await node.transport.release([A])
        async with asyncio.timeout(20):
            while device() is not None:  # noqa: ASYNC110 - the cache's thread may have it
                await asyncio.sleep(0.01)
    finally:
        gc.enable()


async def test_file_system_without_marks(node: Node) -> None:
    node.group.refuse = OSError(EOPNOTSUPP, os.strerror(EOPNOTSUPP))
    with pytest.raises(CacheUnsuitableError, match="its file system has no pre-content events"):
        await node.transport.prepare({A: SIZE})


async def test_released_device_loses_its_mark_unless_somebody_has_it_open(node: Node) -> None:
    await node.transport.prepare({A: SIZE, B: SIZE})
    a, b = await node.transport.opened(A), await node.transport.opened(B)
    mounted = os.open(a.path, os.O_RDONLY)
    await node.transport.release([A, B])
    assert node.group.marks == {a.fd}
    assert node.transport.sink(A) is None
    node.cache.remove(B)
    node.group.nodes[90] = a.node
    node.group.raise_events(access(90, 0, 1))
    assert await asyncio.to_thread(node.group.answered) == (90, "allow")
    os.close(mounted)
    await node.transport.release([])
    assert node.group.marks == set()
    node.cache.remove(A)
    assert b.fd != a.fd


async def test_whether_it_is_open_is_not_known(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: int) -> bool:
        raise OSError(EIO, "no lease")

    await node.transport.prepare({A: SIZE})
    with monkeypatch.context() as patch:
        patch.setattr(module, "is_open_elsewhere", fail)
        await node.transport.release([A])
    assert len(node.group.marks) == 1
    assert "nobody knows whether it is open: no lease" in caplog.text


async def test_stop_seals_what_is_incomplete_and_open(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await node.transport.prepare({A: SIZE, B: SIZE})
    a, b = await node.transport.opened(A), await node.transport.opened(B)
    for device in (a, b):
        await device.write(0, memoryview(bytes(BLOCK_SIZE)))
    mounted = os.open(a.path, os.O_RDONLY)
    await node.transport.stop()
    assert os.fstat(mounted).st_size == 0
    os.close(mounted)
    assert node.cache.names() == [B]
    assert b.path.stat().st_size == SIZE
    assert node.group.closed
    assert f"{A}: is incomplete and still mounted: it is given up" in caplog.text
    await node.transport.stop()
    with pytest.raises(KernelError, match="is not served: the transport has stopped"):
        await node.transport.prepare({A: SIZE})
    await asyncio.to_thread(b.write_now, 0, [memoryview(bytes(SIZE))])
    await asyncio.to_thread(b.sync)  # complete: there is no mark any more to be removed


async def test_device_that_cannot_be_sealed(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: str) -> None:
        raise StorageError(A, "fails")

    await node.transport.prepare({A: SIZE})
    device = await node.transport.opened(A)
    mounted = os.open(device.path, os.O_RDONLY)
    monkeypatch.setattr(node.cache, "remove", fail)
    await node.transport.stop()
    os.close(mounted)
    assert f"{A}: reads may give zeros: {A}: fails" in caplog.text


async def test_loss_seals_and_is_told(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    await node.transport.prepare({A: SIZE})
    device = await node.transport.opened(A)
    mounted = os.open(device.path, os.O_RDONLY)
    node.group.raise_events(b"x", b"x")
    await node.lost.wait()
    assert os.fstat(mounted).st_size == 0
    os.close(mounted)
    ((problem, names),) = node.losses
    assert problem.startswith("events are not understood")
    assert names == {A}
    assert "reads may have given wrong data" in caplog.text


async def test_loss_that_nobody_wants_to_know(node: Node, tmp_path: Path) -> None:
    other = FanotifyTransport(Zeros(), node.cache)
    directory = tmp_path / "other"
    directory.mkdir()
    node.group = ScriptedGroup()
    await other.start(directory)
    node.group.raise_events(b"x")
    await other.stop()


async def test_takeover(stopped: Node) -> None:
    node = stopped
    device = node.cache.open(A, SIZE)
    journal = Journal(node.directory / JOURNAL, 4096)
    free = free_number()
    journal.put(Place(free, device.node, 0, BLOCK_SIZE))
    journal.close()
    await node.transport.start(node.directory, control_fd=30)
    assert node.given == [30]
    assert await asyncio.to_thread(node.group.answered) == (free, "allow")
    await node.transport.adopt({A: SIZE})
    assert node.transport.present(A) == [range(BLOCK_SIZE)]
    assert node.group.marks == {device.fd}
    await node.transport.stop()
    os.close(free)  # the scripted group closes nothing


async def test_journal_of_another_group_is_not_believed(stopped: Node) -> None:
    node = stopped
    journal = Journal(node.directory / JOURNAL, 4096)
    journal.put(Place(60, 1, 0, BLOCK_SIZE))
    journal.close()
    await node.transport.start(node.directory)
    assert Journal(node.directory / JOURNAL, 4096).taken() == []
    with pytest.raises(RuntimeError, match="was started already"):
        await node.transport.start(node.directory)
    await node.transport.stop()


async def test_directory_that_is_missing(stopped: Node, tmp_path: Path) -> None:
    node = stopped
    with pytest.raises(StorageError, match="cannot be made: No such file or directory"):
        await node.transport.start(tmp_path / "missing")
    assert node.group.closed


class RecordedGuard:
    """Stands for `Guarded`."""

    def __init__(self, calls: list[object], *arguments: object) -> None:
        self.calls = calls
        calls.append(arguments)

    async def start(self, fd: int | None) -> None:
        self.calls.append(("start", fd))

    async def stop(self) -> None:
        self.calls.append("stop")


class Keeper:
    """Keeps nothing."""

    def keep(self, name: str, fd: int) -> None:
        raise NotImplementedError(name, fd)

    def forget(self, name: str) -> None:
        raise NotImplementedError(name)


async def test_guard_lives_from_start_to_stop(
    stopped: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = stopped
    calls: list[object] = []
    monkeypatch.setattr(module, "Guarded", partial(RecordedGuard, calls))
    keeper = Keeper()
    transport = FanotifyTransport(Zeros(), node.cache, keeper=keeper)
    await transport.start(node.directory)
    await transport.stop()
    arguments = (keeper, node.group.fd, node.devices, node.directory)
    assert calls == [arguments, ("start", None), "stop"]
    calls.clear()
    node.group = ScriptedGroup()
    await transport.start(node.directory, control_fd=30, guard_fd=31)
    await transport.stop()
    assert calls == [arguments, ("start", 31), "stop"]
    calls.clear()
    node.group = ScriptedGroup()
    with pytest.raises(StorageError, match="cannot be made"):
        await transport.start(tmp_path / "missing", control_fd=30, guard_fd=31)
    assert calls[1:] == [("start", 31), "stop"]
    assert node.group.closed


async def test_guard_of_another_daemon_is_waited_for(
    stopped: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(_: Path) -> None:
        raise KernelBusyError("fanotify", "the guard of another daemon lives")

    node = stopped
    monkeypatch.setattr(module, "wait_for_guards", busy)
    transport = FanotifyTransport(Zeros(), node.cache, keeper=Keeper())
    with pytest.raises(KernelBusyError, match="the guard of another daemon lives"):
        await transport.start(node.directory)
    assert node.given == []
    await transport.stop()
