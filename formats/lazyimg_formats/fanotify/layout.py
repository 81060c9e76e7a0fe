"""Structures of include/uapi/linux/fanotify.h, under the kernel's names. Declarations only."""

from __future__ import annotations

from typing import Final

from construct import Int8un, Int16un, Int32sn, Int32un, Int64un, Struct

from lazyimg_formats.codec import Layout

FAN_PRE_ACCESS: Final = 0x0010_0000
FAN_Q_OVERFLOW: Final = 0x0000_4000

FANOTIFY_METADATA_VERSION: Final = 3
FAN_EVENT_INFO_TYPE_RANGE: Final = 6

FAN_ALLOW: Final = 0x01
FAN_DENY: Final = 0x02
FAN_ERRNO_SHIFT: Final = 24
"""Where the errno of a denial begins: FAN_DENY_ERRNO()."""

fanotify_event_metadata = Layout(
    "fanotify_event_metadata",
    Struct(
        "event_len" / Int32un,
        "vers" / Int8un,
        "reserved" / Int8un,
        "metadata_len" / Int16un,
        "mask" / Int64un,
        "fd" / Int32sn,
        "pid" / Int32sn,
    ),
)

fanotify_event_info_header = Layout(
    "fanotify_event_info_header",
    Struct("info_type" / Int8un, "pad" / Int8un, "len" / Int16un),
)

fanotify_event_info_range = Layout(
    "fanotify_event_info_range",
    Struct(
        "info_type" / Int8un,
        "hdr_pad" / Int8un,
        "len" / Int16un,
        "pad" / Int32un,
        "offset" / Int64un,
        "count" / Int64un,
    ),
)

fanotify_response = Layout("fanotify_response", Struct("fd" / Int32sn, "response" / Int32un))
