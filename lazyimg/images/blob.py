"""A recorded source as the fill engine reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import Descriptor

if TYPE_CHECKING:
    from lazyimg.images.library import SourceRecord
    from lazyimg.registry.ports import ImageSource


class RemoteBlob:
    """One blob of a repository; implements `lazyimg.fill.ports.BlobReader`.

    Args:
        repository: where it is.
        source: which blob of it.
    """

    def __init__(self, repository: ImageSource, source: SourceRecord) -> None:
        self._repository = repository
        self._descriptor = Descriptor(
            media_type="application/octet-stream",
            digest=Digest.parse(source.blob),
            size=source.blob_size,
        )

    async def read(self, offset: int, length: int) -> bytes:
        """Give exactly `length` bytes at `offset`; raises LazyimgError."""
        return await self._repository.read_blob(self._descriptor, offset, length)

    def peek(self, offset: int, length: int) -> bytes | None:  # noqa: ARG002 - nothing is at hand
        """Give nothing: a repository has to be asked."""
        return None

    def distrust(self, offset: int, length: int) -> bool:
        """Note that what `read` gave is wrong; gives whether reading again may give better."""
        return self._repository.distrust(self._descriptor, offset, length)
