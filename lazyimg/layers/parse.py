"""A layer's index, as it was fetched -> LayerIndex, whatever the format. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.zstd_chunked.location import TocLocation
from lazyimg_formats.zstd_chunked.toc import parse_toc

if TYPE_CHECKING:
    from lazyimg.layers.locate import IndexLocation
    from lazyimg_formats.layer import LayerIndex


def parse_index(location: IndexLocation, data: bytes) -> LayerIndex:
    """Give what an index says.

    Args:
        location: where `data` was in the layer's blob; its digest is checked again.
        data: the index.

    Raises:
        FormatError: `data` is not what `location` says, or breaks its format.
    """
    toc = TocLocation(
        location.offset, location.length, location.decoded_length, Digest.parse(location.digest)
    )
    return parse_toc(toc.decode(data), end=toc.data_end)
