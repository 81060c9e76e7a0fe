"""Reading images whose blobs lie in local files: what a layout and an archive have in common."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from lazyimg.errors import CorruptError, LazyimgError, NotFoundError, StorageError
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    MAX_DOCUMENT,
    OCI_INDEX,
    OCI_MANIFEST,
    REF_NAME,
    Descriptor,
    Index,
    parse_document,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

PIECE: Final = 1 << 20
"""Bytes that a streamed blob is handed out in."""


MAX_PEEK: Final = 4 << 20
"""Bytes of a blob that are looked for in memory at a time."""


class Extract(NamedTuple):
    """`size` bytes at `offset` of a file."""

    path: Path
    offset: int
    size: int


class _Scratch(threading.local):
    """Where peeks of one thread put what they find."""

    def __init__(self) -> None:
        self.buffer = memoryview(b"")

    def take(self, length: int) -> memoryview:
        if length > len(self.buffer):
            self.buffer = memoryview(bytearray(length))
        return self.buffer[:length]


_scratch = _Scratch()


class OpenExtract:
    """An extract of a file that is kept open; implements `ports.BlobFile`.

    What replaces the file under its name is not noticed.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, place: Extract) -> None:
        self._place = place
        self._fd = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)

    def peek(self, offset: int, length: int) -> memoryview | None:
        """Give bytes that are in the page cache; see `BlobFile`."""
        if length > MAX_PEEK or offset + length > self._place.size:
            return None
        found = _scratch.take(length)
        try:
            size = os.preadv(self._fd, [found], self._place.offset + offset, os.RWF_NOWAIT)
        except OSError:  # EAGAIN; or a file system that cannot tell
            return None
        return found if size == length else None


class BlobFiles(Protocol):
    """Where blobs and the index lie. Called in threads."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def read_index(self) -> bytes:
        """Give index.json; raises LazyimgError."""
        ...

    def locate(self, digest: Digest) -> Extract | None:
        """Give where a blob is, or None."""
        ...


class LocalSource:
    """An ImageSource over blobs in files."""

    def __init__(self, files: BlobFiles) -> None:
        self._files = files

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._files.name

    async def fetch_manifest(self, reference: Digest | str) -> tuple[Descriptor, bytes]:
        """Give a manifest or index by digest, by name, or under "" the only one."""
        return await asyncio.to_thread(self._fetch_manifest, reference)

    def _fetch_manifest(self, reference: Digest | str) -> tuple[Descriptor, bytes]:
        digest = reference if isinstance(reference, Digest) else self._find(reference).digest
        what = f"{self.name}@{digest}"
        place = self._locate(digest)
        if place.size > MAX_DOCUMENT:
            raise CorruptError(what, f"{place.size} bytes, at most {MAX_DOCUMENT} allowed")
        data = read_extract(what, place, 0, place.size)
        if Digest.of(data, digest.algorithm) != digest:
            raise CorruptError(what, f"its bytes have digest {Digest.of(data, digest.algorithm)}")
        document = parse_local(what, data)
        default = OCI_INDEX if isinstance(document, Index) else OCI_MANIFEST
        media_type = document.media_type or default
        return Descriptor(media_type=media_type, digest=digest, size=len(data)), data

    def _find(self, name: str) -> Descriptor:
        index = parse_index(self.name, self._files.read_index())
        found = [entry for entry in index.manifests if not name or _ref_name(entry) == name]
        names = ", ".join(sorted({_ref_name(entry) for entry in index.manifests} - {""})[:20])
        if not found:
            raise NotFoundError(
                self.name,
                f"no image named {name!r} in it" if name else "no image in it",
                f"there are: {names}" if names else "",
            )
        if not name and len({entry.digest for entry in found}) > 1:
            raise NotFoundError(
                self.name, f"{len(found)} images in it", f"name one of: {names}" if names else ""
            )
        return found[0]

    async def read_blob(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        """Give a part of a blob; see ImageSource."""
        if not 0 <= offset <= offset + length <= descriptor.size:
            raise ValueError(f"{offset}+{length} is not inside a blob of {descriptor.size} bytes")
        return await asyncio.to_thread(self._read_blob, descriptor, offset, length)

    def distrust(self, descriptor: Descriptor, offset: int, length: int) -> bool:  # noqa: ARG002
        """Give False: the same file would be read; see ImageSource."""
        return False

    async def open_blob(self, descriptor: Descriptor) -> OpenExtract:
        """Open a blob's file; see FileSource."""
        return await asyncio.to_thread(self._open_blob, descriptor)

    def _open_blob(self, descriptor: Descriptor) -> OpenExtract:
        place = self._locate_blob(descriptor)
        try:
            return OpenExtract(place)
        except OSError as error:
            raise unreadable(f"{self.name}@{descriptor.digest}", error) from error

    def _read_blob(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        what = f"{self.name}@{descriptor.digest}"
        return read_extract(what, self._locate_blob(descriptor), offset, length)

    async def stream_blob(self, descriptor: Descriptor) -> AsyncGenerator[bytes]:
        """Give a whole blob; see ImageSource."""
        what = f"{self.name}@{descriptor.digest}"
        place = await asyncio.to_thread(self._locate_blob, descriptor)
        hasher = descriptor.digest.hasher()

        def read_next() -> bytes:
            length = min(PIECE, place.size - hasher.size)
            data = read_extract(what, place, hasher.size, length)
            hasher.update(data)
            return data

        while hasher.size < place.size:
            yield await asyncio.to_thread(read_next)
        if not hasher.matches():
            raise CorruptError(what, f"its bytes have digest {hasher.digest()}")

    def _locate_blob(self, descriptor: Descriptor) -> Extract:
        place = self._locate(descriptor.digest)
        if place.size != descriptor.size:
            raise CorruptError(
                f"{self.name}@{descriptor.digest}",
                f"expected {descriptor.size} bytes, it has {place.size}",
            )
        return place

    def _locate(self, digest: Digest) -> Extract:
        place = self._files.locate(digest)
        if place is None:
            raise NotFoundError(f"{self.name}@{digest}", "no such blob in it")
        return place


def _ref_name(entry: Descriptor) -> str:
    return entry.annotations.get(REF_NAME, "")


def parse_local(what: str, data: bytes) -> Any:
    """Give the manifest or index in `data`; raises CorruptError."""
    try:
        return parse_document(data)
    except FormatError as error:
        raise CorruptError(what, str(error)) from error


def parse_index(name: str, data: bytes) -> Index:
    """Give the index of a layout; raises CorruptError."""
    document = parse_local(name, data)
    if not isinstance(document, Index):
        raise CorruptError(name, "its index.json is no image index")
    return document


def read_extract(what: str, place: Extract, offset: int, length: int) -> bytes:
    """Give exactly `length` bytes at `offset` of an extract.

    Raises:
        CorruptError: the file ends before.
        StorageError: it cannot be read.
    """
    parts, end = [], offset + length
    try:
        descriptor = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while offset < end:
                part = os.pread(descriptor, end - offset, place.offset + offset)
                if not part:
                    raise CorruptError(what, f"its file ends {end - offset} bytes early")
                parts.append(part)
                offset += len(part)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(what, error) from error
    return b"".join(parts)


def unreadable(what: str, error: OSError) -> LazyimgError:
    """Give the error for a file that cannot be read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return NotFoundError(what, f"cannot be read: {error.strerror}")
    return StorageError(what, f"cannot be read: {error.strerror}")
