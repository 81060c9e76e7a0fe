"""Header blocks."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.tar.header import BLOCK, Header, parse_header, parse_number

FIELDS = struct.Struct("<100s8s8s8s12s12s8s1s100s8s64x8s8s155s12s")
USTAR, GNU = b"ustar\x0000", b"ustar  \0"


def block(
    *,
    name: bytes = b"etc/passwd",
    mode: bytes = b"0000644\0",
    uid: bytes = b"0001750\0",
    gid: bytes = b"0000144\0",
    size: bytes = b"00000000012\0",
    mtime: bytes = b"14526342300\0",
    flag: bytes = b"0",
    target: bytes = b"",
    magic: bytes = USTAR,
    major: bytes = b"0000000\0",
    minor: bytes = b"0000000\0",
    prefix: bytes = b"",
    tail: bytes = b"",
    checksum: bytes | None = None,
    signed: bool = False,
) -> bytes:
    def pack(field: bytes) -> bytes:
        return FIELDS.pack(
            *(name, mode, uid, gid, size, mtime, field, flag),
            *(target, magic, major, minor, prefix, tail),
        )

    if checksum is None:
        blank = pack(b" " * 8)
        total = sum(blank) - (256 * sum(byte > 127 for byte in blank) if signed else 0)
        checksum = b"%06o\0 " % total
    return pack(checksum)


PASSWD = Header(b"etc/passwd", 0o644, 1000, 100, 10, 1_700_381_888, b"0", b"")


def test_ustar() -> None:
    assert parse_header(block()) == PASSWD


def test_ustar_prefix() -> None:
    assert parse_header(block(prefix=b"usr/share")).name == b"usr/share/etc/passwd"


def test_ustar_device() -> None:
    header = parse_header(block(flag=b"3", major=b"0000001\0", minor=b"0000003\0"))
    assert (header.flag, header.major, header.minor) == (b"3", 1, 3)


def test_ustar_link() -> None:
    assert parse_header(block(flag=b"2", target=b"passwd-")).target == b"passwd-"


def test_v7_has_no_prefix_and_no_device() -> None:
    header = parse_header(block(magic=b"", prefix=b"usr", major=b"0000001\0"))
    assert header == PASSWD


def test_gnu() -> None:
    header = parse_header(block(magic=GNU))
    assert (header.gnu, header.name, header.accessed, header.changed) == (
        True,
        b"etc/passwd",
        None,
        None,
    )


def test_gnu_times_stand_where_ustar_has_the_prefix() -> None:
    header = parse_header(block(magic=GNU, prefix=b"00000000012\x0000000000013\0"))
    assert (header.name, header.accessed, header.changed) == (b"etc/passwd", 10, 11)


def test_gnu_with_a_prefix_as_go_before_1_8_wrote_it() -> None:
    header = parse_header(block(magic=GNU, prefix=b"usr/share"))
    assert (header.name, header.accessed) == (b"usr/share/etc/passwd", None)


def test_gnu_with_impossible_times_that_are_no_prefix() -> None:
    header = parse_header(block(magic=GNU, prefix=b"\xc3\xa4" * 20))
    assert (header.name, header.accessed, header.changed) == (b"etc/passwd", None, None)


def test_gnu_with_an_impossible_second_time() -> None:
    header = parse_header(block(magic=GNU, prefix=b"00000000012\0\xc3"))
    assert (header.name, header.accessed, header.changed) == (b"00000000012/etc/passwd", None, None)


def test_star() -> None:
    prefix = b"usr/share".ljust(131, b"\0") + b"00000000012\x0000000000013\0"
    header = parse_header(block(prefix=prefix, tail=b"\0" * 8 + b"tar\0"))
    assert (header.name, header.accessed, header.changed) == (b"usr/share/etc/passwd", 10, 11)


def test_star_without_prefix() -> None:
    header = parse_header(block(tail=b"\0" * 8 + b"tar\0"))
    assert (header.name, header.accessed) == (b"etc/passwd", 0)


def test_name_that_fills_its_field() -> None:
    assert parse_header(block(name=b"n" * 100)).name == b"n" * 100


@pytest.mark.parametrize("signed", [False, True])
def test_checksum_of_bytes_over_127(signed: bool) -> None:  # noqa: FBT001
    assert parse_header(block(name=b"\xff" * 100, signed=signed)).name == b"\xff" * 100


def test_checksum_of_many_bytes_over_127() -> None:
    full = b"\xff" * 100
    header = parse_header(block(name=full, target=full, prefix=full + b"\xff" * 55))
    assert header.target == full


def test_checksum_wrong() -> None:
    data = block(checksum=b"012345\0 ")
    with pytest.raises(FormatError, match=r"^tar header: checksum is 5349, expected \d+$"):
        parse_header(data)


def test_checksum_is_checked_before_everything_else() -> None:
    with pytest.raises(FormatError, match="checksum"):
        parse_header(block(size=b"\xff" * 12, checksum=b"000000\0 "))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"    644 ", 0o644),
        (b"644\0\0\0\0\0", 0o644),
        (b"\0\0\0\0\0\0\0\0", 0),
        (b"        ", 0),
        (b"\x80\0\0\0\0\0\1\0", 256),
        (b"\xff" * 8, -1),
        (b"\xff" * 11 + b"\xfe", -2),
        (b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7, (1 << 63) - 1),
        (b"\xff" * 4 + b"\x80" + b"\0" * 7, -(1 << 63)),
    ],
)
def test_number(field: bytes, value: int) -> None:
    assert parse_number(field) == value


@pytest.mark.parametrize(
    "field",
    [b"0000648\0", b"-000644\0", b"+0000644", b"0o000644", b"1_0\0\0\0\0\0", b"x\0\0\0\0\0\0\0"],
)
def test_number_that_is_none(field: bytes) -> None:
    with pytest.raises(FormatError, match=r"^tar header: expected an octal number, got b'"):
        parse_number(field)


@pytest.mark.parametrize(
    "field", [b"\x80" + b"\0" * 3 + b"\x80" + b"\0" * 7, b"\xff" * 4 + b"\x7f" + b"\xff" * 7]
)
def test_number_over_64_bits(field: bytes) -> None:
    with pytest.raises(FormatError, match=r"is over 64 bits$"):
        parse_number(field)


@given(st.binary(min_size=BLOCK, max_size=BLOCK))
def test_noise(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_header(data)


@given(
    st.binary(max_size=100),
    st.binary(min_size=8, max_size=8),
    st.binary(min_size=12, max_size=12),
    st.sampled_from([USTAR, GNU, b""]),
    st.binary(max_size=155),
)
def test_noise_with_a_good_checksum(
    name: bytes, number: bytes, size: bytes, magic: bytes, prefix: bytes
) -> None:
    data = block(name=name, uid=number, size=size, magic=magic, prefix=prefix)
    try:
        header = parse_header(data)
    except FormatError:
        return
    assert header.name.endswith(name.partition(b"\0")[0])
