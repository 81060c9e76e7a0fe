"""What is done about each event: the table and its rules."""

from __future__ import annotations

from errno import EIO

import pytest

from lazyimg.transports.fanotify.protocol import (
    Allow,
    Deny,
    Fill,
    IllegalStepError,
    Lose,
    PendingRead,
    Phase,
    Protocol,
)


def read_of(fd: int) -> PendingRead:
    return PendingRead(fd, "device", 4096, 8192)


@pytest.fixture
def protocol() -> Protocol:
    return Protocol()


def stopped() -> Protocol:
    protocol = Protocol()
    protocol.begin_stop()
    protocol.end_stop()
    return protocol


def test_present_range_is_allowed(protocol: Protocol) -> None:
    assert protocol.receive_read(read_of(9), present=True) == [Allow(9)]
    assert protocol.begin_stop() == []


@pytest.mark.parametrize("present", [True, False])
def test_absent_range_is_filled_then_allowed_or_denied(protocol: Protocol, present: bool) -> None:  # noqa: FBT001
    read = read_of(9)
    assert protocol.receive_read(read, present=False) == [Fill(read)]
    assert protocol.finish(read, present=present) == [Allow(9) if present else Deny(9, EIO)]
    assert protocol.finish(read, present=present) == []


def test_number_that_is_used_again_is_another_event(protocol: Protocol) -> None:
    old, new = read_of(9), read_of(9)
    protocol.receive_read(old, present=False)
    protocol.finish(old, present=True)
    protocol.receive_read(new, present=False)
    assert protocol.finish(old, present=True) == []
    assert protocol.finish(new, present=False) == [Deny(9, EIO)]


def test_foreign_event_is_denied_in_every_phase(protocol: Protocol) -> None:
    assert protocol.receive_foreign(5) == [Deny(5, EIO)]
    protocol.begin_stop()
    assert protocol.receive_foreign(5) == [Deny(5, EIO)]


def test_loss_fails_what_waits_and_what_comes(protocol: Protocol) -> None:
    read = read_of(9)
    protocol.receive_read(read, present=False)
    assert protocol.receive_loss("why") == [Lose("why"), Deny(9, EIO)]
    assert protocol.phase is Phase.FAILING
    assert protocol.finish(read, present=True) == []
    assert protocol.receive_read(read_of(10), present=False) == [Deny(10, EIO)]
    assert protocol.receive_read(read_of(10), present=True) == [Allow(10)]
    assert protocol.receive_loss("again") == [Lose("again")]


def test_stopping_fails_what_waits(protocol: Protocol) -> None:
    for fd in (9, 10):
        protocol.receive_read(read_of(fd), present=False)
    assert protocol.begin_stop() == [Deny(9, EIO), Deny(10, EIO)]
    assert protocol.begin_stop() == []
    protocol.end_stop()
    assert protocol.phase is Phase.STOPPED


def test_nothing_is_taken_when_stopped() -> None:
    protocol = stopped()
    with pytest.raises(IllegalStepError, match=r"^ABSENT while stopped$"):
        protocol.receive_read(read_of(9), present=False)
    with pytest.raises(IllegalStepError, match=r"^PRESENT while stopped$"):
        protocol.receive_read(read_of(9), present=True)
    with pytest.raises(IllegalStepError, match=r"^FOREIGN while stopped$"):
        protocol.receive_foreign(9)
    with pytest.raises(IllegalStepError, match=r"^LOSS while stopped$"):
        protocol.receive_loss("why")
    with pytest.raises(IllegalStepError, match=r"^FAILING after STOPPED$"):
        protocol.begin_stop()
    with pytest.raises(IllegalStepError, match=r"^STOPPED must follow FAILING, not STOPPED$"):
        protocol.end_stop()


def test_stop_cannot_end_before_it_begins(protocol: Protocol) -> None:
    with pytest.raises(IllegalStepError, match=r"^STOPPED must follow FAILING, not SERVING$"):
        protocol.end_stop()
