"""One repository over real HTTP: pushes, authorization, proofs of access."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import AccessDeniedError, CorruptError, RegistryError
from lazyimg.registry.oci_layout import create_layout
from lazyimg.registry.ports import Access, ImageSource, ImageTarget
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import OCI_INDEX, OCI_MANIFEST, Descriptor
from lazyimg_formats.oci.reference import Reference
from tests.lazyimg.registry.conftest import BLOB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.registry.client import RegistryClient
    from lazyimg.registry.repository import Repository
    from tests.fakes.registry import FakeRegistry


def test_it_is_a_source_and_a_target(repository: Repository) -> None:
    assert isinstance(repository, ImageSource)
    assert isinstance(repository, ImageTarget)
    assert repository.name.endswith("/team/app")


class TestPush:
    async def test_manifest_by_tag_and_without(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        data = b'{"schemaVersion":2,"manifests":[]}'
        descriptor = await repository.push_manifest(data, OCI_INDEX, "new")
        assert descriptor == Descriptor(
            media_type=OCI_INDEX, digest=Digest.of(data), size=len(data)
        )
        assert registry.manifests["team/app"]["new"] == (OCI_INDEX, data)
        for tag in (None, ""):
            await repository.push_manifest(data + b" ", OCI_INDEX, tag)
        assert set(registry.manifests["team/app"]) == {
            "new",
            str(Digest.of(data)),
            str(Digest.of(data + b" ")),
        }

    async def test_manifest_that_the_registry_changes(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        wrong = str(Digest.of(b"changed"))
        registry.fail("headers", method="PUT", path="", headers={"Docker-Content-Digest": wrong})
        with pytest.raises(CorruptError, match=f"expected digest {wrong}, got sha256:"):
            await repository.push_manifest(b"{}", OCI_MANIFEST, "new")

    async def test_blob_is_there_afterwards(self, repository: Repository) -> None:
        digest = Digest.of(b"data")
        assert not await repository.has_blob(digest)

        async def chunks() -> AsyncIterator[bytes]:
            yield b"da"
            yield b"ta"

        assert await repository.push_blob(chunks(), lambda: digest) == 4
        assert await repository.has_blob(digest)

    async def test_mount_from_another_repository(
        self, registry: FakeRegistry, client: RegistryClient, repository: Repository
    ) -> None:
        registry.auth = "token"
        blob = registry.add_blob("other/place", BLOB)
        other = client.repository(Reference(registry.host, "other/place"))
        assert await repository.mount_blob_from(other, blob)
        assert await repository.read_blob(blob, 0, 5) == BLOB[:5]

    async def test_mount_from_what_is_out_of_reach(
        self, registry: FakeRegistry, client: RegistryClient, repository: Repository
    ) -> None:
        blob = registry.add_blob("other/place", BLOB)
        other = client.repository(Reference(registry.host, "other/place"))
        for status in (403, 404):
            registry.fail("status", method="POST", status=status)
            assert not await repository.mount_blob_from(other, blob)
        registry.fail("status", method="POST", status=400)
        with pytest.raises(RegistryError, match="answers 400"):
            await repository.mount_blob_from(other, blob)

    async def test_mount_from_another_kind_of_source(
        self, repository: Repository, blob: Descriptor, tmp_path: Path
    ) -> None:
        assert not await repository.mount_blob_from(await create_layout(tmp_path / "x"), blob)

    async def test_manifest_without_a_digest_in_the_answer(
        self, registry: FakeRegistry, repository: Repository
    ) -> None:
        headers = {"Docker-Content-Digest": ""}
        registry.fail("headers", method="PUT", path="", headers=headers)
        descriptor = await repository.push_manifest(b"{}", OCI_MANIFEST, "new")
        assert descriptor.digest == Digest.of(b"{}")

    async def test_mount_where_there_is_nothing_to_move(
        self, client: RegistryClient, repository: Repository, blob: Descriptor
    ) -> None:
        assert await repository.mount_blob_from(repository, blob)
        elsewhere = client.repository(Reference("127.0.0.1:1", "team/app"))
        assert not await repository.mount_blob_from(elsewhere, blob)


class TestAuthorization:
    async def test_basic(self, registry: FakeRegistry, client: RegistryClient) -> None:
        registry.auth, registry.users = "basic", {"me": "secret"}
        blob = registry.add_blob("team/app", BLOB)
        reference = Reference(registry.host, "team/app")
        good = client.repository(reference, Access(username="me", password="secret"))
        assert await good.read_blob(blob, 0, 5) == BLOB[:5]
        for access in (Access(), Access(username="me", password="guess")):
            bad = client.repository(reference, access)
            with pytest.raises(AccessDeniedError) as caught:
                await bad.read_blob(blob, 0, 5)
            assert "guess" not in str(caught.value)

    async def test_refused_credential(self, registry: FakeRegistry, client: RegistryClient) -> None:
        registry.auth, registry.users = "basic", {"me": "secret"}
        reference = Reference(registry.host, "team/app")
        repository = client.repository(reference, Access(username="me", password="guess"))
        with pytest.raises(AccessDeniedError) as caught:
            await repository.fetch_manifest("1")
        assert str(caught.value) == (
            f"{registry.host}/team/app:1: the registry answers 401 (UNAUTHORIZED); log in with"
            f" 'lazyimg login {registry.host}' or give --authfile, and check that the repository"
            " exists"
        )

    @pytest.mark.parametrize("status", [401, 403])
    async def test_token_that_was_revoked_is_renewed(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor, status: int
    ) -> None:
        registry.auth = "token"
        await repository.read_blob(blob, 0, 5)
        registry.expire_tokens()
        registry.refuse_with = status
        assert await repository.read_blob(blob, 5, 5) == BLOB[5:10]
        assert registry.count("GET", "/token") == 2

    async def test_push_asks_for_more_than_pull(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.auth = "token"
        await repository.read_blob(blob, 0, 5)
        await repository.push_manifest(b"{}", OCI_MANIFEST, "1")
        await repository.push_manifest(b"{}", OCI_MANIFEST, "2")
        assert registry.count("GET", "/token") == 2


class TestProofs:
    async def test_blob_that_may_be_read(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        assert await repository.prove_blob(blob) == registry.host
        assert await repository.hosts() == {registry.host}
        assert [one.method for one in registry.asked if "/blobs/" in one.path] == ["HEAD"]

    async def test_redirect_is_proof_enough(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.redirect = True
        await repository.prove_blob(blob)
        assert not [one for one in registry.asked if one.path.startswith("/signed/")]

    @pytest.mark.parametrize("status", [400, 403, 405])
    async def test_registry_that_does_not_like_to_be_asked_by_head(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor, status: int
    ) -> None:
        registry.fail("status", method="HEAD", status=status, times=10)
        await repository.prove_blob(blob)
        assert registry.asked[-1].range == "bytes=0-0"
        assert registry.sent() == 1

    async def test_registry_that_fails(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.fail("status", method="HEAD", status=503, times=10)
        with pytest.raises(RegistryError, match="answers 503"):
            await repository.prove_blob(blob)

    async def test_refusals(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.blobs["team/app"].clear()
        with pytest.raises(AccessDeniedError, match="this repository does not have the layer"):
            await repository.prove_blob(blob)
        registry.auth = "basic"
        with pytest.raises(AccessDeniedError, match="wants a user name and password"):
            await repository.prove_blob(blob)

    async def test_user(self, registry: FakeRegistry, client: RegistryClient) -> None:
        reference = Reference(registry.host, "team/app")
        assert await client.repository(reference).user() == ""
        named = client.repository(reference, Access(username="me", password="secret"))
        assert await named.user() == "me"
