"""What the kernel may ask for by name: with a real engine, real records and real files."""

from __future__ import annotations

import asyncio
import hashlib
import os
import weakref
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import (
    CorruptError,
    KernelError,
    LazyimgError,
    NotFoundError,
    RegistryError,
    StorageError,
)
from lazyimg.fill.engine import Engine
from lazyimg.images.catalog import MAX_STRAYS, Catalog
from lazyimg.images.library import (
    ChainRecord,
    ImageRecord,
    LayerRecord,
    Library,
    SourceRecord,
)
from lazyimg.images.shown import ShownAccess
from lazyimg.limits import FillLimits
from lazyimg.registry.ports import Access
from lazyimg_formats.device_table import BLOCK_SIZE
from tests.fakes.devices import Device, MemoryBlob, MemorySink, aligned_device
from tests.real.measured import run_measured

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BOOTSTRAP = b"bootstrap" * 1000
FSID = hashlib.sha256(BOOTSTRAP).hexdigest()
MIRROR = "reg.test/mirror"
APP = "reg.test/app"


class Presence:
    """A transport that is asked what is present.

    Attributes:
        ranges: what it says.
        asked: names it was asked for.
        error: raised instead.
    """

    def __init__(self) -> None:
        self.ranges: list[range] | None = []
        self.asked: list[str] = []
        self.error: Exception | None = None

    def present(self, cookie: str) -> list[range] | None:
        self.asked.append(cookie)
        if self.error is not None:
            raise self.error
        return self.ranges


