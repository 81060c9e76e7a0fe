"""Every row of the table, and the rules on top of it."""

from __future__ import annotations

import pytest

from lazyimg.transports.cachefiles.protocol import (
    Action,
    CloseFd,
    Complete,
    Fill,
    IllegalStepError,
    Orphan,
    PendingRead,
    Phase,
    Protocol,
    Reply,
)
from lazyimg_formats.cachefiles.messages import CloseRequest, OpenRequest, ReadRequest

SIZE = 8192


def open_request(msg_id: int = 0, object_id: int = 1, fd: int = 10) -> OpenRequest:
    return OpenRequest(msg_id, object_id, fd, b"erofs,domain", b"cookie")


def opened() -> Protocol:
    protocol = Protocol()
    protocol.receive_open(open_request(), SIZE)
    return protocol


def fill_of(actions: list[Action]) -> PendingRead:
    (action,) = actions
    assert isinstance(action, Fill)
    return action.read


def read(protocol: Protocol, msg_id: int = 5, object_id: int = 1) -> PendingRead:
    return fill_of(protocol.receive_read(ReadRequest(msg_id, object_id, 4096, 8192)))


def test_known_open() -> None:
    protocol = Protocol()
    assert protocol.receive_open(open_request(msg_id=3), SIZE) == [Reply(b"copen 3,8192", 1)]
    found = protocol.find("erofs,domain", "cookie")
    assert found is not None
    assert (found.object_id, found.fd, found.size) == (1, 10, SIZE)


def test_empty_object_is_known() -> None:
    assert Protocol().receive_open(open_request(), 0) == [Reply(b"copen 0,0", 1)]


def test_unknown_open() -> None:
    protocol = Protocol()
    assert protocol.receive_open(open_request(msg_id=3), None) == [
        Reply(b"copen 3,-2", 1),
        CloseFd(10),
    ]
    assert protocol.find("erofs,domain", "cookie") is None


@pytest.mark.parametrize(("size", "errno"), [(SIZE, 5), (None, 2)])
def test_open_of_an_id_in_use(size: int | None, errno: int) -> None:
    protocol = opened()
    assert protocol.receive_open(open_request(msg_id=4, fd=11), size) == [
        Reply(b"copen 4,-%d" % errno, 1),
        CloseFd(11),
    ]
    found = protocol.find("erofs,domain", "cookie")
    assert found is not None
    assert found.fd == 10


def test_open_again_with_a_new_id() -> None:
    protocol = opened()
    protocol.receive_open(open_request(msg_id=1, object_id=2, fd=11), SIZE)
    found = protocol.find("erofs,domain", "cookie")
    assert found is not None
    assert found.object_id == 2
    first, second = read(protocol, 5, 1), read(protocol, 6, 2)
    assert protocol.finish(second) == [Complete(11, 6)]
    assert protocol.finish(first) == [Complete(10, 5)]
    protocol.receive_close(CloseRequest(7, 2))
    found = protocol.find("erofs,domain", "cookie")
    assert found is not None
    assert found.object_id == 1


def test_find_tells_volumes_and_cookies_apart() -> None:
    protocol = opened()
    assert protocol.find("erofs,other", "cookie") is None
    assert protocol.find("erofs,domain", "other") is None


def test_cookie_that_is_not_ascii_keeps_its_bytes() -> None:
    protocol = Protocol()
    protocol.receive_open(OpenRequest(0, 1, 10, b"v", b"\xff"), SIZE)
    assert protocol.find("v", "\\xff") is not None


def test_read_is_filled_then_completed_once() -> None:
    protocol = opened()
    pending = read(protocol)
    assert (pending.msg_id, pending.offset, pending.length) == (5, 4096, 8192)
    assert pending.object.cookie == "cookie"
    assert protocol.finish(pending) == [Complete(10, 5)]
    assert protocol.finish(pending) == []


def test_reads_are_completed_in_any_order() -> None:
    protocol = opened()
    reads = [read(protocol, msg_id) for msg_id in range(4)]
    for pending in reversed(reads):
        assert protocol.finish(pending) == [Complete(10, pending.msg_id)]


