"""Processes that make calls: kept, replaced, killed, and known to whoever comes after."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from lazyimg.errors import KernelError, StorageError
from lazyimg.host import mount_calls, mount_child
from lazyimg.host.mount_calls import MountCalls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CHILD = """
import json, os, sys, time
for line in sys.stdin:
    request = json.loads(line)
{then}
    print(json.dumps({{"process": os.getpid(), **request}}), flush=True)
"""
"""In place of mount_child.py: answers with its process id, and with what it was asked."""


class Child:
    """A program in place of mount_child.py."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.program = directory / "child.py"
        self.gate = directory / "gate"
        os.mkfifo(self.gate)
        self.then("pass")
        monkeypatch.setattr(mount_child, "__file__", str(self.program))

    def then(self, *lines: str) -> None:
        """Do this with each request, before it is answered."""
        code = "\n".join(f"    {line}" for line in lines)
        self.program.write_text(CHILD.format(then=code))

    def wait(self) -> None:
        """Let each request wait until somebody writes to the gate."""
        self.then(f"open({str(self.gate)!r}).read()")

    async def arrived(self) -> Any:
        """Wait until a process is at the gate; it goes on when what is given is closed."""
        return await asyncio.to_thread(self.gate.open, "w")


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    return Child(tmp_path, monkeypatch)


@pytest.fixture
async def calls(child: Child) -> AsyncIterator[MountCalls]:
    calls = MountCalls(kept=1)
    yield calls
    await calls.close()


async def test_process_is_kept_for_the_next_call(calls: MountCalls) -> None:
    first = await calls.call("one", {"call": "a", "path": "/ä\n"})
    assert first["path"] == "/ä\n"
    second = await calls.call("two", {"call": "b"})
    assert second == {"process": first["process"], "call": "b"}
    os.kill(first["process"], 0)
    await calls.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first["process"], 0)
    assert (await calls.call("three", {}))["process"] != first["process"]


async def test_none_is_kept(child: Child) -> None:
    calls = MountCalls()
    first, second = [(await calls.call("x", {}))["process"] for _ in range(2)]
    assert first != second
    for process in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


async def test_calls_at_the_same_time_do_not_wait_for_each_other(
    calls: MountCalls, child: Child
) -> None:
    child.wait()
    first = asyncio.create_task(calls.call("first", {}))
    with await child.arrived():
        child.then("pass")
        second = await calls.call("second", {})
        assert not first.done()
    assert (await first)["process"] != second["process"]
    with pytest.raises(ProcessLookupError):  # one was kept already
        os.kill((await first)["process"], 0)
    assert (await calls.call("third", {}))["process"] == second["process"]


async def test_idle_process_that_died_is_replaced(
    calls: MountCalls, caplog: pytest.LogCaptureFixture
) -> None:
    process = (await calls.call("x", {}))["process"]
    os.kill(process, signal.SIGKILL)
    await calls._idle[0].wait()
    assert (await calls.call("x", {}))["process"] != process
    assert caplog.messages == ["the mounting process ended with -9"]


async def test_process_that_breaks_down(calls: MountCalls, child: Child) -> None:
    child.then("raise ValueError('broken')")
    with pytest.raises(KernelError) as raised:
        await calls.call("unmount of /x", {})
    assert str(raised.value) == (
        "unmount of /x: the mounting process ended with 1: ['ValueError: broken']"
    )
    child.then("pass")
    assert await calls.call("x", {})


async def test_process_that_died_unnoticed(calls: MountCalls) -> None:
    process = (await calls.call("x", {}))["process"]
    os.kill(process, signal.SIGKILL)
    with pytest.raises(KernelError, match=r"x: the mounting process ended with -9: \[\]"):
        await calls.call("x", {})
    assert (await calls.call("x", {}))["process"] != process


async def test_program_that_cannot_be_run(calls: MountCalls, child: Child) -> None:
    child.program.unlink()
    with pytest.raises(KernelError, match=r"the mounting process ended with 2: .*No such file"):
        await calls.call("x", {})


async def test_answer_that_is_none(calls: MountCalls, child: Child) -> None:
    child.then("print('what?', flush=True)")
    with pytest.raises(KernelError, match=r"x: the mounting process ended with 0: \[\]"):
        await calls.call("x", {})


async def test_call_that_does_not_end(
    calls: MountCalls, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mount_calls, "CALL_TIMEOUT", 0.5)
    child.wait()
    with pytest.raises(KernelError, match=r"^x: not done after 0.5 s$"):
        await calls.call("x", {})


async def test_process_that_cannot_be_killed(
    calls: MountCalls,
    child: Child,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    killed: list[asyncio.subprocess.Process] = []

    def survive(process: asyncio.subprocess.Process) -> None:
        killed.append(process)

    monkeypatch.setattr(mount_calls, "KILL_TIMEOUT", 0.01)
    monkeypatch.setattr(asyncio.subprocess.Process, "kill", survive)
    child.wait()
    call = asyncio.create_task(calls.call("x", {}))
    with await child.arrived():
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert "does not end" in caplog.text
        assert calls.late() == killed
    await killed[0].wait()  # or its process would outlive the event loop
    assert calls.late() == []


async def test_cancelled_call_ends_with_its_process(calls: MountCalls, child: Child) -> None:
    process = (await calls.call("x", {}))["process"]
    await calls.close()
    child.wait()
    call = asyncio.create_task(calls.call("x", {}))
    with await child.arrived():
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    child.then("pass")
    assert (await calls.call("x", {}))["process"] != process


async def test_others_are_waited_for(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = (MountCalls(tmp_path / "calls", kept=1) for _ in range(2))
    child.wait()
    call = asyncio.create_task(before.call("x", {}))
    with await child.arrived():
        waiting = asyncio.create_task(after.wait_for_others())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        with monkeypatch.context() as patch:
            patch.setattr(mount_calls, "CALL_TIMEOUT", 0.05)
            assert await after.wait_for_others() is False
    await call
    await before.close()
    assert await waiting is True


async def test_process_ends_with_the_one_that_started_it(child: Child, tmp_path: Path) -> None:
    """A worker is killed with a call in hand: it is finished, and known until then."""
    child.wait()
    program = (
        "import asyncio\n"
        "from pathlib import Path\n"
        "from lazyimg.host import mount_child\n"
        "from lazyimg.host.mount_calls import MountCalls\n"
        f"mount_child.__file__ = {str(child.program)!r}\n"
        f"asyncio.run(MountCalls(Path({str(tmp_path / 'calls')!r}), kept=1).call('x', dict()))\n"
    )
    worker = await asyncio.create_subprocess_exec("python", "-c", program)
    after = MountCalls(tmp_path / "calls")
    with await child.arrived():
        worker.kill()
        await worker.wait()
        waiting = asyncio.create_task(after.wait_for_others())
        await asyncio.sleep(0.05)
        assert not waiting.done()
    assert await waiting is True


async def test_nobody_knows_of_calls() -> None:
    assert await MountCalls().wait_for_others() is True


async def test_lock_that_cannot_be_used(child: Child, tmp_path: Path) -> None:
    calls = MountCalls(tmp_path / "no" / "calls")
    for call in (calls.wait_for_others, lambda: calls.call("x", {})):
        with pytest.raises(StorageError, match="cannot be opened: No such file or directory"):
            await call()
