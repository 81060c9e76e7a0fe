"""Nydus images for tests: samples that Nydus's builder made, and patches to them."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import zstandard

from lazyimg_formats.nydus.bootstrap import parse_bootstrap
from lazyimg_formats.nydus.context import decode_context, parse_context
from lazyimg_formats.nydus.layout import CONTEXT_HEADER

if TYPE_CHECKING:
    from lazyimg_formats.nydus.bootstrap import Blob
    from lazyimg_formats.nydus.context import Context

SAMPLES: Final = Path(__file__).parents[1] / "formats/nydus/samples"

WHOLE: Final = ("none", "lz4", "gzip", "zstd", "sha256")
"""Samples whose chunks are compressed one by one."""

BATCHES: Final = ("batch-none", "batch-lz4", "batch-gzip", "batch-zstd")

SUPER: Final = 1024
EXTENSION: Final = 1152
SLOTS: Final = 1408
BLOBS: Final = 4096


@cache
def sample(name: str) -> bytes:
    """Give a sample's bytes."""
    data = (SAMPLES / f"{name}.zst").read_bytes()
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 20)


def patch(data: bytes, offset: int, layout: str, *values: int | bytes) -> bytes:
    """Give data with other numbers at an offset."""
    changed = bytearray(data)
    struct.pack_into("<" + layout, changed, offset, *values)
    return bytes(changed)


def field(data: bytes, offset: int, layout: str = "Q") -> int:
    """Give the number at an offset."""
    return int(struct.unpack_from("<" + layout, data, offset)[0])


def context_bytes(blob: Blob, data: bytes) -> bytes:
    """Give the bytes of a context in the blob that has it."""
    return data[blob.context_offset :][: blob.context_size + CONTEXT_HEADER]


def context_of(blob: Blob, data: bytes) -> Context:
    """Give a context in the blob that has it."""
    return parse_context(blob, *decode_context(blob, context_bytes(blob, data)))


def context_file(blob: Blob, data: bytes) -> bytes:
    """Give a context as a bootstrap layer has it."""
    table, header = decode_context(blob, context_bytes(blob, data))
    return table + bytes(-len(table) % CONTEXT_HEADER) + header


def blob_of(name: str) -> Blob:
    """Give the first blob of a sample's bootstrap."""
    return parse_bootstrap(sample(f"{name}.boot")).blobs[0]


def pack_layer(files: dict[str, bytes]) -> bytes:
    """Give a tar.gz."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo("image")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(packed.getvalue(), mtime=0)


def digest(data: bytes) -> str:
    """Give the 64 digits of a sha256."""
    return hashlib.sha256(data).hexdigest()
