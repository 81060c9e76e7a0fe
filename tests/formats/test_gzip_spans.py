"""Entering a deflate stream at any bit."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import isal_zlib

from lazyimg_formats.gzip_spans import digest_input, serialize_entry

DECODERS: list[Any] = [zlib, isal_zlib]
DECODER_NAMES = ["zlib", "isal"]


class Bits:
    """A deflate stream, written bit by bit."""

    def __init__(self) -> None:
        self.value = self.size = 0

    def add(self, value: int, bits: int) -> None:
        self.value |= value << self.size
        self.size += bits

    def add_code(self, code: int, bits: int) -> None:
        self.add(int(f"{code:0{bits}b}"[::-1], 2), bits)

    def add_fixed(self, data: bytes) -> None:
        """Add a block of literals with fixed codes."""
        self.add(0b010, 3)
        for byte in data:
            if byte < 144:
                self.add_code(0b00110000 + byte, 8)
            else:
                self.add_code(0b110010000 + byte - 144, 9)
        self.add_code(0, 7)

    def add_stored(self, data: bytes) -> None:
        """Add a block that is stored: from the next byte on."""
        self.add(0, 3)
        self.add(0, -self.size % 8)
        self.add(len(data) | (len(data) ^ 0xFFFF) << 16, 32)
        self.add(int.from_bytes(data, "little"), 8 * len(data))

    def bytes(self) -> bytes:
        return self.value.to_bytes(-(-self.size // 8), "little")


def decode(library: Any, stream: bytes, bit: int, window: bytes, length: int) -> bytes:
    at, skip = divmod(bit, 8)
    decoder = library.decompressobj(-15, zdict=window)
    head = decoder.decompress(serialize_entry(stream[at], skip))
    return bytes(head + decoder.decompress(stream[at + 1 :], length - len(head)))


@pytest.mark.parametrize("library", DECODERS, ids=DECODER_NAMES)
@settings(deadline=None)
@given(
    blocks=st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.booleans()), min_size=1),
)
def test_any_block_is_entered(library: Any, blocks: list[tuple[bytes, bool]]) -> None:
    bits, starts = Bits(), []
    for data, stored in blocks:
        starts.append(bits.size)
        if stored:
            bits.add_stored(data)
        else:
            bits.add_fixed(data)
    whole = b"".join(data for data, _ in blocks)
    at = 0
    for (data, _), start in zip(blocks, starts, strict=True):
        rest = whole[at:]
        assert decode(library, bits.bytes(), start, b"", len(rest)) == rest
        at += len(data)


@pytest.mark.parametrize("library", DECODERS, ids=DECODER_NAMES)
@pytest.mark.parametrize("before", range(8))
def test_each_bit_of_a_byte_with_a_window(library: Any, before: int) -> None:
    bits = Bits()
    bits.add_fixed(b"\xff" * before)  # nine bits each, ten around them
    start = bits.size
    bits.add(0b010, 3)
    bits.add_code(0b0000001, 7)  # three bytes,
    bits.add_code(0b00011, 5)  # from four bytes before
    bits.add_code(0b00110000 + ord("!"), 8)
    bits.add_code(0, 7)
    assert start % 8 == (2 + before) % 8
    assert decode(library, bits.bytes(), start, b"abcd", 4) == b"abc!"
    assert decode(library, bits.bytes(), start, b"wxyz", 4) == b"wxy!"


def test_bytes_of_an_entry() -> None:
    assert serialize_entry(0xAB, 0) == b"\xab"
    assert [len(serialize_entry(0xFF, skip)) for skip in range(8)] == [1, 15, 2, 16, 3, 12, 4, 13]


def test_digest_of_what_is_decoded() -> None:
    stored, window = hashlib.sha256(b"stored").digest(), hashlib.sha256(b"window").digest()
    assert digest_input(stored, window) == hashlib.sha256(stored + window).digest()
    assert digest_input(window, stored) != digest_input(stored, window)
