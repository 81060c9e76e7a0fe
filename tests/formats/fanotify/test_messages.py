"""The bytes of fanotify's pre-content events. The sample was recorded from Linux 6.18."""

from __future__ import annotations

import struct
from errno import EAGAIN, EIO, ENOENT

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.fanotify.layout import FAN_PRE_ACCESS, FAN_Q_OVERFLOW
from lazyimg_formats.fanotify.messages import (
    AccessEvent,
    OverflowEvent,
    UnknownEvent,
    allow,
    deny,
    parse_events,
)

u64 = st.integers(0, 2**64 - 1)
i31 = st.integers(0, 2**31 - 1)


def record(offset: int, count: int, *, kind: int = 6, length: int = 24) -> bytes:
    return struct.pack("=BBHIQQ", kind, 0, length, 0, offset, count)


def event(
    records: bytes = b"",
    *,
    mask: int = FAN_PRE_ACCESS,
    fd: int = 9,
    pid: int = 77,
    version: int = 3,
    metadata: int = 24,
    length: int | None = None,
) -> bytes:
    size = 24 + len(records) if length is None else length
    return struct.pack("=IBBHQii", size, version, 0, metadata, mask, fd, pid) + records


ACCESS = event(record(4096, 131072))
OVERFLOW = event(mask=FAN_Q_OVERFLOW, fd=-1, pid=0)


def test_access() -> None:
    assert parse_events(ACCESS) == [AccessEvent(fd=9, pid=77, offset=4096, count=131072)]


def test_overflow() -> None:
    assert parse_events(OVERFLOW) == [OverflowEvent()]


def test_records_of_other_kinds_are_passed_over() -> None:
    other = struct.pack("=BBHI", 99, 0, 8, 5)
    assert parse_events(event(other + record(1, 2) + other)) == [AccessEvent(9, 77, 1, 2)]
    assert parse_events(event(record(1, 2) + other)) == [AccessEvent(9, 77, 1, 2)]


def test_metadata_that_has_grown() -> None:
    assert parse_events(event(b"new!" + record(1, 2), metadata=28)) == [AccessEvent(9, 77, 1, 2)]


def test_several_events_in_one_read() -> None:
    access = AccessEvent(9, 77, 4096, 131072)
    assert parse_events(ACCESS + OVERFLOW + ACCESS) == [access, OverflowEvent(), access]
    assert parse_events(b"") == []


@pytest.mark.parametrize("whole", [ACCESS, OVERFLOW], ids=["access", "overflow"])
def test_any_truncation_or_trailing_byte_is_refused(whole: bytes) -> None:
    for end in range(1, len(whole)):
        with pytest.raises(FormatError):
            parse_events(whole[:end])
    with pytest.raises(FormatError, match="expected 24 bytes, got 1"):
        parse_events(whole + b"x")


def test_another_version() -> None:
    for raw in (event(version=4), event(record(1, 2), version=4)):
        with pytest.raises(FormatError, match=r"^fanotify_event_metadata: version 4, expected 3$"):
            parse_events(raw)


@pytest.mark.parametrize("length", [0, 23, 25])
def test_event_len_that_cannot_be(length: int) -> None:
    with pytest.raises(FormatError, match=rf"event_len says {length} bytes, got 24"):
        parse_events(event(length=length))


@pytest.mark.parametrize(
    ("raw", "fd", "problem"),
    [
        (event(record(1, 2), mask=2), 9, "unknown event 0x2 with fd 9"),
        (event(record(1, 2), fd=-1), None, "unknown event 0x100000 with fd -1"),
        (event(), 9, "FAN_PRE_ACCESS without a range"),
        (event(record(1, 2), metadata=48), 9, "FAN_PRE_ACCESS without a range"),
        (event(struct.pack("=BBHI", 99, 0, 8, 5)), 9, "FAN_PRE_ACCESS without a range"),
        (event(record(1, 2, length=3)), 9, "len says 3 bytes, got 24"),
        (event(record(1, 2, length=25)), 9, "len says 25 bytes, got 24"),
        (event(record(1, 2, length=16)), 9, "expected 24 bytes, got 16"),
        (event(b"xy"), 9, "expected 4 bytes, got 2"),
    ],
)
def test_event_that_is_not_understood(raw: bytes, fd: int | None, problem: str) -> None:
    """The one behind it is."""
    found = parse_events(raw + OVERFLOW)
    assert found == [UnknownEvent(fd, problem), OverflowEvent()]


def padded(offset: int, count: int, fd: int, pid: int) -> bytes:
    return event(b"1234" + record(offset, count), fd=fd, pid=pid, metadata=28)


@given(i31, i31, u64, u64)
def test_access_keeps_every_value(fd: int, pid: int, offset: int, count: int) -> None:
    for raw in (event(record(offset, count), fd=fd, pid=pid), padded(offset, count, fd, pid)):
        assert parse_events(raw) == [AccessEvent(fd, pid, offset, count)]


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_give_events_or_format_error(data: bytes, framed: bool) -> None:  # noqa: FBT001
    raw = event(data) if framed else data
    try:
        events = parse_events(raw)
    except FormatError:
        return
    assert len(events) <= len(raw) // 24
    assert all(isinstance(each, AccessEvent | OverflowEvent | UnknownEvent) for each in events)


def test_answers() -> None:
    assert allow(9) == struct.pack("=iI", 9, 1)
    assert deny(0, EIO) == struct.pack("=iI", 0, 2 | 5 << 24)
    assert deny(2**31 - 1, EAGAIN) == struct.pack("=iI", 2**31 - 1, 2 | 11 << 24)


def test_answers_that_the_kernel_would_not_take() -> None:
    with pytest.raises(ValueError, match=r"^no event can be denied with errno 2$"):
        deny(9, ENOENT)
    for fd in (-1, 2**31):
        with pytest.raises(ValueError, match=rf"^fd cannot be {fd}$"):
            allow(fd)
