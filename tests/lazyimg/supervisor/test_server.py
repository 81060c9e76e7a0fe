"""The loop, over a scripted system."""

from __future__ import annotations

import logging
import signal
from collections import deque
from typing import TYPE_CHECKING

import pytest

from lazyimg.supervisor.ports import Happened
from lazyimg.supervisor.protocol import STOP_TIMEOUT
from lazyimg.supervisor.server import CANNOT_START, Supervisor
from tests.fakes.processes import FakeProcesses, ends, says

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TERM = Happened(stops=(signal.SIGTERM,))
NOTHING = Happened()


def supervise(
    *script: Happened | Callable[[FakeProcesses], Happened],
    fds: Sequence[tuple[str, int]] = (),
    processes: FakeProcesses | None = None,
) -> tuple[int, FakeProcesses]:
    processes = processes or FakeProcesses()
    processes.script = deque(script)
    code = Supervisor(processes, lambda: 0.0).run(fds)
    assert not processes.script
    return code, processes


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def test_clean_life(caplog: pytest.LogCaptureFixture) -> None:
    code, processes = supervise(says(b"READY=1"), TERM, ends(0))
    assert code == 0
    assert processes.started == [([], 0)]
    assert processes.told == ["READY=1", "STOPPING=1"]
    assert processes.signals == [(101, signal.SIGTERM)]
    assert caplog.messages == []


def test_failure_of_the_first_worker(caplog: pytest.LogCaptureFixture) -> None:
    code, processes = supervise(ends(72))
    assert (code, processes.told, caplog.messages) == (72, [], [])


def test_next_worker_gets_the_fds(caplog: pytest.LogCaptureFixture) -> None:
    code, processes = supervise(
        says(b"FDSTORE=1\nFDNAME=a", 7),
        says(b"FDSTORE=1\nFDNAME=b", 8, 9),
        says(b"READY=1"),
        ends(-9),
        says(b"FDSTOREREMOVE=1\nFDNAME=b"),
        says(b"READY=1"),
        TERM,
        ends(0),
        fds=[("old", 3)],
    )
    assert code == 0
    assert processes.started == [
        ([("old", 3)], 0),
        ([("old", 3), ("a", 7), ("b", 8), ("b", 9)], 1),
    ]
    assert processes.closed == [8, 9]
    assert caplog.messages == [
        "the worker ended with signal 9; it is started again now",
        "worker 1 after the first is ready",
    ]


def test_callers_of_a_worker_that_ended() -> None:
    def call(processes: FakeProcesses) -> Happened:
        assert processes.listeners == [7]
        removed = says(b"FDSTOREREMOVE=1\nFDNAME=a")(processes)
        return removed._replace(callers=((7, 20), (7, 21)))

    _, processes = supervise(
        says(b"FDSTORE=1\nX_GREETING=6869\nFDNAME=a", 7),
        says(b"READY=1"),
        ends(-9),
        call,
        says(b"READY=1"),
        TERM,
        ends(0),
    )
    assert processes.greeted == [(20, "a", b"hi"), (21, "a", b"hi")]
    assert processes.closed == [7]
    assert processes.listeners == []


def test_what_a_worker_said_before_it_ended_counts() -> None:
    code, processes = supervise(ends(-9, b"READY=1"), says(b"READY=1"), TERM, ends(0))
    assert code == 0
    assert len(processes.started) == 2


def test_other_processes_are_not_heard(caplog: pytest.LogCaptureFixture) -> None:
    code, processes = supervise(says(b"READY=1\nFDSTORE=1", 7, sender=55), ends(1))
    assert (code, processes.closed, processes.told) == (1, [7], [])
    assert caplog.messages == ["process 55, which is not the worker, is not heard"]


def test_end_of_another_child() -> None:
    other = Happened(ends=((77, 0),))
    assert supervise(says(b"READY=1"), other, TERM, ends(0))[0] == 0


def test_fds_without_a_purpose_are_closed() -> None:
    _, processes = supervise(says(b"BARRIER=1", 12), ends(0))
    assert processes.closed == [12]


def test_pause_before_a_start() -> None:
    code, processes = supervise(says(b"READY=1"), ends(1), ends(1), NOTHING, TERM, ends(0))
    assert code == 0
    assert [restarts for _, restarts in processes.started] == [0, 1, 2]
    assert processes.waits[:-1] == [None, None, None, pytest.approx(0.1), None]


def test_stop_during_a_pause(caplog: pytest.LogCaptureFixture) -> None:
    code, _ = supervise(says(b"READY=1"), ends(1), ends(1), TERM)
    assert code == 1
    assert caplog.messages[-1] == "stopped while no worker ran: its mounts stay, unserved"


def test_stop_and_end_at_once() -> None:
    def end_with_signal(processes: FakeProcesses) -> Happened:
        assert processes.running is not None
        return Happened(ends=((processes.running, 9),), stops=(signal.SIGTERM,))

    assert supervise(end_with_signal)[0] == 9


def test_worker_that_does_not_stop() -> None:
    code, processes = supervise(says(b"READY=1"), TERM, NOTHING, ends(-9))
    assert code == 137
    assert processes.waits[2] == STOP_TIMEOUT
    assert processes.signals == [(101, signal.SIGTERM), (101, signal.SIGKILL)]


def test_no_process_for_the_first_worker(caplog: pytest.LogCaptureFixture) -> None:
    code, _ = supervise(processes=FakeProcesses(refuse=1))
    assert code == CANNOT_START
    assert caplog.messages == [
        "no worker can be started: [Errno 11] Resource temporarily unavailable"
    ]


def test_no_process_for_a_later_worker() -> None:
    processes = FakeProcesses()

    def end(_: FakeProcesses) -> Happened:
        processes.refuse = 1
        return ends(-9)(processes)

    code, _ = supervise(
        says(b"READY=1"), end, NOTHING, says(b"READY=1"), TERM, ends(0), processes=processes
    )
    assert code == 0
    assert [restarts for _, restarts in processes.started] == [0, 1, 2]
