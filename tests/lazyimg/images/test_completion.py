"""Completion: what is fetched, filled and found out; the checks run in real children."""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import pytest

from lazyimg.errors import CorruptError, NotFoundError, RegistryError, StorageError
from lazyimg.images import completion
from lazyimg.images.completion import NODE, Completer, Lie, Pace
from lazyimg.images.library import LayerClaim
from lazyimg.layers.indexer import LayerIndexer
from lazyimg.limits import BuildLimits
from lazyimg.registry.resolve import local_platform
from lazyimg.registry.turns import URGENCY
from lazyimg_formats.device_table import BLOCK_SIZE
from lazyimg_formats.zstd_chunked.writer import serialize_tail
from tests.fakes.devices import pattern
from tests.fakes.gzip_layer import make_tar
from tests.fakes.lazy_image import LazyLayer, add_lazy_image, lying_layer, make_lazy_layer
from tests.fakes.node import Node, run_node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.images.image import Image

NOISE = os.urandom(300_000)
BASE = {"etc/name": b"lazyimg\n", "bin/tool": NOISE, "lib/x": b"x" * 5000, "lib/empty": b""}
TOP = {"etc/name": b"other\n", "var/data": NOISE[:100_000], "var/zeros": bytes(9000)}
PLANTED = {**BASE, "etc/name": b"planted!"}


@pytest.fixture(scope="module")
def layers() -> list[LazyLayer]:
    return [asyncio.run(make_lazy_layer(files)) for files in (BASE, TOP)]


@pytest.fixture(scope="module")
def liar(layers: list[LazyLayer]) -> LazyLayer:
    """A layer that unpacks to the lower one, and is read as another."""
    return lying_layer(layers[0], asyncio.run(make_lazy_layer(PLANTED)))


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setattr(completion, "PIECE", 20_000)
    async with run_node(tmp_path, monkeypatch) as node:
        yield node


def completer_of(node: Node, limits: BuildLimits | None = None) -> Completer:
    return Completer(
        images=node.images,
        mounts=node.mounts,
        prefetcher=node.prefetcher,
        catalog=node.catalog,
        engine=node.engine,
        presence=node.transport,
        library=node.library,
        limits=limits or BuildLimits(),
        rate=1 << 40,
    )


def add(node: Node, layers: list[LazyLayer], tag: str = "1") -> str:
    manifest = add_lazy_image(node.registry, "app", tag, layers)
    return f"{node.registry.host}/app@{manifest.digest}"


async def complete(node: Node, reference: str, depth: int = 2) -> Lie | None:
    return await completer_of(node).complete(reference, str(local_platform()), depth)


async def opened(node: Node, reference: str, depth: int = 2) -> Image:
    return await node.images.open(reference, "", NODE, depth)


def blob_reads(node: Node, layer: LazyLayer) -> int:
    """Give the bytes of a layer's blob that were sent, but for those of its index."""
    return node.registry.sent(f"/blobs/{layer.descriptor.digest}") - layer.toc.length


async def test_image_is_local_and_each_blob_was_sent_once(
    node: Node, layers: list[LazyLayer]
) -> None:
    reference = add(node, layers)
    completer = completer_of(node)
    assert await completer.complete(reference, "", 2) is None
    image = await opened(node, reference)
    for layer, record in zip(layers, image.chain.layers, strict=True):
        assert node.transport.sinks[record.device].has(0, record.device_size)
        assert blob_reads(node, layer) == len(layer.blob)
    counters = completer.counters
    assert (counters.layers, counters.lies) == (2, 0)
    assert counters.fetched == sum(len(layer.blob) for layer in layers)
    assert node.host.table == []


async def test_verified_layers_are_not_asked_for_again(node: Node, layers: list[LazyLayer]) -> None:
    await complete(node, add(node, layers[:1]), 1)
    sent = node.registry.sent(str(layers[0].descriptor.digest))
    assert await complete(node, add(node, layers, "2")) is None
    assert node.registry.sent(str(layers[0].descriptor.digest)) == sent
    assert blob_reads(node, layers[1]) == len(layers[1].blob)


async def test_what_is_present_is_not_written_again(node: Node, layers: list[LazyLayer]) -> None:
    reference = add(node, layers)
    image = await opened(node, reference)
    await node.prefetcher.prefetch(image, ["/bin/tool"], lambda _: None)
    sink = node.transport.sinks[image.chain.layers[0].device]
    before = list(sink.writes)
    assert await complete(node, reference) is None
    assert sink.has(0, image.chain.layers[0].device_size)
    written = sum(length for _, length in sink.writes[len(before) :])
    assert written < 50_000 < sum(length for _, length in before)


class Stream(NamedTuple):
    """An image of one layer as most are; this node has made the index."""

    reference: str
    blob: bytes
    image: Image