class Node:
    """A catalog with all that is around it, in a directory; `device` is recorded in `APP`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("bootstraps", "tables"):
            (root / name).mkdir()
        self.library = Library(root / "library.sqlite")
        self.engine = Engine(limits=FillLimits())
        self.device: Device = aligned_device(6)
        self.blobs: dict[str, MemoryBlob] = {}
        self.opened: list[tuple[str, Access | None]] = []
        self.away: set[str] = set()
        self.shown = ShownAccess()
        self.catalog = Catalog(root, self.library, self.engine, self.open_blob, self.shown)
        (root / "bootstraps" / FSID).write_bytes(BOOTSTRAP)
        (root / "tables" / "table").write_bytes(self.device.table.data)
        size = len(self.device.content)
        self.layer = LayerRecord("sha256:aa", 1, "type", "form", "table", self.device.name, size)
        self.chain = ChainRecord("key", FSID, len(BOOTSTRAP), [self.layer])
        self.library.add_chain(self.chain)
        self.record(source(APP))

    def record(self, *sources: SourceRecord) -> None:
        image = ImageRecord("reg.test/app:1", "linux/amd64", "sha256:mm", "key")
        self.library.add_image(image, [(self.device.name, one) for one in sources])

    async def open_blob(self, record: SourceRecord, access: Access | None) -> MemoryBlob:
        self.opened.append((record.repository, access))
        if record.repository in self.away:
            raise NotFoundError(record.repository, "is gone")
        blob = MemoryBlob(self.device.blob)
        self.blobs[record.repository] = blob
        return blob

    async def fill(self, sink: MemorySink, offset: int = 0, length: int = BLOCK_SIZE) -> None:
        await self.catalog.fill(self.device.name, offset, length, sink)


def source(repository: str, table: str = "table") -> SourceRecord:
    return SourceRecord(repository, "sha256:aa", 1, table, b"{}")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    node.catalog.load()
    yield node
    await node.engine.close()
    node.library.close()
    node.shown.close()


def test_nothing_is_known_before_it_is_loaded(tmp_path: Path) -> None:
    node = Node(tmp_path)
    assert node.catalog.size(FSID) is None
    node.catalog.load()
    assert node.catalog.size(FSID) == len(BOOTSTRAP)
    assert node.catalog.size(node.device.name) == len(node.device.content)
    assert node.catalog.size("0" * 64) is None
    node.library.close()
    node.shown.close()


async def test_image_that_was_just_made(node: Node) -> None:
    layers = [
        LayerRecord("sha256:bb", 1, "type", "form", "table", "new", 8192),
        LayerRecord("sha256:cc", 1, "type", "form", "table", "empty", 0),
    ]
    node.catalog.add(ChainRecord("other", "e" * 64, 4096, layers))
    assert node.catalog.size("e" * 64) == 4096
    assert node.catalog.size("new") == 8192
    assert node.catalog.size("empty") is None


def read_local(node: Node, offset: int) -> bytes | None:
    buffer = memoryview(bytearray(BLOCK_SIZE))
    size = node.catalog.read_local(FSID, offset, BLOCK_SIZE, buffer)
    return None if size is None else bytes(buffer[:size])


async def test_bootstrap_is_local_after_its_first_fill(node: Node) -> None:
    assert read_local(node, 0) is None
    sink = MemorySink()
    await node.catalog.fill(FSID, 0, BLOCK_SIZE, sink)
    assert bytes(sink.data) == BOOTSTRAP[:BLOCK_SIZE]
    assert read_local(node, BLOCK_SIZE) == BOOTSTRAP[BLOCK_SIZE : 2 * BLOCK_SIZE]


async def test_bootstraps_end(node: Node) -> None:
    sink = MemorySink()
    await node.catalog.fill(FSID, 0, 4 * BLOCK_SIZE, sink)
    assert bytes(sink.data) == BOOTSTRAP.ljust(4 * BLOCK_SIZE, b"\0")
    again = MemorySink()
    await node.catalog.fill(FSID, 2 * BLOCK_SIZE, BLOCK_SIZE, again)
    assert bytes(again.data[2 * BLOCK_SIZE :]) == BOOTSTRAP[2 * BLOCK_SIZE :].ljust(4096, b"\0")
    assert read_local(node, 2 * BLOCK_SIZE) == BOOTSTRAP[2 * BLOCK_SIZE :]
    assert read_local(node, 8 * BLOCK_SIZE) == b""


async def test_large_bootstrap_is_written_in_pieces(node: Node) -> None:
    data = bytes(range(256)) * 12_000
    fsid = hashlib.sha256(data).hexdigest()
    (node.root / "bootstraps" / fsid).write_bytes(data)
    node.catalog.add(ChainRecord("other", fsid, len(data), []))
    sink = MemorySink()
    length = -(-len(data) // BLOCK_SIZE) * BLOCK_SIZE
    await node.catalog.fill(fsid, 0, length, sink)
    assert bytes(sink.data) == data.ljust(length, b"\0")
    assert [write[1] for write in sink.writes] == [1 << 20, 1 << 20, length - (2 << 20)]


async def test_bootstrap_with_other_bytes_than_its_name_says(node: Node) -> None:
    path = node.root / "bootstraps" / FSID
    path.write_bytes(BOOTSTRAP[:-1] + b"!")
    sink = MemorySink()
    with pytest.raises(CorruptError) as caught:
        await node.catalog.fill(FSID, 0, BLOCK_SIZE, sink)
    assert str(caught.value) == f"{path}: its bytes are not those of its name; remove it"
    assert sink.writes == []
    assert read_local(node, 0) is None
    path.write_bytes(BOOTSTRAP)
    await node.catalog.fill(FSID, 0, BLOCK_SIZE, sink)
    assert sink.has(0, BLOCK_SIZE)


async def test_bootstrap_that_is_missing(node: Node) -> None:
    path = node.root / "bootstraps" / FSID
    path.unlink()
    with pytest.raises(StorageError) as caught:
        await node.catalog.fill(FSID, 0, BLOCK_SIZE, MemorySink())
    assert (
        str(caught.value)
        == f"{path}: cannot be read: No such file or directory; mount the image again"
    )


async def test_bootstrap_that_is_empty(node: Node) -> None:
    (node.root / "bootstraps" / FSID).write_bytes(b"")
    with pytest.raises(CorruptError, match="its bytes are not those of its name"):
        await node.catalog.fill(FSID, 0, BLOCK_SIZE, MemorySink())


async def test_bootstrap_that_is_cut_off(node: Node) -> None:
    path = node.root / "bootstraps" / FSID
    await node.catalog.fill(FSID, 0, BLOCK_SIZE, MemorySink())
    path.write_bytes(BOOTSTRAP[: BLOCK_SIZE + 1])
    assert read_local(node, 0) == BOOTSTRAP[:BLOCK_SIZE]
    assert read_local(node, BLOCK_SIZE) is None
    sink = MemorySink()
    with pytest.raises(CorruptError, match="its bytes are not those of its name"):
        await node.catalog.fill(FSID, BLOCK_SIZE, BLOCK_SIZE, sink)
    assert sink.writes == []


async def test_bootstrap_that_goes_away_and_comes_back(node: Node) -> None:
    path = node.root / "bootstraps" / FSID
    await node.catalog.fill(FSID, 0, BLOCK_SIZE, MemorySink())
    path.unlink()
    assert read_local(node, 0) is None
    with pytest.raises(StorageError, match="cannot be read: No such file or directory"):
        await node.catalog.fill(FSID, 0, BLOCK_SIZE, MemorySink())
    path.write_bytes(BOOTSTRAP)
    sink = MemorySink()
    await node.catalog.fill(FSID, 0, BLOCK_SIZE, sink)
    assert sink.has(0, BLOCK_SIZE)


async def test_device_is_filled_from_its_source(node: Node) -> None:
    sink = MemorySink()
    await node.fill(sink, 0, len(node.device.content))
    assert bytes(sink.data) == node.device.content
    assert node.opened == [(APP, None)]


async def test_device_is_opened_once_for_many_fills(node: Node) -> None:
    sink = MemorySink()
    await asyncio.gather(*(node.fill(sink, number * BLOCK_SIZE) for number in range(12)))
    await node.fill(sink)
    assert sink.agrees(node.device.content)
    assert sink.has(0, len(node.device.content))
    assert node.opened == [(APP, None)]


async def test_device_nobody_knows(node: Node) -> None:
    with pytest.raises(NotFoundError) as caught:
        await node.catalog.fill("0" * 64, 0, BLOCK_SIZE, MemorySink())
    assert str(caught.value) == f"device {'0' * 64}: no image that is known here has it"


async def test_caller_that_goes_does_not_disturb_the_opening_for_others(node: Node) -> None:
    one = asyncio.create_task(node.catalog.device(node.device.name))
    other = asyncio.create_task(node.catalog.device(node.device.name))
    await asyncio.sleep(0)
    one.cancel()
    assert (await other).name == node.device.name
    assert one.cancelled()


async def test_table_that_is_missing_is_tried_again(node: Node) -> None:
    path = node.root / "tables" / "table"
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(StorageError) as caught:
        await node.fill(MemorySink())
    assert str(caught.value) == (
        f"{path}: cannot be used: No such file or directory; mount the image again"
    )
    path.write_bytes(data)
    await node.fill(MemorySink())


async def test_table_of_another_device(node: Node) -> None:
    path = node.root / "tables" / "table"
    path.write_bytes(aligned_device(3).table.data)
    with pytest.raises(CorruptError, match=r"cannot be used: .*; mount the image again"):
        await node.fill(MemorySink())


async def test_empty_table(node: Node) -> None:
    (node.root / "tables" / "table").write_bytes(b"")
    with pytest.raises(CorruptError, match=r"cannot be used: .*0 bytes are less than a header"):
        await node.fill(MemorySink())


def fill_behind_a_table_that_is_cut(root: Path) -> bool:
    """Open a device, cut its table's file, fill; it has a process of its own, which may die."""

    async def run() -> bool:
        node = Node(root)
        await node.catalog.device(node.device.name)
        os.truncate(root / "tables" / "table", 0)
        sink = MemorySink()
        await node.fill(sink)
        await node.engine.close()
        return sink.agrees(node.device.content) and sink.has(0, BLOCK_SIZE)

    return asyncio.run(run())


