"""The TOC's JSON, as typed structures, and what each entry says.

zstd:chunked has this TOC, and eStargz, which it comes from. The fields are in the order in which
containers/storage writes them.
"""

from __future__ import annotations

from binascii import a2b_base64
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import DEVICES, Entry, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

WHAT: Final = "TOC"
"""What errors call it."""

MAX_TOC: Final = 150 << 20
"""Bytes of a table of contents, compressed or not: what containers/storage takes."""

VERSION: Final = 1

CHUNK: Final = "chunk"
"""The type of an entry that is no member but a further chunk of the file before it."""

ZEROS: Final = "zeros"
"""The chunk type of a chunk that has only zeros."""

KINDS: Final = {
    "reg": Kind.REGULAR,
    "hardlink": Kind.HARDLINK,
    "symlink": Kind.SYMLINK,
    "char": Kind.CHARACTER,
    "block": Kind.BLOCK,
    "dir": Kind.DIRECTORY,
    "fifo": Kind.FIFO,
}

MAX_COUNT: Final = (1 << 62) - 1
"""The largest size or offset."""

Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Id = Annotated[int, Meta(ge=0, lt=1 << 32)]
Int64 = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Nanoseconds = Annotated[int, Meta(ge=0, lt=1_000_000_000)]

_SHA256: Final = "sha256:"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST: Final = -62_135_596_800  # 0001-01-01T00:00:00Z
_LAST: Final = 253_402_300_799  # 9999-12-31T23:59:59Z


