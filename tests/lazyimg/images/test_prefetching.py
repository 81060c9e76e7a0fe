"""Prefetch of images: what is fetched, what is said, and that nothing stays mounted."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CorruptError, KernelError, NotFoundError, RegistryError, StorageError
from lazyimg.images import prefetching
from lazyimg.images.prefetching import Progress
from lazyimg.registry.ports import Access
from lazyimg_formats.device_table import BLOCK_SIZE
from tests.fakes.lazy_image import LazyLayer, add_lazy_image, make_lazy_layer
from tests.fakes.node import Node, run_node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.images.image import Image
    from tests.fakes.devices import MemorySink

NOISE = os.urandom(300_000)
BASE = {
    "etc/name": b"lazyimg\n",
    "etc/empty": b"",
    "bin/tool": NOISE,
    "lib/a/x.py": b"x" * 5000,
    "lib/b.py": b"y" * 5000,
    "lib/b.txt": b"z" * 5000,
}
TOP = {"etc/name": b"other\n", "var/data": NOISE[:100_000]}


@pytest.fixture(scope="module")
def layers() -> list[LazyLayer]:
    return [asyncio.run(make_lazy_layer(files)) for files in (BASE, TOP)]


@pytest.fixture
async def node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: list[LazyLayer]
) -> AsyncIterator[Node]:
    async with run_node(tmp_path, monkeypatch) as node:
        add_lazy_image(node.registry, "app", "1", layers)
        yield node


async def open_image(node: Node) -> Image:
    return await node.images.open(node.reference, "", Access())


def ignore(_: Progress) -> None:
    pass


async def test_whole_image(node: Node) -> None:
    image = await open_image(node)
    steps: list[Progress] = []
    before = node.registry.sent()
    end = await node.prefetcher.prefetch(image, [], steps.append)
    total = sum(layer.device_size for layer in image.chain.layers)
    assert end == Progress(total, total, node.registry.sent() - before)
    assert steps[0] == Progress(0, total, 0)
    assert steps[-1] == end
    assert [step.present for step in steps] == sorted(step.present for step in steps)
    for layer in image.chain.layers:
        assert node.transport.sinks[layer.device].has(0, layer.device_size)
    assert node.host.calls == ["mount_erofs", "unmount"]
    assert node.host.table == []


async def test_again_fetches_nothing(node: Node) -> None:
    image = await open_image(node)
    await node.prefetcher.prefetch(image, [], ignore)
    before = node.registry.sent()
    end = await node.prefetcher.prefetch(image, [], ignore)
    assert (end.present, end.fetched) == (end.total, 0)
    assert node.registry.sent() == before


async def test_image_that_is_mounted_stays_so(node: Node) -> None:
    image = await open_image(node)
    await node.mounts.mount(image, "/one", read_write=False)
    table = list(node.host.table)
    await node.prefetcher.prefetch(image, [], ignore)
    assert node.host.table == table


@pytest.mark.parametrize(
    ("globs", "blocks"),
    [
        (["/etc/name"], [0, 1]),
        (["etc/name"], [0, 1]),
        (["/lib/*.py"], [4, 0]),
        (["/lib/[ab].py", "/lib/b.*"], [4, 0]),
        (["/var/data"], [0, 25]),
        (["/bin/too?", "/var/*"], [74, 25]),
    ],
)
async def test_globs(node: Node, globs: list[str], blocks: list[int]) -> None:
    image = await open_image(node)
    end = await node.prefetcher.prefetch(image, globs, ignore)
    assert (end.present, end.total) == (sum(blocks) * BLOCK_SIZE,) * 2
    devices = [layer.device for layer in image.chain.layers]
    sinks = [node.transport.sinks.get(device) for device in devices]
    assert [len(sink.blocks) if sink else 0 for sink in sinks] == blocks


async def test_glob_of_a_file_without_data(node: Node) -> None:
    image = await open_image(node)
    assert await node.prefetcher.prefetch(image, ["/etc/empty"], ignore) == Progress(0, 0, 0)


@pytest.mark.parametrize("glob", ["/none", "/etc", "/ETC/NAME", "name", "/"])
async def test_glob_that_no_file_matches(node: Node, glob: str) -> None:
    image = await open_image(node)
    with pytest.raises(NotFoundError) as caught:
        await node.prefetcher.prefetch(image, [glob, "/neither"], ignore)
    assert str(caught.value) == (f"{node.reference}: no regular file matches {glob} or /neither")
    assert node.host.table == []


async def test_hidden_files_are_not_matched(node: Node) -> None:
    image = await open_image(node)
    await node.prefetcher.prefetch(image, ["/etc/name"], ignore)
    assert list(node.transport.sinks) == [image.chain.layers[1].device]


async def test_image_without_any_data(node: Node) -> None:
    add_lazy_image(node.registry, "app", "1", [await make_lazy_layer({"empty": b""})])
    image = await open_image(node)
    assert await node.prefetcher.prefetch(image, [], ignore) == Progress(0, 0, 0)


async def test_registry_that_fails_ends_it_and_what_was_filled_stays(node: Node) -> None:
    image = await open_image(node)
    await node.prefetcher.prefetch(image, ["/bin/tool"], ignore)
    node.registry.fail("status", status=500, times=100)
    with pytest.raises(RegistryError):
        await node.prefetcher.prefetch(image, [], ignore)
    assert node.host.table == []
    assert len(node.transport.sinks[image.chain.layers[0].device].blocks) == 74


async def test_mount_that_fails(node: Node) -> None:
    image = await open_image(node)
    node.host.failures["mount_erofs"] = KernelError("fsid", "failed on demand")
    with pytest.raises(KernelError, match="failed on demand"):
        await node.prefetcher.prefetch(image, [], ignore)


async def test_caller_that_goes_leaves_nothing_mounted(node: Node) -> None:
    image = await open_image(node)
    node.registry.fail("hang", times=100)
    started = asyncio.Event()
    task = asyncio.create_task(node.prefetcher.prefetch(image, [], lambda _: started.set()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert node.host.table == []


async def test_bootstrap_that_is_gone_or_broken(node: Node) -> None:
    image = await open_image(node)
    path = node.root / "bootstraps" / image.chain.fsid
    path.write_bytes(bytes(8192))
    with pytest.raises(CorruptError, match=str(path)):
        await node.prefetcher.prefetch(image, ["/etc/name"], ignore)
    path.unlink()
    with pytest.raises(StorageError) as caught:
        await node.prefetcher.prefetch(image, ["/etc/name"], ignore)
    assert str(caught.value) == f"{path}: cannot be read: No such file or directory"


async def test_device_that_nobody_recorded(node: Node) -> None:
    image = await open_image(node)
    layer = image.chain.layers[0]
    other = type(layer)(
        layer.blob, layer.blob_size, layer.media_type, layer.format, layer.table, "0" * 64, 4096
    )
    chain = type(image.chain)(image.chain.key, image.chain.fsid, image.chain.size, [other])
    with pytest.raises(NotFoundError, match="no image that is known here has it"):
        await node.prefetcher.prefetch(replace(image, chain=chain), [], ignore)


# Mounts that were taken over: the kernel opens a device when it misses something.


class LateTransport:
    """A transport that has a device's sink only once something of it was read."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        self.node = node
        self.read: list[tuple[str, int]] = []
        self.opening = asyncio.Event()
        self.failure: Exception | None = None
        self._opened = node.transport.opened
        monkeypatch.setattr(node.transport, "opened", self.opened)
        monkeypatch.setattr(prefetching, "read_byte", self.read_byte)
        monkeypatch.setattr(prefetching, "OPEN_SOON", 0.01)

    async def opened(self, cookie: str) -> MemorySink:
        await self.opening.wait()
        return await self._opened(cookie)

    async def read_byte(self, path: Path, offset: int) -> None:
        self.read.append((str(path), offset))
        self.opening.set()
        if self.failure is not None:
            raise self.failure


