"""What is answered, whatever the kernel asks; what waits, and whose it is."""

from __future__ import annotations

import struct
from errno import EINTR, EIO, ENOENT, ENOSYS, ENOTDIR, EPROTO, ESTALE

import pytest

from lazyimg.transports.fuse.protocol import (
    MAX_BACKGROUND,
    MAX_PAGES,
    CloseBacking,
    IllegalStepError,
    Leaf,
    OpenBacking,
    PendingRead,
    Protocol,
    Reply,
)
from lazyimg_formats.fuse.layout import InitFlag, OpenFlag
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
    Settings,
    StatfsRequest,
    UnknownRequest,
    reply,
    reply_attributes,
    reply_entries,
    reply_entry,
    reply_error,
    reply_init,
    reply_open,
    reply_statfs,
)

NODE = 77
SIZE = 10_000
LEAF = Leaf("name", NODE, SIZE)
BACKED = Leaf("name", NODE, SIZE, backed=True)
ROOT = Attributes(1, 0, directory=True)
EVERY_FLAG = InitFlag((1 << 64) - 1)


@pytest.fixture
def protocol() -> Protocol:
    protocol = Protocol()
    protocol.add(LEAF)
    return protocol


def error(unique: int, number: int) -> list[Reply]:
    return [Reply(reply_error(unique, number))]


def opening(unique: int = 7, node: int = NODE, *, directory: bool = False) -> OpenRequest:
    return OpenRequest(unique, node, 0, directory)


def init(flags: InitFlag, *, minor: int = 45, major: int = 7) -> InitRequest:
    return InitRequest(7, major, minor, 131_072, flags)


def settings_of(protocol: Protocol, request: InitRequest) -> tuple[int, ...]:
    (action,) = protocol.receive(request)
    assert isinstance(action, Reply)
    return struct.unpack("=IIIIHHIIHHIIH22x", action.message[16:])


def test_init_takes_what_both_can() -> None:
    flags = InitFlag.ASYNC_READ | InitFlag.ASYNC_DIO | InitFlag.INIT_EXT
    expected = Settings(44, 131_072, flags, MAX_BACKGROUND, MAX_PAGES)
    offered = flags | InitFlag(1 << 1)
    assert Protocol().receive(init(offered, minor=44)) == [Reply(reply_init(7, expected))]


def test_init_of_a_kernel_that_can_everything() -> None:
    fields = settings_of(Protocol(), init(EVERY_FLAG, minor=99))
    flags = fields[3] | fields[10] << 32
    assert fields[1] == 45
    assert flags == (
        InitFlag.ASYNC_READ
        | InitFlag.ASYNC_DIO
        | InitFlag.PARALLEL_DIROPS
        | InitFlag.MAX_PAGES
        | InitFlag.INIT_EXT
        | InitFlag.HAS_RESEND
    )
    assert fields[11:] == (0, 0)


def test_init_with_passthrough_and_timeout() -> None:
    protocol = Protocol(passthrough=True, max_stack_depth=2, request_timeout=600)
    fields = settings_of(protocol, init(EVERY_FLAG))
    assert fields[10] << 32 == (
        InitFlag.PASSTHROUGH | InitFlag.HAS_RESEND | InitFlag.REQUEST_TIMEOUT
    )
    assert fields[11:] == (2, 600)


def test_init_with_what_the_kernel_cannot() -> None:
    protocol = Protocol(passthrough=True, max_stack_depth=2, request_timeout=600)
    assert settings_of(protocol, init(InitFlag.ASYNC_READ))[10:] == (0, 0, 0)


def test_init_of_another_major_version() -> None:
    assert Protocol().receive(init(EVERY_FLAG, major=8)) == error(7, EPROTO)


def test_lookup(protocol: Protocol) -> None:
    found = protocol.receive(LookupRequest(7, 1, b"name"))
    assert found == [Reply(reply_entry(7, LEAF.attributes))]
    assert protocol.receive(LookupRequest(7, 1, b"other")) == error(7, ENOENT)
    assert protocol.receive(LookupRequest(7, NODE, b"name")) == error(7, ENOTDIR)


