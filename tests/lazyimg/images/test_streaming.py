"""Layers without an index are read once, whole; then they are local, and have one."""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import tempfile
from typing import TYPE_CHECKING

import pytest
import zstandard

from lazyimg.errors import CorruptError, NotLazyError, RegistryError, StorageError
from lazyimg.images import indexes, streaming
from lazyimg.images.indexing import IndexMaker
from lazyimg.images.library import LayerClaim
from lazyimg.images.streaming import Stream, Wanted
from lazyimg.registry.ports import Access
from lazyimg_formats.oci.digest import Digest
from tests.fakes.devices import pattern
from tests.fakes.gzip_layer import make_tar
from tests.fakes.lazy_image import make_lazy_layer
from tests.fakes.node import Node, run_node

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
    from pathlib import Path

    from lazyimg.images.image import Image
    from lazyimg_formats.oci.documents import Descriptor

ACCESS = Access()
TARS = [make_tar({f"file{n}": pattern(40_000, n) for n in range(20)}), make_tar({"a": b"b" * 9000})]
BLOBS = [gzip.compress(tar, 1, mtime=0) for tar in TARS]
IMAGE = dict(zip(BLOBS, TARS, strict=True))
DIGESTS = [str(Digest.of(blob)) for blob in BLOBS]
MAKE = IndexMaker.make
"""The real one: a child does it."""


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    async with run_node(tmp_path, monkeypatch) as node:
        node.registry.add_image("app", "1", IMAGE)
        yield node


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch, node: Node) -> None:
    """Have indexes made in a process of its own, as they really are."""
    assert node
    monkeypatch.setattr(IndexMaker, "make", MAKE)


async def open_image(node: Node, reference: str = "") -> Image:
    return await node.images.open(reference or node.reference, "", ACCESS, stream=True)


def sent(node: Node) -> list[int]:
    return [node.registry.sent(f"/blobs/{digest}") for digest in DIGESTS]


def nothing_left(node: Node) -> bool:
    aside = [*(node.root / "content").glob(".*"), *(node.root / "staging").glob(".*")]
    return aside == [] and node.streams.running() == []


async def content(node: Node, image: Image) -> list[bytes]:
    """Mount an image, and give what its devices hold."""
    async with node.mounts.held(image):
        return [bytes(node.transport.sinks[one.device].data) for one in image.chain.layers]


