"""Configs that are kept on the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import StorageError
from lazyimg.images.kept import KeptConfigs
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import MAX_CONFIG, OCI_CONFIG, Descriptor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DATA = b'{"os":"linux"}'


class Source:
    """A repository with one blob; counts what it is asked."""

    name = "registry.example/app"

    def __init__(self) -> None:
        self.streamed = 0

    async def fetch_manifest(self, reference: Digest | str) -> tuple[Descriptor, bytes]:
        return descriptor(), str(reference).encode()

    async def read_blob(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        return DATA[offset : offset + length]

    def distrust(self, descriptor: Descriptor, offset: int, length: int) -> bool:
        return (offset, length) == (1, 2)

    async def stream_blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        self.streamed += 1
        yield DATA[:5]
        yield DATA[5:]


def descriptor(size: int = len(DATA), algorithm: str = "sha256") -> Descriptor:
    return Descriptor(media_type=OCI_CONFIG, digest=Digest.of(DATA, algorithm), size=size)


async def stream(kept: KeptConfigs, wanted: Descriptor) -> bytes:
    return b"".join([piece async for piece in kept.stream_blob(wanted)])


async def test_config_is_asked_for_once(tmp_path: Path) -> None:
    source = Source()
    for _ in range(2):
        assert await stream(KeptConfigs(source, tmp_path), descriptor()) == DATA
    assert source.streamed == 1
    assert (tmp_path / Digest.of(DATA).hex).read_bytes() == DATA


async def test_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    source = Source()
    path = tmp_path / Digest.of(DATA).hex
    path.write_bytes(b'{"os":"other"}')
    assert await stream(KeptConfigs(source, tmp_path), descriptor()) == DATA
    assert path.read_bytes() == DATA


@pytest.mark.parametrize(
    "wanted", [descriptor(MAX_CONFIG + 1), descriptor(algorithm="sha512")], ids=["large", "sha512"]
)
async def test_what_is_no_small_sha256_blob_is_not_kept(wanted: Descriptor, tmp_path: Path) -> None:
    source = Source()
    for _ in range(2):
        assert await stream(KeptConfigs(source, tmp_path), wanted) == DATA
    assert source.streamed == 2
    assert list(tmp_path.iterdir()) == []


async def test_the_rest_is_the_sources(tmp_path: Path) -> None:
    kept = KeptConfigs(Source(), tmp_path)
    assert kept.name == "registry.example/app"
    assert await kept.fetch_manifest("latest") == (descriptor(), b"latest")
    assert await kept.read_blob(descriptor(), 2, 4) == b'os":'


async def test_disk_that_fails(tmp_path: Path) -> None:
    kept = KeptConfigs(Source(), tmp_path / "missing")
    with pytest.raises(StorageError, match="cannot be written: No such file or directory"):
        await stream(kept, descriptor())
    (tmp_path / Digest.of(DATA).hex).mkdir()
    with pytest.raises(StorageError, match="cannot be read: Is a directory"):
        await stream(KeptConfigs(Source(), tmp_path), descriptor())


def test_wrong_bytes_are_the_source_s_business(tmp_path: Path) -> None:
    kept = KeptConfigs(Source(), tmp_path)
    assert kept.distrust(descriptor(), 1, 2)
    assert not kept.distrust(descriptor(), 0, 2)
