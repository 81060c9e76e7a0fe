"""SOCI indexes that are made of an image's layers, and pushed to its repository."""

from __future__ import annotations

import gzip
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CorruptError, NotLazyError, UsageError
from lazyimg.images.artifacts import Gone
from lazyimg.images.locating import Sought
from lazyimg.images.soci_places import NamedSoci, list_ztocs
from lazyimg.images.soci_publishing import SociPublisher
from lazyimg.limits import BuildLimits
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.oci_layout import create_layout
from lazyimg.registry.resolve import local_platform, resolve_image
from lazyimg_formats.oci.documents import (
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    parse_document,
)
from lazyimg_formats.oci.platform import Platform
from lazyimg_formats.oci.reference import parse_reference
from lazyimg_formats.soci.manifest import INDEX_DIGEST, MANIFEST_DIGEST, SOCI_V2
from lazyimg_formats.soci.toc import parse_ztoc
from tests.fakes.gzip_layer import make_tar
from tests.fakes.registry import FakeRegistry, run_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.registry.repository import Repository
    from lazyimg.registry.resolve import ResolvedImage

TAR = make_tar()
BLOB = gzip.compress(TAR, mtime=0)


@asynccontextmanager
async def running(
    layers: dict[bytes, bytes] | None = None, *, indexed: bool = False
) -> AsyncIterator[tuple[FakeRegistry, Repository, ResolvedImage]]:
    async with run_registry() as registry, RegistryClient(environ={}) as client:
        manifest = registry.add_image("app", "1", {BLOB: TAR} if layers is None else layers)
        if indexed:
            entries = (
                replace(manifest, platform=local_platform()),
                replace(describe(b"arm", OCI_MANIFEST), platform=Platform("linux", "s390x")),
                replace(
                    describe(b"old", OCI_MANIFEST), artifact_type=SOCI_V2,
                    annotations={MANIFEST_DIGEST: str(manifest.digest)},
                ),
            )  # fmt: skip
            registry.add_manifest("app", "1", Index(manifests=entries))
        registry.referrers = 10
        source = client.repository(parse_reference(f"{registry.host}/app"))
        yield registry, source, await resolve_image(source, "1", local_platform())


async def test_both_versions() -> None:
    async with running() as (_, source, resolved):
        publisher = SociPublisher(source, source, BuildLimits())
        made = await publisher.publish("image", resolved, "lazy")
        (layer,) = made.layers
        assert (layer.layer, layer.problem) == (resolved.manifest.layers[0], "")
        found = await list_ztocs(source, resolved.descriptor.digest)
        assert found == {layer.layer.digest: layer.ztoc}
        again = await resolve_image(source, "lazy", local_platform())
        assert str(again.top.digest) == made.image
        located = await NamedSoci(Gone()).find(Sought.of("image", again), [0], source)
        assert layer.ztoc is not None
        assert located[0].artifact == str(layer.ztoc.digest)
        digest, size = layer.ztoc
        ztoc = Descriptor(media_type="", digest=digest, size=size)
        data = await source.read_blob(ztoc, 0, size)
        assert [entry.path for entry in parse_ztoc(data).layer.entries] == [
            b"etc/name", b"bin/tool",
        ]  # fmt: skip
        once_more = await publisher.publish("image", resolved, "")
        assert (once_more.referring, once_more.image) == (made.referring, "")


async def test_what_the_tag_names() -> None:
    async with running() as (_, source, resolved):
        made = await SociPublisher(source, source, BuildLimits()).publish("image", resolved, "lazy")
        descriptor, data = await source.fetch_manifest("lazy")
        assert (str(descriptor.digest), descriptor.media_type) == (made.image, OCI_INDEX)
        image, soci = read_index(data).manifests
        manifest = parse_document((await source.fetch_manifest(image.digest))[1])
        assert isinstance(manifest, Manifest)
        assert manifest.layers == resolved.manifest.layers
        assert manifest.config.digest == resolved.manifest.config.digest
        assert manifest.annotations == {INDEX_DIGEST: str(soci.digest)} == image.annotations
        assert (soci.artifact_type, soci.annotations) == (
            SOCI_V2, {MANIFEST_DIGEST: str(image.digest)},
        )  # fmt: skip
        assert image.platform == soci.platform == resolved.config.platform


async def test_image_of_several_platforms() -> None:
    async with running(indexed=True) as (_, source, resolved):
        await SociPublisher(source, source, BuildLimits()).publish("image", resolved, "lazy")
        entries = read_index((await source.fetch_manifest("lazy"))[1]).manifests
        assert [entry.artifact_type for entry in entries] == ["", "", SOCI_V2]
        assert entries[1].digest == describe(b"arm", "").digest
        assert entries[0].platform == local_platform()
        assert entries[2].annotations == {MANIFEST_DIGEST: str(entries[0].digest)}


def read_index(data: bytes) -> Index:
    index = parse_document(data)
    assert isinstance(index, Index)
    return index


async def test_layers_that_can_have_none() -> None:
    no_tar = gzip.compress(b"no tar" * 300, mtime=0)
    async with running({BLOB: TAR, no_tar: b"no tar" * 300}) as (_, source, resolved):
        layers = list(resolved.manifest.layers)
        layers.append(replace(layers[0], media_type="application/x"))
        diff_ids = (*resolved.config.diff_ids, resolved.config.diff_ids[0])
        image = replace(
            resolved,
            manifest=replace(resolved.manifest, layers=tuple(layers)),
            config=replace(resolved.config, diff_ids=diff_ids),
        )
        publisher = SociPublisher(source, source, BuildLimits())
        made = await publisher.publish("image", image, "")
        problems = [one.problem for one in made.layers]
        assert [bool(one.ztoc) for one in made.layers] == [True, False, False]
        assert problems[1].startswith("no index can be made of it: tar")
        assert problems[2] == "a layer of format application/x"
        only = replace(image, manifest=replace(image.manifest, layers=(layers[2],)))
        with pytest.raises(NotLazyError) as caught:
            await publisher.publish("image", only, "")
        assert str(caught.value) == (
            "image: no layer can have a zTOC: a layer of format application/x"
        )
        none = replace(image, manifest=replace(image.manifest, layers=()))
        with pytest.raises(NotLazyError, match="no layer can have a zTOC: it has none"):
            await publisher.publish("image", none, "")


async def test_layer_of_zstd() -> None:
    async with running() as (_, source, resolved):
        layer = replace(resolved.manifest.layers[0], media_type=OCI_LAYER_ZSTD)
        assert layer.media_type != OCI_LAYER_GZIP
        image = replace(resolved, manifest=replace(resolved.manifest, layers=(layer,)))
        made = await SociPublisher(source, source, BuildLimits()).publish("image", image, "")
        assert made.layers[0].ztoc is not None  # it is gzip all the same


async def test_blob_that_is_another() -> None:
    async with running() as (registry, source, resolved):
        layer = resolved.manifest.layers[0]
        registry.blobs["app"][str(layer.digest)] = BLOB[:-1] + b"?"
        with pytest.raises(CorruptError):
            await SociPublisher(source, source, BuildLimits()).publish("image", resolved, "")


async def test_image_layout(tmp_path: Path) -> None:
    """Nothing would find what refers to an image there."""
    async with running() as (_, source, resolved):
        layout = await create_layout(tmp_path / "layout")
        publisher = SociPublisher(source, layout, BuildLimits())
        with pytest.raises(UsageError) as caught:
            await publisher.publish("image", resolved, "")
        assert str(caught.value) == (
            "image: nothing would find what refers to it; name a tag: --embed"
        )