def test_read_of_an_absent_object() -> None:
    request = ReadRequest(5, 9, 0, 4096)
    assert opened().receive_read(request) == [Orphan(request)]


def test_msg_id_that_is_used_again_belongs_to_the_newer_read() -> None:
    protocol = opened()
    killed, newer = read(protocol), read(protocol)
    assert protocol.finish(killed) == []
    assert protocol.finish(newer) == [Complete(10, 5)]


def test_msg_id_that_comes_again_with_a_new_object_after_restore() -> None:
    protocol = opened()
    before = read(protocol, 5, 1)
    protocol.receive_open(open_request(msg_id=1, object_id=2, fd=11), SIZE)
    again = read(protocol, 5, 2)
    assert protocol.finish(before) == []
    assert protocol.finish(again) == [Complete(11, 5)]


def test_close() -> None:
    protocol = opened()
    assert protocol.receive_close(CloseRequest(7, 1)) == [CloseFd(10)]
    assert protocol.find("erofs,domain", "cookie") is None


def test_close_of_an_absent_object() -> None:
    assert Protocol().receive_close(CloseRequest(7, 1)) == []


def test_close_with_reads_pending_completes_them_before_the_fd_goes() -> None:
    protocol = opened()
    protocol.receive_open(open_request(msg_id=1, object_id=2, fd=11), SIZE)
    lost, kept = read(protocol, 5, 1), read(protocol, 6, 2)
    assert protocol.receive_close(CloseRequest(7, 1)) == [Complete(10, 5), CloseFd(10)]
    assert protocol.finish(lost) == []
    assert protocol.finish(kept) == [Complete(11, 6)]


def test_abandon() -> None:
    protocol = opened()
    assert protocol.abandon(1) == [CloseFd(10)]
    assert protocol.abandon(1) == []


def test_stopping_fails_what_is_pending_and_what_comes() -> None:
    protocol = opened()
    pending = read(protocol)
    assert protocol.begin_stop() == [Complete(10, 5)]
    assert protocol.finish(pending) == []
    assert protocol.receive_read(ReadRequest(6, 1, 0, 4096)) == [Complete(10, 6)]
    orphan = ReadRequest(6, 9, 0, 4096)
    assert protocol.receive_read(orphan) == [Orphan(orphan)]
    for size in (SIZE, None):
        assert protocol.receive_open(open_request(7, 2, 11), size) == [
            Reply(b"copen 7,-5", 2),
            CloseFd(11),
        ]
    assert protocol.receive_close(CloseRequest(8, 9)) == []
    assert protocol.end_stop() == [CloseFd(10)]


def test_stopping_lets_objects_close() -> None:
    protocol = opened()
    protocol.begin_stop()
    assert protocol.receive_close(CloseRequest(7, 1)) == [CloseFd(10)]
    assert protocol.end_stop() == []


def test_nothing_may_come_once_stopped() -> None:
    protocol = opened()
    protocol.begin_stop()
    protocol.end_stop()
    with pytest.raises(IllegalStepError, match=r"^READ of object 1 while stopped$"):
        protocol.receive_read(ReadRequest(5, 1, 0, 4096))
    with pytest.raises(IllegalStepError, match=r"^KNOWN_OPEN of object 2 while stopped$"):
        protocol.receive_open(open_request(object_id=2), SIZE)
    with pytest.raises(IllegalStepError, match=r"^CLOSE of object 1 while stopped$"):
        protocol.receive_close(CloseRequest(5, 1))
    assert protocol.find("erofs,domain", "cookie") is None
    assert protocol.phase is Phase.STOPPED


def test_phases_follow_each_other() -> None:
    protocol = Protocol()
    with pytest.raises(IllegalStepError, match=r"^STOPPED must follow STOPPING, not SERVING$"):
        protocol.end_stop()
    assert protocol.phase is Phase.SERVING
    protocol.begin_stop()
    with pytest.raises(IllegalStepError, match=r"^STOPPING must follow SERVING, not STOPPING$"):
        protocol.begin_stop()
