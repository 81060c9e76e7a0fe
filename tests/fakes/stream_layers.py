"""Indexes of tars that are stored as they are, or in zstd frames: made without a blob to read."""

from __future__ import annotations

import hashlib

import zstandard

from lazyimg_formats.device_table import Codec
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.stream_index import (
    StreamHeader,
    StreamSpan,
    serialize_header,
    serialize_spans,
)
from lazyimg_formats.tar.scanner import TarScanner


def take_headers(tar: bytes) -> bytes:
    """Give what a scanner takes of a tar."""
    taken: list[bytes] = []
    scanner = TarScanner(taken.append)
    scanner.feed(tar)
    scanner.finish()
    return b"".join(taken)


def make_stream_index(
    tar: bytes,
    size: int,
    *,
    codec: Codec = Codec.RAW,
    headers: bytes | None = None,
    spans: list[StreamSpan] | None = None,
    windows: bytes = b"",
) -> bytes:
    """Give the index of a blob that holds a tar in spans of `size` bytes."""
    made = [
        StreamSpan(at, len(tar[at : at + size]), len(tar[at : at + size]), digest)
        for at in range(0, len(tar), size)
        for digest in [hashlib.sha256(tar[at : at + size]).digest()]
    ]
    used = made if spans is None else spans
    stored = zstandard.compress(take_headers(tar)) if headers is None else headers
    header = StreamHeader(
        codec, Digest.of(tar), len(tar), Digest.of(tar), len(tar), len(used), len(windows),
        len(stored),
    )  # fmt: skip
    return serialize_header(header) + windows + stored + serialize_spans(used)
