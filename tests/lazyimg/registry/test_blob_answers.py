"""Blobs that a registry redirects to a signed URL, which is used as long as it is good."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import RegistryError
from tests.lazyimg.registry.conftest import BLOB

if TYPE_CHECKING:
    from lazyimg.registry.repository import Repository
    from lazyimg_formats.oci.documents import Descriptor
    from tests.fakes.registry import FakeRegistry


class TestRedirects:
    @pytest.fixture(autouse=True)
    def redirect(self, registry: FakeRegistry) -> None:
        registry.redirect = True
        registry.auth = "token"

    async def test_credential_stays_and_url_is_used_again(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        for offset in range(5):
            assert await repository.read_blob(blob, offset, 10) == BLOB[offset : offset + 10]
        assert registry.count("GET", "/signed/") == 5
        assert registry.count("GET", "/v2/team/app/blobs/") == 2  # refused, then redirected

    async def test_refused_url_is_asked_for_again(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        await repository.read_blob(blob, 0, 10)
        registry.fail("status", path="/signed/", status=403)
        assert await repository.read_blob(blob, 5, 10) == BLOB[5:15]
        assert registry.count("GET", "/v2/team/app/blobs/") == 3

    async def test_url_whose_host_fails_is_dropped(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        await repository.read_blob(blob, 0, 10)
        registry.fail("reset", path="/signed/", times=2)
        assert await repository.read_blob(blob, 5, 10) == BLOB[5:15]

    async def test_expired_from_the_start(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.signed_lifetime = 0
        with pytest.raises(RegistryError) as caught:
            await repository.read_blob(blob, 0, 10)
        assert f"http://{registry.storage}/signed/team/app/{blob.digest} answers 403" in str(
            caught.value
        )
        assert "ret" not in str(caught.value).replace("registry", "")
        assert caught.value.status == 403

    async def test_existence_needs_no_signed_url(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        assert await repository.has_blob(blob.digest)
        assert registry.count("HEAD", "/signed/") == 0

    async def test_whole_stream(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.fail("half", path="/signed/")
        assert b"".join([piece async for piece in repository.stream_blob(blob)]) == BLOB
