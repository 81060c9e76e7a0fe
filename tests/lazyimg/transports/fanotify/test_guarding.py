"""The guard's life: real processes, over something that is no group."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import KernelBusyError, KernelError, StorageError
from lazyimg.transports.fanotify import guarding
from lazyimg.transports.fanotify.guarding import (
    LOCK,
    NAME,
    Guarded,
    start_guard,
    wait_for_guards,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Keeper:
    """Keeps fds, as a supervisor would."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.calls: list[str] = []
        self.kept = asyncio.Event()

    def keep(self, name: str, fd: int) -> None:
        assert name == NAME
        self.calls.append("keep")
        self.fds.append(os.dup(fd))
        self.kept.set()

    def forget(self, name: str) -> None:
        assert name == NAME
        self.calls.append("forget")
        for fd in self.fds:
            os.close(fd)
        self.fds = []


@pytest.fixture
def group() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def guarded(keeper: Keeper, group: int, directory: Path) -> Guarded:
    return Guarded(keeper, group, directory, directory)


def is_locked(directory: Path) -> bool:
    with (directory / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


async def test_guard_ends_when_all_who_have_its_fd_are_gone(group: int, tmp_path: Path) -> None:
    keeper = Keeper()
    one = guarded(keeper, group, tmp_path)
    await one.start()
    assert keeper.calls == ["forget", "keep"]
    assert is_locked(tmp_path)
    await one.stop()
    assert keeper.calls == ["forget", "keep", "forget"]
    assert not is_locked(tmp_path)
    await wait_for_guards(tmp_path)


async def test_guard_of_a_process_that_ended_is_kept(group: int, tmp_path: Path) -> None:
    keeper = Keeper()
    fd, process = await asyncio.to_thread(start_guard, group, tmp_path, tmp_path)
    one = guarded(keeper, group, tmp_path)
    await one.start(fd)
    assert keeper.calls == []
    await one.stop()
    assert await asyncio.to_thread(process.wait, 30) == 0


async def test_guard_that_was_killed_has_a_successor(
    group: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Keeper()
    fd, process = await asyncio.to_thread(start_guard, group, tmp_path, tmp_path)
    one = guarded(keeper, group, tmp_path)
    await one.start(fd)
    process.kill()
    await keeper.kept.wait()
    assert await asyncio.to_thread(process.wait, 30) == -signal.SIGKILL
    assert is_locked(tmp_path)
    await one.stop()
    assert not is_locked(tmp_path)
    assert "the guard of fanotify has ended; another is started" in caplog.text


async def test_guard_that_has_no_successor(
    group: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = guarded(Keeper(), group, tmp_path)
    fd, process = await asyncio.to_thread(start_guard, group, tmp_path, tmp_path)
    await one.start(fd)
    tried = asyncio.Event()

    async def fail(_: int | None = None) -> None:
        tried.set()
        raise KernelError("fanotify", "no")

    monkeypatch.setattr(one, "start", fail)
    process.kill()
    await tried.wait()
    await one.stop()
    assert "there is no guard: fanotify: no" in caplog.text
    await asyncio.to_thread(process.wait, 30)


async def test_guard_that_does_not_end(
    group: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = guarded(Keeper(), group, tmp_path)
    await one.start()
    elsewhere = os.dup(one._fd)  # somebody else who has it
    monkeypatch.setattr(guarding, "END_TIMEOUT", 0.05)
    process = one._process
    assert process is not None
    await one.stop()
    assert f"process {process.pid}, has not ended" in caplog.text
    with pytest.raises(KernelBusyError, match="the guard of another daemon lives"):
        await wait_for_guards(tmp_path)
    os.close(elsewhere)
    assert await asyncio.to_thread(process.wait, 30) == 0


async def test_guard_that_cannot_be_started(
    group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(tmp_path / "missing"))
        with pytest.raises(KernelError, match="guard cannot be started: No such file"):
            start_guard(group, tmp_path, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(guarding, "_PROGRAM", "")
        with pytest.raises(KernelError, match="its guard has not started"):
            start_guard(group, tmp_path, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(guarding, "_PROGRAM", "import time; time.sleep(60)")
        patch.setattr(guarding, "START_TIMEOUT", 0.05)
        with pytest.raises(KernelError, match="its guard has not started"):
            start_guard(group, tmp_path, tmp_path)
    assert not is_locked(tmp_path)


async def test_directory_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be used: No such file or directory"):
        await wait_for_guards(tmp_path / "missing")


def test_guard_ignores_signals(group: int, tmp_path: Path) -> None:
    fd, process = start_guard(group, tmp_path, tmp_path)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    os.close(fd)
    assert process.wait(30) == 0


def test_guard_whose_starter_is_gone_before_it_is_ready(group: int, tmp_path: Path) -> None:
    """It must not fail then: it seals."""
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs, (tmp_path / "said").open("w") as said:
        ended = subprocess.run(
            [sys.executable, "-c", guarding._PROGRAM, guarding._PLACE, str(group), str(tmp_path)],
            stdin=theirs.fileno(),
            stderr=said,
            pass_fds=[group],
            timeout=30,
            check=False,
        )
    assert (ended.returncode, (tmp_path / "said").read_text()) == (0, "")
