"""tar-split: what a tar has besides its files' bytes, so that it can be put together again.

One JSON object a line, in the tar's order:

    {"type":2,"payload":BASE64,"position":N}                  raw bytes: padding, headers, the end
    {"type":1,"name":NAME,"size":N,"payload":BASE64,"position":N}    a member; CRC-64 of its bytes

The raw bytes before a member are one line: what pads the member before it, then its own headers,
extended ones included. Every member has its line; one without bytes has no size and no checksum.

Not every tar can be written so: tar-split has no sparse files, no global headers, no two members
of one name, and takes a link with a size for one with bytes. `TarSplitWriter.problem` says so.

Source: github.com/vbatts/tar-split, tar/storage and tar/asm; Go's hash/crc64, ISO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from fastcrc.crc64 import go_iso
from zstandard import ZstdCompressor

from lazyimg_formats.layer import Kind
from lazyimg_formats.tar.header import BLOCK

if TYPE_CHECKING:
    from lazyimg_formats.tar.scanner import Member

MAX_SEGMENT: Final = 4 << 20
"""Bytes between two members' payloads; more has no honest tar, and readers hold it in memory."""

MAX_DATA: Final = 64 << 20
"""Bytes of the data, compressed: a million files take a quarter. All of it is held in memory."""

MAX_MEMBERS: Final = 1 << 21
"""Members. Their names are held in memory, since no two may have the same."""

_REGULAR: Final = Kind.REGULAR
_LEVEL: Final = 1  # larger levels make it no smaller: most of it is digits and zeros


class TarSplit(NamedTuple):
    """The lines, compressed with zstd, and how many bytes they are when decoded."""

    data: bytes
    decoded_length: int


class _Segment(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag=2):
    payload: bytes
    position: int


class _File(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="type", tag=1):
    name: str = ""
    name_raw: bytes = b""
    size: int = 0
    payload: bytes | None = b""  # none has this one
    position: int = -1


_ENCODER: Final = msgspec.json.Encoder()
_WORTH_ENCODING: Final = 256  # lines,
_WORTH_KEEPING: Final = 64 << 10  # or raw bytes in them; a call for each line takes longer


def checksum(data: bytes | memoryview, before: int = 0) -> int:
    """Give the CRC-64 of a file's bytes.

    Args:
        data: its next bytes.
        before: what the bytes before them have.
    """
    return go_iso(data, before)


class TarSplitWriter:
    """Takes a tar in its order, and all of it. The same tar gives the same bytes.

    Attributes:
        problem: why this tar cannot be written; "" as long as it can.
    """

    def __init__(self) -> None:
        self.problem = ""
        self._raw = bytearray()
        self._padding = 0  # of the last member's bytes, at the start of `_raw`
        self._names: set[bytes] = set()
        self._position = 0
        self._length = self._size = 0  # bytes of lines, decoded and compressed
        self._compressor = ZstdCompressor(level=_LEVEL).compressobj()
        self._lines: list[_Segment | _File] = []  # not encoded yet
        self._held = 0  # raw bytes in them
        self._parts: list[bytes] = []

    def add_raw(self, data: bytes | memoryview) -> None:
        """Take bytes that are not a file's."""
        if self.problem:
            return
        self._raw += data
        if len(self._raw) > MAX_SEGMENT:
            self._give_up(f"over {MAX_SEGMENT} bytes between two files")

    def add_member(self, member: Member, crc: int = 0) -> None:
        """Take a member, when its headers and all its bytes have gone by.

        Args:
            member: as the scanner gave it.
            crc: `checksum` of its bytes.
        """
        entry = member.entry
        path, size, names = entry.path, entry.size, self._names
        key = _clean(path)
        if self.problem or (problem := _find_problem(member, repeated=key in names)):
            self._give_up(self.problem or problem)
            return
        names.add(key)
        if len(names) > MAX_MEMBERS:
            self._give_up(f"over {MAX_MEMBERS} members")
            return
        position = self._position
        payload = crc.to_bytes(8, "big") if size else None
        try:
            file = _File(path.decode(), b"", size, payload, position + 1)
        except UnicodeDecodeError:
            file = _File("", path, size, payload, position + 1)
        self._lines += (_Segment(bytes(self._raw), position), file)
        self._position = position + 2
        self._held += len(self._raw)
        if len(self._lines) >= _WORTH_ENCODING or self._held >= _WORTH_KEEPING:
            self._compress()
        self._raw.clear()
        self._padding = -size % BLOCK

    def finish(self) -> TarSplit | None:
        """Give the data; None where there is a problem, or nothing to say. Ends the tar."""
        self._names.clear()
        end = self._raw[self._padding :]
        if 0 < len(self._raw) < self._padding or end.strip(b"\0"):
            self._give_up("something follows its end")
        if self.problem:
            return None
        if self._raw:
            self._lines.append(_Segment(bytes(self._raw), self._position))
        self._compress()
        self._keep(self._compressor.flush())
        if self.problem or not self._length:
            return None
        return TarSplit(b"".join(self._parts), self._length)

    def _compress(self) -> None:
        text = _ENCODER.encode_lines(self._lines)
        self._lines.clear()
        self._held = 0
        self._length += len(text)
        self._keep(self._compressor.compress(text))

    def _keep(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)
        if self._size > MAX_DATA:
            self._give_up(f"its tar-split data is over {MAX_DATA} bytes")

    def _give_up(self, problem: str) -> None:
        self.problem = problem
        self._raw.clear()
        self._names.clear()
        self._lines.clear()
        self._parts.clear()


def _clean(path: bytes) -> bytes:
    """Give a path without empty parts and dots."""
    path = path.removeprefix(b"./")
    if b"//" in path or b"/." in path or path == b".":
        return b"/".join(part for part in path.split(b"/") if part not in {b"", b"."})
    return path.strip(b"/")


def _find_problem(member: Member, *, repeated: bool) -> str:
    entry = member.entry
    if repeated:
        return f"two members are {entry.path[:80]!r}"
    if member.regions is not None:
        return f"{entry.path[:80]!r} is sparse"
    if entry.size and entry.kind is not _REGULAR:
        return f"{entry.path[:80]!r} has a size, and no bytes"
    if member.has_globals:
        return "it has a global extended header"
    return ""
