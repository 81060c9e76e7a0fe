"""Whole blobs over real HTTP: verified, and gone on with where they broke off."""

from __future__ import annotations

import re
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CorruptError, RegistryError
from tests.lazyimg.registry.conftest import BLOB

if TYPE_CHECKING:
    from lazyimg.registry.repository import Repository
    from lazyimg_formats.oci.documents import Descriptor
    from tests.fakes.registry import FakeRegistry


async def read_all(repository: Repository, blob: Descriptor) -> bytes:
    return b"".join([piece async for piece in repository.stream_blob(blob)])


class TestStreams:
    async def test_whole(self, registry: FakeRegistry, repository: Repository) -> None:
        large = BLOB * 12  # several pieces
        blob = registry.add_blob("team/app", large)
        pieces = [piece async for piece in repository.stream_blob(blob)]
        assert b"".join(pieces) == large
        assert len(pieces) > 1
        assert registry.asked[-1].range == ""

    async def test_empty(self, registry: FakeRegistry, repository: Repository) -> None:
        blob = registry.add_blob("team/app", b"")
        assert await read_all(repository, blob) == b""
        assert registry.count("GET", "/blobs/") == 1

    @pytest.mark.parametrize("ignore_range", [False, True])
    async def test_goes_on_after_a_broken_connection(
        self, registry: FakeRegistry, repository: Repository, *, ignore_range: bool
    ) -> None:
        registry.ignore_range = ignore_range
        large = BLOB * 20
        blob = registry.add_blob("team/app", large)
        registry.fail("half")
        assert await read_all(repository, blob) == large
        resumed = registry.asked[-1].range
        assert re.fullmatch(r"bytes=[1-9]\d+-5119999", resumed)

    async def test_every_try_gets_further(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.fail("half", times=6)
        assert await read_all(repository, blob) == BLOB
        starts = [int(one.range[6:].partition("-")[0]) for one in registry.asked[1:]]
        assert starts == sorted(set(starts))
        assert len(starts) == 6

    async def test_gives_up_without_progress(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.fail("status", status=503, times=9)
        with pytest.raises(RegistryError, match="the registry answers 503"):
            await read_all(repository, blob)
        assert registry.count("GET", "/blobs/") == 3

    async def test_wrong_bytes(
        self, registry: FakeRegistry, repository: Repository, blob: Descriptor
    ) -> None:
        registry.fail("wrong")
        with pytest.raises(CorruptError, match=f"@{blob.digest}: its bytes have digest sha256:"):
            await read_all(repository, blob)

    async def test_can_be_left_early(self, repository: Repository, blob: Descriptor) -> None:
        async with aclosing(repository.stream_blob(blob)) as pieces:
            async for piece in pieces:
                assert BLOB.startswith(piece)
                break
