"""SOCI indexes that an image names."""

from __future__ import annotations

import dataclasses
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest

from lazyimg.errors import CorruptError, RegistryError
from lazyimg.images.artifacts import Gone, Referring
from lazyimg.images.locating import Sought
from lazyimg.images.soci_places import NamedSoci, list_ztocs
from lazyimg.layers.locate import IndexLocation
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.resolve import local_platform, resolve_image
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    serialize_document,
)
from lazyimg_formats.oci.reference import parse_reference
from lazyimg_formats.oci.referrers import referrers_tag
from lazyimg_formats.soci.manifest import INDEX_DIGEST, SOCI_V1, SOCI_V2
from tests.fakes.gzip_layer import make_tar
from tests.fakes.registry import FakeRegistry, Fault, run_registry
from tests.fakes.soci_layer import SociLayer, make_soci_index

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lazyimg.registry.repository import Repository

LAYERS = [SociLayer(), SociLayer(make_tar({"small": b"small"}))]
SOCI = make_soci_index(LAYERS[:1])  # small layers have none
DIGEST = Digest.of(serialize_document(SOCI))


def image(annotations: dict[str, str] | None = None) -> Sought:
    return Sought(
        "image",
        describe(b"manifest", OCI_MANIFEST),
        tuple(layer.descriptor for layer in LAYERS),
        tuple(layer.diff_id for layer in LAYERS),
        annotations=annotations or {},
    )


NAMED = image({INDEX_DIGEST: str(DIGEST)})
EXPECTED = {
    0: IndexLocation(
        "soci", 0, len(LAYERS[0].ztoc), len(LAYERS[0].ztoc), str(Digest.of(LAYERS[0].ztoc)),
        artifact=str(Digest.of(LAYERS[0].ztoc)),
    )
}  # fmt: skip


@asynccontextmanager
async def running() -> AsyncIterator[tuple[FakeRegistry, Repository]]:
    async with run_registry() as registry, RegistryClient(environ={}) as client:
        registry.add_manifest("app", "", SOCI)
        yield registry, client.repository(parse_reference(f"{registry.host}/app"))


async def test_index_that_the_manifest_names() -> None:
    async with running() as (registry, source):
        assert await NamedSoci(Gone()).find(NAMED, range(2), source) == EXPECTED
        assert await NamedSoci(Gone()).find(NAMED, [1], source) == {}
        before = len(registry.asked)
        assert await NamedSoci(Gone()).find(image(), range(2), source) == {}
        assert len(registry.asked) == before


async def test_layers_with_an_index_of_their_own_are_left_alone() -> None:
    layers = tuple(dataclasses.replace(one, media_type="application/x") for one in NAMED.layers)
    async with running() as (registry, source):
        assert (
            await NamedSoci(Gone()).find(
                dataclasses.replace(NAMED, layers=layers), range(2), source
            )
            == {}
        )
        assert registry.asked == []


async def test_index_that_was_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    """It is not asked for again and again."""
    gone = image({INDEX_DIGEST: str(Digest.of(b"gone"))})
    async with running() as (registry, source):
        place = NamedSoci(Gone())
        assert await place.find(gone, range(2), source) == {}
        asked = len(registry.asked)
        assert await place.find(gone, range(2), source) == {}
        assert len(registry.asked) == asked
    assert "image: its indexes are not in its repository: " in caplog.text


async def test_registry_that_fails() -> None:
    async with running() as (registry, source):
        registry.faults.append(Fault("status", path="/manifests/", status=400, times=9))
        with pytest.raises(RegistryError):
            await NamedSoci(Gone()).find(NAMED, range(2), source)


async def test_index_that_is_none() -> None:
    other = Manifest(config=describe(b"{}", OCI_CONFIG), layers=())
    digest = Digest.of(serialize_document(other))
    async with running() as (registry, source):
        registry.add_manifest("app", "", other)
        for annotation, expected in (
            (str(digest), "image: SOCI index: it is another document; make its SOCI index again"),
            ("latest", "image: digest: "),
        ):
            with pytest.raises(CorruptError) as caught:
                await NamedSoci(Gone()).find(image({INDEX_DIGEST: annotation}), range(2), source)
            assert str(caught.value).startswith(expected)


async def test_annotations_are_the_manifests_own() -> None:
    async with run_registry() as registry, RegistryClient(environ={}) as client:
        config = registry.add_blob(
            "app",
            b'{"os":"linux","architecture":"%s","rootfs":{"type":"layers","diff_ids":[]}}'
            % local_platform().architecture.encode(),
            OCI_CONFIG,
        )
        registry.add_manifest(
            "app", "1", Manifest(config=config, layers=(), annotations={INDEX_DIGEST: "x"})
        )
        source = client.repository(parse_reference(f"{registry.host}/app"))
        resolved = await resolve_image(source, "1", local_platform())
    assert Sought.of("app:1", resolved).annotations == {INDEX_DIGEST: "x"}


async def test_index_that_refers_to_the_image() -> None:
    async with running() as (registry, source):
        registry.referrers = 10
        assert await list_ztocs(source, NAMED.manifest.digest) == {}
        subject = registry.add_manifest("app", "", Manifest(config=NAMED.layers[0], layers=()))
        registry.add_manifest("app", "", make_soci_index(LAYERS[1:], SOCI_V2, subject))
        registry.add_manifest("app", "", make_soci_index(LAYERS[:1], SOCI_V1, subject))
        found = await list_ztocs(source, subject.digest)
        ztoc = LAYERS[0].ztoc
        assert found == {LAYERS[0].descriptor.digest: (Digest.of(ztoc), len(ztoc))}
        place = Referring(Gone(), read=list_ztocs, form="soci")
        location = msgspec.structs.replace(EXPECTED[0], loose=True)
        assert await place.find(replace_manifest(subject), range(2), source) == {0: location}


def replace_manifest(manifest: Descriptor) -> Sought:
    return dataclasses.replace(NAMED, manifest=manifest)


async def test_index_that_is_said_to_refer_to_the_image() -> None:
    """A list of referrers under a tag says what it likes."""
    async with running() as (registry, source):
        manifest = registry.add_manifest("app", "", Manifest(config=NAMED.layers[0], layers=()))
        soci = registry.add_manifest("app", "", make_soci_index(LAYERS[:1], SOCI_V1))
        entry = dataclasses.replace(soci, artifact_type=SOCI_V1)
        registry.add_manifest("app", referrers_tag(manifest.digest), Index(manifests=(entry,)))
        with pytest.raises(CorruptError, match="SOCI index: it refers to nothing, expected "):
            await list_ztocs(source, manifest.digest)
