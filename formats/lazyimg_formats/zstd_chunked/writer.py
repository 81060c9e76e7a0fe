"""Members of a tar to a TOC, and the end of a blob."""

from __future__ import annotations

import hashlib
from binascii import b2a_base64
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec
from zstandard import ZstdCompressor

from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import DEVICES, LayerBuilder, Piece
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.zstd_chunked.entries import (
    CHUNK,
    KINDS,
    MAX_COUNT,
    MAX_TOC,
    VERSION,
    ZEROS,
    Extra,
    TocEntry,
    format_time,
)
from lazyimg_formats.zstd_chunked.location import (
    TarSplitLocation,
    TocLocation,
    serialize_footer,
)
from lazyimg_formats.zstd_frames import SKIPPABLE_HEADER, serialize_skippable_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lazyimg_formats.layer import Entry
    from lazyimg_formats.tar.scanner import Member
    from lazyimg_formats.tar_split import TarSplit

_TYPES: Final = {kind: name for name, kind in KINDS.items()}
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
_MIN_TIME: Final = -1 << 63
_MAX_DIGESTED_ZEROS: Final = 4 << 20


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """`length` bytes of a file, and its frames: `blob_offset` up to where the next one begins.

    Attributes:
        length: bytes of the file.
        blob_offset: where its first frame begins.
        digest: sha256 of the bytes; None: they are all zero.
    """

    length: int
    blob_offset: int
    digest: bytes | None


class TocWriter:
    """Takes members in the tar's order. The same members give the same bytes.

    What it gives can be read: each member is held against the rules of a layer before it is
    written.

    Attributes:
        problem: "" as long as every entry says, without our additions, what the tar's headers say;
            else which one does not. Readers of tar-split data compare it with the TOC, and take
            nothing else.
    """

    def __init__(self) -> None:
        self.problem = ""
        self._rules = LayerBuilder(keep=False)
        self._parts = bytearray(b'{"version":%d,"entries":[' % VERSION)
        self._separator = b""

    def add(
        self,
        member: Member,
        chunks: Sequence[Chunk] = (),
        blob_end: int = 0,
        digest: bytes | None = None,
    ) -> None:
        """Add a member.

        Args:
            member: as the scanner gave it.
            chunks: of a file that is not empty: all of it, in order.
            blob_end: where the last chunk's frames end.
            digest: sha256 of the whole file, where it is known.

        Raises:
            FormatError: no layer can have it, or the TOC gets larger than readers take.
        """
        self._rules.add(_as_read(member.entry), _pieces(chunks))
        entry = _entry(member, chunks, blob_end, digest)
        if not self.problem and not _is_plain(member, entry):
            self.problem = f"{member.entry.path[:80]!r} has a name or time that its JSON cannot say"
        self._write(entry)
        if len(chunks) > 1:
            for further in _further(entry.name, chunks):  # there may be half a million
                self._write(further)
        if len(self._parts) > MAX_TOC:
            raise FormatError("layer", f"its TOC is over the {MAX_TOC} bytes that readers take")

    def _write(self, entry: TocEntry) -> None:
        self._parts += self._separator
        self._parts += _ENCODER.encode(entry)
        self._separator = b","

    def finish(self, tar_split: TarSplit | None = None) -> bytearray:
        """Give the TOC, which commits to the blob's tar-split data if there will be any.

        Raises:
            FormatError: no device can hold all of its files.
        """
        self._rules.finish()
        end = b"]}"
        if tar_split is not None:
            end = b'],"tarSplitDigest":"%s"}' % str(Digest.of(tar_split.data)).encode()
        self._parts += end  # no copy: it may be large
        return self._parts


def serialize_tail(
    toc: bytes | bytearray, blob_offset: int, level: int, tar_split: TarSplit | None = None
) -> tuple[list[bytes], TocLocation]:
    """Give what follows the last file's frame in a blob, in pieces, and where the TOC is.

    Args:
        toc: what `TocWriter.finish` gave.
        blob_offset: bytes of the blob so far.
        level: of zstd.
        tar_split: what the TOC commits to.

    Raises:
        FormatError: the TOC is larger than readers take.
    """
    data = ZstdCompressor(level=level).compress(toc)
    offset = blob_offset + SKIPPABLE_HEADER
    split = None
    pieces = [serialize_skippable_header(len(data)), data]  # not put together: they are large
    if tar_split is not None:
        split = TarSplitLocation(
            offset + len(data) + SKIPPABLE_HEADER, len(tar_split.data), tar_split.decoded_length
        )
        pieces += [serialize_skippable_header(len(tar_split.data)), tar_split.data]
    location = TocLocation(offset, len(data), len(toc), Digest.of(data), split)
    return [*pieces, serialize_footer(location)], location


