"""Where a blob's table of contents is: the manifest's annotations, and the blob's footer."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.zstd_chunked.entries import MAX_TOC
from lazyimg_formats.zstd_frames import SKIPPABLE_HEADER, decode_frame, serialize_skippable

if TYPE_CHECKING:
    from collections.abc import Mapping

POSITION: Final = "io.github.containers.zstd-chunked.manifest-position"
CHECKSUM: Final = "io.github.containers.zstd-chunked.manifest-checksum"
TAR_SPLIT_POSITION: Final = "io.github.containers.zstd-chunked.tarsplit-position"
LAZYIMG_POSITION: Final = "containerd.io/snapshot/lazyimg.toc-position"
LAZYIMG_DIGEST: Final = "containerd.io/snapshot/lazyimg.toc-digest"

OLD_POSITION: Final = "io.containers.zstd-chunked.manifest-position"
OLD_CHECKSUM: Final = "io.containers.zstd-chunked.manifest-checksum"

MAX_TAR_SPLIT: Final = (1 << 32) - 1
"""Bytes of tar-split data, compressed: what a skippable frame holds."""

FOOTER_SIZE: Final = 64
"""Bytes of the footer's payload."""

FOOTER_FRAME_SIZE: Final = SKIPPABLE_HEADER + FOOTER_SIZE
"""Bytes at the end of a blob that hold the footer."""

_POSITION: Final = re.compile(r"([0-9]{1,19}):([0-9]{1,19}):([0-9]{1,19}):([0-9]{1,19})", re.ASCII)
_TAR_SPLIT: Final = re.compile(r"([0-9]{1,19}):([0-9]{1,19}):([0-9]{1,19})", re.ASCII)
_FOOTER: Final = struct.Struct("<7Q8s")
_OLD_FOOTER: Final = struct.Struct("<4Q8s")
_MAGIC: Final = b"GNUlInUx"
_OLD_MAGIC: Final = b"GnUlInUx"
_PAIRS: Final = (
    (POSITION, CHECKSUM),
    (LAZYIMG_POSITION, LAZYIMG_DIGEST),
    (OLD_POSITION, OLD_CHECKSUM),
)

ANNOTATIONS: Final = frozenset({TAR_SPLIT_POSITION, *(name for pair in _PAIRS for name in pair)})
"""The names of every annotation that says where a TOC, or tar-split data, is."""

_TYPE: Final = 1  # a TOC as CRFS has it
_MAX_OFFSET: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class TarSplitLocation:
    """Where the compressed tar-split data is; its digest stands in the TOC.

    Attributes:
        offset: of its first byte in the blob, behind the skippable frame's header.
        length: bytes in the blob.
        decoded_length: bytes when decoded.

    Raises:
        FormatError: by the constructor, when this cannot be.
    """

    offset: int
    length: int
    decoded_length: int

    def __post_init__(self) -> None:
        if not (
            SKIPPABLE_HEADER <= self.offset <= _MAX_OFFSET
            and 0 < self.length <= MAX_TAR_SPLIT
            and 0 < self.decoded_length <= _MAX_OFFSET
        ):
            raise FormatError(
                "zstd:chunked tar-split data",
                f"impossible position {self.offset}:{self.length}:{self.decoded_length}",
            )


@dataclass(frozen=True, slots=True)
class TocLocation:
    """Where the compressed TOC is.

    Attributes:
        offset: of its first byte in the blob, behind the skippable frame's header.
        length: bytes in the blob.
        decoded_length: bytes when decoded.
        digest: sha256 of the bytes in the blob; None: known from the footer only.
        tar_split: where the tar-split data is; None: the blob has none.
        stargz: the names are stargz-snapshotter's; what the TOC is, `is_stargz_toc` of
            `lazyimg_formats.estargz.toc` tells.

    Raises:
        FormatError: by the constructor, when this cannot be.
    """

    offset: int
    length: int
    decoded_length: int
    digest: Digest | None
    tar_split: TarSplitLocation | None = None
    stargz: bool = False

    def __post_init__(self) -> None:
        if not SKIPPABLE_HEADER <= self.offset <= _MAX_OFFSET:
            raise FormatError("zstd:chunked TOC", f"impossible position {self.offset}")
        if not 0 < self.length <= MAX_TOC or not 0 < self.decoded_length <= MAX_TOC:
            raise FormatError(
                "zstd:chunked TOC",
                f"{self.length} bytes, {self.decoded_length} decoded: the limit is {MAX_TOC}",
            )

    @property
    def data_end(self) -> int:
        """Where in the blob the files' frames end and the TOC's frame begins."""
        return self.offset - SKIPPABLE_HEADER

    def decode(self, data: bytes) -> bytes:
        """Give the TOC's JSON.

        Args:
            data: the `length` bytes at `offset` of the blob.

        Raises:
            FormatError: they have another digest or length, or cannot be decoded.
        """
        if len(data) != self.length:
            raise FormatError("zstd:chunked TOC", f"expected {self.length} bytes, got {len(data)}")
        if self.digest is not None:
            found = Digest.of(data, self.digest.algorithm)
            if found != self.digest:
                raise FormatError("zstd:chunked TOC", f"expected {self.digest}, got {found}")
        decoded = decode_frame(data, self.decoded_length)
        if len(decoded) != self.decoded_length:
            raise FormatError(
                "zstd:chunked TOC",
                f"expected {self.decoded_length} decoded bytes, got {len(decoded)}",
            )
        return decoded


