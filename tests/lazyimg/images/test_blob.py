"""A recorded source, read by the fill engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import NotFoundError
from lazyimg.images.blob import RemoteBlob
from lazyimg.images.library import SourceRecord
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.oci_layout import create_layout
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.reference import parse_reference
from tests.fakes.registry import run_registry

if TYPE_CHECKING:
    from pathlib import Path

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
        assert reader.peek(0, 16) is None


async def test_file_of_a_layout_is_at_hand_from_the_first_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv  # whatever this file system makes of its flags
    monkeypatch.setattr(os, "preadv", lambda fd, into, offset, _flags: preadv(fd, into, offset))
    layout = await create_layout(tmp_path)
    digest = Digest.of(DATA)
    path = tmp_path / "blobs" / "sha256" / digest.hex
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(DATA)
    reader = RemoteBlob(layout, SourceRecord("oci:x", str(digest), len(DATA), "table", b"{}"))
    assert reader.peek(0, 16) is None
    assert await reader.read(8, 8) == DATA[8:16]
    assert bytes(reader.peek(1000, 24) or b"") == DATA[1000:]
    path.unlink()
    assert bytes(reader.peek(0, 16) or b"") == DATA[:16]
    reader.release()
    assert reader.peek(0, 16) is None
    with pytest.raises(NotFoundError):
        await reader.read(8, 8)
