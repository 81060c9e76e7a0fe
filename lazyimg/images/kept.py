"""A repository whose images' configs are kept on this node: a later mount asks for none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lazyimg.errors import StorageError
from lazyimg.host.files import write_file
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import MAX_CONFIG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.registry.ports import ImageSource
    from lazyimg_formats.oci.documents import Descriptor


class KeptConfigs:
    """Another source, with its small blobs kept; implements `lazyimg.registry.ports.ImageSource`.

    Args:
        source: where they come from.
        directory: where files named by their sha256 are.
    """

    def __init__(self, source: ImageSource, directory: Path) -> None:
        self._source = source
        self._directory = directory

    @property
    def name(self) -> str:
        """The source's."""
        return self._source.name

    async def fetch_manifest(self, reference: Digest | str) -> tuple[Descriptor, bytes]:
        """Ask the source."""
        return await self._source.fetch_manifest(reference)

    async def read_blob(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        """Ask the source."""
        return await self._source.read_blob(descriptor, offset, length)

    def distrust(self, descriptor: Descriptor, offset: int, length: int) -> bool:
        """Tell the source."""
        return self._source.distrust(descriptor, offset, length)

    async def stream_blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """Give the whole blob: the file that is kept, or the source's, which is kept then.

        Raises:
            StorageError: the disk is full or fails.
            LazyimgError: as the source.
        """
        if descriptor.size > MAX_CONFIG or descriptor.digest.algorithm != "sha256":
            async for piece in self._source.stream_blob(descriptor):
                yield piece
            return
        path = self._directory / descriptor.digest.hex
        data = await asyncio.to_thread(_read_kept, path, descriptor)
        if data is None:
            data = b"".join([piece async for piece in self._source.stream_blob(descriptor)])
            try:
                await asyncio.to_thread(write_file, path, data)
            except OSError as error:
                raise StorageError(str(path), f"cannot be written: {error.strerror}") from error
        yield data


def _read_kept(path: Path, descriptor: Descriptor) -> bytes | None:
    """Give a file's bytes; None if it is not there, or not what its name says."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(str(path), f"cannot be read: {error.strerror}") from error
    return data if Digest.of(data) == descriptor.digest else None
