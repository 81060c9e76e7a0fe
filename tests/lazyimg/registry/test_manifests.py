"""Manifests over real HTTP: by tag and by digest, and everything that may be wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CorruptError, NotFoundError, RegistryError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import OCI_INDEX, OCI_MANIFEST, Index

if TYPE_CHECKING:
    from lazyimg.registry.repository import Repository
    from tests.fakes.registry import FakeRegistry


class TestManifests:
    async def test_by_tag_and_by_digest(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        made = registry.add_image("team/app", "1", {b"z": b"tar"})
        descriptor, data = await repository.fetch_manifest("1")
        assert descriptor == made
        assert Digest.of(data) == made.digest
        assert await repository.fetch_manifest(made.digest) == (descriptor, data)

    async def test_media_type_that_only_the_document_knows(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        registry.add_manifest("team/app", "1", Index(manifests=()))
        registry.fail("headers", path="/manifests/", headers={"Content-Type": "text/plain"})
        descriptor, _ = await repository.fetch_manifest("1")
        assert descriptor.media_type == OCI_INDEX

    async def test_media_type_that_nobody_says(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        registry.add_manifest("team/app", "1", Index(manifests=(), media_type=""))
        kept = registry.manifests["team/app"]
        kept["1"] = (OCI_MANIFEST, kept["1"][1])
        registry.fail("headers", path="/manifests/", headers={"Content-Type": "text/plain"})
        descriptor, _ = await repository.fetch_manifest("1")
        assert descriptor.media_type == OCI_INDEX

    async def test_missing(self, registry: FakeRegistry, repository: Repository) -> None:
        with pytest.raises(NotFoundError) as caught:
            await repository.fetch_manifest("nope")
        assert str(caught.value) == (
            f"{registry.host}/team/app:nope: the registry answers 404 (MANIFEST_UNKNOWN)"
        )

    async def test_wrong_bytes(self, registry: FakeRegistry, repository: Repository) -> None:
        made = registry.add_image("team/app", "1", {b"z": b"tar"})
        for reference in ("1", made.digest):
            registry.fail("wrong", path="/manifests/")
            with pytest.raises(CorruptError, match=f"expected digest {made.digest}, got sha256:"):
                await repository.fetch_manifest(reference)

    async def test_bytes_that_are_no_document(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        registry.manifests["team/app"] = {"1": (OCI_MANIFEST, b"[]")}
        with pytest.raises(CorruptError, match="team/app:1: manifest: expected an object"):
            await repository.fetch_manifest("1")

    async def test_digest_that_is_none(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        registry.add_image("team/app", "1", {b"z": b"tar"})
        registry.fail("headers", path="/manifests/", headers={"Docker-Content-Digest": "md5:x"})
        with pytest.raises(RegistryError, match="names an impossible digest: digest: unknown"):
            await repository.fetch_manifest("1")

    async def test_over_the_limit(self, registry: FakeRegistry, repository: Repository) -> None:
        registry.manifests["team/app"] = {"1": (OCI_MANIFEST, bytes((4 << 20) + 1))}
        with pytest.raises(
            RegistryError, match=r"/team/app/manifests/1: answers with over 4194304"
        ):
            await repository.fetch_manifest("1")

    async def test_half_a_body_is_tried_again(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        made = registry.add_image("team/app", "1", {b"z": b"tar"})
        registry.fail("half", path="/manifests/")
        assert (await repository.fetch_manifest("1"))[0] == made
