"""The bytes of the FUSE protocol. The READ and the INIT are as Linux 6.18 sends them."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.fuse import layout
from lazyimg_formats.fuse.layout import InitFlag, Notify, Opcode, OpenFlag
from lazyimg_formats.fuse.messages import (
    Attributes,
    DestroyRequest,
    ForgetRequest,
    GetattrRequest,
    InitRequest,
    InterruptRequest,
    LookupRequest,
    OpenRequest,
    ReaddirRequest,
    ReadRequest,
    ReleaseRequest,
    Request,
    Settings,
    StatfsRequest,
    UnknownRequest,
    backing_map,
    parse_request,
    refuse_unreadable,
    reply,
    reply_attributes,
    reply_entries,
    reply_entry,
    reply_error,
    reply_header,
    reply_init,
    reply_open,
    reply_statfs,
    resend,
)

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)

UNIQUE = 1 << 63 | 6
NODE = 0x1234


def message(opcode: int, body: bytes = b"", *, length: int | None = None) -> bytes:
    size = 40 + len(body) if length is None else length
    return struct.pack("=IIQQIIIHH", size, opcode, UNIQUE, NODE, 1, 2, 3, 0, 0) + body


READ_BODY = struct.pack("=QQIIQII", 9, 8192, 131_072, 0, 0, 0x8000, 0)
INIT_BODY = struct.pack("=IIIII44x", 7, 45, 131_072, 1 << 30 | 1, 1 << 7)

REQUESTS: dict[str, tuple[bytes, Request]] = {
    "init": (
        message(Opcode.INIT, INIT_BODY),
        InitRequest(
            UNIQUE,
            7,
            45,
            131_072,
            InitFlag.ASYNC_READ | InitFlag.INIT_EXT | InitFlag.HAS_RESEND,
        ),
    ),
    "lookup": (message(Opcode.LOOKUP, b"name\0"), LookupRequest(UNIQUE, NODE, b"name")),
    "getattr": (message(Opcode.GETATTR, bytes(16)), GetattrRequest(UNIQUE, NODE)),
    "open": (
        message(Opcode.OPEN, struct.pack("=II", 0x8000, 0)),
        OpenRequest(UNIQUE, NODE, 0x8000, directory=False),
    ),
    "opendir": (
        message(Opcode.OPENDIR, struct.pack("=II", 0x8000, 0)),
        OpenRequest(UNIQUE, NODE, 0x8000, directory=True),
    ),
    "read": (message(Opcode.READ, READ_BODY), ReadRequest(UNIQUE, NODE, 9, 8192, 131_072)),
    "readdir": (
        message(Opcode.READDIR, READ_BODY),
        ReaddirRequest(UNIQUE, NODE, 8192, 131_072),
    ),
    "release": (
        message(Opcode.RELEASE, struct.pack("=QIIQ", 1, 0x8000, 0, 0)),
        ReleaseRequest(UNIQUE, NODE, 1, directory=False),
    ),
    "releasedir": (
        message(Opcode.RELEASEDIR, struct.pack("=QIIQ", 1, 0x8000, 0, 0)),
        ReleaseRequest(UNIQUE, NODE, 1, directory=True),
    ),
    "statfs": (message(Opcode.STATFS), StatfsRequest(UNIQUE)),
    "forget": (message(Opcode.FORGET, bytes(8)), ForgetRequest((NODE,))),
    "batch-forget": (
        message(Opcode.BATCH_FORGET, struct.pack("=IIQQQQ", 2, 0, 7, 1, 8, 2)),
        ForgetRequest((7, 8)),
    ),
    "interrupt": (message(Opcode.INTERRUPT, struct.pack("=Q", 44)), InterruptRequest(44)),
    "destroy": (message(Opcode.DESTROY), DestroyRequest()),
}

each_request = pytest.mark.parametrize("name", REQUESTS)


@each_request
def test_requests(name: str) -> None:
    raw, expected = REQUESTS[name]
    assert parse_request(raw) == expected
    assert parse_request(memoryview(raw)) == expected


@each_request
def test_any_truncation_or_trailing_byte_is_refused(name: str) -> None:
    raw = REQUESTS[name][0]
    for end in range(len(raw)):
        with pytest.raises(FormatError):
            parse_request(raw[:end])
    with pytest.raises(FormatError, match=rf"len says {len(raw)} bytes, got {len(raw) + 1}"):
        parse_request(raw + b"x")


@each_request
def test_payload_that_is_too_long_is_refused(name: str) -> None:
    raw = REQUESTS[name][0]
    with pytest.raises(FormatError):
        parse_request(struct.pack("=I", len(raw) + 8) + raw[4:] + bytes(8))


@given(u64, u64, u64, u64, u32)
def test_read_by_struct_says_what_the_declarations_say(
    unique: int, node: int, handle: int, offset: int, size: int
) -> None:
    raw = layout.fuse_in_header.encode(
        len=80,
        opcode=Opcode.READ,
        unique=unique,
        nodeid=node,
        uid=1,
        gid=2,
        pid=3,
        total_extlen=0,
        padding=0,
    ) + layout.fuse_read_in.encode(
        fh=handle, offset=offset, size=size, read_flags=4, lock_owner=5, flags=6, padding=7
    )
    assert parse_request(raw) == ReadRequest(unique, node, handle, offset, size)


@given(u64, st.integers(0, 2**20))
def test_header_by_struct_says_what_the_declarations_say(unique: int, length: int) -> None:
    declared = layout.fuse_out_header.encode(len=16 + length, error=0, unique=unique)
    assert reply_header(unique, length) == declared
    failed = layout.fuse_out_header.encode(len=16, error=-5, unique=unique)
    assert reply_error(unique, 5) == failed


def test_read_whose_length_is_wrong() -> None:
    with pytest.raises(FormatError, match=r"^fuse_in_header: len says 81 bytes, got 80$"):
        parse_request(message(Opcode.READ, READ_BODY, length=81))


def test_other_request_of_the_size_of_a_read() -> None:
    assert parse_request(message(Opcode.LOOKUP, b"n" * 39 + b"\0")) == LookupRequest(
        UNIQUE, NODE, b"n" * 39
    )


def test_init_of_a_kernel_that_has_fewer_flags() -> None:
    raw = message(Opcode.INIT, struct.pack("=IIII", 7, 35, 4096, 1))
    assert parse_request(raw) == InitRequest(UNIQUE, 7, 35, 4096, InitFlag.ASYNC_READ)


def test_init_without_the_flag_that_says_that_there_are_more() -> None:
    raw = message(Opcode.INIT, struct.pack("=IIIII44x", 7, 36, 4096, 1, 1 << 7))
    assert parse_request(raw) == InitRequest(UNIQUE, 7, 36, 4096, InitFlag.ASYNC_READ)


@pytest.mark.parametrize("name", [b"", b"\0", b"name", b"a\0b\0", b"a/b\0"])
def test_lookup_of_what_is_no_name(name: bytes) -> None:
    with pytest.raises(FormatError, match=r"^LOOKUP: .* is no name that ends in NUL$"):
        parse_request(message(Opcode.LOOKUP, name))


def test_batch_forget_whose_count_is_wrong() -> None:
    body = struct.pack("=IIQQ", 2, 0, 7, 1)
    with pytest.raises(FormatError, match=r"^BATCH_FORGET: 2 nodes in 24 bytes$"):
        parse_request(message(Opcode.BATCH_FORGET, body))


@pytest.mark.parametrize("opcode", [Opcode.STATFS, Opcode.DESTROY])
def test_payload_where_none_belongs(opcode: Opcode) -> None:
    with pytest.raises(FormatError, match=rf"^{opcode.name}: expected no payload, got 8 bytes$"):
        parse_request(message(opcode, bytes(8)))


def test_unknown_operation() -> None:
    assert parse_request(message(52, b"anything")) == UnknownRequest(UNIQUE, 52)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_request_or_format_error(data: bytes) -> None:
    try:
        request = parse_request(data)
    except FormatError:
        return
    assert isinstance(request, Request)


@given(st.sampled_from([*Opcode, 52, 0]), st.binary(max_size=100))
def test_any_payload_gives_a_request_or_format_error(opcode: int, body: bytes) -> None:
    try:
        request = parse_request(message(opcode, body))
    except FormatError:
        return
    assert isinstance(request, Request)


@given(st.binary(max_size=60), st.integers(1, 511))
def test_any_bytes_are_refused_or_have_no_answer(data: bytes, errno: int) -> None:
    answer = refuse_unreadable(data, errno)
    if answer is None:
        assert len(data) < 40 or data[4:8] != bytes(4)
    else:
        assert answer == reply_error(struct.unpack_from("=Q", data, 8)[0], errno)


def test_refusals() -> None:
    assert refuse_unreadable(message(Opcode.READ), 5) == reply_error(UNIQUE, 5)
    assert refuse_unreadable(message(Opcode.READ)[:39], 5) is None
    for opcode in (
        Opcode.FORGET,
        Opcode.BATCH_FORGET,
        Opcode.INTERRUPT,
        Opcode.DESTROY,
    ):
        assert refuse_unreadable(message(opcode, b"xyz"), 5) is None


@pytest.mark.parametrize("errno", [0, -5, 512])
def test_error_that_the_kernel_would_not_take(errno: int) -> None:
    with pytest.raises(ValueError, match=r"is not in 1\.\.511"):
        reply_error(1, errno)


def unwrap(answer: bytes, unique: int = 7) -> bytes:
    assert struct.unpack("=IiQ", answer[:16]) == (len(answer), 0, unique)
    return answer[16:]


def test_empty_reply() -> None:
    assert unwrap(reply(7)) == b""


def test_reply_to_init() -> None:
    settings = Settings(
        minor=45,
        max_readahead=4096,
        flags=InitFlag.ASYNC_DIO | InitFlag.INIT_EXT | InitFlag.REQUEST_TIMEOUT,
        max_background=100,
        max_pages=256,
        max_stack_depth=1,
        request_timeout=600,
    )
    assert unwrap(reply_init(7, settings)) == struct.pack(
        "=IIIIHHIIHHIIH22x",
        7,
        45,
        4096,
        1 << 15 | 1 << 30,
        100,
        75,
        4096,
        1,
        256,
        0,
        1 << 10,
        1,
        600,
    )


FILE = Attributes(node=77, size=8193, generation=5)
ROOT = Attributes(node=1, size=0, directory=True)
FILE_ATTR = struct.pack(
    "=QQQQQQIIIIIIIIII", 77, 8193, 17, 0, 0, 0, 0, 0, 0, 0o100400, 1, 0, 0, 0, 4096, 0
)
ROOT_ATTR = struct.pack(
    "=QQQQQQIIIIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o040500, 2, 0, 0, 0, 4096, 0
)
FILE_ENTRY = struct.pack("=QQQQII", 77, 5, 0, 1 << 32, 0, 0) + FILE_ATTR


def test_reply_to_lookup() -> None:
    assert unwrap(reply_entry(7, FILE)) == FILE_ENTRY


def test_reply_to_getattr() -> None:
    assert unwrap(reply_attributes(7, ROOT)) == struct.pack("=QII", 1 << 32, 0, 0) + ROOT_ATTR


def test_reply_to_open() -> None:
    assert unwrap(reply_open(7, OpenFlag.DIRECT_IO)) == struct.pack("=QIi", 0, 1, 0)
    assert unwrap(reply_open(7, OpenFlag.PASSTHROUGH, handle=1, backing=3)) == struct.pack(
        "=QIi", 1, 128, 3
    )


def test_reply_to_statfs() -> None:
    answer = unwrap(reply_statfs(7, block_size=4096, blocks=10, free=4, files=3))
    assert answer == struct.pack("=QQQQQIII28x", 10, 4, 4, 3, 0, 4096, 255, 4096)


ENTRIES = [(1, b"name", FILE), (2, b"eight...", ROOT)]
FIRST = struct.pack("=QQII", 77, 1, 4, 8) + b"name\0\0\0\0"
SECOND = struct.pack("=QQII", 1, 2, 8, 4) + b"eight..."


def readdir(size: int) -> ReaddirRequest:
    return ReaddirRequest(7, 1, 0, size)


def test_entries_as_far_as_they_fit() -> None:
    assert unwrap(reply_entries(readdir(64), ENTRIES)) == FIRST + SECOND
    assert unwrap(reply_entries(readdir(63), ENTRIES)) == FIRST
    assert unwrap(reply_entries(readdir(31), ENTRIES)) == b""
    assert unwrap(reply_entries(readdir(64), [])) == b""


def test_notification() -> None:
    assert resend() == struct.pack("=IiQ", 16, Notify.RESEND, 0)


def test_backing_map() -> None:
    assert backing_map(5) == struct.pack("=iIQ", 5, 0, 0)


@pytest.mark.parametrize(
    ("structure", "size"),
    [
        ("fuse_in_header", 40),
        ("fuse_out_header", 16),
        ("fuse_init_in_before_ext", 16),
        ("fuse_init_in", 64),
        ("fuse_init_out", 64),
        ("fuse_attr", 88),
        ("fuse_entry_out", 128),
        ("fuse_attr_out", 104),
        ("fuse_getattr_in", 16),
        ("fuse_open_in", 8),
        ("fuse_open_out", 16),
        ("fuse_read_in", 40),
        ("fuse_release_in", 24),
        ("fuse_forget_in", 8),
        ("fuse_batch_forget_in", 8),
        ("fuse_forget_one", 16),
        ("fuse_interrupt_in", 8),
        ("fuse_kstatfs", 80),
        ("fuse_dirent", 24),
        ("fuse_backing_map", 16),
    ],
)
def test_sizes_are_the_kernels(structure: str, size: int) -> None:
    found: Any = getattr(layout, structure)
    assert found.size == size
