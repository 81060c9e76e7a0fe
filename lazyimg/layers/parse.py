"""A layer's index, as it was fetched -> LayerIndex, whatever the format. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazyimg.layers.locate import ESTARGZ, ZSTD_STARGZ
from lazyimg_formats.device_table import Codec
from lazyimg_formats.errors import FormatError
from lazyimg_formats.estargz.location import check_toc, decode_toc
from lazyimg_formats.estargz.toc import parse_stargz_toc
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.zstd_chunked.location import TocLocation
from lazyimg_formats.zstd_chunked.toc import parse_toc

if TYPE_CHECKING:
    from lazyimg.layers.locate import IndexLocation
    from lazyimg_formats.layer import LayerIndex


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


def parse_index(location: IndexLocation, data: bytes) -> LayerIndex:
    """Give what an index says.

    Args:
        location: where `data` was in the layer's blob; its digest is checked again.
        data: the index.

    Raises:
        FormatError: `data` is not what `location` says, or breaks its format.
    """
    expected = Digest.parse(location.digest)
    if location.format == ESTARGZ:
        return parse_stargz_toc(decode_toc(data, expected), end=location.offset)
    toc = TocLocation(location.offset, location.length, location.decoded_length, expected)
    if location.format == ZSTD_STARGZ:
        return parse_stargz_toc(toc.decode(data), end=toc.data_end, codec=Codec.ZSTD_PART)
    return parse_toc(toc.decode(data), end=toc.data_end)
