"""The supervisor's decisions, one table row after the other."""

from __future__ import annotations

import signal
from itertools import pairwise

import pytest

from lazyimg.supervisor import protocol as protocol_module
from lazyimg.supervisor.messages import Notification
from lazyimg.supervisor.protocol import (
    MAX_PAUSE,
    MAX_PAUSE_SERVED,
    PAUSE,
    STEADY,
    STOP_TIMEOUT,
    Action,
    CloseFd,
    Exit,
    Greet,
    IllegalStepError,
    Notify,
    Protocol,
    Say,
    Signal,
    Start,
    State,
    find_pause,
)

READY = Notification(ready=True)


def begun() -> Protocol:
    protocol = Protocol()
    assert protocol.begin() == [Start(0)]
    return protocol


def serving(now: float = 0.0) -> Protocol:
    protocol = begun()
    assert protocol.receive(READY, [], now) == [Notify("READY=1")]
    return protocol


def waiting(now: float = 0.0) -> Protocol:
    protocol = serving(now)
    protocol.exited(-9, now, 0.0)
    return protocol


def starting(now: float = 0.0) -> Protocol:
    protocol = waiting(now)
    assert protocol.tick(now) == [Start(1)]
    return protocol


def stopping(now: float = 0.0) -> Protocol:
    protocol = serving()
    assert protocol.stop(15, now) == [Notify("STOPPING=1"), Signal(15)]
    return protocol


def test_life_of_one_worker() -> None:
    protocol = begun()
    assert protocol.receive(READY, [], 1.0) == [Notify("READY=1")]
    assert protocol.stop(signal.SIGTERM, 2.0) == [Notify("STOPPING=1"), Signal(signal.SIGTERM)]
    assert protocol.deadline == 2.0 + STOP_TIMEOUT
    assert protocol.exited(0, 3.0, 0.5) == [Exit(0)]
    assert protocol.state is State.ENDED


@pytest.mark.parametrize(
    ("code", "actions"),
    [
        (0, [Exit(0)]),
        (72, [Exit(72)]),
        (-9, [Say("the worker ended with signal 9"), Exit(137)]),
    ],
)
def test_first_worker_that_fails_is_the_supervisors_failure(
    code: int, actions: list[Action]
) -> None:
    protocol = begun()
    assert protocol.exited(code, 1.0, 0.0) == actions
    assert protocol.state is State.ENDED


@pytest.mark.parametrize(("code", "said"), [(0, "code 0"), (1, "code 1"), (-11, "signal 11")])
def test_worker_that_served_is_started_again_however_it_ended(code: int, said: str) -> None:
    protocol = serving()
    assert protocol.exited(code, 5.0, 0.0) == [
        Say(f"the worker ended with {said}; it is started again now")
    ]
    assert (protocol.state, protocol.deadline) == (State.WAITING, 5.0)
    assert protocol.tick(4.9) == []
    assert protocol.tick(5.0) == [Start(1)]
    assert (protocol.state, protocol.deadline, protocol.restarts) == (State.STARTING, None, 1)
    assert protocol.receive(READY, [], 6.0) == [
        Say("worker 1 after the first is ready", serious=False)
    ]
    assert protocol.state is State.SERVING


def test_later_worker_that_fails_before_it_is_ready_is_started_again() -> None:
    protocol = starting()
    assert protocol.exited(74, 1.0, 0.0) == [
        Say("the worker ended with code 74; it is started again in 0.1 s")
    ]
    assert protocol.deadline == pytest.approx(1.0 + PAUSE)
    assert protocol.tick(2.0) == [Start(2)]


def test_pauses_grow_and_have_a_limit() -> None:
    protocol = starting()
    pauses = []
    now = 0.0
    for _ in range(20):
        protocol.exited(1, now, 0.0)
        assert protocol.deadline is not None
        pauses.append(protocol.deadline - now)
        now = protocol.deadline
        protocol.tick(now)
    assert pauses[0] == pytest.approx(PAUSE)
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(pauses))
    assert pauses[-1] == pytest.approx(MAX_PAUSE)


def test_pause_behind_a_worker_that_served_is_short() -> None:
    protocol = starting()
    now = 0.0
    for _ in range(20):
        protocol.receive(READY, [], now)
        protocol.exited(-9, now + 0.5, 0.0)
        assert protocol.deadline is not None
        assert protocol.deadline - now - 0.5 <= MAX_PAUSE_SERVED
        now = protocol.deadline
        protocol.tick(now)


def test_steady_service_forgets_earlier_ends() -> None:
    protocol = starting()
    for now in range(10):
        protocol.exited(1, now, 0.0)
        protocol.tick(now + 100)
    protocol.receive(READY, [], 200.0)
    protocol.exited(-9, 200.0 + STEADY, 0.0)
    assert protocol.deadline == 200.0 + STEADY


@pytest.mark.parametrize(("jitter", "share"), [(0.0, 1.0), (1.0, 0.5), (0.5, 0.75)])
def test_pause_is_shortened_at_random(jitter: float, share: float) -> None:
    protocol = starting()
    protocol.exited(1, 0.0, jitter)
    assert protocol.deadline == pytest.approx(PAUSE * share)


def test_find_pause() -> None:
    assert [find_pause(number, served=True) for number in (1, 2, 3, 4, 5, 6, 1000)] == [
        0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0,
    ]  # fmt: skip
    assert find_pause(1000, served=False) == MAX_PAUSE


