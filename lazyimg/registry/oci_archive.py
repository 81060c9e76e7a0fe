"""A tar file of an OCI image layout, as a source of images, read in place.

The file is scanned once for where its members lie; blobs are then read straight out of it.
"""

from __future__ import annotations

import asyncio
import tarfile
from typing import TYPE_CHECKING, Final

from lazyimg.errors import CorruptError, NotFoundError
from lazyimg.registry.blob_files import Extract, LocalSource, read_extract, unreadable
from lazyimg.registry.oci_layout import check_marker
from lazyimg_formats.oci.documents import MAX_DOCUMENT

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg_formats.oci.digest import Digest

MAX_MEMBERS: Final = 100_000
"""Members of an archive."""


class ArchiveFiles:
    """The members of an archive."""

    def __init__(self, path: Path) -> None:
        """Scan the archive.

        Raises:
            NotFoundError: there is no such file, or it is no layout.
            CorruptError: it is no tar file.
            StorageError: it cannot be read.
        """
        self._path = path
        self._places = self._scan()
        marker = self._places.get("oci-layout")
        if marker is None:
            raise NotFoundError(self.name, "is no OCI image layout: has no oci-layout file")
        check_marker(self.name, self._read(marker))

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"oci-archive:{self._path}"

    def _scan(self) -> dict[str, Extract]:
        places: dict[str, Extract] = {}
        number = 0
        try:
            with tarfile.open(self._path, "r:") as archive:
                for number, member in enumerate(archive):
                    if number >= MAX_MEMBERS:
                        break
                    if member.isreg() and not member.issparse():
                        path = member.name.removeprefix("./")
                        places[path] = Extract(self._path, member.offset_data, member.size)
        except OSError as error:
            raise unreadable(self.name, error) from error
        except Exception as error:  # whatever tarfile throws at a bad file means the same thing
            raise CorruptError(self.name, "is no uncompressed tar file") from error
        if number >= MAX_MEMBERS:
            raise CorruptError(self.name, f"has over {MAX_MEMBERS} members")
        return places

    def _read(self, place: Extract) -> bytes:
        return read_extract(self.name, place, 0, min(place.size, MAX_DOCUMENT + 1))

    def read_index(self) -> bytes:
        """Give index.json."""
        place = self._places.get("index.json")
        if place is None:
            raise CorruptError(self.name, "has no index.json")
        return self._read(place)

    def locate(self, digest: Digest) -> Extract | None:
        """Give where a blob is, or None."""
        return self._places.get(f"blobs/{digest.algorithm}/{digest.hex}")


async def open_archive(path: Path) -> LocalSource:
    """Give the image source in a tar file; raises as `ArchiveFiles`."""
    return LocalSource(await asyncio.to_thread(ArchiveFiles, path))