@pytest.fixture
async def stream(node: Node, monkeypatch: pytest.MonkeyPatch) -> Stream:
    """12 spans and no more: whatever is read, is read of them."""
    monkeypatch.setattr(LayerIndexer.__init__, "__defaults__", (50_000,))
    tar = make_tar({f"f{number}": NOISE[number * 40_000 :][:60_000] for number in range(7)})
    blob = gzip.compress(tar, 1, mtime=0)
    digest = node.registry.add_image("app", "1", {blob: tar}).digest
    reference = f"{node.registry.host}/app@{digest}"
    await node.indexes.create(reference, "", NODE)
    node.registry.asked.clear()
    return Stream(reference, blob, await opened(node, reference, 1))


async def test_layer_that_was_indexed_here_is_local_and_was_sent_once(
    node: Node, stream: Stream
) -> None:
    completer = completer_of(node)
    assert await completer.complete(stream.reference, "", 1) is None
    (record,) = stream.image.chain.layers
    assert node.transport.sinks[record.device].has(0, record.device_size)
    sent = node.registry.sent(record.blob)
    assert len(stream.blob) - 1000 < sent <= len(stream.blob)  # the tar's end has no file
    assert completer.counters.fetched == sent
    assert completer.counters.layers == 0
    assert await completer.complete(stream.reference, "", 1) is None
    assert node.registry.sent(record.blob) == sent


async def test_only_what_is_missing_of_it_is_read(node: Node, stream: Stream) -> None:
    (record,) = stream.image.chain.layers
    await node.prefetcher.prefetch(stream.image, ["/f2", "/f3"], lambda _: None)
    before = node.registry.sent(record.blob)
    assert 100_000 < before < 300_000
    assert await complete(node, stream.reference, 1) is None
    assert node.transport.sinks[record.device].has(0, record.device_size)
    # What begins in a missing span, or ends there, is read again.
    assert node.registry.sent(record.blob) <= len(stream.blob) + 2 * 60_000