def test_attributes_of_leaves_that_have_one_number_in_turn() -> None:
    one, other = LEAF.attributes, Leaf("other", NODE, SIZE).attributes
    assert (one.node, one.size) == (NODE, SIZE)
    assert one.generation != other.generation
    assert 0 <= one.generation < 1 << 32


def test_getattr(protocol: Protocol) -> None:
    assert protocol.receive(GetattrRequest(7, 1)) == [Reply(reply_attributes(7, ROOT))]
    found = protocol.receive(GetattrRequest(7, NODE))
    assert found == [Reply(reply_attributes(7, LEAF.attributes))]
    assert protocol.receive(GetattrRequest(7, 5)) == error(7, ESTALE)


def test_open(protocol: Protocol) -> None:
    assert protocol.receive(opening()) == [Reply(reply_open(7, OpenFlag.DIRECT_IO))]
    assert protocol.receive(opening(node=5)) == error(7, ESTALE)


def test_open_a_directory(protocol: Protocol) -> None:
    assert protocol.receive(opening(node=1, directory=True)) == [Reply(reply_open(7, OpenFlag(0)))]
    assert protocol.receive(opening(directory=True)) == error(7, ENOTDIR)


def test_release(protocol: Protocol) -> None:
    for directory in (False, True):
        released = protocol.receive(ReleaseRequest(7, NODE, 0, directory))
        assert released == [Reply(reply(7))]


def backed(unique: int, backing: int) -> Reply:
    return Reply(reply_open(unique, OpenFlag.PASSTHROUGH, handle=1, backing=backing))


def test_backing_file_is_opened_once_and_closed_after_the_last() -> None:
    protocol = Protocol(passthrough=True)
    protocol.add(BACKED)
    assert protocol.receive(opening(7)) == [OpenBacking(opening(7))]
    assert protocol.opened(opening(7), 3) == [backed(7, 3)]
    assert protocol.receive(opening(8)) == [backed(8, 3)]
    released = ReleaseRequest(9, NODE, 1, directory=False)
    assert protocol.receive(released) == [Reply(reply(9))]
    assert protocol.receive(released) == [Reply(reply(9)), CloseBacking(3)]
    assert protocol.receive(released) == [Reply(reply(9))]  # of a process before this one
    assert protocol.receive(opening(7)) == [OpenBacking(opening(7))]


def test_backing_file_opened_twice_at_a_time() -> None:
    protocol = Protocol(passthrough=True)
    protocol.add(BACKED)
    assert protocol.opened(opening(7), 3) == [backed(7, 3)]
    assert protocol.opened(opening(8), 4) == [backed(8, 3), CloseBacking(4)]


def test_backing_file_that_the_kernel_does_not_take() -> None:
    protocol = Protocol(passthrough=True)
    protocol.add(BACKED)
    assert protocol.opened(opening(7), None) == [Reply(reply_open(7, OpenFlag.DIRECT_IO))]
    released = protocol.receive(ReleaseRequest(9, NODE, 0, directory=False))
    assert released == [Reply(reply(9))]


def test_readdir(protocol: Protocol) -> None:
    other = Leaf("a", 5, 4096)
    protocol.add(other)
    entries = [
        (1, b".", ROOT),
        (2, b"..", ROOT),
        (3, b"a", other.attributes),
        (4, b"name", LEAF.attributes),
    ]
    for offset in range(5):
        request = ReaddirRequest(7, 1, offset, 4096)
        expected = [Reply(reply_entries(request, entries[offset:]))]
        assert protocol.receive(request) == expected


def test_statfs(protocol: Protocol) -> None:
    expected = reply_statfs(7, block_size=4096, blocks=3, free=0, files=1)
    assert protocol.receive(StatfsRequest(7)) == [Reply(expected)]


def test_what_has_no_answer(protocol: Protocol) -> None:
    assert protocol.receive(ForgetRequest((NODE,))) == []
    assert protocol.receive(DestroyRequest()) == []
    assert protocol.receive(InterruptRequest(5)) == []


def test_what_is_not_done(protocol: Protocol) -> None:
    assert protocol.receive(UnknownRequest(7, 52)) == error(7, ENOSYS)


