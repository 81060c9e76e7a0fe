"""Checksums, against published values."""

from __future__ import annotations

import pytest

from lazyimg_formats.checksums import crc32c


@pytest.mark.parametrize(
    ("data", "inverted"),
    [
        (b"123456789", 0xE3069283),  # the catalogue's check value
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_is_not_inverted_at_the_end(data: bytes, inverted: int) -> None:
    assert crc32c(data) == inverted ^ 0xFFFFFFFF


def test_crc32c_of_nothing() -> None:
    assert crc32c(b"") == 0xFFFFFFFF


def test_crc32c_goes_on() -> None:
    assert crc32c(memoryview(b"6789"), crc32c(bytearray(b"12345"))) == crc32c(b"123456789")
