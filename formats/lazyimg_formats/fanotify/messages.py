"""Events from the kernel, and the answers to them.

The bytes of one read(2) are several events: `parse_events` gives each as a value. One that is not
understood is given as such, because somebody waits for its answer; FormatError means that they
cannot be told apart. Answers are the bytes of one write(2).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from errno import EAGAIN, EBUSY, EDQUOT, EIO, ENOSPC, EPERM, ETXTBSY
from functools import lru_cache
from typing import Final

from lazyimg_formats.errors import FormatError
from lazyimg_formats.fanotify.layout import (
    FAN_ALLOW,
    FAN_DENY,
    FAN_ERRNO_SHIFT,
    FAN_EVENT_INFO_TYPE_RANGE,
    FAN_PRE_ACCESS,
    FAN_Q_OVERFLOW,
    FANOTIFY_METADATA_VERSION,
    fanotify_event_info_header,
    fanotify_event_info_range,
    fanotify_event_metadata,
    fanotify_response,
)

_DENIALS: Final = frozenset({EPERM, EIO, EBUSY, ETXTBSY, EAGAIN, ENOSPC, EDQUOT})
_MAX_FD: Final = 2**31 - 1
_USUAL: Final = struct.Struct("=IBxHQiiBxH4xQQ")
"""fanotify_event_metadata and one fanotify_event_info_range."""

_USUAL_FIELDS: Final = (
    fanotify_event_metadata.size + fanotify_event_info_range.size,
    FANOTIFY_METADATA_VERSION,
    fanotify_event_metadata.size,
    FAN_PRE_ACCESS,
    FAN_EVENT_INFO_TYPE_RANGE,
    fanotify_event_info_range.size,
)
"""Of such an event: both lengths' sum, version, the first one's length, mask, the record's type and
length."""


@dataclass(frozen=True, slots=True)
class AccessEvent:
    """A process is about to read a range of a marked file; it waits until that is answered.

    Attributes:
        fd: of the file, ours to close; names the event in its answer. What is read and written
            through it raises no events.
        pid: the process that reads.
        offset: first byte, any.
        count: bytes, any; may be 0, and may reach past the file's end.
    """

    fd: int
    pid: int
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class OverflowEvent:
    """The queue was full: processes have read without asking. What they got may be wrong."""


@dataclass(frozen=True, slots=True)
class UnknownEvent:
    """An event that is not understood: to be denied.

    Attributes:
        fd: ours to close, and the event's name; None if it has none, and no answer.
        problem: what is wrong with it.
    """

    fd: int | None
    problem: str


Event = AccessEvent | OverflowEvent | UnknownEvent


def parse_events(data: bytes) -> list[Event]:
    """Give the events in the bytes of one read(2).

    Raises:
        FormatError: lengths that do not add up, or another version of the structure.
    """
    events: list[Event] = []
    at = 0
    while at < len(data):
        event = _parse_usual(data, at)
        if event is not None:
            events.append(event)
            at += _USUAL.size
            continue
        other, at = _parse_any(data, at)
        events.append(other)
    return events


def _parse_usual(data: bytes, at: int) -> AccessEvent | None:
    """Give an event that is nothing but a range, as nearly all are; None if it may not be.

    In a tenth of the time that the declarations take.
    """
    if len(data) - at < _USUAL.size:
        return None
    length, version, head, mask, fd, pid, kind, record, offset, count = _USUAL.unpack_from(data, at)
    usual = (length, version, head, mask, kind, record) == _USUAL_FIELDS and fd >= 0
    return AccessEvent(fd, pid, offset, count) if usual else None


def _parse_any(data: bytes, at: int) -> tuple[Event, int]:
    """Give the event that begins `at`, and where the next one does."""
    size = fanotify_event_metadata.size
    head = fanotify_event_metadata.decode(data[at : at + size])
    if head.vers != FANOTIFY_METADATA_VERSION:
        raise FormatError(
            "fanotify_event_metadata", f"version {head.vers}, expected {FANOTIFY_METADATA_VERSION}"
        )
    if not size <= head.event_len <= len(data) - at:
        raise FormatError(
            "fanotify_event_metadata",
            f"event_len says {head.event_len} bytes, got {len(data) - at}",
        )
    stop = at + head.event_len
    if head.mask == FAN_Q_OVERFLOW:
        return OverflowEvent(), stop
    fd = head.fd if head.fd >= 0 else None
    if head.mask != FAN_PRE_ACCESS or fd is None:
        return UnknownEvent(fd, f"unknown event {head.mask:#x} with fd {head.fd}"), stop
    try:
        offset, count = _parse_range(data[at + max(size, head.metadata_len) : stop])
    except FormatError as error:
        return UnknownEvent(fd, error.problem), stop
    return AccessEvent(head.fd, head.pid, offset, count), stop


def _parse_range(records: bytes) -> tuple[int, int]:
    """Give offset and count of the range record; others are passed over."""
    at, size = 0, fanotify_event_info_header.size
    while at < len(records):
        head = fanotify_event_info_header.decode(records[at : at + size])
        if not size <= head.len <= len(records) - at:
            raise FormatError("record", f"len says {head.len} bytes, got {len(records) - at}")
        if head.info_type == FAN_EVENT_INFO_TYPE_RANGE:
            record = fanotify_event_info_range.decode(records[at : at + head.len])
            return record.offset, record.count
        at += head.len
    raise FormatError("event", "FAN_PRE_ACCESS without a range")


def allow(fd: int) -> bytes:
    """Let the process of the event with this fd read."""
    return _respond(fd, FAN_ALLOW)


def deny(fd: int, errno: int) -> bytes:
    """Let the read of the event with this fd fail with one of the errors that may be given."""
    if errno not in _DENIALS:
        raise ValueError(f"no event can be denied with errno {errno}")
    return _respond(fd, FAN_DENY | errno << FAN_ERRNO_SHIFT)


@lru_cache(maxsize=8192)  # numbers of fds and answers are few
def _respond(fd: int, response: int) -> bytes:
    if not 0 <= fd <= _MAX_FD:
        raise ValueError(f"fd cannot be {fd}")
    return fanotify_response.encode(fd=fd, response=response)