def _as_read(entry: Entry) -> Entry:
    """Give an entry as `parse_toc` gives it to its builder, as far as the rules are about it.

    Raises:
        FormatError: `TocEntry` has no such numbers; rules are not about those of a whiteout.
    """
    if entry.size > MAX_COUNT or not _MIN_TIME <= entry.mtime < -_MIN_TIME:
        raise FormatError("layer entry", f"{entry.path[:80]!r}: a size or time that is too large")
    if (entry.major or entry.minor) and entry.kind not in DEVICES:
        return msgspec.structs.replace(entry, major=0, minor=0)
    return entry


def _pieces(chunks: Sequence[Chunk]) -> list[Piece]:
    """Give which parts of a file are no zeros, which is what the rules of a layer are about."""
    if len(chunks) == 1:
        return [Piece(0, chunks[0].length, 0)] if chunks[0].digest else []
    pieces, offset = [], 0
    for chunk in chunks:
        if chunk.digest is not None:
            pieces.append(Piece(offset, chunk.length, 0))
        offset += chunk.length
    return pieces


def _is_plain(member: Member, entry: TocEntry) -> bool:
    """Tell whether an entry says all of what its member's header says, for every reader."""
    if entry.lazyimg is not None:
        return False
    accessed, changed = member.accessed, member.changed
    return (accessed is None or _is_said(accessed, entry.accesstime)) and (
        changed is None or _is_said(changed, entry.changetime)
    )


def _is_said(time: tuple[int, int], text: str | None) -> bool:
    return text is not None or time == (0, 0)


def _entry(
    member: Member, chunks: Sequence[Chunk], blob_end: int, digest: bytes | None
) -> TocEntry:
    entry = member.entry
    name, extra_name = _text(entry.path)
    link_name, extra_link_name = _text(entry.target) if entry.target else ("", "")
    mtime, mtime_ns, extra_time = entry.mtime, entry.mtime_ns, None
    modtime = format_time(mtime, mtime_ns) if mtime or mtime_ns else None
    if modtime is None and mtime:
        extra_time = (mtime, mtime_ns)
    xattrs, extra_xattrs = _xattrs(entry.xattrs) if entry.xattrs else (None, None)
    extra = None
    if extra_name or extra_link_name or extra_time or extra_xattrs:
        extra = Extra(extra_name, extra_link_name, extra_time, extra_xattrs)
    first = chunks[0] if chunks else Chunk(0, 0, None)
    chunked = len(chunks) > 1 or (first.length > 0 and first.digest is None)
    if digest is None and len(chunks) == 1:
        digest = first.digest or _zeros(first.length)
    return TocEntry(
        _TYPES[entry.kind],
        name,
        link_name,
        entry.mode,
        entry.size,
        entry.uid,
        entry.gid,
        modtime,
        _time(member.accessed),
        _time(member.changed),
        entry.major,
        entry.minor,
        xattrs,
        _sha256(digest),
        first.blob_offset,
        blob_end if chunks else 0,
        first.length if chunked else 0,
        0,
        _chunk_digest(first) if chunked else "",
        ZEROS if chunked and first.digest is None else "",
        extra,
    )


def _further(name: str, chunks: Sequence[Chunk]) -> Iterator[TocEntry]:
    """Give the entries of all chunks but the first."""
    file_offset = chunks[0].length
    for chunk in chunks[1:]:
        yield TocEntry(
            CHUNK,
            name,
            offset=chunk.blob_offset,
            chunk_size=chunk.length,
            chunk_offset=file_offset,
            chunk_digest=_chunk_digest(chunk),
            chunk_type=ZEROS if chunk.digest is None else "",
        )
        file_offset += chunk.length


def _text(raw: bytes) -> tuple[str, str]:
    try:
        return raw.decode(), ""
    except UnicodeDecodeError:
        return raw.decode(errors="replace"), b2a_base64(raw, newline=False).decode()


def _time(time: tuple[int, int] | None) -> str | None:
    return None if time is None or time == (0, 0) else format_time(*time)


def _xattrs(
    pairs: tuple[tuple[bytes, bytes], ...],
) -> tuple[dict[str, str] | None, dict[str, str] | None]:
    plain, extra = {}, {}
    for raw, value in pairs:
        name, encoded = _text(raw)
        text = b2a_base64(value, newline=False).decode()
        if encoded:
            extra[encoded] = text
        else:
            plain[name] = text
    return plain or None, extra or None


def _sha256(digest: bytes | None) -> str:
    return f"sha256:{digest.hex()}" if digest else ""


def _chunk_digest(chunk: Chunk) -> str:
    if chunk.digest is not None:
        return _sha256(chunk.digest)
    return _sha256(_zeros(chunk.length))


@lru_cache(maxsize=256)
def _zeros(length: int) -> bytes | None:
    """Give the sha256 of zeros; None where it takes too long."""
    return hashlib.sha256(bytes(length)).digest() if length <= _MAX_DIGESTED_ZEROS else None