async def test_table_that_is_cut_while_it_is_used(tmp_path: Path) -> None:
    taken = await run_measured(fill_behind_a_table_that_is_cut, tmp_path)
    assert taken.result is True, taken.error


async def test_sources_that_are_gone_are_not_logged_each_time(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.away.add(APP)
    for _ in range(5):
        with pytest.raises(NotFoundError):
            await node.fill(MemorySink())
    assert len(caplog.records) == 1


async def test_one_of_two_sources_is_gone(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.record(source(MIRROR))
    node.away.add(APP)
    sink = MemorySink()
    await node.fill(sink)
    assert sink.agrees(node.device.content)
    assert f"device {node.device.name} is not filled from {APP}: {APP}: is gone" in caplog.text


async def test_all_sources_are_gone(node: Node) -> None:
    node.away.add(APP)
    with pytest.raises(NotFoundError, match=f"{APP}: is gone"):
        await node.fill(MemorySink())


async def test_further_source_of_an_open_device_is_asked_first(node: Node) -> None:
    await node.catalog.device(node.device.name)
    await node.catalog.add_source(node.device.name, source(MIRROR), Access())
    await node.fill(MemorySink())
    assert node.blobs[MIRROR].reads
    assert not node.blobs[APP].reads


async def test_source_that_is_asked_first_is_away(node: Node) -> None:
    await node.catalog.device(node.device.name)
    await node.catalog.add_source(node.device.name, source(MIRROR), Access())

    def broken(_offset: int, _length: int) -> None:
        raise RegistryError(MIRROR, "is away")

    node.blobs[MIRROR].fault = broken
    sink = MemorySink()
    await node.fill(sink)
    assert node.blobs[APP].reads
    assert sink.agrees(node.device.content)


async def test_source_that_is_added_again_replaces_itself(node: Node) -> None:
    await node.catalog.device(node.device.name)
    first = node.blobs[APP]
    for _ in range(3):
        await node.catalog.add_source(node.device.name, source(APP), Access())
    await node.fill(MemorySink())
    assert not first.reads
    assert node.blobs[APP].reads
    node.engine.remove_device(node.device.name)
    with pytest.raises(NotFoundError):  # it was the only one
        node.engine.remove_device(node.device.name)


async def test_source_of_a_device_that_is_not_open_is_only_recorded(node: Node) -> None:
    await node.catalog.add_source(node.device.name, source(APP), Access())
    assert node.opened == []


async def test_name_and_password_serve_later_fills_until_others_do(node: Node) -> None:
    access = Access(username="u", password="p")
    await node.catalog.add_source(node.device.name, source(APP), access)
    await node.catalog.device(node.device.name)
    assert node.opened == [(APP, access)]
    await node.catalog.add_source(node.device.name, source(APP), Access())
    assert node.opened[1:] == [(APP, None)]


async def test_engine_is_told_once_for_each_opening_what_is_present(node: Node) -> None:
    presence = Presence()
    presence.ranges = [range(2 * BLOCK_SIZE, 10 * BLOCK_SIZE)]
    node.catalog.use(presence)
    first, second = MemorySink(), MemorySink()
    await node.fill(first)
    assert first.blocks == {0, 1}  # the fill was not widened to what is there
    await node.fill(first, 10 * BLOCK_SIZE)
    assert first.blocks == {0, 1, 10, 11}
    assert presence.asked == [node.device.name]
    await node.fill(second)
    assert presence.asked == [node.device.name] * 2


async def test_device_that_is_not_open_in_the_kernel_has_nothing(node: Node) -> None:
    presence = Presence()
    presence.ranges = None
    node.catalog.use(presence)
    sink = MemorySink()
    await node.fill(sink)
    assert sink.blocks == set(range(12))


async def test_what_is_present_cannot_be_learned(node: Node) -> None:
    presence = Presence()
    presence.error = KernelError("device", "the kernel has closed this object meanwhile")
    node.catalog.use(presence)
    sink = MemorySink()
    await node.fill(sink)
    assert sink.agrees(node.device.content)
    assert sink.has(0, BLOCK_SIZE)


async def test_blobs_are_told_when_nobody_reads_them_any_more(node: Node) -> None:
    await node.fill(MemorySink())
    for _ in range(2):
        node.catalog.readers.begin("reg.test/app:1", node.chain)
    node.catalog.readers.end("reg.test/app:1", node.chain)
    assert node.blobs[APP].released == 0
    node.catalog.readers.end("reg.test/app:1", node.chain)
    assert node.blobs[APP].released == 1


def begin(node: Node) -> None:
    node.catalog.readers.begin("reg.test/app:1", node.chain)


def end(node: Node) -> None:
    node.catalog.readers.end("reg.test/app:1", node.chain)


async def test_device_that_no_mounted_image_has_is_given_up(node: Node) -> None:
    """So that a daemon does not get larger with each image that was ever mounted."""
    name = node.device.name
    sink = MemorySink()
    begin(node)
    await node.fill(sink)
    held: list[weakref.ref[object]] = [weakref.ref(sink), weakref.ref(node.blobs.pop(APP))]
    del sink
    end(node)
    await asyncio.sleep(0)
    assert node.engine.size(name) is None
    assert node.catalog.size(name) == len(node.device.content)  # the kernel may open it again
    begin(node)
    again = MemorySink()
    await node.fill(again)
    assert again.agrees(node.device.content)
    assert node.opened == [(APP, None)] * 2
    await node.engine.close()  # its threads hold what they worked on last
    assert [one() for one in held] == [None, None]


async def test_device_that_is_given_up_while_it_is_opened(node: Node) -> None:
    begin(node)
    opening = asyncio.create_task(node.catalog.device(node.device.name))
    await asyncio.sleep(0)
    end(node)
    assert (await opening).name == node.device.name
    await asyncio.sleep(0)
    assert node.engine.size(node.device.name) is None
    assert node.blobs[APP].released == 1


async def test_device_that_is_wanted_again_while_it_is_opened(node: Node) -> None:
    begin(node)
    opening = asyncio.create_task(node.catalog.device(node.device.name))
    await asyncio.sleep(0)
    end(node)
    begin(node)
    await opening
    await asyncio.sleep(0)
    assert node.engine.size(node.device.name) == len(node.device.content)


async def test_source_of_a_device_that_is_given_up_meanwhile(node: Node) -> None:
    begin(node)
    await node.fill(MemorySink())
    adding = asyncio.create_task(
        node.catalog.add_source(node.device.name, source(MIRROR), Access())
    )
    await asyncio.sleep(0)
    end(node)
    await adding
    assert node.engine.size(node.device.name) is None
    assert node.blobs[MIRROR].released == 1


async def test_devices_of_mounts_by_hand_are_kept_up_to_a_number(node: Node) -> None:
    devices = [aligned_device(1 + number) for number in range(MAX_STRAYS + 2)]
    layers = []
    for device in devices:
        (node.root / "tables" / device.name).write_bytes(device.table.data)
        size = len(device.content)
        layers.append(LayerRecord("sha256:aa", 1, "type", "form", device.name, device.name, size))
    node.library.add_chain(ChainRecord("other", "e" * 64, 1, layers))
    image = ImageRecord("reg.test/other:1", "linux/amd64", "sha256:nn", "other")
    node.library.add_image(image, [(one.name, source(APP, one.name)) for one in devices])
    for device in devices:
        await node.catalog.device(device.name)
    kept = [node.engine.size(device.name) is not None for device in devices]
    assert kept == [False, False] + [True] * MAX_STRAYS


async def test_read_that_waits_for_ever_ends_when_its_image_goes(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader was killed: of that, the kernel says nothing."""
    monkeypatch.setattr("lazyimg.fill.patience.FIRST_PAUSE", 0)
    node.engine.limits = FillLimits(read_deadline=None)
    begin(node)
    await node.catalog.device(node.device.name)
    tried = asyncio.Event()

    def broken(_offset: int, _length: int) -> None:
        tried.set()
        raise RegistryError(APP, "is away")

    node.blobs[APP].fault = broken
    reading = asyncio.create_task(node.fill(MemorySink()))
    await tried.wait()
    end(node)
    with pytest.raises(LazyimgError, match=r"has been removed|is away"):
        await reading


async def test_records_that_cannot_be_read_in_time(node: Node) -> None:
    node.engine.limits = FillLimits(read_deadline=0.01)
    never = asyncio.get_running_loop().create_future()

    async def open_blob(_record: SourceRecord, _access: Access | None) -> MemoryBlob:
        await never
        raise AssertionError

    node.catalog._open_blob = open_blob
    with pytest.raises(StorageError) as caught:
        await node.fill(MemorySink())
    assert str(caught.value) == (
        f"device {node.device.name}: its records could not be read within 0.01 s"
    )
    never.cancel()
