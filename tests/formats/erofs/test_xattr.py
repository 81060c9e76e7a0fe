"""Extended attributes, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg_formats.erofs.xattr import (
    XattrBody,
    body_count,
    body_size,
    parse_body,
    parse_entry,
    parse_long_prefix,
    serialize_body,
    serialize_entry,
    split_name,
)
from lazyimg_formats.errors import FormatError

ENTRIES = [
    (b"user.a", b"value", "01 01 0500 61 76616c7565 0000"),
    (b"system.posix_acl_access", b"acl!", "00 02 0400 61636c21"),
    (b"system.posix_acl_default", b"", "00 03 0000"),
    (b"trusted.xy", b"", "02 04 0000 7879 0000"),
    (b"security.selinux", b"l\0", "07 06 0200 73656c696e7578 6c00 000000"),
]
BODY = bytes.fromhex("00000000 02 00000000000000 05000000 ffffffff") + b"".join(
    bytes.fromhex(entry) for _, _, entry in ENTRIES
)

names = st.one_of(
    st.sampled_from([b"system.posix_acl_access", b"system.posix_acl_default"]),
    st.builds(
        lambda prefix, rest: prefix + rest,
        st.sampled_from([b"user.", b"trusted.", b"security."]),
        st.binary(min_size=1, max_size=255).filter(lambda rest: b"\0" not in rest),
    ),
)


@pytest.mark.parametrize(("name", "value", "entry"), ENTRIES)
def test_entry_as_bytes(name: bytes, value: bytes, entry: str) -> None:
    data = bytes.fromhex(entry)
    assert serialize_entry(name, value) == data
    assert parse_entry(b"????" + data + b"next", 4) == ((name, value), 4 + len(data))


def test_body_as_bytes() -> None:
    inline = tuple((name, value) for name, value, _ in ENTRIES)
    assert serialize_body(inline, (5, 2**32 - 1)) == BODY
    assert parse_body(BODY) == XattrBody((5, 2**32 - 1), inline)


def test_no_body() -> None:
    assert serialize_body(()) == b""
    assert parse_body(b"") == XattrBody((), ())
    assert (body_size(0), body_count(0)) == (0, 0)


def test_body_without_attributes() -> None:
    assert parse_body(bytes(12)) == XattrBody((), ())


@pytest.mark.parametrize(("count", "size"), [(1, 12), (2, 16), (65535, 262_148)])
def test_count_in_the_inode(count: int, size: int) -> None:
    assert (body_size(count), body_count(size)) == (size, count)


@pytest.mark.parametrize("size", range(1, len(BODY)))
def test_truncated_body(size: int) -> None:
    """Without its last entries it is another body; nothing else is accepted."""
    try:
        body = parse_body(BODY[:size])
    except FormatError:
        return
    written = serialize_body(body.inline, body.shared)
    assert BODY.startswith(written)
    assert size <= len(written) < size + 4  # padding may lack


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"user",
        b"user.",
        b"trusted.",
        b"system.posix_acl_accesses",
        b"system.nfs4_acl",
        b"lustre.x",
        b"user." + b"n" * 256,
        b"user.a\0b",
    ],
)
def test_name_without_a_place(name: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        serialize_entry(name, b"")
    assert str(caught.value) == f"erofs_xattr_entry: no place for an attribute named {name!r}"


def test_split_name() -> None:
    assert split_name(b"security.capability") == (6, b"capability")
    assert split_name(b"system.posix_acl_access") == (2, b"")
    assert split_name(b"system.other") is None


def test_longest_value() -> None:
    value = b"v" * 65_535
    assert parse_entry(serialize_entry(b"user.a", value), 0) == ((b"user.a", value), 65_540)
    with pytest.raises(FormatError) as caught:
        serialize_entry(b"user.a", value + b"v")
    assert str(caught.value) == "erofs_xattr_entry: b'user.a' has a value of 65536 bytes"


def test_longest_body() -> None:
    three = [(b"user.%03d" % number, b"v" * 65_528) for number in range(3)]
    last = (b"user.333", b"v" * 65_516)
    body = serialize_body([*three, last])
    assert (len(body), body_count(len(body))) == (262_144, 65_534)
    assert parse_body(body).inline == (*three, last)
    with pytest.raises(FormatError) as caught:
        serialize_body([*three, last, (b"user.4", b"1234")])
    assert str(caught.value) == "erofs_xattr_ibody_header: attributes of 262156 bytes"


def test_too_many_shared() -> None:
    assert parse_body(serialize_body((), range(255))).shared == tuple(range(255))
    with pytest.raises(FormatError, match=r"^erofs_xattr_ibody_header: "):
        serialize_body((), range(256))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("", "truncated"),
        ("010100", "truncated"),
        ("01 01 0000", "1 bytes of name and value, 0 left"),
        ("01 01 0200 6161", "3 bytes of name and value, 2 left"),
        ("01 00 0000 61", "unknown prefix 0"),
        ("01 05 0000 61", "unknown prefix 5"),
        ("01 07 0000 61", "unknown prefix 7"),
        ("01 82 0000 61", "unknown prefix 130"),
        ("00 01 0000", "impossible name b'user.'"),
        ("01 02 0000 61", "impossible name b'system.posix_acl_accessa'"),
        ("01 01 0000 00", r"impossible name b'user.\x00'"),
    ],
)
def test_impossible_entry(entry: str, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_entry(bytes.fromhex(entry), 0, [b"user.first.", b"user.second."])
    assert str(caught.value) == f"erofs_xattr_entry: {problem}"


def test_shared_numbers_that_do_not_fit() -> None:
    with pytest.raises(FormatError) as caught:
        parse_body(bytes.fromhex("00000000 02 00000000000000 05000000"))
    assert str(caught.value) == "erofs_xattr_ibody_header: 2 shared attributes do not fit"


@pytest.mark.parametrize(
    ("entry", "name"), [("01 80 0000 61", b"user.first.a"), ("00 81 0000", b"user.second")]
)
def test_long_prefix(entry: str, name: bytes) -> None:
    data = bytes.fromhex(entry)
    assert parse_entry(data, 0, [b"user.first.", b"user.second"])[0] == (name, b"")


def test_record_of_a_long_prefix() -> None:
    assert parse_long_prefix(b"\4overlay.") == b"trusted.overlay."
    with pytest.raises(FormatError, match=r"^erofs_xattr_long_prefix: empty$"):
        parse_long_prefix(b"")
    with pytest.raises(FormatError, match=r"^erofs_xattr_entry: unknown prefix 128$"):
        parse_long_prefix(b"\x80x")


@settings(max_examples=50)
@given(
    st.lists(st.tuples(names, st.binary(max_size=40)), max_size=6),
    st.lists(st.integers(0, 2**32 - 1), max_size=4),
)
def test_round_trip(inline: list[tuple[bytes, bytes]], shared: list[int]) -> None:
    body = serialize_body(inline, shared)
    assert body_size(body_count(len(body))) == len(body)
    assert parse_body(body) == XattrBody(tuple(shared), tuple(inline))


@settings(max_examples=100)
@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    try:
        body = parse_body(data)
    except FormatError:
        return
    assert parse_body(serialize_body(body.inline, body.shared)) == body
