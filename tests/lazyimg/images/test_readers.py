"""Whose credentials fill a device that images of two users have in common."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import AccessDeniedError, LazyimgError
from lazyimg.images.library import ChainRecord, LayerRecord
from lazyimg.images.readers import Readers, ReadersBlob, repository_of
from lazyimg.registry.ports import Access
from lazyimg_formats.device_table import BLOCK_SIZE
from lazyimg_formats.oci.reference import parse_location
from tests.fakes.devices import MemoryBlob, MemorySink
from tests.fakes.lazy_image import LazyLayer, add_lazy_image, make_lazy_layer
from tests.fakes.node import Node, run_node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.images.catalog import Catalog
    from lazyimg.images.image import Image

FILES = {"etc/name": b"lazyimg\n", "bin/tool": os.urandom(400_000)}
ALICE = Access(username="alice", password="a")
BOB = Access(username="bob", password="b")


def chain(*devices: str) -> ChainRecord:
    layers = [LayerRecord("blob", 1, "type", "format", "table", name, 9) for name in devices]
    empty = LayerRecord("blob", 1, "type", "format", "table", "empty", 0)
    return ChainRecord("key", "f" * 64, 1, [*layers, empty])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("reg.test/team/app:1", "reg.test/team/app"),
        ("reg.test/team/app@sha256:" + "a" * 64, "reg.test/team/app"),
        ("oci:/images:1", "oci:/images:1"),
    ],
)
def test_name_of_sources(text: str, name: str) -> None:
    assert repository_of(parse_location(text)) == name


def test_repositories_of_what_is_mounted() -> None:
    readers = Readers()
    assert readers.may_use("a", "reg.test/any")  # nobody knows who reads it
    readers.begin("reg.test/app:1", chain("a", "b", "a"))
    readers.begin("reg.test/app:2", chain("a"))
    readers.begin("reg.test/other:1", chain("b"))
    assert [readers.may_use("a", f"reg.test/{name}") for name in ("app", "other")] == [True, False]
    assert [readers.may_use("b", f"reg.test/{name}") for name in ("app", "other")] == [True, True]
    assert readers.may_use("empty", "reg.test/any")
    readers.end("reg.test/app:1", chain("a", "b", "a"))
    assert [readers.may_use("a", f"reg.test/{name}") for name in ("app", "other")] == [True, False]
    assert [readers.may_use("b", f"reg.test/{name}") for name in ("app", "other")] == [False, True]
    readers.replace([("reg.test/other:1", chain("a"))])
    assert [readers.may_use("a", f"reg.test/{name}") for name in ("app", "other")] == [False, True]
    assert readers.may_use("b", "reg.test/app")
    readers.end("reg.test/other:1", chain("a"))
    assert not readers._devices


def test_devices_that_no_mounted_image_has_any_more() -> None:
    unused: list[str] = []
    readers = Readers(unused.append)
    readers.begin("reg.test/app:1", chain("a", "b"))
    readers.begin("reg.test/other:1", chain("b", "c"))
    readers.end("reg.test/app:1", chain("a", "b"))
    assert unused == ["a"]
    readers.replace([("reg.test/other:1", chain("c"))])
    assert unused == ["a", "b"]


async def test_blob_is_read_only_for_those_who_may() -> None:
    readers = Readers()
    blob = MemoryBlob(b"0123456789")
    guarded = ReadersBlob(blob, readers, "a", "reg.test/app")
    assert await guarded.read(2, 3) == b"234"
    assert guarded.peek(2, 3) == blob.peek(2, 3)
    assert guarded.distrust(2, 3) == blob.distrust(2, 3)
    guarded.release()
    assert blob.released == 1
    readers.begin("reg.test/other:1", chain("a"))
    reads = len(blob.reads)
    with pytest.raises(AccessDeniedError) as caught:
        await guarded.read(2, 3)
    assert str(caught.value) == "reg.test/app: is not asked for images of other repositories"
    assert guarded.peek(2, 3) is None
    assert len(blob.reads) == reads


class Tenants:
    """A node on which alice and bob have an image each, in repositories of their own."""

    def __init__(self, node: Node) -> None:
        self.node = node

    async def open(self, name: str, access: Access) -> Image:
        return await self.node.images.open(f"{self.node.registry.host}/{name}:1", "", access)

    async def read(self, image: Image, catalog: Catalog | None = None, offset: int = 0) -> set[str]:
        """Give the repositories that are asked when a block of the image is filled."""
        self.node.registry.asked.clear()
        device = image.chain.layers[0].device
        try:
            sink = MemorySink()
            await (catalog or self.node.catalog).fill(device, offset, BLOCK_SIZE, sink)
        except LazyimgError:
            pass
        return {one.path.split("/")[2] for one in self.node.registry.asked if one.authorized}


@pytest.fixture
async def tenants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tenants]:
    layer: LazyLayer = await make_lazy_layer(FILES)
    async with run_node(tmp_path, monkeypatch) as node:
        node.registry.auth = "basic"
        node.registry.users = {"alice": "a", "bob": "b"}
        node.registry.readers = {"app": {"alice"}, "other": {"bob"}}
        for name in node.registry.readers:
            add_lazy_image(node.registry, name, "1", [layer])
        yield Tenants(node)


async def test_image_that_was_opened_and_never_mounted_is_not_read_from(tenants: Tenants) -> None:
    mounted = await tenants.open("app", ALICE)
    await tenants.node.mounts.mount(mounted, "/alice", read_write=False)
    await tenants.open("other", BOB)
    assert await tenants.read(mounted) == {"app"}


async def test_failing_registry_is_not_made_up_for_with_another_user_s_credentials(
    tenants: Tenants,
) -> None:
    alice, bob = await tenants.open("app", ALICE), await tenants.open("other", BOB)
    await tenants.node.mounts.mount(bob, "/bob", read_write=False)
    await tenants.node.mounts.mount(alice, "/alice", read_write=False)
    await tenants.node.mounts.unmount("/bob", lazy=False)
    tenants.node.registry.fail("status", path="/app/blobs/", status=404, times=100)
    assert await tenants.read(alice) == {"app"}


async def test_both_are_mounted(tenants: Tenants) -> None:
    alice, bob = await tenants.open("app", ALICE), await tenants.open("other", BOB)
    await tenants.node.mounts.mount(alice, "/alice", read_write=False)
    await tenants.node.mounts.mount(bob, "/bob", read_write=False)
    tenants.node.registry.fail("status", path="/app/blobs/", status=404, times=100)
    assert "other" in await tenants.read(alice)
    await tenants.node.mounts.unmount("/bob", lazy=False)
    assert await tenants.read(alice, offset=96 * BLOCK_SIZE) == {"app"}


async def test_mount_that_fails_lends_nothing(tenants: Tenants) -> None:
    alice, bob = await tenants.open("app", ALICE), await tenants.open("other", BOB)
    await tenants.node.mounts.mount(alice, "/alice", read_write=False)
    tenants.node.host.failures["bind_mount"] = LazyimgError("mount", "fails")
    with pytest.raises(LazyimgError):
        await tenants.node.mounts.mount(bob, "/bob", read_write=False)
    assert await tenants.read(alice) == {"app"}


async def test_prefetch_of_an_image_uses_its_own_repository(tenants: Tenants) -> None:
    alice = await tenants.open("app", ALICE)
    await tenants.open("other", BOB)
    tenants.node.registry.asked.clear()
    await tenants.node.prefetcher.prefetch(alice, [], lambda _: None)
    asked = {one.path.split("/")[2] for one in tenants.node.registry.asked if one.authorized}
    assert asked == {"app"}


async def test_image_mounted_by_hand_is_filled_from_where_it_can_be(tenants: Tenants) -> None:
    alice = await tenants.open("app", ALICE)
    await tenants.open("other", BOB)
    tenants.node.registry.fail("status", path="/app/blobs/", status=404, times=100)
    assert "other" in await tenants.read(alice)


async def test_next_process_knows_from_the_start_who_reads(
    tenants: Tenants, tmp_path: Path
) -> None:
    node = tenants.node
    alice = await tenants.open("app", ALICE)
    await tenants.open("other", BOB)
    await node.mounts.mount(alice, "/alice", read_write=False)
    after = Node(tmp_path, node.registry, node.client, node.host)
    after.shown.note(f"{node.registry.host}/app", ALICE)
    after.shown.note(f"{node.registry.host}/other", BOB)
    try:
        assert await tenants.read(alice, after.catalog) == {"app"}
        await after.mounts.recover(served=True)
        assert await tenants.read(alice, after.catalog, 96 * BLOCK_SIZE) == {"app"}
        await after.mounts.unmount("/alice", lazy=False)
        assert not after.catalog.readers._devices
    finally:
        await after.close()
