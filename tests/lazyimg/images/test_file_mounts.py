"""Mounts from files, with a transport that keeps a list of what it is told."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CorruptError, KernelError, StorageError
from lazyimg.images import file_mounts
from lazyimg.images.file_mounts import FileMounts
from lazyimg.images.kernel_mounts import KernelMounts
from lazyimg.images.library import ChainRecord
from lazyimg_formats.erofs.tree import Device
from lazyimg_formats.erofs.writer import serialize_image
from tests.fakes.image_mounts import FAILURE, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from tests.fakes.host_mounts import FakeMounts

FULL = StorageError("cache", "is full")


class CacheFile:
    """A device in the cache, which the test completes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.complete = False
        self.calls: list[Callable[[], None]] = []

    def on_complete(self, call: Callable[[], None]) -> None:
        if self.complete:
            call()
        else:
            self.calls.append(call)

    def finish(self) -> None:
        self.complete = True
        while self.calls:
            self.calls.pop()()


class Transport:
    """Keeps what is prepared, and not released.

    Attributes:
        served: the devices.
        released: in order.
        failure: raised by the next call.
        gate: `release` waits for it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.served: dict[str, int] = {}
        self.released: list[list[str]] = []
        self.failure: StorageError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.files: dict[str, CacheFile] = {}

    def _fail(self) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    async def prepare(self, devices: Mapping[str, int]) -> dict[str, Path]:
        self._fail()
        self._serve(devices)
        return {name: self._directory / name for name in sorted(devices)}

    def _serve(self, devices: Mapping[str, int]) -> None:
        self.served.update(devices)
        for name in devices:
            self.files.setdefault(name, CacheFile(self._directory.parent / f"data-of-{name}"))

    def sink(self, cookie: str) -> CacheFile | None:
        return self.files.get(cookie) if cookie in self.served else None

    async def adopt(self, devices: Mapping[str, int]) -> None:
        self._fail()
        self._serve(devices)

    async def release(self, names: Iterable[str]) -> None:
        await self.gate.wait()
        self._fail()
        gone = list(names)
        self.released.append(gone)
        for name in gone:
            self.served.pop(name, None)


def add(root: Path, *devices: str) -> ChainRecord:
    """Add a bootstrap with devices of one block more each."""
    slots = [Device(name * 64, number) for number, name in enumerate(devices, 1)]
    data = serialize_image(ROOT, slots)
    fsid = hashlib.sha256(data).hexdigest()
    (root / "bootstraps" / fsid).write_bytes(data)
    return ChainRecord(fsid, fsid, len(data), [])


@pytest.fixture
def transport(tmp_path: Path) -> Transport:
    return Transport(tmp_path / "devices")


@pytest.fixture
def kernel(root: Path, transport: Transport, host: FakeMounts) -> KernelMounts:
    return KernelMounts(root, FileMounts(root, transport))


async def test_mount_of_the_files_that_the_transport_gives(
    kernel: KernelMounts, root: Path, transport: Transport, host: FakeMounts
) -> None:
    chain = add(root, "2", "1")
    path = await kernel.hold(chain)
    files = [root / "devices" / (name * 64) for name in "21"]
    assert host.files == {chain.fsid: (root / "bootstraps" / chain.fsid, files)}
    assert transport.served == {"2" * 64: 4096, "1" * 64: 8192}
    assert host.table == [(str(path), "erofs from files", chain.fsid)]
    await kernel.release(chain.fsid)
    assert host.table == []
    assert transport.served == {}


async def test_device_is_released_with_the_last_image_that_has_it(
    kernel: KernelMounts, root: Path, transport: Transport
) -> None:
    one, other = add(root, "1", "2"), add(root, "2", "3")
    await kernel.hold(one)
    await kernel.hold(other)
    await kernel.release(one.fsid)
    await kernel.release(other.fsid)
    assert transport.released == [["1" * 64], ["2" * 64, "3" * 64]]


async def test_device_that_is_prepared_while_it_is_released(
    kernel: KernelMounts, root: Path, transport: Transport
) -> None:
    one, other = add(root, "1", "2"), add(root, "2")
    await kernel.hold(one)
    transport.gate.clear()
    releasing = asyncio.create_task(kernel.release(one.fsid))
    holding = asyncio.create_task(kernel.hold(other))
    await asyncio.wait([releasing, holding], timeout=0.1)
    assert not releasing.done()
    assert not holding.done()
    transport.gate.set()
    await releasing
    await holding
    assert transport.served == {"2" * 64: 4096}


async def test_bootstrap_with_other_bytes_is_not_mounted(
    kernel: KernelMounts, root: Path, transport: Transport, host: FakeMounts
) -> None:
    chain = add(root, "1")
    with (root / "bootstraps" / chain.fsid).open("r+b") as file:
        file.seek(4000)
        file.write(b"!")
    with pytest.raises(CorruptError, match="its bytes are not those of its name"):
        await kernel.hold(chain)
    assert "mount_erofs_files" not in host.calls
    assert transport.served == {}


async def test_failures_leave_nothing(
    kernel: KernelMounts, root: Path, transport: Transport, host: FakeMounts
) -> None:
    chain = add(root, "1")
    transport.failure = FULL
    with pytest.raises(StorageError, match="is full"):
        await kernel.hold(chain)
    host.failures["mount_erofs_files"] = FAILURE
    with pytest.raises(KernelError):
        await kernel.hold(chain)
    assert transport.served == {}
    assert host.table == []
    await kernel.hold(chain)
    assert transport.served == {"1" * 64: 4096}


async def test_release_that_fails_is_said(
    kernel: KernelMounts, root: Path, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    chain = add(root, "1")
    await kernel.hold(chain)
    transport.failure = FULL
    await kernel.release(chain.fsid)
    assert caplog.messages == ["cache: is full"]


async def test_devices_of_a_process_that_died_are_adopted(
    root: Path, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    way = FileMounts(root, transport)
    chain = add(root, "1", "2")
    await way.adopt([chain.fsid])
    assert transport.served == {"1" * 64: 4096, "2" * 64: 8192}
    (root / "bootstraps" / chain.fsid).unlink()
    await way.adopt([chain.fsid])
    assert f"{chain.fsid}: mounted, and what was not read of it may fail: " in caplog.text
    await way.begin()
    assert await way.dead() == ()
    assert way.by_hand is None


async def test_dead_mounts_are_known_until_they_end(root: Path, transport: Transport) -> None:
    way = FileMounts(root, transport)
    kernel = KernelMounts(root, way)
    for name in ("one", "other"):
        (root / "mnt" / name).mkdir(parents=True)
    await kernel.leave([f"{root}/mnt/one", "/elsewhere", f"{root}/mnt/other"])
    assert set(await kernel.dead()) == {"one", "other"}
    (root / "mnt" / "one").rmdir()  # as the end of its file system
    assert await kernel.dead() == ("other",)


async def test_dead_mount_that_cannot_be_watched(
    root: Path, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    way = FileMounts(root, transport)
    await way.leave("fsid", root / "none")
    assert await way.dead() == ()
    assert "none: who is in it is not known: No such file or directory" in caplog.text


class Loops:
    """The kernel's loop devices; `exchanged` is what was exchanged, `failure` what comes of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.exchanged: list[tuple[Path, Path]] = []
        self.failure: KernelError | None = None
        self.done = asyncio.Event()
        monkeypatch.setattr(file_mounts, "exchange_file", self.exchange)

    async def exchange(self, source: Path, target: Path) -> int:
        self.exchanged.append((source, target))
        self.done.set()
        if self.failure is not None:
            raise self.failure
        return 1

    async def wait(self) -> tuple[Path, Path]:
        """Wait for the next exchange."""
        await asyncio.wait_for(self.done.wait(), 20)
        self.done.clear()
        await asyncio.sleep(0)  # the task's own end
        return self.exchanged[-1]


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> Loops:
    return Loops(monkeypatch)


