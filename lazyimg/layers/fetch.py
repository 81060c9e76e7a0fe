"""Find a layer's index in its blob, fetch it and keep it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from lazyimg.errors import CorruptError, NotLazyError, StorageError
from lazyimg.host.files import write_file
from lazyimg.layers.locate import PLAIN
from lazyimg.layers.parse import check_index
from lazyimg_formats.errors import FormatError
from lazyimg_formats.estargz.location import FOOTER_SIZE, parse_footer
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import Descriptor
from lazyimg_formats.stream_index import HEADER_SIZE, parse_header

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.layers.locate import IndexLocation
    from lazyimg.registry.ports import ImageSource

_ARTIFACT: Final = "application/octet-stream"
_REMEDY: Final = "convert the image again, or check the registry"


async def find_index(
    source: ImageSource, layer: Descriptor, location: IndexLocation
) -> IndexLocation:
    """Give where a layer's index is, in full; reads the blob's end if that says it.

    Args:
        source: has the layer's blob.
        layer: from the manifest.
        location: what the manifest says.

    Raises:
        NotLazyError: the index is not in the blob.
        CorruptError: the blob does not say where it is.
        LazyimgError: the registry fails.
    """
    if location.length:
        return location
    length = min(FOOTER_SIZE, layer.size)
    start = layer.size - length
    what = f"{source.name}: layer {layer.digest}"
    while True:
        end = await source.read_blob(layer, start, length)
        try:
            offset = parse_footer(end, layer.size)
        except FormatError as error:
            if not source.distrust(layer, start, length):
                raise CorruptError(what, str(error), _REMEDY) from error
            continue
        if offset is None:
            raise NotLazyError(
                what,
                "an eStargz layer whose table of contents is in another image",
                "convert the image: lazyimg convert SRC DST",
            )
        return replace(location, offset=offset, length=layer.size - offset)


async def fetch_index(
    source: ImageSource, layer: Descriptor, location: IndexLocation, directory: Path
) -> Path:
    """Give the file that holds a layer's index; fetches what is not there.

    Args:
        source: has the layer's blob.
        layer: from the manifest.
        location: of the index, in full; an artifact is in the same repository.
        directory: where the files are, by `IndexLocation.name`.

    Raises:
        NotLazyError: this node made the index, and does not have it any more.
        CorruptError: the blob holds other bytes than the manifest promises.
        LazyimgError: the registry or the disk fails.
    """
    path = directory / location.name
    if await asyncio.to_thread(_is_good, path, location):
        if location.artifact:
            await asyncio.to_thread(_check_subject, source, layer, location, path)
        return path
    if location.format in PLAIN and not location.artifact:
        raise NotLazyError(
            f"{source.name}: layer {layer.digest}",
            "the index that this node made of it is gone",
            "make it again: lazyimg index create REF --local",
        )
    blob, offset = _blob_of(layer, location)
    while True:
        data = await source.read_blob(blob, offset, location.length)
        problem = await asyncio.to_thread(_problem_of, location, data)
        if problem is None:
            break
        if not source.distrust(blob, offset, location.length):
            raise CorruptError(
                f"{source.name}: layer {layer.digest}",
                f"its index does not have the digest {location.digest}",
                _REMEDY,
            ) from problem
        del data  # it may be 150 MiB
    try:
        await asyncio.to_thread(write_file, path, data)
    except OSError as error:
        raise StorageError(str(path), f"cannot be written: {error.strerror}") from error
    if location.artifact:
        await asyncio.to_thread(_check_subject, source, layer, location, path)
    return path


def _check_subject(
    source: ImageSource, layer: Descriptor, location: IndexLocation, path: Path
) -> None:
    """Raise CorruptError if an index says that it is of another layer."""
    if location.format not in PLAIN:
        return
    what = f"{source.name}: index {location.digest}"
    try:
        with path.open("rb") as file:
            header = parse_header(file.read(HEADER_SIZE))
    except FormatError as error:
        raise CorruptError(what, str(error)) from error
    if header.blob != layer.digest or header.blob_size != layer.size:
        raise CorruptError(
            what, f"is of {header.blob}, {header.blob_size} bytes, not of the layer {layer.digest}"
        )


def _blob_of(layer: Descriptor, location: IndexLocation) -> tuple[Descriptor, int]:
    """Give the blob that holds an index, and where in it."""
    if not location.artifact:
        return layer, location.offset
    digest = Digest.parse(location.artifact)
    return Descriptor(media_type=_ARTIFACT, digest=digest, size=location.length), 0


def _problem_of(location: IndexLocation, data: bytes) -> FormatError | None:
    try:
        check_index(location, data)
    except FormatError as error:
        return error.with_traceback(None)  # its frames hold `data`
    return None


def _is_good(path: Path, location: IndexLocation) -> bool:
    """Whether the file is there and still has its bytes."""
    try:
        return _problem_of(location, path.read_bytes()) is None
    except OSError:  # most often: it is not there
        return False