class Extra(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What other readers cannot take; where it is given, the entry's own field is an image of it.

    Attributes:
        name: base64 of a name that is not UTF-8.
        link_name: likewise.
        modtime: seconds and nanoseconds since the epoch, outside the years 1 to 9999.
        xattrs: base64 of names that are not UTF-8, and of their values.
    """

    name: str = ""
    link_name: str = msgspec.field(default="", name="linkName")
    modtime: tuple[Int64, Nanoseconds] | None = None
    xattrs: dict[str, str] | None = None


class TocEntry(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A member of the tar, or a further chunk of the file before it.

    Offsets are bytes in the blob; `chunk_offset` and `chunk_size` bytes of the file. `xattrs` has
    base64 values; digests are text as in the image specification. `inner_offset`, in eStargz only,
    is in the decoded bytes that begin at `offset`.
    """

    type: str
    name: str
    link_name: str = msgspec.field(default="", name="linkName")
    mode: Int64 = 0
    size: Count = 0
    uid: Id = 0
    gid: Id = 0
    modtime: str | None = None
    accesstime: str | None = None
    changetime: str | None = None
    major: Int64 = msgspec.field(default=0, name="devMajor")
    minor: Int64 = msgspec.field(default=0, name="devMinor")
    xattrs: dict[str, str] | None = None
    digest: str = ""
    offset: Count = 0
    end_offset: Count = msgspec.field(default=0, name="endOffset")
    chunk_size: Count = msgspec.field(default=0, name="chunkSize")
    chunk_offset: Count = msgspec.field(default=0, name="chunkOffset")
    chunk_digest: str = msgspec.field(default="", name="chunkDigest")
    chunk_type: str = msgspec.field(default="", name="chunkType")
    lazyimg: Extra | None = None
    inner_offset: Count = msgspec.field(default=0, name="innerOffset")


class Toc(msgspec.Struct, frozen=True, gc=False):
    """The document."""

    version: int
    entries: list[TocEntry]


_DECODER: Final = msgspec.json.Decoder(Toc)


def read_entries(toc: bytes | bytearray) -> list[TocEntry]:
    """Give the entries of a TOC.

    Raises:
        FormatError: it is too large, not JSON of this form, or of another version.
    """
    if len(toc) > MAX_TOC:
        raise FormatError(WHAT, f"{len(toc)} bytes, the limit is {MAX_TOC}")
    try:
        document = _DECODER.decode(toc)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(WHAT, str(error)) from error
    if document.version != VERSION:
        raise FormatError(WHAT, f"version {document.version}, expected {VERSION}")
    return document.entries


def group_entries(entries: list[TocEntry]) -> Iterator[tuple[TocEntry, list[TocEntry]]]:
    """Give each member with its chunks: the member itself, then the entries that follow it.

    Raises:
        FormatError: a chunk without its file.
    """
    group: list[TocEntry] = []
    for entry in entries:
        if entry.type != CHUNK:
            if group:
                yield group[0], group
            group = [entry]
        elif not group or entry.name != group[0].name:
            raise FormatError(WHAT, f"a chunk of {entry.name[:80]!r} without its file")
        else:
            group.append(entry)
    if group:
        yield group[0], group


def make_entry(toc: TocEntry) -> Entry:
    """Give what a member is, without its data.

    Raises:
        FormatError: it is of an unknown type, or says something impossible.
    """
    kind = KINDS.get(toc.type)
    if kind is None:
        raise FormatError(WHAT, f"entry {toc.name[:80]!r} of unknown type {toc.type[:20]!r}")
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


def out_of_order(toc: TocEntry) -> FormatError:
    """Give the error for chunks that do not follow each other in their file."""
    return FormatError(WHAT, f"the chunks of {toc.name[:80]!r} are out of order")


def parse_sha256(text: str) -> bytes:
    """Give the 32 bytes of a digest.

    Raises:
        FormatError: it is no sha256 digest.
    """
    if len(text) == 71 and text.startswith(_SHA256):
        try:
            digest = bytes.fromhex(text[7:])
        except ValueError:
            digest = b""
        if len(digest) == 32:  # fromhex passes over blanks
            return digest
    raise FormatError(WHAT, f"expected a sha256 digest, got {text[:80]!r}")


def _decode_base64(text: str) -> bytes:
    try:
        return a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise FormatError(WHAT, f"no base64: {text[:80]!r}") from error


@lru_cache(maxsize=65_536)
def parse_time(text: str) -> tuple[int, int]:
    """Give seconds since the epoch and nanoseconds of a time as RFC 3339 writes it.

    Raises:
        FormatError: it is no time.
    """
    date, zone = (text[:-1], "") if text.endswith("Z") else (text[:-6], text[-6:])
    fraction = date[20:]
    try:
        moment = datetime.fromisoformat(date[:19] + "+00:00")
        offset = _parse_zone(zone) if zone else 0
    except ValueError:
        moment = None
    if moment is None or not date.isascii() or _separators(date) != "--T::":
        raise FormatError(WHAT, f"no time: {text[:80]!r}")
    if len(date) > 19 and (date[19] != "." or not fraction.isdigit() or len(fraction) > 9):
        raise FormatError(WHAT, f"no time: {text[:80]!r}")
    delta = moment - _EPOCH
    seconds = delta.days * 86_400 + delta.seconds - offset
    return seconds, int(fraction.ljust(9, "0")) if fraction else 0


def _separators(date: str) -> str:
    return date[4:5] + date[7:8] + date[10:11] + date[13:14] + date[16:17]


def _parse_zone(zone: str) -> int:
    if zone[0] not in "+-" or zone[3] != ":" or not (zone[1:3] + zone[4:]).isdecimal():
        raise ValueError(zone)
    seconds = int(zone[1:3]) * 3600 + int(zone[4:]) * 60
    return -seconds if zone[0] == "-" else seconds


@lru_cache(maxsize=4096)
def format_time(seconds: int, nanoseconds: int) -> str | None:
    """Give a time as RFC 3339 writes it; None when it cannot."""
    if not _FIRST <= seconds <= _LAST:
        return None
    text = (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]
    if nanoseconds:
        text += f".{nanoseconds:09d}".rstrip("0")
    return text + "Z"
