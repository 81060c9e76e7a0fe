"""What a local file is: an EROFS image, a device table, a lazily loadable layer, a manifest."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from lazyimg.errors import CorruptError, UsageError
from lazyimg.layers.locate import ZSTD_CHUNKED, ZSTD_STARGZ
from lazyimg_formats.device_table import Codec, DeviceTable
from lazyimg_formats.erofs.layout import EROFS_SUPER_MAGIC_V1, EROFS_SUPER_OFFSET
from lazyimg_formats.erofs.reader import Image
from lazyimg_formats.errors import FormatError
from lazyimg_formats.estargz import location as estargz
from lazyimg_formats.estargz.toc import is_stargz_toc, parse_stargz_toc
from lazyimg_formats.layer import Kind
from lazyimg_formats.oci.documents import MAX_DOCUMENT, Index, Manifest, parse_document
from lazyimg_formats.zstd_chunked.location import FOOTER_FRAME_SIZE, TocLocation, parse_footer
from lazyimg_formats.zstd_chunked.toc import parse_toc

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg_formats.layer import LayerIndex

MAX_TABLE: Final = 1 << 30
"""Bytes of a device table that is read."""

_PIECE: Final = 1 << 20
_EROFS_MAGIC: Final = EROFS_SUPER_MAGIC_V1.to_bytes(4, "little")
_DEVICE_TABLE_MAGIC: Final = b"lazydev1"
_GZIP_MAGIC: Final = b"\x1f\x8b"
_COMPRESSIONS: Final = {_GZIP_MAGIC: "gzip", b"\x28\xb5": "zstd"}

Facts = dict[str, Any]
"""Names and values; names that end in ``size`` have bytes."""


def describe_file(path: Path) -> Facts:
    """Say what a file is; ``kind`` comes first.

    Raises:
        CorruptError: it begins like something known, and breaks its format.
        UsageError: it is nothing that is known.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        head = _read(file, 0, min(size, EROFS_SUPER_OFFSET + 4))
        try:
            if head[EROFS_SUPER_OFFSET:] == _EROFS_MAGIC:
                return _describe_erofs(file, size)
            if head.startswith(_DEVICE_TABLE_MAGIC):
                return _describe_table(file, size)
            layer = _find_toc(file, size)
            if layer is not None:
                return _describe_layer(file, size, layer)
            found = _find_stargz_toc(file, size) if head.startswith(_GZIP_MAGIC) else None
            if found is not None:
                return found
            if head.lstrip().startswith(b"{") and size <= MAX_DOCUMENT:
                return _describe_document(_read(file, 0, size))
        except FormatError as error:
            raise CorruptError(str(path), str(error)) from error
    compression = _COMPRESSIONS.get(head[:2], "")
    other = (
        f"a {compression} file, but no lazily loadable layer" if compression else "nothing known"
    )
    raise UsageError(
        str(path),
        f"is {other}",
        "give an EROFS image, a device table, a zstd:chunked or eStargz layer, or a manifest",
    )


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _describe_erofs(file: BinaryIO, size: int) -> Facts:
    image = Image(lambda offset, length: _read(file, offset, length))
    block = image.superblock
    return {
        "kind": "EROFS image",
        "fsid": _hash(file),
        "size": size,
        "block size": block.block_size,
        "inodes": block.inodes,
        "uuid": block.uuid.hex(),
        "compat": block.compat.name or "none",
        "incompat": block.incompat.name or "none",
        "devices": [
            {"tag": slot.tag.decode(errors="replace"), "size": slot.blocks * block.block_size}
            for slot in image.slots
        ],
    }


def _hash(file: BinaryIO) -> str:
    hasher = hashlib.sha256()
    file.seek(0)
    while piece := file.read(_PIECE):
        hasher.update(piece)
    return hasher.hexdigest()


def _describe_table(file: BinaryIO, size: int) -> Facts:
    if size > MAX_TABLE:
        raise FormatError("device table", f"{size} bytes, at most {MAX_TABLE}")
    table = DeviceTable(_read(file, 0, size))
    return {"kind": "device table", "size": size} | _table_facts(table)


def _table_facts(table: DeviceTable) -> Facts:
    return {
        "device": table.name,
        "device size": table.size,
        "data size": table.data_size(),
        "compressed size": table.blob_bytes(),
        "extents": table.extent_count,
        "spans": table.span_count,
    }


def _find_toc(file: BinaryIO, size: int) -> TocLocation | None:
    if size < FOOTER_FRAME_SIZE:
        return None
    try:
        return parse_footer(_read(file, size - FOOTER_FRAME_SIZE, FOOTER_FRAME_SIZE))
    except FormatError:
        return None  # something else


def _describe_layer(file: BinaryIO, size: int, location: TocLocation) -> Facts:
    toc = location.decode(_read(file, location.offset, location.length))
    if location.stargz and is_stargz_toc(toc):
        index = parse_stargz_toc(toc, end=location.data_end, codec=Codec.ZSTD_PART)
        return _layer_facts(f"{ZSTD_STARGZ} layer", size, location.length, index)
    index = parse_toc(toc, end=location.data_end)
    return _layer_facts(f"{ZSTD_CHUNKED} layer", size, location.length, index)


def _find_stargz_toc(file: BinaryIO, size: int) -> Facts | None:
    """Describe an eStargz layer; None: it is none."""
    length = min(size, estargz.FOOTER_SIZE)
    try:
        offset = estargz.parse_footer(_read(file, size - length, length), size)
    except FormatError:
        return None
    if offset is None:
        return {"kind": "eStargz layer whose table of contents is in another image", "size": size}
    toc = estargz.decode_toc(_read(file, offset, size - offset), None)
    return _layer_facts("eStargz layer", size, size - offset, parse_stargz_toc(toc, end=offset))


def _layer_facts(kind: str, size: int, index_size: int, index: LayerIndex) -> Facts:
    regular = [entry for entry in index.entries if entry.kind is Kind.REGULAR]
    return {
        "kind": kind,
        "size": size,
        "index size": index_size,
        "entries": len(index.entries),
        "files": len(regular),
    } | _table_facts(index.table)


def _describe_document(data: bytes) -> Facts:
    document: Manifest | Index = parse_document(data)
    facts: Facts = {
        "kind": "image index" if isinstance(document, Index) else "image manifest",
        "digest": f"sha256:{hashlib.sha256(data).hexdigest()}",
        "size": len(data),
    }
    if isinstance(document, Index):
        return facts | {
            "manifests": [
                {"digest": str(each.digest), "platform": str(each.platform or "-")}
                for each in document.manifests
            ]
        }
    return facts | {
        "layers": [
            {"digest": str(each.digest), "media type": each.media_type, "size": each.size}
            for each in document.layers
        ]
    }