async def test_device_of_a_mount_that_was_taken_over_is_opened_by_a_read(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = await open_image(node)
    late = LateTransport(node, monkeypatch)
    late.failure = KernelError("read", "failed on demand")
    end = await node.prefetcher.prefetch(image, ["/lib/b.py"], ignore)
    assert end.present == end.total == 2 * BLOCK_SIZE
    (read,) = late.read
    assert read == (f"{node.root}/mnt/{image.chain.fsid}/lib/b.py", 0)
    assert "read: failed on demand" in caplog.text


async def test_read_that_opens_a_device_ends_with_its_prefetch(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await open_image(node)
    late = LateTransport(node, monkeypatch)
    begun, ended = asyncio.Event(), asyncio.Event()

    async def read_for_ever(_: Path, __: int) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(prefetching, "read_byte", read_for_ever)
    going = asyncio.create_task(node.prefetcher.prefetch(image, ["/lib/b.py"], ignore))
    await begun.wait()
    going.cancel()
    await asyncio.wait([going], timeout=10)
    assert ended.is_set()
    assert going.cancelled()
    assert not late.opening.is_set()


async def test_device_of_a_mount_that_was_taken_over_of_which_nothing_is_missing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await open_image(node)
    await node.prefetcher.prefetch(image, [], ignore)
    late = LateTransport(node, monkeypatch)
    end = await node.prefetcher.prefetch(image, [], ignore)
    assert end.present == end.total
    assert (late.read, end.fetched) == ([], 0)


async def test_first_byte_that_is_missing_is_read(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await open_image(node)
    (tool,) = [layer.device for layer in image.chain.layers if layer.device_size > 300_000]
    await node.prefetcher.prefetch(image, ["/bin/tool"], ignore)
    blocks = node.transport.sinks[tool].blocks
    blocks.remove(sorted(blocks)[3])
    late = LateTransport(node, monkeypatch)
    await node.prefetcher.prefetch(image, ["/bin/tool"], ignore)
    assert late.read == [(f"{node.root}/mnt/{image.chain.fsid}/bin/tool", 3 * BLOCK_SIZE)]


async def test_hidden_file_of_a_mount_that_was_taken_over_is_left_out(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = await open_image(node)
    caplog.set_level("INFO")
    visible = await node.prefetcher.prefetch(image, ["/*"], ignore)
    base = image.chain.layers[0].device  # its /etc/name is hidden
    late = LateTransport(node, monkeypatch)
    steps: list[Progress] = []
    end = await asyncio.wait_for(node.prefetcher.prefetch(image, [], steps.append), 60)
    assert end == Progress(visible.total, visible.total, 0)
    assert visible.total == sum(layer.device_size for layer in image.chain.layers) - BLOCK_SIZE
    assert steps[-1] == end
    assert late.read == []
    assert (
        f"{image.reference}: what is missing of device {base} cannot be read in it" in caplog.text
    )


async def test_cache_that_cannot_be_read(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    image = await open_image(node)
    LateTransport(node, monkeypatch)

    def fail(_: str) -> None:
        raise OSError(5, "Input/output error", "/cache")

    monkeypatch.setattr(node.transport, "present_on_disk", fail)
    with pytest.raises(StorageError, match=r"^/cache: cannot be read: Input/output error$"):
        await node.prefetcher.prefetch(image, [], ignore)