@pytest.mark.usefixtures("child")
async def test_first_use_reads_each_blob_once_and_then_all_is_local(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        image = await open_image(node)
    assert image.streamed == sum(map(len, BLOBS))
    assert f"layer 1 of 2: has no index; its {len(BLOBS[0])} bytes are read" in caplog.text
    assert "layer 2 of 2: is local and has an index of " in caplog.text
    assert sent(node) == [len(blob) for blob in BLOBS]
    async with node.mounts.held(image):
        for record in image.chain.layers:
            assert node.transport.sinks[record.device].has(0, record.device_size)
    progress = await node.prefetcher.prefetch(image, [], lambda _: None)
    assert progress.present == progress.total > 0
    assert progress.fetched == 0
    assert sent(node) == [len(blob) for blob in BLOBS]
    assert (await open_image(node)).streamed == 0
    assert sent(node) == [len(blob) for blob in BLOBS]
    assert list((node.root / "staging").iterdir()) == []
    assert nothing_left(node)


async def test_what_is_removed_from_the_cache_is_fetched_lazily(node: Node) -> None:
    image = await open_image(node)
    first = await content(node, image)
    for sink in node.transport.sinks.values():
        sink.blocks.clear()
        sink.data.clear()
    progress = await node.prefetcher.prefetch(image, [], lambda _: None)
    assert 0 < progress.fetched <= sum(map(len, BLOBS))
    assert await content(node, image) == first


async def test_layer_counts_as_checked(node: Node) -> None:
    await open_image(node)
    own = node.library.find_own_index(DIGESTS[0], str(Digest.of(TARS[0])))
    assert own is not None
    claim = LayerClaim(own.blob, own.diff_id, own.digest.partition(":")[2])
    assert node.library.checked([claim]) == {claim: ""}


async def test_only_layers_without_an_index_are_read(node: Node) -> None:
    await node.indexes.create(node.reference, "", ACCESS)
    node.registry.asked.clear()
    assert (await open_image(node)).streamed == 0
    assert sent(node) == [0, 0]


async def test_index_that_is_gone_is_made_again(node: Node) -> None:
    await open_image(node)
    own = node.library.find_own_index(DIGESTS[1], str(Digest.of(TARS[1])))
    assert own is not None
    (node.root / "content" / own.digest.partition(":")[2]).unlink()
    node.registry.add_image("app", "2", IMAGE)
    image = await open_image(node, f"{node.registry.host}/app:2")
    assert image.streamed == len(BLOBS[1])


async def test_unless_it_is_wanted_nothing_is_read(node: Node) -> None:
    with pytest.raises(NotLazyError, match="layer 1 of 2: a layer of format tar"):
        await node.images.open(node.reference, "", ACCESS)
    assert sent(node) == [0, 0]


async def test_layer_of_no_known_format_is_refused_before_anything_is_read(node: Node) -> None:
    layer = await make_lazy_layer({"a": b"b"})
    foreign = layer.descriptor.__class__(
        media_type="application/vnd.foreign", digest=layer.descriptor.digest, size=5
    )
    with pytest.raises(NotLazyError, match=r"vnd\.foreign cannot be loaded lazily"):
        await _open_with(node, foreign)
    assert sent(node) == [0, 0]


async def _open_with(node: Node, layer: Descriptor) -> None:
    _, source, resolved = await node.images.resolve_in(node.reference, "", ACCESS)
    from lazyimg.images.locating import Sought  # noqa: PLC0415

    layers = (*resolved.manifest.layers, layer)
    sought = Sought("image", resolved.descriptor, layers, (*resolved.config.diff_ids,) * 2)
    await node.images._stream(sought, source, range(3))


@pytest.mark.usefixtures("child")
async def test_zstd_of_one_frame_is_refused_and_not_read_to_its_end(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = make_tar({"noise": os.urandom(24 << 20)})
    blob = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(tar)
    node.registry.add_image("app", "1", {blob: tar})
    counted = []
    count = streaming._count

    async def look(pieces: AsyncIterator[bytes], stream: Stream) -> AsyncGenerator[bytes]:
        async for piece in count(pieces, stream):
            counted.append(len(piece))
            yield piece

    monkeypatch.setattr(streaming, "_count", look)
    with pytest.raises(NotLazyError) as caught:
        await open_image(node)
    assert "no index can be made of it: zstd: a frame of over 16 MiB" in str(caught.value)
    assert "convert the image" in str(caught.value)
    assert sum(counted) < len(blob)
    assert nothing_left(node)


def damaged(node: Node) -> type[Exception]:
    blob = bytearray(BLOBS[0])
    blob[len(blob) // 2] ^= 1
    node.registry.blobs["app"][DIGESTS[0]] = bytes(blob)
    return CorruptError


def another_tar(node: Node) -> type[Exception]:
    node.registry.add_image("app", "1", {BLOBS[0]: TARS[1]})
    return NotLazyError


def cut_off(node: Node) -> type[Exception]:
    node.registry.fail("half", path=DIGESTS[0], times=100)
    return RegistryError


def away(node: Node) -> type[Exception]:
    node.registry.fail("status", status=500, times=100, path=f"/blobs/{DIGESTS[0]}")
    return RegistryError


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize("wrong", [damaged, another_tar, cut_off, away])
async def test_nothing_is_left_of_what_is_wrong(
    node: Node, wrong: Callable[[Node], type[Exception]]
) -> None:
    kind = wrong(node)
    with pytest.raises(kind):
        await open_image(node)
    assert nothing_left(node)
    assert node.library.find_own_index(DIGESTS[0], str(Digest.of(TARS[0]))) is None
    node.registry.faults.clear()
    node.registry.add_image("app", "1", IMAGE)
    node.registry.blobs["app"][DIGESTS[0]] = BLOBS[0]
    image = await open_image(node)
    async with node.mounts.held(image):
        record = image.chain.layers[0]
        assert node.transport.sinks[record.device].has(0, record.device_size)


async def test_disk_that_is_full(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = node.transport.staged
    with monkeypatch.context() as patch:
        patch.setattr(staged, "shortage", lambda: StorageError("cache", "is full"))
        with pytest.raises(StorageError, match=r"^cache: is full"):
            await open_image(node)
    assert sent(node) == [0, 0]

    def fail() -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(staged, "shortage", fail)
        with pytest.raises(StorageError, match="the cache cannot be looked at: Input/output error"):
            await open_image(node)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", lambda **_: fail())
        with pytest.raises(StorageError, match="cannot be written: Input/output error"):
            await open_image(node)
    with monkeypatch.context() as patch:
        patch.setattr(indexes, "sync_directory", lambda _: fail())
        with pytest.raises(StorageError, match="cannot be written: Input/output error"):
            await open_image(node)
    assert nothing_left(node)


@pytest.mark.usefixtures("child")
async def test_disk_that_becomes_full(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.transport.staged, "reserve", lambda: 1 << 60)
    with pytest.raises(StorageError, match="No space left on device"):
        await open_image(node)
    assert nothing_left(node)


class Held:
    """Blobs that come only when the test says so."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.most = 0
        count = streaming._count

        async def hold(pieces: AsyncIterator[bytes], stream: Stream) -> AsyncGenerator[bytes]:
            async for piece in count(pieces, stream):
                self.most = max(self.most, sum(one.done > 0 for one in node.streams.running()))
                self.begun.set()
                await self.gate.wait()
                yield piece

        monkeypatch.setattr(streaming, "_count", hold)


@pytest.fixture
def held(node: Node, monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(node, monkeypatch)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.001)


def waiters(node: Node) -> Sequence[int]:
    return [one.waiters for one in node.streams.running()]


async def test_two_callers_at_once_share_a_stream(node: Node, held: Held) -> None:
    opening = [asyncio.create_task(open_image(node)) for _ in range(2)]
    await wait_until(lambda: waiters(node) == [2, 2])
    held.gate.set()
    first, second = await asyncio.gather(*opening)
    assert first == second
    assert sent(node) == [len(blob) for blob in BLOBS]


async def test_one_of_two_callers_goes_away(node: Node, held: Held) -> None:
    opening = [asyncio.create_task(open_image(node)) for _ in range(2)]
    await wait_until(lambda: waiters(node) == [2, 2])
    opening[0].cancel()
    await asyncio.wait([opening[0]])
    assert waiters(node) == [1, 1]
    held.gate.set()
    await opening[1]
    assert sent(node) == [len(blob) for blob in BLOBS]


@pytest.mark.usefixtures("child")
async def test_stream_that_nobody_waits_for_is_given_up(node: Node, held: Held) -> None:
    opening = asyncio.create_task(open_image(node))
    await asyncio.wait_for(held.begun.wait(), 60)
    opening.cancel()
    await asyncio.wait([opening])
    assert nothing_left(node)
    held.gate.set()
    await open_image(node)


async def test_failure_of_one_caller_is_not_the_others(node: Node, held: Held) -> None:
    """They may have other credentials, or another registry."""
    _, source, resolved = await node.images.resolve_in(node.reference, "", ACCESS)
    layer, diff_id = resolved.manifest.layers[0], str(resolved.config.diff_ids[0])

    class Away:
        async def stream_blob(self, _: object) -> AsyncIterator[bytes]:
            yield BLOBS[0][:100]
            raise RegistryError("away", "is away")

    wrong = Wanted("first", Away(), layer, diff_id)  # type: ignore[arg-type]
    opening = [
        asyncio.create_task(node.streams.read([one]))
        for one in (wrong, Wanted("second", source, layer, diff_id))
    ]
    await wait_until(lambda: waiters(node) == [2])
    held.gate.set()
    with pytest.raises(RegistryError, match=r"^away: is away"):
        await opening[0]
    await opening[1]
    assert sent(node)[0] == len(BLOBS[0])


async def test_few_layers_at_a_time(
    node: Node, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.streams, "_turns", asyncio.Semaphore(1))
    opening = asyncio.create_task(open_image(node))
    await asyncio.wait_for(held.begun.wait(), 60)
    assert len(node.streams.running()) == 2
    held.gate.set()
    await opening
    assert held.most == 1


async def test_same_layer_twice_in_an_image(node: Node) -> None:
    _, source, resolved = await node.images.resolve_in(node.reference, "", ACCESS)
    wanted = Wanted("x", source, resolved.manifest.layers[0], str(resolved.config.diff_ids[0]))
    await node.streams.read([wanted, wanted])
    await node.streams.read([wanted])
    assert sent(node)[0] == len(BLOBS[0])


async def test_layer_without_data(node: Node) -> None:
    tar = make_tar({"etc/.wh.old": b"", "empty": b""})
    node.registry.add_image("app", "1", {gzip.compress(tar, mtime=0): tar})
    image = await open_image(node)
    assert image.chain.layers[0].device_size == 0
    assert nothing_left(node)
    assert list((node.root / "staging").iterdir()) == []
