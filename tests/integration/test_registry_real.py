"""The registry client against the registry that Debian packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import AccessDeniedError, CorruptError, NotFoundError
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.oci_layout import create_layout
from lazyimg.registry.ports import Access
from lazyimg.registry.resolve import resolve_image
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Manifest,
    describe,
    serialize_document,
)
from lazyimg_formats.oci.platform import Platform
from lazyimg_formats.oci.reference import parse_reference
from tests.real.docker_registry import PASSWORD, USER, Registry, running_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.registry.ports import ImageTarget
    from lazyimg.registry.repository import Repository

LAYER = bytes(range(256)) * 20_000  # several chunks
CONFIG = (
    b'{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["%s"]}}'
    % str(Digest.of(LAYER)).encode()
)
MANIFEST = serialize_document(
    Manifest(config=describe(CONFIG, OCI_CONFIG), layers=(describe(LAYER, OCI_LAYER),))
)
AMD64 = Platform("linux", "amd64")


@pytest.fixture
async def client() -> AsyncIterator[RegistryClient]:
    async with RegistryClient(environ={}, chunk_size=1_000_000) as made:
        yield made


@pytest.fixture
def repository(client: RegistryClient, registry: Registry) -> Repository:
    return client.repository(parse_reference(f"{registry.address}/team/app"))


async def cut(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 300_000):
        yield data[start : start + 300_000]


async def push(target: ImageTarget) -> None:
    for blob in (LAYER, CONFIG):
        assert not await target.has_blob(Digest.of(blob))
        assert await target.push_blob(cut(blob), lambda blob=blob: Digest.of(blob)) == len(blob)  # type: ignore[misc]
        assert await target.has_blob(Digest.of(blob))
    await target.push_manifest(MANIFEST, OCI_MANIFEST, "v1")


async def test_an_image_there_and_back(repository: Repository, registry: Registry) -> None:
    await push(repository)
    image = await resolve_image(repository, "v1", AMD64)
    assert image.manifest_bytes == MANIFEST
    (layer,) = image.manifest.layers
    assert b"".join([piece async for piece in repository.stream_blob(layer)]) == LAYER
    registry.counts.clear()
    assert await repository.read_blob(layer, 1_000_001, 4096) == LAYER[1_000_001:1_004_097]
    (read,) = registry.counts.blob_reads(str(layer.digest))
    assert (read.status, read.sent) == (206, 4096)


async def test_mount_from_another_repository(
    client: RegistryClient, repository: Repository, registry: Registry
) -> None:
    await push(repository)
    other = client.repository(parse_reference(f"{registry.address}/other/app"))
    layer = describe(LAYER, OCI_LAYER)
    assert not await other.has_blob(layer.digest)
    assert await other.mount_blob_from(repository, layer)
    assert await other.read_blob(layer, 0, 10) == LAYER[:10]
    assert not await other.mount_blob_from(repository, describe(b"absent", OCI_LAYER))


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_wrong_digest(repository: Repository, size: int) -> None:
    with pytest.raises(CorruptError, match="DIGEST_INVALID"):
        await repository.push_blob(cut(LAYER[:size]), lambda: Digest.of(b"other"))
    assert not await repository.has_blob(Digest.of(b"other"))


async def test_missing(repository: Repository) -> None:
    with pytest.raises(NotFoundError, match=r"/team/app:v1: the registry answers 404 \(MANIFEST_U"):
        await repository.fetch_manifest("v1")
    with pytest.raises(NotFoundError, match="404"):
        await repository.read_blob(describe(LAYER, OCI_LAYER), 0, 10)


async def test_credentials(client: RegistryClient, tmp_path: Path) -> None:
    with running_registry(tmp_path, credentials=True) as registry:
        reference = parse_reference(f"{registry.address}/team/app")
        good = client.repository(reference, Access(username=USER, password=PASSWORD))
        await push(good)
        assert (await resolve_image(good, "v1", AMD64)).manifest_bytes == MANIFEST
        for access in (Access(), Access(username=USER, password="guess")):
            with pytest.raises(AccessDeniedError):
                await client.repository(reference, access).fetch_manifest("v1")


async def test_the_same_into_a_layout(tmp_path: Path) -> None:
    layout = await create_layout(tmp_path / "layout")
    await push(layout)
    assert (await resolve_image(layout, "v1", AMD64)).manifest_bytes == MANIFEST
