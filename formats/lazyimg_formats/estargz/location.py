"""Where an eStargz blob's table of contents is, and its JSON out of its gzip member."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Final

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.tar.header import BLOCK, parse_header
from lazyimg_formats.zstd_chunked.entries import MAX_TOC

if TYPE_CHECKING:
    from collections.abc import Iterator


TOC_DIGEST: Final = "containerd.io/snapshot/stargz/toc.digest"
"""The annotation that has the digest of the JSON."""

TOC_NAME: Final = b"stargz.index.json"
"""What the file in the TOC's tar is called."""

FOOTER_SIZE: Final = 51
"""Bytes of the longest footer: what `parse_footer` needs of a blob's end."""

_WHAT: Final = "eStargz TOC"
_FOOTER: Final = "eStargz footer"
_GZIP: Final = 16 + zlib.MAX_WBITS
_PIECE: Final = 1 << 18
_WRAPPING: Final = 64 << 10  # bytes of a TOC's tar besides the JSON, at most

# Each is an empty gzip member, of one stored block; its header may have any time and system.
_HEAD: Final = rb"\x1f\x8b\x08\x04.{6}"
_TAIL: Final = rb"\x01\x00\x00\xff\xff\x00{8}"
_OFFSET: Final = rb"([0-9a-fA-F]{16})STARGZ"
_FOOTERS: Final = (
    re.compile(_HEAD + rb"\x1a\x00SG\x16\x00" + _OFFSET + _TAIL, re.DOTALL),  # 51 bytes
    re.compile(_HEAD + rb"\x16\x00" + _OFFSET + _TAIL, re.DOTALL),  # 47: of stargz
)
_EXTERNAL: Final = re.compile(
    _HEAD + rb"\x15\x00SG\x11\x00STARGZEXTERNALTOC" + _TAIL, re.DOTALL
)  # 46


def parse_footer(data: bytes, blob_size: int) -> int | None:
    """Give where the TOC's member begins; None: the TOC is in another image.

    Args:
        data: the blob's last `FOOTER_SIZE` bytes, or all of it.
        blob_size: bytes of the blob.

    Raises:
        FormatError: it does not end with a footer, or that says something impossible.
    """
    for footer in _FOOTERS:
        length = 51 if footer is _FOOTERS[0] else 47
        match = footer.fullmatch(data[-length:])
        if match is not None:
            offset = int(match[1], 16)
            if not 0 < offset < blob_size - length:
                raise FormatError(_FOOTER, f"TOC at byte {offset} of a blob of {blob_size}")
            return offset
    if _EXTERNAL.fullmatch(data[-46:]):
        return None
    raise FormatError(_FOOTER, f"a blob's last bytes are {data[-FOOTER_SIZE:]!r}")


def check_toc(data: bytes | memoryview, digest: Digest) -> None:
    """Check the digest of a TOC's JSON, without keeping it.

    Args and Raises: as `decode_toc`.
    """
    hasher = digest.hasher()
    for piece in iterate_toc(data):
        hasher.update(piece)
    if not hasher.matches():
        raise FormatError(_WHAT, f"expected {digest}, got {hasher.digest()}")


def decode_toc(data: bytes | memoryview, digest: Digest | None) -> bytes:
    """Give a TOC's JSON.

    Args:
        data: of the blob, from the TOC's member on; what follows the member is passed over.
        digest: of the JSON; None: not known.

    Raises:
        FormatError: it has another digest, is too large, or is no TOC.
    """
    toc = b"".join(iterate_toc(data))
    if digest is not None and (found := Digest.of(toc, digest.algorithm)) != digest:
        raise FormatError(_WHAT, f"expected {digest}, got {found}")
    return toc


def iterate_toc(data: bytes | memoryview) -> Iterator[bytes]:
    """Give a TOC's JSON in pieces of bounded size.

    Raises:
        FormatError: it is too large, or is no TOC.
    """
    pieces = _inflate(data)
    head = b""
    while len(head) < BLOCK:
        head += _next(pieces)
    left, piece = _parse_head(head[:BLOCK]), head[BLOCK:]
    while len(piece) < left:
        yield piece
        left -= len(piece)
        piece = _next(pieces)
    yield piece[:left]
    for _ in pieces:  # to the member's end, which checks the bytes
        pass


def _next(pieces: Iterator[bytes]) -> bytes:
    for piece in pieces:
        return piece
    raise FormatError(_WHAT, "its tar is cut short")


def _parse_head(block: bytes) -> int:
    """Give the bytes of the JSON."""
    header = parse_header(block)
    if header.name != TOC_NAME or header.flag not in {b"0", b"\0"}:
        raise FormatError(_WHAT, f"its tar does not begin with the file {TOC_NAME.decode()}")
    if not 0 < header.size <= MAX_TOC:
        raise FormatError(_WHAT, f"{header.size} bytes, the limit is {MAX_TOC}")
    return header.size


def _inflate(data: bytes | memoryview) -> Iterator[bytes]:
    """Give what a gzip member holds, in pieces, to its end."""
    member = zlib.decompressobj(_GZIP)
    size = 0
    view = memoryview(data)
    for at in range(0, len(view), _PIECE):
        rest: bytes | memoryview = view[at : at + _PIECE]
        while rest and not member.eof:
            try:
                piece = member.decompress(rest, _PIECE)
            except zlib.error as error:
                raise FormatError(_WHAT, f"does not decode as gzip: {error}") from error
            rest = member.unconsumed_tail
            size += len(piece)
            if size > MAX_TOC + _WRAPPING:
                raise FormatError(_WHAT, f"its tar is over {MAX_TOC + _WRAPPING} bytes")
            yield piece
        if member.eof:
            return
    raise FormatError(_WHAT, "its gzip member is cut short")
