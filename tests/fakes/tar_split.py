"""Puts a tar together from tar-split data and the contents of its files, as its readers do."""

from __future__ import annotations

import base64
import json
import posixpath
from typing import TYPE_CHECKING, Any, Final

from zstandard import ZstdDecompressor

if TYPE_CHECKING:
    from collections.abc import Mapping

ISO: Final = 0xD800_0000_0000_0000  # the polynomial of hash/crc64's ISO table, reversed
FILE, SEGMENT = 1, 2


def decode_lines(data: bytes, length: int) -> list[dict[str, Any]]:
    """Give the lines, with bytes where they have base64."""
    text = ZstdDecompressor().decompressobj().decompress(data)
    assert len(text) == length
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line.pop("position") for line in lines] == list(range(len(lines)))
    for line in lines:
        for name in ("payload", "name_raw"):
            if line.get(name) is not None:
                line[name] = base64.b64decode(line[name], validate=True)
    return lines


def assemble(lines: list[dict[str, Any]], contents: Mapping[bytes, bytes]) -> bytes:
    """Give the tar; what the lines say of each file must be so."""
    parts: list[bytes] = []
    names: set[str | bytes] = set()
    for line in lines:
        if line["type"] == SEGMENT:
            parts.append(line["payload"])
            continue
        assert line["type"] == FILE
        name: bytes = line.get("name_raw") or line["name"].encode()
        assert posixpath.normpath(name) not in names
        names.add(posixpath.normpath(name))
        if "size" in line:
            assert line["size"] == len(contents[name])
            assert line["payload"] == crc64(contents[name]).to_bytes(8, "big")
            parts.append(contents[name])
    return b"".join(parts)


def crc64(data: bytes) -> int:
    """Give the CRC-64 of ISO 3309, bit by bit."""
    crc = (1 << 64) - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (ISO if crc & 1 else 0)
    return crc ^ (1 << 64) - 1