@pytest.mark.parametrize("make", [begun, starting, serving])
def test_stop_with_a_worker_goes_to_it(make: object) -> None:
    assert callable(make)
    protocol = make()
    assert protocol.stop(2, 7.0) == [Notify("STOPPING=1"), Signal(2)]
    assert protocol.stop(15, 8.0) == [Signal(15)]
    assert protocol.deadline == 7.0 + STOP_TIMEOUT
    assert protocol.receive(READY, [], 9.0) == []
    assert protocol.exited(-15, 10.0, 0.0) == [Say("the worker ended with signal 15"), Exit(143)]


def test_stop_without_a_worker() -> None:
    protocol = waiting()
    assert protocol.stop(15, 1.0) == [
        Say("stopped while no worker ran: its mounts stay, unserved"),
        Exit(1),
    ]
    assert (protocol.state, protocol.deadline) == (State.ENDED, None)


def test_worker_that_does_not_stop_is_killed() -> None:
    protocol = stopping(1.0)
    assert protocol.tick(1.0 + STOP_TIMEOUT - 0.1) == []
    assert protocol.tick(1.0 + STOP_TIMEOUT) == [
        Say("the worker did not stop within 300 s; it is killed"),
        Signal(signal.SIGKILL),
    ]
    assert protocol.tick(1e9) == []
    assert protocol.exited(-9, 1e9, 0.0) == [Say("the worker ended with signal 9"), Exit(137)]


def test_worker_that_fails_while_stopping() -> None:
    assert stopping().exited(3, 1.0, 0.0) == [Say("the worker ended with code 3"), Exit(3)]


def test_ready_twice_is_said_once() -> None:
    assert serving().receive(READY, [], 1.0) == []


def test_fds_are_kept_for_the_next_worker() -> None:
    protocol = serving()
    assert protocol.receive(Notification(store=True, name="a"), [10, 11], 0.0) == []
    assert protocol.receive(Notification(store=True, name="b"), [12], 0.0) == []
    assert protocol.fds == [("a", 10), ("a", 11), ("b", 12)]
    assert protocol.receive(Notification(remove=True, name="a"), [], 0.0) == [
        CloseFd(10), CloseFd(11),
    ]  # fmt: skip
    assert protocol.fds == [("b", 12)]
    assert protocol.receive(Notification(remove=True, name="a"), [], 0.0) == []


def test_callers_are_greeted_from_the_end_of_a_worker_until_the_next_one_says_so() -> None:
    protocol = serving()
    kept = Notification(store=True, name="a", greeting=b"hello")
    assert protocol.receive(kept, [10, 11], 0.0) == []
    protocol.receive(Notification(store=True, name="b"), [12], 0.0)
    assert protocol.listeners == []
    protocol.exited(-9, 1.0, 0.0)
    assert protocol.listeners == [10, 11]
    assert protocol.called(11, 20) == [Greet(20, "a", b"hello")]
    protocol.tick(1.0)
    protocol.receive(READY, [], 2.0)
    assert protocol.listeners == [10, 11]
    protocol.receive(kept._replace(name="c"), [13], 2.0)
    protocol.receive(Notification(remove=True, name="a"), [], 2.0)
    assert protocol.listeners == []
    protocol.exited(-9, 3.0, 0.0)
    assert protocol.listeners == [13]
    assert protocol.called(13, 21) == [Greet(21, "c", b"hello")]


def test_fds_of_before_come_first() -> None:
    protocol = Protocol()
    protocol.begin([("old", 3)])
    protocol.receive(Notification(store=True, name="new"), [4], 0.0)
    assert protocol.fds == [("old", 3), ("new", 4)]
    protocol.fds.clear()
    assert len(protocol.fds) == 2


def test_fds_that_are_not_to_be_kept_are_closed() -> None:
    protocol = serving()
    assert protocol.receive(Notification(), [5, 6], 0.0) == [CloseFd(5), CloseFd(6)]
    assert protocol.fds == []


def test_fds_that_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_module, "MAX_FDS", 2)
    protocol = serving()
    kept = Notification(store=True, name="a", greeting=b"hello")
    assert protocol.receive(kept, [5, 6, 7], 0.0) == [
        Say("1 of the worker's fds 'a' are not kept: 2 are"),
        CloseFd(7),
    ]
    assert protocol.receive(Notification(store=True, name="b"), [8], 0.0)[1:] == [CloseFd(8)]
    assert protocol.fds == [("a", 5), ("a", 6)]
    protocol.exited(-9, 1.0, 0.0)
    assert protocol.listeners == [5, 6]


def test_lines_for_the_service_manager_are_passed_on() -> None:
    notification = Notification(rest=("STATUS=fine", "EXTEND_TIMEOUT_USEC=1"))
    assert serving().receive(notification, [], 0.0) == [
        Notify("STATUS=fine"),
        Notify("EXTEND_TIMEOUT_USEC=1"),
    ]


def test_tick_without_a_deadline() -> None:
    assert serving().tick(1e9) == []


@pytest.mark.parametrize(
    ("make", "call", "text"),
    [
        (begun, lambda p: p.begin(), "BEGIN while FIRST"),
        (Protocol, lambda p: p.stop(15, 0.0), "STOP while NEW"),
        (Protocol, lambda p: p.exited(0, 0.0, 0.0), "EXIT while NEW"),
        (waiting, lambda p: p.exited(0, 0.0, 0.0), "EXIT while WAITING"),
        (waiting, lambda p: p.receive(READY, [], 0.0), "READY while WAITING"),
    ],
)
def test_illegal_step(make: object, call: object, text: str) -> None:
    assert callable(make)
    assert callable(call)
    protocol = make()
    before = (protocol.state, protocol.deadline, protocol.fds)
    with pytest.raises(IllegalStepError, match=f"^{text}$"):
        call(protocol)
    assert (protocol.state, protocol.deadline, protocol.fds) == before
