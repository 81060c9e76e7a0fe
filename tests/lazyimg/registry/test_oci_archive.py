"""Image layouts in a tar file, read in place."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CorruptError, NotFoundError
from lazyimg.registry import oci_archive
from lazyimg.registry.oci_archive import open_archive
from lazyimg.registry.oci_layout import create_layout
from lazyimg.registry.ports import ImageSource
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import OCI_INDEX, describe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DATA = bytes(range(256)) * 10
INDEX = b'{"schemaVersion":2,"manifests":[]}'


async def whole() -> AsyncIterator[bytes]:
    yield DATA


@pytest.fixture
async def archive(tmp_path: Path) -> Path:
    layout = await create_layout(tmp_path / "layout")
    await layout.push_blob(whole(), lambda: Digest.of(DATA))
    await layout.push_manifest(INDEX, OCI_INDEX, "v1")
    path = tmp_path / "image.tar"
    with tarfile.open(path, "w") as made:
        made.add(tmp_path / "layout", arcname=".")
    return path


async def test_everything_is_read_in_place(archive: Path) -> None:
    source = await open_archive(archive)
    assert isinstance(source, ImageSource)
    assert source.name == f"oci-archive:{archive}"
    assert await source.fetch_manifest("v1") == (describe(INDEX, OCI_INDEX), INDEX)
    blob = describe(DATA, "")
    assert await source.read_blob(blob, 100, 50) == DATA[100:150]
    assert b"".join([piece async for piece in source.stream_blob(blob)]) == DATA


async def test_missing_blob(archive: Path) -> None:
    source = await open_archive(archive)
    with pytest.raises(NotFoundError, match="no such blob in it"):
        await source.read_blob(describe(b"other", ""), 0, 1)


async def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        await open_archive(tmp_path / "x.tar")
    assert str(caught.value) == (
        f"oci-archive:{tmp_path}/x.tar: cannot be read: No such file or directory"
    )


@pytest.mark.parametrize("data", [b"", b"x" * 2000, b"\x1f\x8b" + bytes(600), bytes(1500)])
async def test_no_archive(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises((CorruptError, NotFoundError), match="is no"):
        await open_archive(tmp_path / "x.tar")


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as made:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return path


async def test_archive_of_something_else(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"manifest.json": b"[]"})
    with pytest.raises(NotFoundError, match="is no OCI image layout: has no oci-layout file"):
        await open_archive(path)


async def test_archive_without_index(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'})
    source = await open_archive(path)
    with pytest.raises(CorruptError, match=r"x\.tar: has no index\.json"):
        await source.fetch_manifest("v1")


async def test_archive_that_was_cut_off(archive: Path) -> None:
    source = await open_archive(archive)
    archive.write_bytes(archive.read_bytes()[:512])
    with pytest.raises(CorruptError, match=r"its file ends \d+ bytes early"):
        await source.fetch_manifest("v1")


async def test_too_many_members(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci_archive, "MAX_MEMBERS", 2)
    with pytest.raises(CorruptError, match="has over 2 members"):
        await open_archive(archive)
