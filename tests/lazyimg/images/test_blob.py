"""A recorded source, read by the fill engine."""

from __future__ import annotations

import pytest

from lazyimg.errors import NotFoundError
from lazyimg.images.blob import RemoteBlob
from lazyimg.images.library import SourceRecord
from lazyimg.registry.client import RegistryClient
from lazyimg_formats.oci.reference import parse_reference
from tests.fakes.registry import run_registry

DATA = bytes(range(256)) * 4


async def test_range_of_a_blob_and_a_blob_that_is_gone() -> None:
    async with run_registry() as registry, RegistryClient(environ={}) as client:
        blob = registry.add_blob("app", DATA)
        repository = client.repository(parse_reference(f"{registry.host}/app"))
        source = SourceRecord("reg/app", str(blob.digest), blob.size, "table", b"{}")
        reader = RemoteBlob(repository, source)
        assert await reader.read(0, 16) == DATA[:16]
        assert await reader.read(1000, 24) == DATA[1000:]
        assert registry.sent() == 40
        registry.blobs["app"].clear()
        with pytest.raises(NotFoundError):
            await reader.read(0, 16)
