"""A bootstrap layer: a tar.gz with the image's bootstrap, and perhaps the contexts of its blobs."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

from lazyimg_formats.errors import FormatError
from lazyimg_formats.nydus.layout import MAX_BOOTSTRAP
from lazyimg_formats.tar.header import BLOCK, ZERO_BLOCK, parse_header

_BOOTSTRAP: Final = b"image/image.boot"
_CONTEXT: Final = b".blob.meta"
_GZIP: Final = 16 + zlib.MAX_WBITS
_FILES: Final = frozenset({b"0", b"\0"})


@dataclass(frozen=True, slots=True)
class BootstrapLayer:
    """What a bootstrap layer holds.

    Attributes:
        bootstrap: the image's.
        contexts: files of blobs' contexts, for `context.split_context`, by the 64 digits of the
            sha256 of the blob that has the context.
    """

    bootstrap: bytes
    contexts: dict[str, bytes]


def parse_layer(data: bytes) -> BootstrapLayer:
    """Give what is in a bootstrap layer.

    Args:
        data: the layer, whole: a gzip member.

    Raises:
        FormatError: no gzip, no tar, over `MAX_BOOTSTRAP` bytes, or without a bootstrap.
    """
    member = zlib.decompressobj(_GZIP)
    try:
        tar = memoryview(member.decompress(data, MAX_BOOTSTRAP + 1))
    except zlib.error as error:
        raise FormatError("bootstrap layer", f"no gzip: {error}") from error
    if len(tar) > MAX_BOOTSTRAP:
        raise FormatError("bootstrap layer", f"over {MAX_BOOTSTRAP >> 20} MiB")
    if not member.eof:
        raise FormatError("bootstrap layer", "cut short")
    bootstrap: bytes | None = None
    contexts = {}
    position = 0
    while len(block := bytes(tar[position : position + BLOCK])) == BLOCK and block != ZERO_BLOCK:
        header = parse_header(block)
        start = position + BLOCK
        if not 0 <= header.size <= len(tar) - start:
            raise FormatError("bootstrap layer", f"{header.name[:80]!r} ends behind its tar")
        if header.flag in _FILES:
            name = header.name.removeprefix(b"./")
            if name == _BOOTSTRAP:
                bootstrap = bytes(tar[start : start + header.size])
            elif name.endswith(_CONTEXT) and name.isascii():
                blob = name.removesuffix(_CONTEXT).rpartition(b"/")[2].decode("ascii")
                contexts[blob] = bytes(tar[start : start + header.size])
        position = start + -(-header.size // BLOCK) * BLOCK
    if bootstrap is None:
        raise FormatError("bootstrap layer", f"it has no {_BOOTSTRAP.decode()}")
    return BootstrapLayer(bootstrap, contexts)