def parse_annotations(annotations: Mapping[str, str], blob_size: int) -> TocLocation | None:
    """Give where a layer's TOC is.

    Args:
        annotations: of the layer's descriptor in the manifest.
        blob_size: bytes of the layer's blob.

    Returns:
        None when the layer is not zstd:chunked.

    Raises:
        FormatError: they contradict each other, or one is missing or impossible.
    """
    found = {
        location
        for position, digest in _PAIRS
        if (location := _parse_pair(annotations.get(position), annotations.get(digest)))
    }
    if len(found) > 1:
        raise FormatError("zstd:chunked annotations", "they contradict each other")
    for location in found:
        if location.offset + location.length > blob_size:
            raise FormatError(
                "zstd:chunked annotations", f"the TOC lies behind the blob's {blob_size} bytes"
            )
        tar_split = _parse_tar_split(annotations.get(TAR_SPLIT_POSITION))
        if tar_split is not None and tar_split.offset + tar_split.length > blob_size:
            raise FormatError(
                "zstd:chunked annotations",
                f"the tar-split data lies behind the blob's {blob_size} bytes",
            )
        stargz = annotations.keys().isdisjoint({POSITION, LAZYIMG_POSITION})
        return replace(location, tar_split=tar_split, stargz=stargz)
    return None


def _parse_tar_split(position: str | None) -> TarSplitLocation | None:
    if position is None:
        return None
    match = _TAR_SPLIT.fullmatch(position)
    if match is None:
        raise FormatError(
            "zstd:chunked annotations", f"impossible tar-split position {position[:80]!r}"
        )
    return TarSplitLocation(*map(int, match.groups()))


def _parse_pair(position: str | None, digest: str | None) -> TocLocation | None:
    if position is None and digest is None:
        return None
    if position is None or digest is None:
        missing = "position" if position is None else "digest"
        raise FormatError("zstd:chunked annotations", f"the TOC's {missing} is missing")
    match = _POSITION.fullmatch(position)
    if match is None:
        raise FormatError("zstd:chunked annotations", f"impossible position {position[:80]!r}")
    offset, length, decoded_length, kind = map(int, match.groups())
    if kind != _TYPE:
        raise FormatError("zstd:chunked annotations", f"TOC of unknown type {kind}")
    return TocLocation(offset, length, decoded_length, Digest.parse(digest))


def serialize_annotations(location: TocLocation) -> dict[str, str]:
    """Give the annotations that say where a TOC is; `location.digest` is not None."""
    position = f"{location.offset}:{location.length}:{location.decoded_length}:{_TYPE}"
    digest = str(location.digest)
    if location.stargz:
        return {OLD_CHECKSUM: digest, OLD_POSITION: position}
    annotations = {
        LAZYIMG_DIGEST: digest,
        LAZYIMG_POSITION: position,
        CHECKSUM: digest,
        POSITION: position,
    }
    split = location.tar_split
    if split is not None:
        annotations[TAR_SPLIT_POSITION] = f"{split.offset}:{split.length}:{split.decoded_length}"
    return annotations


def parse_footer(data: bytes) -> TocLocation:
    """Give where the TOC is, from the last `FOOTER_FRAME_SIZE` bytes of a blob.

    It has no digest: what is found this way can be trusted only if the whole blob was verified.

    Raises:
        FormatError: this is no footer of zstd:chunked.
    """
    layout, expected = (_OLD_FOOTER, _OLD_MAGIC) if data.endswith(_OLD_MAGIC) else (_FOOTER, _MAGIC)
    if len(data) != FOOTER_FRAME_SIZE:
        raise FormatError(
            "zstd:chunked footer", f"expected {FOOTER_FRAME_SIZE} bytes, got {len(data)}"
        )
    payload = data[-layout.size :]
    if not data.endswith(serialize_skippable(payload)):
        raise FormatError("zstd:chunked footer", "not in a skippable frame")
    offset, length, decoded_length, kind, *tar_split, magic = layout.unpack(payload)
    if magic != expected:
        raise FormatError("zstd:chunked footer", f"magic is {magic!r}, expected {expected!r}")
    if kind != _TYPE:
        raise FormatError("zstd:chunked footer", f"TOC of unknown type {kind}")
    split = TarSplitLocation(*tar_split) if any(tar_split) else None
    stargz = layout is _OLD_FOOTER
    return TocLocation(offset, length, decoded_length, None, split, stargz)


def serialize_footer(location: TocLocation) -> bytes:
    """Give the footer's frame."""
    split = location.tar_split
    payload = _FOOTER.pack(
        location.offset,
        location.length,
        location.decoded_length,
        _TYPE,
        *((split.offset, split.length, split.decoded_length) if split else (0, 0, 0)),
        _MAGIC,
    )
    return serialize_skippable(payload)
