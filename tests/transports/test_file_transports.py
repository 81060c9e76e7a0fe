"""The transports of plain files by themselves: below EROFS on files, over a filler in memory."""

from __future__ import annotations

import asyncio
import errno
import gc
import random
import subprocess
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import pytest

from lazyimg.cache.device_cache import DeviceCache
from lazyimg.host.mounts import mount_erofs_files
from lazyimg.transports.fanotify.transport import FanotifyTransport
from lazyimg.transports.fuse.transport import FuseTransport
from tests.real.kernel_image import (
    Image,
    MemoryFiller,
    ReadFailedError,
    drop_caches,
    eventually,
    make_image,
    read_file,
    start_reader,
    unmount_below,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.real.safety import SafetyNet

MB = 1 << 20
KINDS = {"fuse": FuseTransport, "fanotify": FanotifyTransport}
FileTransport: TypeAlias = FuseTransport | FanotifyTransport


class Place(NamedTuple):
    """Where a transport lives, and which.

    Attributes:
        kind: its name.
        directory: on a disk.
        target: where images are mounted.
    """

    kind: str
    directory: Path
    target: Path

    @asynccontextmanager
    async def serving(self, filler: MemoryFiller) -> AsyncIterator[FileTransport]:
        """Run it, with all that is in its cache."""
        for name in ("cache", "tree", "bootstraps"):
            (self.directory / name).mkdir(exist_ok=True)
        cache = DeviceCache(self.directory / "cache")
        await asyncio.to_thread(cache.load)
        transport = KINDS[self.kind](filler, cache)
        await transport.start(self.directory / "tree")
        try:
            yield transport
        finally:
            await transport.stop()
            await cache.close()

    @asynccontextmanager
    async def mounted(
        self, transport: FileTransport, image: Image, name: str = "m"
    ) -> AsyncIterator[Path]:
        """Mount an image."""
        top = self.target / name
        top.mkdir(exist_ok=True)
        bootstrap = self.directory / "bootstraps" / image.fsid
        bootstrap.write_bytes(image.bootstrap)
        sizes = {device: len(data) for device, data in image.devices.items()}
        paths = await transport.prepare(sizes)
        try:
            await mount_erofs_files(bootstrap, [paths[device] for device in sizes], top)
            yield top
        finally:
            await unmount_below(top)
            await transport.release(sizes)


@pytest.fixture
def host(net: SafetyNet, disk: Path, tmp_path: Path, transport: str) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        yield Place(transport, Path(directory), tmp_path)
        gc.collect()  # closes what is open on the disk


async def test_image_equals_its_source(host: Place) -> None:
    image = make_image(1, {"a": 5 * MB + 17, "b": 3, "c": 2 * MB, "d": 4096}, devices=2)
    filler = MemoryFiller(image)
    async with (
        host.serving(filler) as transport,
        host.mounted(transport, image) as top,
    ):
        for name, data in image.files.items():
            assert await read_file(top / name) == data
        assert transport.counters.reads_failed == 0
        assert set(image.devices) == {cookie for cookie, _, _ in filler.asked}


async def test_only_what_is_read_is_filled(host: Place) -> None:
    image = make_image(2, {"a": 16 * MB})
    filler = MemoryFiller(image)
    (device,) = image.devices
    async with host.serving(filler) as transport, host.mounted(transport, image) as top:
        assert transport.present(device) == []
        assert await read_file(top / "a", 8 * MB, 4096) == image.files["a"][8 * MB :][:4096]
        present = transport.present(device)
        assert present is not None
        assert sum(map(len, present)) <= 6 * MB
        assert any(8 * MB in found for found in present)


async def test_content_survives_a_restart(host: Place) -> None:
    image = make_image(3, {"a": 8 * MB})
    (device,) = image.devices
    filler = MemoryFiller(image)
    async with host.serving(filler) as transport, host.mounted(transport, image) as top:
        assert await read_file(top / "a") == image.files["a"]
    filler = MemoryFiller(image)
    async with host.serving(filler) as transport:
        assert transport.present_on_disk(device) == [range(8 * MB)]
        await drop_caches()
        async with host.mounted(transport, image) as top:
            assert await read_file(top / "a") == image.files["a"]
        assert transport.counters.reads == 0  # it is complete: a plain file
    assert filler.asked == []


async def test_last_read_is_answered_first(host: Place) -> None:
    image = make_image(5, {"a": MB, "b": MB}, devices=2)
    filler = MemoryFiller(image)
    first, _ = image.devices
    gate = filler.held[first] = asyncio.Event()
    async with host.serving(filler) as transport, host.mounted(transport, image) as top:
        slow = await start_reader(top / "a", 0, 4096)
        await filler.wait_asked(1)
        assert await read_file(top / "b", 0, 4096) == image.files["b"][:4096]
        assert slow.process.returncode is None
        gate.set()
        assert await slow.result() == image.files["a"][:4096]


async def test_many_wait_and_one_is_answered(host: Place) -> None:
    """More than the transport may have threads."""
    image = make_image(6, {f"{number:02}": MB for number in range(40)}, devices=40)
    filler = MemoryFiller(image)
    *others, last = image.devices
    gate = asyncio.Event()
    filler.held = dict.fromkeys(others, gate)
    async with host.serving(filler) as transport, host.mounted(transport, image) as top:
        readers = [await start_reader(top / f"{number:02}", 0, 4096) for number in range(39)]
        await filler.wait_asked(39)
        assert await read_file(top / "39", 0, 4096) == image.files["39"][:4096]
        assert last in {cookie for cookie, _, _ in filler.asked}
        gate.set()
        for number, reader in enumerate(readers):
            assert await reader.result() == image.files[f"{number:02}"][:4096]


async def test_present_range_is_read_while_the_event_loop_is_blocked(host: Place) -> None:
    image = make_image(7, {"a": 4 * MB})
    filler = MemoryFiller(image)
    async with host.serving(filler) as transport, host.mounted(transport, image) as top:
        assert await read_file(top / "a", 0, 2 * MB) == image.files["a"][: 2 * MB]
        await drop_caches()
        ended = subprocess.run(  # noqa: ASYNC221 - blocking the loop is the point
            ["dd", f"if={top / 'a'}", "bs=4096", "count=256", "status=none"],
            capture_output=True,
            timeout=30,
            check=True,
        )
        assert ended.stdout == image.files["a"][:MB]


async def test_killed_reader_dies_and_the_next_one_reads(host: Place) -> None:
    image = make_image(8, {"a": MB})
    filler = MemoryFiller(image)
    filler.gate.clear()
    async with host.serving(filler) as transport, host.mounted(transport, image) as top:
        reader = await start_reader(top / "a")
        await filler.wait_asked(1)
        killing = asyncio.create_task(reader.kill())
        await asyncio.sleep(0.1)
        filler.gate.set()
        await killing
        assert await read_file(top / "a") == image.files["a"]
        assert transport.counters.reads_failed == 0


async def test_failing_fill_is_an_error_for_the_reader_and_is_tried_again(host: Place) -> None:
    image = make_image(9, {"a": MB})
    filler = MemoryFiller(image)
    filler.failing = True
    (device,) = image.devices
    async with host.serving(filler) as transport, host.mounted(transport, image) as top:
        for _ in range(2):
            with pytest.raises(ReadFailedError, match=str(errno.EIO)):
                await read_file(top / "a")
        assert transport.counters.reads_failed > 0
        assert transport.present(device) == []
        filler.failing = False
        assert await read_file(top / "a") == image.files["a"]


async def test_stop_fails_what_is_pending(host: Place) -> None:
    image = make_image(10, {"a": MB})
    filler = MemoryFiller(image)
    filler.gate.clear()
    async with host.serving(filler) as transport, host.mounted(transport, image) as top:
        reader = await start_reader(top / "a")
        await filler.wait_asked(1)
        await transport.stop()
        with pytest.raises(ReadFailedError):
            await reader.result()
    filler.gate.set()
    async with host.serving(filler) as transport, host.mounted(transport, image) as top:
        assert await read_file(top / "a") == image.files["a"]


async def test_what_a_sink_writes_is_not_asked_for(host: Place) -> None:
    """And a device that becomes complete while it is mounted stays right."""
    image = make_image(11, {"a": 4 * MB})
    filler = MemoryFiller(image)
    ((device, data),) = image.devices.items()
    async with host.serving(filler) as transport, host.mounted(transport, image) as top:
        sink = await transport.opened(device)
        await sink.write(0, memoryview(data))
        assert transport.present(device) == [range(4 * MB)]
        assert await read_file(top / "a") == image.files["a"]
        await drop_caches()
        assert await read_file(top / "a") == image.files["a"]
    assert filler.asked == []


async def test_device_is_shared_by_two_mounts(host: Place) -> None:
    one = make_image(12, {"a": MB})
    two = make_image(12, {"a": MB, "b": MB}, devices=2)
    assert set(one.devices) < set(two.devices)
    filler = MemoryFiller(one, two)
    async with host.serving(filler) as transport, host.mounted(transport, two, "two") as other:
        async with host.mounted(transport, one, "one") as top:
            assert await read_file(top / "a") == one.files["a"]
            filler.asked.clear()
            assert await read_file(other / "a") == two.files["a"]
        assert filler.asked == []
        assert await read_file(other / "b") == two.files["b"]
        await drop_caches()
        assert await read_file(other / "a") == two.files["a"]


async def test_complete_device_is_a_plain_file(host: Place) -> None:
    image = make_image(13, {"a": 4 * MB})
    ((device, data),) = image.devices.items()
    async with host.serving(MemoryFiller(image)) as transport:
        async with host.mounted(transport, image):
            sink = await transport.opened(device)
            await sink.write(0, memoryview(data))
            file = transport.sink(device)
            await eventually(lambda: getattr(file, "complete"))  # noqa: B009
        before = transport.counters.reads
        await drop_caches()
        async with host.mounted(transport, image) as top:
            assert await read_file(top / "a") == image.files["a"]
            assert transport.counters.reads == before


async def test_readers_that_are_killed_at_random(host: Place) -> None:
    image = make_image(14, dict.fromkeys("abcd", 8 * MB), devices=4)
    filler = MemoryFiller(image)
    order = random.Random(18)  # noqa: S311 - reproducible
    async with host.serving(filler) as transport, host.mounted(transport, image) as top:
        for offset in range(0, 8 * MB, 2 * MB):
            filler.gate.clear()
            asked = len(filler.asked)
            readers = {name: await start_reader(top / name, offset, 65536) for name in "abcd"}
            await filler.wait_asked(asked + 1)
            killed = order.sample("abcd", 2)
            for name in killed:
                readers[name].process.kill()
            filler.gate.set()
            for name in killed:
                await readers[name].process.wait()
            for name in set(readers).difference(killed):
                assert await readers[name].result() == image.files[name][offset:][:65536]
        for name, data in image.files.items():
            assert await read_file(top / name) == data
        assert transport.counters.reads_failed == 0
