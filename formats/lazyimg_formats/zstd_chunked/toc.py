"""A TOC to a LayerIndex.

Checked: chunks stand in the order of the blob, do not overlap, lie before `end`, follow each other
in their file without gaps and have its size together; every chunk that is not zeros has a digest;
names, owners, times, devices and attributes are possible ones.
"""

from __future__ import annotations

from binascii import a2b_base64
from typing import TYPE_CHECKING, Final

import msgspec

from lazyimg_formats.device_table import Codec
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import DEVICES, Entry, Kind, LayerBuilder, LayerIndex, Piece
from lazyimg_formats.zstd_chunked.entries import (
    CHUNK,
    KINDS,
    VERSION,
    ZEROS,
    Toc,
    TocEntry,
    parse_time,
)
from lazyimg_formats.zstd_chunked.location import MAX_TOC

if TYPE_CHECKING:
    from collections.abc import Iterator

_DECODER: Final = msgspec.json.Decoder(Toc)
_WHAT: Final = "zstd:chunked TOC"
_SHA256: Final = "sha256:"
_MAX_OFFSET: Final = 1 << 62
_REGULAR: Final = Kind.REGULAR
_ZSTD: Final = Codec.ZSTD


def parse_toc(toc: bytes | bytearray, *, end: int = _MAX_OFFSET) -> LayerIndex:
    """Give what a layer holds.

    Args:
        toc: the JSON, decoded.
        end: where in the blob the files' frames end (`TocLocation.data_end`).

    Raises:
        FormatError: it is no TOC, or breaks one of the rules above.
    """
    if len(toc) > MAX_TOC:
        raise FormatError(_WHAT, f"{len(toc)} bytes, the limit is {MAX_TOC}")
    try:
        document = _DECODER.decode(toc)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(_WHAT, str(error)) from error
    if document.version != VERSION:
        raise FormatError(_WHAT, f"version {document.version}, expected {VERSION}")
    reader = _Reader(end)
    for entry, chunks in _group(document.entries):
        reader.add(entry, chunks)
    return reader.builder.finish()


def _group(entries: list[TocEntry]) -> Iterator[tuple[TocEntry, list[TocEntry]]]:
    """Give each member with its chunks: the member itself, then the entries that follow it."""
    group: list[TocEntry] = []
    for entry in entries:
        if entry.type != CHUNK:
            if group:
                yield group[0], group
            group = [entry]
        elif not group or entry.name != group[0].name:
            raise FormatError(_WHAT, f"a chunk of {entry.name[:80]!r} without its file")
        else:
            group.append(entry)
    if group:
        yield group[0], group


class _Reader:
    """Feeds a LayerBuilder."""

    def __init__(self, end: int) -> None:
        self.builder = LayerBuilder()
        self._position = 0  # in the blob: where the last chunk ended
        self._end = end

    def add(self, toc: TocEntry, chunks: list[TocEntry]) -> None:
        kind = KINDS.get(toc.type)
        if kind is None:
            raise FormatError(_WHAT, f"entry {toc.name[:80]!r} of unknown type {toc.type[:20]!r}")
        entry = _entry(toc, kind)
        has_bytes = kind is _REGULAR and toc.size > 0
        if len(chunks) > 1 and not has_bytes:
            raise FormatError(_WHAT, f"{toc.name[:80]!r} has chunks, and no bytes")
        self.builder.add(entry, self._pieces(toc, chunks) if has_bytes else ())

    def _pieces(self, toc: TocEntry, entries: list[TocEntry]) -> list[Piece]:
        if len(entries) == 1:
            if toc.chunk_offset:
                raise _out_of_order(toc)
            digest = toc.chunk_digest or toc.digest
            piece = self._piece(toc, 0, toc.size, toc.end_offset, digest)
            return [] if piece is None else [piece]
        pieces = []
        file_offset = 0
        last = len(entries) - 1
        for number, chunk in enumerate(entries):
            blob_end = toc.end_offset if number == last else entries[number + 1].offset
            length = chunk.chunk_size
            if file_offset != chunk.chunk_offset or not length:
                raise _out_of_order(toc)
            piece = self._piece(chunk, file_offset, length, blob_end, chunk.chunk_digest)
            if piece is not None:
                pieces.append(piece)
            file_offset += length
        if file_offset != toc.size:
            raise FormatError(
                _WHAT, f"{toc.name[:80]!r} has {toc.size} bytes, its chunks {file_offset}"
            )
        return pieces

    def _piece(
        self, chunk: TocEntry, file_offset: int, length: int, blob_end: int, digest: str
    ) -> Piece | None:
        offset = chunk.offset
        if not self._position <= offset <= blob_end <= self._end:
            raise FormatError(
                _WHAT,
                f"{chunk.name[:80]!r}: a chunk at {offset} to {blob_end}, expected between"
                f" {self._position} and {self._end}",
            )
        self._position = blob_end
        if chunk.chunk_type == ZEROS:
            return None
        span = self.builder.add_span(
            offset, blob_end - offset, length, _parse_sha256(digest), _ZSTD
        )
        return Piece(file_offset, length, span)


def _out_of_order(toc: TocEntry) -> FormatError:
    return FormatError(_WHAT, f"the chunks of {toc.name[:80]!r} are out of order")


def _parse_sha256(text: str) -> bytes:
    if len(text) == 71 and text.startswith(_SHA256):
        try:
            digest = bytes.fromhex(text[7:])
        except ValueError:
            digest = b""
        if len(digest) == 32:  # fromhex passes over blanks
            return digest
    raise FormatError(_WHAT, f"expected a sha256 digest, got {text[:80]!r}")


def _decode_base64(text: str) -> bytes:
    try:
        return a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise FormatError(_WHAT, f"no base64: {text[:80]!r}") from error


def _entry(toc: TocEntry, kind: Kind) -> Entry:
    seconds, nanoseconds = parse_time(toc.modtime) if toc.modtime is not None else (0, 0)
    path, target = toc.name.encode(), toc.link_name.encode()
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    if toc.xattrs:
        xattrs = tuple((name.encode(), _decode_base64(text)) for name, text in toc.xattrs.items())
    extra = toc.lazyimg
    if extra is not None:
        path = _decode_base64(extra.name) or path
        target = _decode_base64(extra.link_name) or target
        if extra.modtime is not None:
            seconds, nanoseconds = extra.modtime
        if extra.xattrs:
            xattrs += tuple(
                (_decode_base64(name), _decode_base64(text)) for name, text in extra.xattrs.items()
            )
    is_device = kind in DEVICES  # others may say anything
    return Entry(
        path,
        kind,
        toc.mode,
        toc.uid,
        toc.gid,
        seconds,
        nanoseconds,
        toc.size,
        target,
        toc.major if is_device else 0,
        toc.minor if is_device else 0,
        xattrs,
    )
