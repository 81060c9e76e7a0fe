"""A layer's index, as it was fetched -> LayerIndex, whatever the format. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lazyimg.layers.locate import ESTARGZ, PLAIN, SOCI, ZSTD_STARGZ
from lazyimg_formats.device_table import Codec
from lazyimg_formats.errors import FormatError
from lazyimg_formats.estargz import toc as estargz
from lazyimg_formats.estargz.location import check_toc, decode_toc, iterate_toc
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.soci.toc import parse_ztoc
from lazyimg_formats.stream_index import parse_stream_index
from lazyimg_formats.zstd_chunked.location import TocLocation
from lazyimg_formats.zstd_chunked.toc import parse_toc

if TYPE_CHECKING:
    from lazyimg.layers.locate import IndexLocation
    from lazyimg_formats.layer import LayerIndex

CHECKED: Final = 32 << 20
"""Bytes of a decoded index that `check_names` holds in memory; a larger one is left to parsing."""


def check_index(location: IndexLocation, data: bytes) -> None:
    """Check that an index has the digest that the manifest commits to; cheap in memory.

    Args:
        location: where `data` was in the layer's blob.
        data: the index.

    Raises:
        FormatError: it does not.
    """
    expected = Digest.parse(location.digest)
    if location.format == ESTARGZ:
        check_toc(data, expected)
    elif (found := Digest.of(data, expected.algorithm)) != expected:
        raise FormatError("index", f"expected {expected}, got {found}")


def check_names(location: IndexLocation, data: bytes) -> None:
    """Check what can be told of an index without parsing it, at little cost in memory.

    Args:
        location: where `data` was in the layer's blob.
        data: the index; its digest was checked.

    Raises:
        FormatError: it is damaged, or has lost names.
    """
    if location.format == ESTARGZ:
        estargz.check_names(iterate_toc(data))
    elif location.format == ZSTD_STARGZ and location.decoded_length <= CHECKED:
        estargz.check_names([_toc_of(location).decode(data)])


def parse_index(location: IndexLocation, data: bytes) -> LayerIndex:
    """Give what an index says.

    Args:
        location: where `data` was in the layer's blob; its digest is checked again.
        data: the index.

    Raises:
        FormatError: `data` is not what `location` says, or breaks its format.
    """
    if location.format == ESTARGZ:
        decoded = decode_toc(data, Digest.parse(location.digest))
        return estargz.parse_stargz_toc(decoded, end=location.offset)
    if location.format in PLAIN:
        check_index(location, data)
        return parse_stream_index(data)
    if location.format == SOCI:
        check_index(location, data)
        return parse_ztoc(data).layer
    toc = _toc_of(location)
    decoded = toc.decode(data)
    if location.format == ZSTD_STARGZ and estargz.is_stargz_toc(decoded):
        return estargz.parse_stargz_toc(decoded, end=toc.data_end, codec=Codec.ZSTD_PART)
    return parse_toc(decoded, end=toc.data_end)


def _toc_of(location: IndexLocation) -> TocLocation:
    digest = Digest.parse(location.digest)
    return TocLocation(location.offset, location.length, location.decoded_length, digest)
