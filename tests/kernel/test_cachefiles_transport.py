"""The transport against the real /dev/cachefiles. Run as root in scripts/kernel-vm --disk."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CacheUnsuitableError, KernelBusyError, NotFoundError, StorageError
from lazyimg.host.mounts import mount_erofs, unmount
from lazyimg.host.space import CacheLimits
from lazyimg.transports.cachefiles.transport import CachefilesTransport
from tests.real.kernel_image import (
    DOMAIN,
    Image,
    MemoryFiller,
    ReadFailedError,
    drop_caches,
    eventually,
    make_image,
    read_file,
    run,
    start_reader,
    unmount_below,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

MB = 1 << 20


@pytest.fixture
def cache(request: pytest.FixtureRequest) -> Path:
    directory = Path(os.environ["LAZYIMG_VM_DISK"], f"cache-{request.node.name}")
    directory.mkdir()
    return directory


@pytest.fixture(autouse=True)
def limit_of_the_test() -> Iterator[None]:
    """End the whole run if a test hangs: nothing else ends a process that waits for itself."""
    import faulthandler  # noqa: PLC0415 - only this fixture's business

    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@asynccontextmanager
async def serving(
    cache: Path, filler: MemoryFiller, limits: CacheLimits | None = None
) -> AsyncIterator[CachefilesTransport]:
    transport = CachefilesTransport(filler, domain_id=DOMAIN)
    await transport.start(cache, limits=limits)
    try:
        yield transport
    finally:
        await transport.stop()


@asynccontextmanager
async def mounted(image: Image, directory: Path) -> AsyncIterator[Path]:
    directory.mkdir(exist_ok=True)
    try:
        await mount_erofs(image.fsid, DOMAIN, directory)
        yield directory
    finally:
        await unmount_below(directory)


async def test_image_equals_its_source(cache: Path, tmp_path: Path) -> None:
    image = make_image(1, {"a": 5 * MB + 17, "b": 3, "c": 2 * MB, "d": 4096}, devices=2)
    filler = MemoryFiller(image)
    async with serving(cache, filler) as transport, mounted(image, tmp_path / "m") as top:
        for name, data in image.files.items():
            assert await read_file(top / name) == data
        assert transport.counters.opens == 3
        assert transport.counters.reads_failed == 0
        assert set(filler.devices) == {cookie for cookie, _, _ in filler.asked}


async def test_only_what_is_read_is_filled(cache: Path, tmp_path: Path) -> None:
    image = make_image(2, {"a": 16 * MB})
    filler = MemoryFiller(image)
    (device,) = image.devices
    async with serving(cache, filler) as transport, mounted(image, tmp_path / "m") as top:
        assert transport.present(device) in ([], None)
        assert await read_file(top / "a", 8 * MB, 4096) == image.files["a"][8 * MB :][:4096]
        present = transport.present(device)
        assert present is not None
        assert sum(map(len, present)) <= MB
        assert any(8 * MB in found for found in present)


async def test_content_survives_a_restart(cache: Path, tmp_path: Path) -> None:
    image = make_image(3, {"a": 8 * MB})
    async with serving(cache, MemoryFiller(image)), mounted(image, tmp_path / "m") as top:
        assert await read_file(top / "a") == image.files["a"]
    (device,) = image.devices
    filler = MemoryFiller(image)
    async with serving(cache, filler) as transport:
        assert transport.present_on_disk(device) == [range(8 * MB)]
        await drop_caches()
        async with mounted(image, tmp_path / "m") as top:
            assert await read_file(top / "a") == image.files["a"]
            assert transport.present(device) == [range(8 * MB)]
        assert transport.counters.reads == 0
    assert filler.asked == []


async def test_readers_wait_together_and_are_answered_out_of_order(
    cache: Path, tmp_path: Path
) -> None:
    image = make_image(4, dict.fromkeys("abcdefgh", MB), devices=8)
    filler = MemoryFiller(image)
    filler.gate.clear()
    order: list[str] = []

    async def read(top: Path, name: str) -> None:
        assert await read_file(top / name, 0, 4096) == image.files[name][:4096]
        order.append(name)

    async with serving(cache, filler), mounted(image, tmp_path / "m") as top:
        tasks = [asyncio.create_task(read(top, name)) for name in image.files]
        await filler.wait_asked(8)
        assert not order
        filler.asked.clear()
        filler.gate.set()
        await asyncio.gather(*tasks)
    assert sorted(order) == list("abcdefgh")


async def test_last_read_is_answered_first(cache: Path, tmp_path: Path) -> None:
    image = make_image(5, {"a": MB, "b": MB}, devices=2)
    filler = MemoryFiller(image)
    first, _ = image.devices
    gate = filler.held[first] = asyncio.Event()
    async with serving(cache, filler), mounted(image, tmp_path / "m") as top:
        slow = await start_reader(top / "a", 0, 4096)
        await filler.wait_asked(1)
        assert await read_file(top / "b", 0, 4096) == image.files["b"][:4096]
        assert slow.process.returncode is None
        gate.set()
        assert await slow.result() == image.files["a"][:4096]


async def test_killed_reader_dies_and_the_next_one_reads(cache: Path, tmp_path: Path) -> None:
    image = make_image(6, {"a": MB})
    filler = MemoryFiller(image)
    filler.gate.clear()
    async with serving(cache, filler) as transport, mounted(image, tmp_path / "m") as top:
        reader = await start_reader(top / "a")
        await filler.wait_asked(1)
        await reader.kill()
        filler.gate.set()
        assert await read_file(top / "a") == image.files["a"]
        assert transport.counters.reads_failed == 0


async def test_failing_fill_is_an_error_for_the_reader_and_is_tried_again(
    cache: Path, tmp_path: Path
) -> None:
    image = make_image(7, {"a": MB})
    filler = MemoryFiller(image)
    filler.failing = True
    async with serving(cache, filler) as transport, mounted(image, tmp_path / "m") as top:
        with pytest.raises(ReadFailedError, match=str(errno.EIO)):
            await read_file(top / "a")
        assert transport.counters.reads_failed > 0
        (device,) = image.devices
        assert transport.present(device) == []
        filler.failing = False
        assert await read_file(top / "a") == image.files["a"]


async def test_unknown_fsid_fails_at_once(cache: Path, tmp_path: Path) -> None:
    async with serving(cache, MemoryFiller()) as transport:
        started = time.monotonic()
        with pytest.raises(NotFoundError, match=r"fsid 0{64}: "):
            await mount_erofs("0" * 64, DOMAIN, tmp_path)
        assert time.monotonic() - started < 5
        assert transport.counters.opens_refused == 1


async def test_unknown_device_fails_reads_and_nothing_else(cache: Path, tmp_path: Path) -> None:
    image = make_image(8, {"a": MB, "b": MB}, devices=2)
    filler = MemoryFiller(image)
    unknown, _ = image.devices
    del filler.devices[unknown]
    async with serving(cache, filler), mounted(image, tmp_path / "m") as top:
        with pytest.raises(ReadFailedError):
            await read_file(top / "a")
        assert await read_file(top / "b") == image.files["b"]


async def test_stop_fails_what_is_pending_and_frees_the_device(cache: Path, tmp_path: Path) -> None:
    image = make_image(9, {"a": MB})
    filler = MemoryFiller(image)
    filler.gate.clear()
    async with serving(cache, filler) as transport, mounted(image, tmp_path / "m") as top:
        reader = await start_reader(top / "a")
        await filler.wait_asked(1)
        await transport.stop()
        with pytest.raises(ReadFailedError, match=str(errno.EIO)):
            await reader.result()
        with pytest.raises(ReadFailedError):
            await read_file(top / "a")
    filler.gate.set()
    async with serving(cache, filler), mounted(image, tmp_path / "m") as top:
        assert await read_file(top / "a") == image.files["a"]


async def test_bootstrap_is_readable_while_the_event_loop_is_blocked(
    cache: Path, tmp_path: Path
) -> None:
    image = make_image(10, {f"file-{i}": 0 for i in range(3000)})
    async with serving(cache, MemoryFiller(image)), mounted(image, tmp_path / "m") as top:
        done = subprocess.run(  # noqa: ASYNC221 - blocking the loop is the point
            ["ls", top], capture_output=True, text=True, timeout=30, check=True
        )
    assert len(done.stdout.splitlines()) == 3000


async def test_what_a_sink_writes_is_not_asked_for(cache: Path, tmp_path: Path) -> None:
    image = make_image(11, {"a": 4 * MB})
    filler = MemoryFiller(image)
    ((device, data),) = image.devices.items()
    async with serving(cache, filler) as transport, mounted(image, tmp_path / "m") as top:
        assert transport.sink("0" * 64) is None
        await eventually(lambda: transport.sink(device) is not None)
        sink = transport.sink(device)
        assert sink is not None
        await sink.write(0, memoryview(data))
        assert transport.present(device) == [range(4 * MB)]
        assert await read_file(top / "a") == image.files["a"]
    assert filler.asked == []


async def test_device_is_shared_by_two_images_of_the_domain(cache: Path, tmp_path: Path) -> None:
    one = make_image(12, {"a": MB})
    two = make_image(12, {"a": MB, "b": MB}, devices=2)
    assert set(one.devices) < set(two.devices)
    filler = MemoryFiller(one, two)
    async with serving(cache, filler) as transport, mounted(one, tmp_path / "one") as top:
        assert await read_file(top / "a") == one.files["a"]
        filler.asked.clear()
        async with mounted(two, tmp_path / "two") as other:
            assert await read_file(other / "a") == two.files["a"]
        assert filler.asked == []
        assert transport.counters.opens == 4


async def test_tmpfs_is_refused_and_the_device_is_free_again(cache: Path, tmp_path: Path) -> None:
    transport = CachefilesTransport(MemoryFiller(), domain_id=DOMAIN)
    with pytest.raises(CacheUnsuitableError, match="its file system cannot hold a cache"):
        await transport.start(tmp_path)
    async with serving(cache, MemoryFiller()):
        pass


async def test_second_transport_is_refused(cache: Path) -> None:
    async with serving(cache, MemoryFiller()):
        second = CachefilesTransport(MemoryFiller(), domain_id=DOMAIN)
        with pytest.raises(KernelBusyError, match="another process has it open"):
            await second.start(cache)


@asynccontextmanager
async def small_disk(directory: Path, size: int) -> AsyncIterator[Path]:
    """An ext4 file system of `size` bytes on a loop device."""
    image = directory / "disk.img"
    with image.open("wb") as file:
        file.truncate(size)
    point = directory / "disk"
    point.mkdir()
    await run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    await run("mount", "-o", "loop", str(image), str(point))
    try:
        yield point
    finally:
        await unmount_below(point)


async def test_full_disk_is_an_error_and_unused_objects_are_culled(
    cache: Path, tmp_path: Path
) -> None:
    old = make_image(13, {"a": 24 * MB})
    new = make_image(14, {"a": 24 * MB})
    limits = CacheLimits(brun=50, bcull=40, bstop=10)
    filler = MemoryFiller(old, new)
    async with small_disk(cache, 64 * MB) as disk, serving(disk, filler, limits) as transport:
        async with mounted(old, tmp_path / "m") as top:
            assert await read_file(top / "a") == old.files["a"]
        (device,) = old.devices
        assert transport.backing_path(device) is not None
        async with mounted(new, tmp_path / "m") as top:
            assert await read_file(top / "a") == new.files["a"]
            await eventually(lambda: transport.backing_path(device) is None)
        assert transport.counters.culled > 0
        assert await asyncio.to_thread(transport.present_on_disk, device) is None


async def test_disk_below_the_limit_is_a_storage_error(cache: Path, tmp_path: Path) -> None:
    image = make_image(15, {"a": 40 * MB})
    limits = CacheLimits(brun=70, bcull=60, bstop=50)
    filler = MemoryFiller(image)
    ((device, data),) = image.devices.items()
    async with (
        small_disk(cache, 64 * MB) as disk,
        serving(disk, filler, limits) as transport,
        mounted(image, tmp_path / "m") as top,
    ):
        with pytest.raises(ReadFailedError, match=str(errno.EIO)):
            await read_file(top / "a")
        sink = transport.sink(device)
        assert sink is not None
        with pytest.raises(StorageError, match="less than 50 % of its space left"):
            await sink.write(0, memoryview(data))


async def test_unmount_by_the_child_closes_the_objects(cache: Path, tmp_path: Path) -> None:
    image = make_image(16, {"a": MB})
    (device,) = image.devices
    async with serving(cache, MemoryFiller(image)) as transport:
        await mount_erofs(image.fsid, DOMAIN, tmp_path)
        assert await read_file(tmp_path / "a") == image.files["a"]
        await unmount(tmp_path)
        await eventually(lambda: transport.sink(device) is None)
        assert transport.present(device) is None


SERVER = """
import asyncio, sys
from pathlib import Path
from lazyimg.transports.cachefiles.transport import CachefilesTransport
from tests.real.kernel_image import DOMAIN, MemoryFiller, make_image

