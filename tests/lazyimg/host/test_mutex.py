"""One thread at a time, and waiting for it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lazyimg.host.mutex import Mutex


def test_mutex_keeps_a_second_thread_out_until_the_first_has_left() -> None:
    mutex, order = Mutex(), list[str]()
    entering = threading.Event()

    def enter() -> None:
        entering.set()
        with mutex:
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with mutex:
            entered = pool.submit(enter)
            assert entering.wait(10)
            order.append("first")
        entered.result(10)
    assert order == ["first", "second"]


def test_mutex_is_exclusive_however_many_threads_take_it() -> None:
    mutex = Mutex()
    inside = most = total = 0

    def work() -> None:
        nonlocal inside, most, total
        for _ in range(500):
            with mutex:
                inside += 1
                most = max(most, inside)
                copy = total
                most = max(most, inside)
                total = copy + 1
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        for one in [pool.submit(work) for _ in range(4)]:
            one.result(60)
    assert (most, total) == (1, 2000)


def test_mutex_is_left_when_its_body_fails() -> None:
    mutex = Mutex()
    with pytest.raises(ValueError, match="inside"), mutex:
        raise ValueError("inside")
    with mutex:
        pass
