"""Requests from the kernel, and the answers.

Each request is one whole message: `parse_request` takes the bytes of one read(2) and gives one
value, or raises FormatError. Answers are the bytes of one write(2); those to READ are a header, to
be written together with the data.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from lazyimg_formats.errors import FormatError
from lazyimg_formats.fuse import layout
from lazyimg_formats.fuse.layout import InitFlag, Notify, Opcode, OpenFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MAX_ERRNO: Final = 511  # the kernel refuses an answer beyond it with EINVAL
_FOREVER: Final = 1 << 32  # seconds that attributes hold: they never change
_READ: Final = struct.Struct("=IIQQ16xQQI20x")  # fuse_in_header and fuse_read_in
_READ_OPCODE: Final = int(Opcode.READ)
_OUT: Final = struct.Struct("=IiQ")  # fuse_out_header
_UNANSWERED: Final = frozenset(
    {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.DESTROY}
)


@dataclass(frozen=True, slots=True)
class InitRequest:
    """The first request of a connection.

    Attributes:
        major, minor: the kernel's version of the protocol.
        max_readahead: bytes.
        flags: what the kernel can do.
    """

    unique: int
    major: int
    minor: int
    max_readahead: int
    flags: InitFlag


@dataclass(frozen=True, slots=True)
class LookupRequest:
    """What is `name` in the directory `node`?"""

    unique: int
    node: int
    name: bytes


@dataclass(frozen=True, slots=True)
class GetattrRequest:
    """What are the attributes of `node`?"""

    unique: int
    node: int


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """`node` is opened: a directory, or a file with these open(2) flags."""

    unique: int
    node: int
    flags: int
    directory: bool


class ReadRequest(NamedTuple):
    """A range of a file is wanted.

    There are thousands a second: a tuple is made in a third of the time.

    Attributes:
        offset, size: bytes; the range may reach past the file's end.
    """

    unique: int
    node: int
    handle: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ReaddirRequest:
    """Entries of the directory `node` are wanted.

    Attributes:
        offset: the cookie of the last entry that was given, 0 at first.
        size: bytes that the answer may have.
    """

    unique: int
    node: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """An open file or directory is closed."""

    unique: int
    node: int
    handle: int
    directory: bool


@dataclass(frozen=True, slots=True)
class StatfsRequest:
    """How large is the file system?"""

    unique: int


@dataclass(frozen=True, slots=True)
class ForgetRequest:
    """The kernel forgets nodes. There is no answer."""

    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InterruptRequest:
    """Who waits for the request `target` got a signal. There is no answer."""

    target: int


@dataclass(frozen=True, slots=True)
class DestroyRequest:
    """The file system was unmounted. There is no answer."""


@dataclass(frozen=True, slots=True)
class UnknownRequest:
    """Any other operation: to be answered with ENOSYS."""

    unique: int
    opcode: int


Request = (
    InitRequest
    | LookupRequest
    | GetattrRequest
    | OpenRequest
    | ReadRequest
    | ReaddirRequest
    | ReleaseRequest
    | StatfsRequest
    | ForgetRequest
    | InterruptRequest
    | DestroyRequest
    | UnknownRequest
)


def parse_request(message: bytes | memoryview) -> Request:
    """Give the request in the bytes of one read(2).

    Raises:
        FormatError: truncated, trailing bytes, or a name that is none.
    """
    if len(message) == _READ.size:
        # a tenth of the time that the declarations take
        length, opcode, unique, node, handle, offset, size = _READ.unpack(message)
        if opcode == _READ_OPCODE and length == _READ.size:
            return ReadRequest(unique, node, handle, offset, size)
    header, body = _split(message)
    parse = _PARSERS.get(header.opcode)
    if parse is None:
        return UnknownRequest(header.unique, header.opcode)
    return parse(header.unique, header.nodeid, body)


def _split(message: bytes | memoryview) -> tuple[Any, bytes]:
    size = layout.fuse_in_header.size
    header = layout.fuse_in_header.decode(bytes(message[:size]))
    if header.len != len(message):
        raise FormatError("fuse_in_header", f"len says {header.len} bytes, got {len(message)}")
    return header, bytes(message[size:])


def _parse_init(unique: int, _node: int, body: bytes) -> InitRequest:
    old = layout.fuse_init_in_before_ext
    if len(body) == old.size:
        init, more = old.decode(body), 0
    else:
        init = layout.fuse_init_in.decode(body)
        more = init.flags2 if init.flags & InitFlag.INIT_EXT else 0
    flags = InitFlag(init.flags | more << 32)
    return InitRequest(unique, init.major, init.minor, init.max_readahead, flags)


def _parse_lookup(unique: int, node: int, body: bytes) -> LookupRequest:
    name = body[:-1]
    if not name or body[-1] or 0 in name or b"/" in name:
        raise FormatError("LOOKUP", f"{body[:80]!r} is no name that ends in NUL")
    return LookupRequest(unique, node, name)


def _parse_getattr(unique: int, node: int, body: bytes) -> GetattrRequest:
    layout.fuse_getattr_in.decode(body)
    return GetattrRequest(unique, node)


def _parse_open(unique: int, node: int, body: bytes) -> OpenRequest:
    return OpenRequest(unique, node, layout.fuse_open_in.decode(body).flags, directory=False)


def _parse_opendir(unique: int, node: int, body: bytes) -> OpenRequest:
    return OpenRequest(unique, node, layout.fuse_open_in.decode(body).flags, directory=True)


def _refuse_read(_unique: int, _node: int, body: bytes) -> NoReturn:
    size = layout.fuse_read_in.size
    raise FormatError("fuse_read_in", f"expected {size} bytes, got {len(body)}")


def _parse_readdir(unique: int, node: int, body: bytes) -> ReaddirRequest:
    read = layout.fuse_read_in.decode(body)
    return ReaddirRequest(unique, node, read.offset, read.size)


def _parse_release(unique: int, node: int, body: bytes) -> ReleaseRequest:
    return ReleaseRequest(unique, node, layout.fuse_release_in.decode(body).fh, directory=False)


def _parse_releasedir(unique: int, node: int, body: bytes) -> ReleaseRequest:
    return ReleaseRequest(unique, node, layout.fuse_release_in.decode(body).fh, directory=True)


def _parse_statfs(unique: int, _node: int, body: bytes) -> StatfsRequest:
    _expect_nothing("STATFS", body)
    return StatfsRequest(unique)


def _parse_forget(_unique: int, node: int, body: bytes) -> ForgetRequest:
    layout.fuse_forget_in.decode(body)
    return ForgetRequest((node,))


def _parse_batch_forget(_unique: int, _node: int, body: bytes) -> ForgetRequest:
    size, one = layout.fuse_batch_forget_in.size, layout.fuse_forget_one
    count = layout.fuse_batch_forget_in.decode(body[:size]).count
    if len(body) != size + count * one.size:
        raise FormatError("BATCH_FORGET", f"{count} nodes in {len(body)} bytes")
    starts = range(size, len(body), one.size)
    return ForgetRequest(tuple(one.decode(body[at : at + one.size]).nodeid for at in starts))


def _parse_interrupt(_unique: int, _node: int, body: bytes) -> InterruptRequest:
    return InterruptRequest(layout.fuse_interrupt_in.decode(body).unique)


def _parse_destroy(_unique: int, _node: int, body: bytes) -> DestroyRequest:
    _expect_nothing("DESTROY", body)
    return DestroyRequest()


def _expect_nothing(what: str, body: bytes) -> None:
    if body:
        raise FormatError(what, f"expected no payload, got {len(body)} bytes")


_PARSERS: Final[dict[int, Callable[[int, int, bytes], Request]]] = {
    Opcode.INIT: _parse_init,
    Opcode.LOOKUP: _parse_lookup,
    Opcode.GETATTR: _parse_getattr,
    Opcode.OPEN: _parse_open,
    Opcode.OPENDIR: _parse_opendir,
    Opcode.READ: _refuse_read,  # one of the right size does not get here
    Opcode.READDIR: _parse_readdir,
    Opcode.RELEASE: _parse_release,
    Opcode.RELEASEDIR: _parse_releasedir,
    Opcode.STATFS: _parse_statfs,
    Opcode.FORGET: _parse_forget,
    Opcode.BATCH_FORGET: _parse_batch_forget,
    Opcode.INTERRUPT: _parse_interrupt,
    Opcode.DESTROY: _parse_destroy,
}


def refuse_unreadable(message: bytes | memoryview, errno: int) -> bytes | None:
    """Answer a request of which `parse_request` understands no more than its header.

    Gives None for what has no answer, or no whole header.
    """
    size = layout.fuse_in_header.size
    if len(message) < size:
        return None
    header = layout.fuse_in_header.decode(bytes(message[:size]))
    return None if header.opcode in _UNANSWERED else reply_error(header.unique, errno)


@dataclass(frozen=True, slots=True)
class Attributes:
    """A read-only file or directory of root.

    Attributes:
        node: its number, also what stat(2) shows.
        size: bytes.
        directory: it is one.
        generation: tells nodes apart that have the same number one after the other; 32 bits.
    """

    node: int
    size: int
    directory: bool = False
    generation: int = 0

    @property
    def mode(self) -> int:
        """Give type and permissions."""
        return stat.S_IFDIR | 0o500 if self.directory else stat.S_IFREG | 0o400


@dataclass(frozen=True, slots=True)
class Settings:
    """What the answer to INIT says.

    Attributes:
        minor: the version spoken: the kernel's, or ours if that is lower.
        max_readahead: bytes that the kernel may read ahead.
        flags: what is used, of what the kernel offers.
        max_background: requests at a time that nobody waits for in a system call: read-ahead, and
            reads of other file systems.
        max_pages: of one request.
        max_stack_depth: how many file systems may lie below an opened file, with PASSTHROUGH.
        request_timeout: seconds after which the kernel gives the whole connection up; 0: never.
    """

    minor: int
    max_readahead: int
    flags: InitFlag
    max_background: int
    max_pages: int
    max_stack_depth: int = 0
    request_timeout: int = 0


def reply_header(unique: int, length: int) -> bytes:
    """Begin the answer to READ: `length` bytes of data are written along with this."""
    return _OUT.pack(_OUT.size + length, 0, unique)


def reply(unique: int, payload: bytes = b"") -> bytes:
    """Answer a request with what it asks for."""
    return reply_header(unique, len(payload)) + payload


def reply_error(unique: int, errno: int) -> bytes:
    """Answer a request with a positive errno."""
    if not 0 < errno <= _MAX_ERRNO:
        raise ValueError(f"errno {errno} is not in 1..{_MAX_ERRNO}")
    return _OUT.pack(_OUT.size, -errno, unique)


def reply_init(unique: int, settings: Settings) -> bytes:
    """Answer INIT."""
    return reply(
        unique,
        layout.fuse_init_out.encode(
            major=layout.KERNEL_VERSION,
            minor=settings.minor,
            max_readahead=settings.max_readahead,
            flags=settings.flags & 0xFFFFFFFF,
            max_background=settings.max_background,
            congestion_threshold=settings.max_background * 3 // 4,
            max_write=4096,  # nothing is written
            time_gran=1,
            max_pages=settings.max_pages,
            map_alignment=0,
            flags2=settings.flags >> 32,
            max_stack_depth=settings.max_stack_depth,
            request_timeout=settings.request_timeout,
        ),
    )


def reply_entry(unique: int, attributes: Attributes) -> bytes:
    """Answer LOOKUP: the name is asked for again at its next use, the attributes hold forever."""
    encoded = layout.fuse_entry_out.encode(
        nodeid=attributes.node,
        generation=attributes.generation,
        entry_valid=0,
        attr_valid=_FOREVER,
        entry_valid_nsec=0,
        attr_valid_nsec=0,
        attr=_attr(attributes),
    )
    return reply(unique, encoded)


def reply_attributes(unique: int, attributes: Attributes) -> bytes:
    """Answer GETATTR."""
    encoded = layout.fuse_attr_out.encode(
        attr_valid=_FOREVER, attr_valid_nsec=0, attr=_attr(attributes)
    )
    return reply(unique, encoded)


def reply_open(unique: int, flags: OpenFlag, *, handle: int = 0, backing: int = 0) -> bytes:
    """Answer OPEN or OPENDIR; `backing` is a backing id, with PASSTHROUGH."""
    return reply(
        unique, layout.fuse_open_out.encode(fh=handle, open_flags=int(flags), backing_id=backing)
    )


def reply_statfs(unique: int, *, block_size: int, blocks: int, free: int, files: int) -> bytes:
    """Answer STATFS; `blocks` and `free` count blocks of `block_size` bytes."""
    return reply(
        unique,
        layout.fuse_kstatfs.encode(
            blocks=blocks,
            bfree=free,
            bavail=free,
            files=files,
            ffree=0,
            bsize=block_size,
            namelen=255,
            frsize=block_size,
        ),
    )


def reply_entries(
    request: ReaddirRequest, entries: Iterable[tuple[int, bytes, Attributes]]
) -> bytes:
    """Answer READDIR with as many entries as it takes.

    Args:
        request: says how many bytes fit.
        entries: cookie, name and attributes of each, from where `request` goes on.
    """
    parts: list[bytes] = []
    room = request.size
    for cookie, name, attributes in entries:
        entry = layout.fuse_dirent.encode(
            ino=attributes.node, off=cookie, namelen=len(name), type=attributes.mode >> 12
        )
        entry += name + bytes(-len(name) % 8)
        if len(entry) > room:
            break
        room -= len(entry)
        parts.append(entry)
    return reply(request.unique, b"".join(parts))


def resend() -> bytes:
    """Have the kernel ask everything again that was asked and not answered."""
    return _OUT.pack(_OUT.size, Notify.RESEND, 0)


def backing_map(fd: int) -> bytes:
    """Give the argument of DEV_IOC_BACKING_OPEN for an open file."""
    return layout.fuse_backing_map.encode(fd=fd)


def _attr(attributes: Attributes) -> dict[str, int]:
    return {
        "ino": attributes.node,
        "size": attributes.size,
        "blocks": -(-attributes.size // 512),
        "atime": 0,
        "mtime": 0,
        "ctime": 0,
        "atimensec": 0,
        "mtimensec": 0,
        "ctimensec": 0,
        "mode": attributes.mode,
        "nlink": 2 if attributes.directory else 1,
        "uid": 0,
        "gid": 0,
        "rdev": 0,
        "blksize": 4096,
        "flags": 0,
    }