async def main():
    filler = MemoryFiller(make_image(17, {"a": 1 << 20}))
    filler.gate.clear()
    transport = CachefilesTransport(filler, domain_id=DOMAIN)
    await transport.start(Path(sys.argv[1]))
    print("ready", flush=True)
    await filler.wait_asked(1)
    print("asked", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_killed_server_leaves_nobody_waiting_and_nothing_busy(
    cache: Path, tmp_path: Path
) -> None:
    project = Path(__file__).parents[2]
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SERVER,
        str(cache),
        stdout=asyncio.subprocess.PIPE,
        cwd=project,
        env={**os.environ, "PYTHONPATH": f"{project}:{project / 'formats'}"},
    )
    assert server.stdout is not None
    try:
        assert await server.stdout.readline() == b"ready\n"
        image = make_image(17, {"a": MB})
        async with mounted(image, tmp_path / "m") as top:
            reader = await start_reader(top / "a")
            assert await server.stdout.readline() == b"asked\n"
            server.kill()
            await server.wait()
            with pytest.raises(ReadFailedError, match=str(errno.EIO)):
                await reader.result()
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()
    async with serving(cache, MemoryFiller(image)), mounted(image, tmp_path / "m") as top:
        assert await read_file(top / "a") == image.files["a"]


async def test_readers_that_are_killed_at_random(cache: Path, tmp_path: Path) -> None:
    image = make_image(18, dict.fromkeys("abcd", 2 * MB), devices=4)
    filler = MemoryFiller(image)
    order = random.Random(18)  # noqa: S311 - reproducible
    async with serving(cache, filler) as transport, mounted(image, tmp_path / "m") as top:
        for offset in range(0, 2 * MB, MB // 4):  # further on than the kernel reads ahead
            filler.gate.clear()
            asked = len(filler.asked)
            readers = {name: await start_reader(top / name, offset, 65536) for name in "abcd"}
            await filler.wait_asked(asked + 1)
            killed = order.sample("abcd", 2)
            for name in killed:
                await readers[name].kill()
            filler.gate.set()
            for name in set(readers).difference(killed):
                assert await readers[name].result() == image.files[name][offset:][:65536]
        for name, data in image.files.items():
            assert await read_file(top / name) == data
        assert transport.counters.reads_failed == 0
