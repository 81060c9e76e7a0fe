"""A pull, from a registry into containerd: lazy layers, layers that are not, and what is left."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import pytest

from lazyimg.containerd.ports import Outcome
from lazyimg.containerd.pull import Pulled, pull_image
from lazyimg.errors import CorruptError, LazyimgError, NotFoundError
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.ports import Access
from lazyimg.registry.resolve import local_platform
from lazyimg_formats.oci.chain import chain_ids
from lazyimg_formats.oci.documents import OCI_INDEX, Index
from lazyimg_formats.oci.reference import Reference, parse_reference
from tests.fakes.gzip_layer import make_layer, make_tar
from tests.fakes.lazy_image import LazyLayer, add_lazy_image, make_lazy_layer
from tests.fakes.registry import FakeRegistry, run_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lazyimg.containerd.client import Client
    from lazyimg_formats.oci.documents import Descriptor
    from tests.fakes.containerd import FakeContainerd

FILES = ({"a": b"1" * 3000}, {"b": b"2" * 3000}, {"c": b"3" * 3000})


class Told:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.bytes: dict[str, int] = {}
        self.unpacked = asyncio.Semaphore(0)

    def advance(self, layer: Descriptor, done: int) -> None:
        self.bytes[str(layer.digest)] = done

    def end(self, layer: Descriptor, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if outcome is Outcome.UNPACKED:
            self.unpacked.release()


class Puller:
    """A registry with an image of three layers, and pulls from it."""

    def __init__(self, registry: FakeRegistry, layers: list[LazyLayer], client: Client) -> None:
        self.registry = registry
        self.layers = layers
        self.client = client
        self.told = Told()
        self.manifest = add_lazy_image(registry, "app", "1", layers)
        self.chains = [str(chain) for chain in chain_ids(each.diff_id for each in layers)]

    @property
    def reference(self) -> Reference:
        return parse_reference(f"{self.registry.host}/app:1")

    async def pull(self, reference: Reference | None = None) -> Pulled:
        reference = reference or self.reference
        self.told.outcomes.clear()
        async with RegistryClient() as registry:
            source = registry.repository(reference, Access())
            return await pull_image(self.client, source, reference, local_platform(), self.told)


@pytest.fixture
async def puller(client: Client) -> AsyncIterator[Puller]:
    layers = [await make_lazy_layer(files) for files in FILES]
    async with run_registry() as registry:
        yield Puller(registry, layers, client)


async def test_lazy_layers_are_not_downloaded(puller: Puller, containerd: FakeContainerd) -> None:
    containerd.lazy.update(puller.chains)
    pulled = await puller.pull()
    assert pulled == Pulled(str(puller.reference), puller.manifest, puller.chains[-1])
    assert puller.told.outcomes == [Outcome.LAZY] * 3
    assert puller.registry.count(path="/blobs/") == 1  # the config
    assert "Diff/Apply" not in containerd.calls
    assert containerd.images[pulled.name].target.digest == str(puller.manifest.digest)
    assert containerd.leases == {}


async def test_each_prepare_names_chain_and_image(
    puller: Puller, containerd: FakeContainerd
) -> None:
    containerd.lazy.update(puller.chains)
    await puller.pull()
    for layer, chain in zip(puller.layers, puller.chains, strict=True):
        assert containerd.snapshots[chain].labels == {
            "containerd.io/snapshot.ref": chain,
            "containerd.io/snapshot/cri.image-ref": str(puller.reference),
            "containerd.io/snapshot/cri.manifest-digest": str(puller.manifest.digest),
            "containerd.io/snapshot/cri.layer-digest": str(layer.descriptor.digest),
        }


async def test_collector_leaves_what_was_pulled(puller: Puller, containerd: FakeContainerd) -> None:
    containerd.lazy.update(puller.chains[:1])
    await puller.pull()
    kept = set(containerd.content), set(containerd.snapshots)
    containerd.collect()
    assert (set(containerd.content), set(containerd.snapshots)) == kept
    assert kept[1] == set(puller.chains)
    containerd.images.clear()
    containerd.collect()
    assert (containerd.content, containerd.snapshots) == ({}, {})


async def test_layers_above_one_that_is_not_lazy(
    puller: Puller, containerd: FakeContainerd
) -> None:
    containerd.lazy.add(puller.chains[0])
    await puller.pull()
    assert puller.told.outcomes == [Outcome.LAZY, Outcome.UNPACKED, Outcome.UNPACKED]
    for layer, chain, files in zip(puller.layers[1:], puller.chains[1:], FILES[1:], strict=True):
        assert containerd.snapshots[chain].tars == [make_tar(files)]
        digest = str(layer.descriptor.digest)
        assert puller.told.bytes[digest] == len(layer.blob)
        assert containerd.content[digest].labels == {
            "containerd.io/distribution.source.127.0.0.1": "app",
            "containerd.io/uncompressed": str(layer.diff_id),
        }
    assert str(puller.layers[0].descriptor.digest) not in containerd.content
    parents = [containerd.snapshots[chain].parent for chain in puller.chains]
    assert parents == ["", *puller.chains[:-1]]


async def test_second_pull_downloads_nothing(puller: Puller, containerd: FakeContainerd) -> None:
    await puller.pull()
    assert puller.told.outcomes == [Outcome.UNPACKED] * 3
    received = containerd.received
    await puller.pull()
    assert puller.told.outcomes == [Outcome.PRESENT] * 3
    assert containerd.received == received


async def test_two_pulls_at_once(puller: Puller, containerd: FakeContainerd) -> None:
    other = Puller(puller.registry, puller.layers, puller.client)
    containerd.lazy.add(puller.chains[0])
    containerd.overtaken.add("Snapshots/Commit")
    await other.pull()
    assert set(containerd.snapshots) == set(puller.chains)


async def test_index(puller: Puller, containerd: FakeContainerd) -> None:
    containerd.lazy.update(puller.chains)
    entry = replace(puller.manifest, platform=local_platform())
    inner = puller.registry.add_manifest("app", "", Index(manifests=(entry,)))
    outer = puller.registry.add_manifest("app", "all", Index(manifests=(inner,)))
    reference = replace(puller.reference, tag="all")
    pulled = await puller.pull(reference)
    assert pulled.target == outer
    assert containerd.images[str(reference)].target.media_type == OCI_INDEX
    for each in (outer, inner, puller.manifest):
        assert (
            containerd.content[str(each.digest)].data
            == (puller.registry.manifests["app"][str(each.digest)][1])
        )
    containerd.collect()
    assert str(puller.manifest.digest) in containerd.content
    assert set(containerd.snapshots) == set(puller.chains)


async def test_image_without_layers(puller: Puller, containerd: FakeContainerd) -> None:
    add_lazy_image(puller.registry, "app", "empty", [])
    pulled = await puller.pull(replace(puller.reference, tag="empty"))
    assert pulled.chain == ""
    assert containerd.snapshots == {}
    assert len(containerd.content) == 2


async def test_ordinary_image(puller: Puller, containerd: FakeContainerd) -> None:
    architecture = local_platform().architecture
    puller.registry.add_image("app", "gzip", make_layer(), architecture)
    await puller.pull(replace(puller.reference, tag="gzip"))
    (snapshot,) = containerd.snapshots.values()
    assert snapshot.tars == [make_tar()]


async def test_layer_that_is_not_what_the_config_says(
    puller: Puller, containerd: FakeContainerd
) -> None:
    wrong = [replace(puller.layers[0], diff_id=puller.layers[1].diff_id)]
    add_lazy_image(puller.registry, "app", "wrong", wrong)
    with pytest.raises(CorruptError) as caught:
        await puller.pull(replace(puller.reference, tag="wrong"))
    assert str(caught.value) == (
        f"{puller.reference.name}@{wrong[0].descriptor.digest}: its tar has "
        f"{puller.layers[0].diff_id}, the image's config says {puller.layers[1].diff_id}"
    )
    assert_nothing_is_left(containerd)


async def test_snapshotter_that_lies(puller: Puller, containerd: FakeContainerd) -> None:
    containerd.lies.add(puller.chains[0])
    with pytest.raises(LazyimgError) as caught:
        await puller.pull()
    assert str(caught.value) == (
        f"snapshotter 'lazyimg': says that {puller.chains[0]} exists, but does not have it; "
        "try again"
    )
    assert_nothing_is_left(containerd)


async def test_blob_that_is_gone(puller: Puller, containerd: FakeContainerd) -> None:
    del puller.registry.blobs["app"][str(puller.layers[1].descriptor.digest)]
    with pytest.raises(NotFoundError):
        await puller.pull()
    assert_nothing_is_left(containerd)


async def test_failure_of_containerd_ends_the_downloads(
    puller: Puller, containerd: FakeContainerd
) -> None:
    containerd.faults["Diff/Apply"] = (grpc.StatusCode.INTERNAL, "cannot unpack")
    with pytest.raises(LazyimgError, match="cannot unpack"):
        await puller.pull()
    assert_nothing_is_left(containerd)


async def test_interruption(puller: Puller, containerd: FakeContainerd) -> None:
    digest = puller.layers[2].descriptor.digest
    puller.registry.fail("hang", path=f"/blobs/{digest}")
    pulling = asyncio.create_task(puller.pull())
    for _ in range(2):
        await puller.told.unpacked.acquire()
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    assert_nothing_is_left(containerd)


def assert_nothing_is_left(containerd: FakeContainerd) -> None:
    left = containerd.leases, containerd.content, containerd.snapshots, containerd.images
    assert left == ({}, {}, {}, {})
