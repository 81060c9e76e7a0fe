"""A recorded source as the fill engine reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazyimg.registry.ports import FileSource
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import Descriptor

if TYPE_CHECKING:
    from lazyimg.images.library import SourceRecord
    from lazyimg.registry.ports import BlobFile, ImageSource


class RemoteBlob:
    """One blob of a repository; implements `lazyimg.fill.ports.BlobReader`.

    Args:
        repository: where it is.
        source: which blob of it.

    Where the repository is a directory or a file of this machine, the blob's file is kept open from
    the first `read` to `release`.
    """

    def __init__(self, repository: ImageSource, source: SourceRecord) -> None:
        self._file: BlobFile | None = None
        self._repository = repository
        self._descriptor = Descriptor(
            media_type="application/octet-stream",
            digest=Digest.parse(source.blob),
            size=source.blob_size,
        )

    async def read(self, offset: int, length: int) -> bytes:
        """Give exactly `length` bytes at `offset`; raises LazyimgError."""
        if self._file is None and isinstance(self._repository, FileSource):
            self._file = await self._repository.open_blob(self._descriptor)
        return await self._repository.read_blob(self._descriptor, offset, length)

    def peek(self, offset: int, length: int) -> memoryview | None:
        """Give bytes that are in memory; None where a repository has to be asked."""
        file = self._file
        return None if file is None else file.peek(offset, length)

    def release(self) -> None:
        """Close the file: nobody reads, and its file system may be wanted elsewhere."""
        self._file = None

    def distrust(self, offset: int, length: int) -> bool:
        """Note that what `read` gave is wrong; gives whether reading again may give better."""
        return self._repository.distrust(self._descriptor, offset, length)