async def test_nothing_but_zeros_is_missing(node: Node, layers: list[LazyLayer]) -> None:
    reference = add(node, layers[1:])
    await complete(node, reference, 1)
    (record,) = (await opened(node, reference, 1)).chain.layers
    sink, sent = node.transport.sinks[record.device], blob_reads(node, layers[1])
    table = node.catalog.load_table(record.device, record.table)
    blocks = range(record.device_size // BLOCK_SIZE)
    zeros = [block for block in blocks if not table.spans_in(block * BLOCK_SIZE, BLOCK_SIZE)]
    assert len(zeros) == 3
    sink.blocks.difference_update(zeros)
    assert await complete(node, reference, 1) is None
    assert sink.has(0, record.device_size)
    assert blob_reads(node, layers[1]) == sent


async def test_part_of_an_image(node: Node, layers: list[LazyLayer]) -> None:
    assert await complete(node, add(node, layers), 1) is None
    assert blob_reads(node, layers[1]) < 0


async def test_image_whose_index_lies(node: Node, layers: list[LazyLayer], liar: LazyLayer) -> None:
    reference = add(node, [liar, layers[1]])
    problem = "index: b'etc/name', before byte 8: not the bytes of its tar"
    completer = completer_of(node)
    lie = await completer.complete(reference, "", 2)
    assert lie == Lie(1, f"layer 1 of 2, {liar.descriptor.digest}: {problem}")
    assert (completer.counters.layers, completer.counters.lies) == (0, 1)
    before = node.registry.sent()
    assert await complete(node, reference) == lie
    assert node.registry.sent() == before
    claim = LayerClaim(
        str(liar.descriptor.digest),
        str(liar.diff_id),
        liar.toc.digest.hex if liar.toc.digest else "",
    )
    assert node.library.checked([claim]) == {claim: problem}
    assert await complete(node, add(node, layers, "honest")) is None
    assert node.host.table == []


async def test_lie_in_an_upper_layer(node: Node, layers: list[LazyLayer], liar: LazyLayer) -> None:
    lie = await complete(node, add(node, [layers[1], liar]))
    assert lie is not None
    assert lie.number == 2
    assert lie.problem.startswith("layer 2 of 2, sha256:")


async def test_index_that_points_nowhere(node: Node) -> None:
    """The digests are those of the tar, but the bytes are not where they are said to be."""
    honest = await make_lazy_layer({"f": pattern(50_000, 1)})
    document = msgspec.json.decode(honest.toc.decode(honest.index))
    document["entries"][0]["offset"] -= 1
    data = honest.blob[: honest.toc.data_end]
    tail, toc = serialize_tail(msgspec.json.encode(document), len(data), 1)
    lie = await complete(
        node, add(node, [LazyLayer(b"".join((data, *tail)), honest.diff_id, toc)]), 1
    )
    assert lie is not None
    assert "of its blob: does not decode as ZSTD: " in lie.problem


async def test_bytes_that_changed_on_their_way_are_no_lie(
    node: Node, layers: list[LazyLayer]
) -> None:
    reference = add(node, layers[:1])
    await opened(node, reference, 1)
    digest = str(layers[0].descriptor.digest)
    blob = bytearray(layers[0].blob)
    blob[len(blob) // 2] ^= 1
    node.registry.blobs["app"][digest] = bytes(blob)
    with pytest.raises(CorruptError, match="its blob came as "):
        await complete(node, reference, 1)
    node.registry.blobs["app"][digest] = layers[0].blob
    assert await complete(node, reference, 1) is None


async def test_registry_that_fails_and_a_new_try(node: Node, layers: list[LazyLayer]) -> None:
    reference = add(node, layers)
    await opened(node, reference)
    node.registry.fail("status", status=500, times=100, path="/blobs/")
    with pytest.raises(RegistryError):
        await complete(node, reference)
    assert node.host.table == []
    node.registry.faults.clear()
    assert await complete(node, reference) is None


async def test_check_that_meets_its_limits_is_made_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = await make_lazy_layer({f"directory/{n}": b"x" * n for n in range(2000)})
    reference = add(node, [layer])
    await opened(node, reference, 1)
    completer = completer_of(node, limits=BuildLimits(memory=16 << 20))
    lie = await completer.complete(reference, "", 1)
    assert lie is not None
    assert lie.problem.endswith("takes over 16 MiB of memory to check (build.memory)")
    assert await complete(node, reference, 1) is None


async def test_layer_without_data(node: Node) -> None:
    layer = await make_lazy_layer({"etc/.wh.old": b"", "empty": b""})
    assert await complete(node, add(node, [layer]), 1) is None
    assert node.transport.sinks == {}


async def test_device_that_is_open_nowhere_is_checked(
    node: Node, layers: list[LazyLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def open_nothing(*_: object) -> None:
        pass

    monkeypatch.setattr(node.prefetcher, "open_device", open_nothing)
    assert await complete(node, add(node, layers)) is None
    assert node.transport.sinks == {}


async def test_blob_is_asked_for_behind_everybody_else(
    node: Node, layers: list[LazyLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    wait = Completer._wait_for_room

    async def look(self: Completer) -> None:
        urgent = URGENCY.get()
        seen.add(urgent.priority if urgent else 0)
        await wait(self)

    monkeypatch.setattr(Completer, "_wait_for_room", look)
    await complete(node, add(node, layers))
    assert seen == {3}


async def test_cache_without_room(
    node: Node, layers: list[LazyLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, waits = add(node, layers[:1]), []
    completer = completer_of(node)

    async def sleep(seconds: float) -> None:
        if seconds == completion.TIGHT_WAIT:
            waits.append(completer.tight)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    node.transport.tight = [False, True, True]
    assert await completer.complete(reference, "", 1) is None
    assert (waits, completer.tight) == ([True, True], False)
    node.transport.tight = [OSError(errno.EIO, "Input/output error")]
    with pytest.raises(StorageError, match=r"^cache: cannot be looked at: Input/output error$"):
        await complete(node, add(node, [await make_lazy_layer(TOP)], "2"), 1)


async def test_readers_go_first(
    node: Node, layers: list[LazyLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = []
    reference = add(node, layers[:1])

    async def sleep(seconds: float) -> None:
        if seconds == completion.QUIET:
            pauses.append(seconds)
        if len(pauses) < 4:
            node.engine.counters.reads += 1

    node.engine.counters.reads += 1
    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert await complete(node, reference, 1) is None
    assert len(pauses) == 4


def test_pace() -> None:
    now = 100.0
    pace = Pace(1000, lambda: now)
    assert [pace.take(500), pace.take(2000), pace.take(1)] == [0, 0.5, 2.5]
    now += 60
    assert pace.take(1000) == 0


async def test_window_has_what_came_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "MAX_WINDOW", 25)
    window = completion._Window("x")
    data = bytes(range(60))
    with pytest.raises(NotFoundError):
        await window.read(0, 1)
    for at in range(0, 30, 10):
        window.add(data[at : at + 10])
    assert await window.read(5, 20) == data[5:25]
    with pytest.raises(NotFoundError, match=r"^device x: its blob has not come that far$"):
        await window.read(25, 6)
    window.drop(10)
    assert await window.read(10, 20) == data[10:30]
    with pytest.raises(NotFoundError):
        await window.read(9, 2)
    window.add(data[30:40])
    window.add(data[40:50])  # more than it keeps
    with pytest.raises(NotFoundError):
        await window.read(19, 2)
    assert await window.read(20, 30) == data[20:50]
    window.drop(50)
    assert (window.peek(0, 1), window.release(), window.distrust(0, 1)) == (None, None, False)  # type: ignore[func-returns-value]
