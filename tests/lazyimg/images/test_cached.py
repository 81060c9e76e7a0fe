"""Checks and repairs of the cache: with real files and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.cache.device_cache import DeviceCache
from lazyimg.errors import NotFoundError, RegistryError, StorageError
from lazyimg.host.space import CacheLimits
from lazyimg.images.cached import CachedDevice, CachedDevices, Verdict
from lazyimg.images.library import SourceRecord
from lazyimg_formats.device_table import BLOCK_SIZE, DeviceTable
from tests.fakes.devices import Device, aligned_device

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.cache.device_file import DeviceFile
    from lazyimg.fill.ports import Sink

WRONG = 3 * BLOCK_SIZE  # a byte of the second span
SPAN = range(2 * BLOCK_SIZE, 4 * BLOCK_SIZE)


class Known:
    """Knows one device: its table, where that is, and how to fetch it."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.files = ["lost", "table"]
        self.filled: list[range] = []
        self.failure: RegistryError | None = None

    def sources(self, device: str) -> list[SourceRecord]:
        if device != self.device.name:
            return []
        return [SourceRecord("reg.test/app", "sha256:aa", 1, file, b"{}") for file in self.files]

    def load_table(self, name: str, file: str) -> DeviceTable:
        if file == "lost":
            raise StorageError(file, "is lost")
        assert name == self.device.name
        return self.device.table

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        assert cookie == self.device.name
        if self.failure is not None:
            raise self.failure
        self.filled.append(range(offset, offset + length))
        await sink.write(offset, memoryview(self.device.content)[offset : offset + length])


class Node:
    def __init__(self, directory: Path) -> None:
        self.device = aligned_device(4)
        self.known = Known(self.device)
        self.cache = DeviceCache(directory, CacheLimits(bstop=0, fstop=0))
        self.cached = CachedDevices(self.cache, self.known, self.known)

    def store(self, *, wrong: bool = False, length: int = 8 * BLOCK_SIZE) -> DeviceFile:
        """Have the beginning of the device, and use it."""
        data = bytearray(self.device.content)
        data[WRONG] ^= wrong
        file = self.cache.open(self.device.name, len(data))
        file.write_now(0, [memoryview(data)[:length]])
        file.sync()
        return file

    async def check(self, *, repair: bool = False) -> Verdict:
        return await self.cached.check(self.device.name, repair=repair)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    node.cache.load()
    yield node
    await node.cache.close()


async def test_devices_are_described(node: Node) -> None:
    node.store(length=5 * BLOCK_SIZE)
    node.cache.open("other", BLOCK_SIZE)
    node.cache.release("other")
    assert await node.cached.describe() == sorted(
        [
            CachedDevice(node.device.name, 8 * BLOCK_SIZE, 5 * BLOCK_SIZE, used=True),
            CachedDevice("other", BLOCK_SIZE, 0, used=False),
        ],
        key=lambda each: each.name,
    )


async def test_right_device(node: Node) -> None:
    node.store(length=5 * BLOCK_SIZE)
    assert await node.check(repair=True) == Verdict(4 * BLOCK_SIZE, BLOCK_SIZE, 0)


async def test_wrong_device_is_left_without_repair(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    file = node.store(wrong=True)
    assert await node.check() == Verdict(6 * BLOCK_SIZE, 0, 2 * BLOCK_SIZE)
    assert file.complete
    said = f"{2 * BLOCK_SIZE} bytes of device {node.device.name} in the cache are wrong"
    assert caplog.messages[-1] == said


async def test_wrong_range_of_what_is_not_mounted_is_fetched_when_it_is_read(node: Node) -> None:
    file = node.store(wrong=True)
    node.cache.release(node.device.name)
    assert await node.check(repair=True) == Verdict(
        6 * BLOCK_SIZE, 0, 2 * BLOCK_SIZE, repaired=2 * BLOCK_SIZE
    )
    assert node.known.filled == []
    assert file.absent(0, file.size) == [SPAN]
    assert await node.check() == Verdict(6 * BLOCK_SIZE, 0, 0)


async def test_wrong_range_of_what_is_filled_on_demand_is_fetched_when_it_is_read(
    node: Node,
) -> None:
    file = node.store(wrong=True, length=5 * BLOCK_SIZE)
    assert (await node.check(repair=True)).repaired == 2 * BLOCK_SIZE
    assert file.absent(0, 5 * BLOCK_SIZE) == [SPAN]


async def test_wrong_range_of_what_nobody_asks_for_is_fetched_at_once(node: Node) -> None:
    file = node.store(wrong=True)
    assert await node.check(repair=True) == Verdict(
        6 * BLOCK_SIZE, 0, 2 * BLOCK_SIZE, repaired=2 * BLOCK_SIZE
    )
    assert node.known.filled == [SPAN]
    assert file.complete
    assert file.path.read_bytes() == node.device.content
    assert await node.check() == Verdict(8 * BLOCK_SIZE, 0, 0)


async def test_repair_while_the_registry_is_away(node: Node) -> None:
    file = node.store(wrong=True)
    node.known.failure = RegistryError("reg.test", "is away")
    assert await node.check(repair=True) == Verdict(
        6 * BLOCK_SIZE,
        0,
        2 * BLOCK_SIZE,
        problem="it is mounted, and is not fetched: reg.test: is away",
    )
    assert file.complete


async def test_device_that_nobody_knows(node: Node) -> None:
    node.store(length=5 * BLOCK_SIZE)
    node.known.files = ["lost"]
    problem = "no image that is known here has it"
    assert await node.check(repair=True) == Verdict(0, 5 * BLOCK_SIZE, 0, problem=problem)
    node.cache.open("other", BLOCK_SIZE)
    assert await node.cached.check("other", repair=True) == Verdict(0, 0, 0, problem=problem)


async def test_device_that_is_not_there(node: Node) -> None:
    with pytest.raises(NotFoundError) as raised:
        await node.cached.check("other", repair=False)
    assert str(raised.value) == "device other: is not in the cache"