def read_of(
    protocol: Protocol, offset: int, size: int, *, unique: int = 7, node: int = NODE
) -> PendingRead | Reply:
    return protocol.receive_read(ReadRequest(unique, node, 0, offset, size))


def pending(protocol: Protocol, unique: int = 7) -> PendingRead:
    read = read_of(protocol, 0, 100, unique=unique)
    assert isinstance(read, PendingRead)
    return read


@pytest.mark.parametrize(
    ("offset", "size", "length"), [(0, 4096, 4096), (8192, 4096, 1808), (9999, 1, 1)]
)
def test_read_within_the_leaf(protocol: Protocol, offset: int, size: int, length: int) -> None:
    read = read_of(protocol, offset, size)
    assert isinstance(read, PendingRead)
    assert (read.unique, read.node, read.offset, read.length) == (7, NODE, offset, length)


@pytest.mark.parametrize(("offset", "size"), [(SIZE, 1), (1 << 63, 4096), (0, 0)])
def test_read_of_nothing(protocol: Protocol, offset: int, size: int) -> None:
    assert read_of(protocol, offset, size) == Reply(reply(7))


def test_read_of_no_leaf(protocol: Protocol) -> None:
    for node in (1, 5):
        assert read_of(protocol, 0, 1, node=node) == Reply(reply_error(7, EIO))


def test_read_is_finished_once(protocol: Protocol) -> None:
    read = pending(protocol)
    assert not protocol.finish(read)
    assert protocol.wait(read) == []
    assert protocol.finish(read)
    assert not protocol.finish(read)


def test_read_that_is_asked_again_with_its_number(protocol: Protocol) -> None:
    first, second = pending(protocol), pending(protocol)
    protocol.wait(first)
    protocol.wait(second)
    assert not protocol.finish(first)
    assert protocol.finish(second)


def test_interrupted_read_ends_at_once(protocol: Protocol) -> None:
    read = pending(protocol, 8)
    protocol.wait(read)
    assert protocol.receive(InterruptRequest(8)) == error(8, EINTR)
    assert not protocol.finish(read)


def test_leaf_that_was_removed(protocol: Protocol) -> None:
    assert protocol.knows(NODE)
    protocol.remove("name")
    protocol.remove("name")
    assert not protocol.knows(NODE)
    assert protocol.knows(1)
    assert read_of(protocol, 0, 1) == Reply(reply_error(7, EIO))
    assert protocol.receive(LookupRequest(7, 1, b"name")) == error(7, ENOENT)


def test_leaf_that_takes_the_place_of_another(protocol: Protocol) -> None:
    protocol.add(Leaf("name", 5, 1))
    assert not protocol.knows(NODE)
    assert protocol.knows(5)


def test_number_of_a_leaf_that_another_has_already(protocol: Protocol) -> None:
    protocol.add(Leaf("new", NODE, 1))
    protocol.remove("name")
    assert protocol.knows(NODE)


def test_stopping_fails_what_waits_and_what_comes(protocol: Protocol) -> None:
    late, waiting = pending(protocol, 7), pending(protocol, 8)
    protocol.wait(waiting)
    assert protocol.begin_stop() == error(8, EIO)
    assert not protocol.finish(waiting)
    assert protocol.wait(late) == error(7, EIO)
    assert read_of(protocol, 0, 1, unique=9) == Reply(reply_error(9, EIO))
    found = protocol.receive(GetattrRequest(7, NODE))
    assert found == [Reply(reply_attributes(7, LEAF.attributes))]


def test_steps_out_of_order(protocol: Protocol) -> None:
    with pytest.raises(IllegalStepError, match=r"^STOPPED must follow STOPPING, not SERVING$"):
        protocol.end_stop()
    protocol.begin_stop()
    with pytest.raises(IllegalStepError, match=r"^STOPPING must follow SERVING, not STOPPING$"):
        protocol.begin_stop()
    protocol.end_stop()
    with pytest.raises(IllegalStepError, match=r"^StatfsRequest while stopped$"):
        protocol.receive(StatfsRequest(7))
    with pytest.raises(IllegalStepError, match=r"^ReadRequest while stopped$"):
        read_of(protocol, 0, 1)
