"""Mounts from files, with a transport that keeps a list of what it is told."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CorruptError, KernelError, StorageError
from lazyimg.images.file_mounts import FileMounts
from lazyimg.images.kernel_mounts import KernelMounts
from lazyimg.images.library import ChainRecord
from lazyimg_formats.erofs.tree import Device
from lazyimg_formats.erofs.writer import serialize_image
from tests.fakes.image_mounts import FAILURE, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tests.fakes.host_mounts import FakeMounts

FULL = StorageError("cache", "is full")


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

    def _fail(self) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    async def prepare(self, devices: Mapping[str, int]) -> dict[str, Path]:
        self._fail()
        self.served.update(devices)
        return {name: self._directory / name for name in sorted(devices)}

    async def adopt(self, devices: Mapping[str, int]) -> None:
        self._fail()
        self.served.update(devices)

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