@pytest.fixture
def by_loops(root: Path, transport: Transport) -> FileMounts:
    return FileMounts(root, transport, "loop", tree=root / "devices")


ONE, TWO = "1" * 64, "2" * 64


async def test_mount_by_loop_devices(by_loops: FileMounts, root: Path, host: FakeMounts) -> None:
    chain = add(root, "1")
    path = root / "mnt" / chain.fsid
    path.mkdir()
    await by_loops.mount(chain, path)
    assert host.table == [(str(path), "erofs by loops", chain.fsid)]


async def test_device_that_becomes_complete_is_exchanged(
    by_loops: FileMounts,
    root: Path,
    transport: Transport,
    loops: Loops,
    host: FakeMounts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    one, other = add(root, "1", "2"), add(root, "1")
    for chain in (one, other):
        path = root / "mnt" / chain.fsid
        path.mkdir()
        await by_loops.mount(chain, path)
    assert len(transport.files[ONE].calls) == 1  # for both
    await asyncio.to_thread(transport.files[ONE].finish)
    exchanged = (root / "devices" / ONE, root / f"data-of-{ONE}")
    assert await loops.wait() == exchanged
    assert caplog.messages == [f"{ONE}: complete; 1 loop devices read the cache's file now"]
    await by_loops.mount(one, root / "mnt" / one.fsid)  # it was prepared before it was complete
    assert await loops.wait() == exchanged
    assert len(transport.files[TWO].calls) == 1


async def test_device_of_a_process_that_died_is_exchanged(
    by_loops: FileMounts, root: Path, transport: Transport, loops: Loops
) -> None:
    chain = add(root, "1")
    await by_loops.adopt([chain.fsid])
    transport.files[ONE].finish()
    assert await loops.wait() == (root / "devices" / ONE, root / f"data-of-{ONE}")


async def test_device_that_is_mounted_no_more_is_awaited_anew(
    by_loops: FileMounts, root: Path, transport: Transport, loops: Loops
) -> None:
    chain = add(root, "1")
    await by_loops.adopt([chain.fsid])
    await by_loops.unmounted(chain.fsid)
    await by_loops.adopt([chain.fsid])
    assert len(transport.files[ONE].calls) == 2
    transport.files[ONE].finish()
    await loops.wait()


async def test_exchange_that_fails_is_said(
    by_loops: FileMounts,
    root: Path,
    transport: Transport,
    loops: Loops,
    caplog: pytest.LogCaptureFixture,
) -> None:
    loops.failure = KernelError("it", "refuses")
    await by_loops.adopt([add(root, "1").fsid])
    transport.files[ONE].finish()
    await loops.wait()
    assert caplog.messages == [f"{ONE}: is complete, and asked for on: it: refuses"]


async def test_nothing_is_exchanged_where_plain_files_are_mounted(
    root: Path, transport: Transport
) -> None:
    await FileMounts(root, transport).adopt([add(root, "1").fsid])
    assert transport.files[ONE].calls == []


def test_device_that_is_complete_when_all_is_over(
    by_loops: FileMounts, root: Path, transport: Transport, loops: Loops
) -> None:
    asyncio.run(by_loops.adopt([add(root, "1").fsid]))
    transport.files[ONE].finish()
    assert loops.exchanged == []
