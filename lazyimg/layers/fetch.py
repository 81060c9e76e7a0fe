"""Fetch a layer's index out of its blob, and keep it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lazyimg.errors import CorruptError, StorageError
from lazyimg.host.files import write_file
from lazyimg_formats.oci.digest import Digest

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.layers.locate import IndexLocation
    from lazyimg.registry.ports import ImageSource
    from lazyimg_formats.oci.documents import Descriptor


async def fetch_index(
    source: ImageSource, layer: Descriptor, location: IndexLocation, directory: Path
) -> Path:
    """Give the file that holds a layer's index; fetches what is not there.

    Args:
        source: has the layer's blob.
        layer: from the manifest.
        location: of the index in the blob.
        directory: where files named by their sha256 are.

    Raises:
        CorruptError: the blob holds other bytes than the manifest promises.
        LazyimgError: the registry or the disk fails.
    """
    path = directory / location.name
    expected = Digest.parse(location.digest)
    if await asyncio.to_thread(_is_good, path, expected):
        return path
    while True:
        data = await source.read_blob(layer, location.offset, location.length)
        if await asyncio.to_thread(Digest.of, data, expected.algorithm) == expected:
            break
        if not source.distrust(layer, location.offset, location.length):
            raise CorruptError(
                f"{source.name}: layer {layer.digest}",
                f"its index does not have the digest {expected}",
                "convert the image again, or check the registry",
            )
        del data  # it may be 150 MiB
    try:
        await asyncio.to_thread(write_file, path, data)
    except OSError as error:
        raise StorageError(str(path), f"cannot be written: {error.strerror}") from error
    return path


def _is_good(path: Path, expected: Digest) -> bool:
    """Whether the file is there and still has its bytes."""
    try:
        return Digest.of(path.read_bytes(), expected.algorithm) == expected
    except OSError:  # most often: it is not there
        return False
