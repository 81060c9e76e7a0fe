"""The loop, on a scripted group."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import NotFoundError, RegistryError, StorageError
from lazyimg.transports.fanotify import server as module
from lazyimg.transports.fanotify.journal import Journal, Place
from lazyimg.transports.fanotify.server import LOCAL_WINDOW, Server
from lazyimg_formats.device_table import BLOCK_SIZE
from tests.fakes.fanotify import OVERFLOW, MemoryDevice, ScriptedGroup, access, free_number

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from lazyimg.fill.ports import Sink

BLOCK = memoryview(bytes(BLOCK_SIZE))
NODE = 5
PLACES = 4096


class ScriptedFiller:
    """Fills at once, or when `gate` is set; fails with `error`, or does nothing if `lazy`."""

    def __init__(self) -> None:
        self.fills: list[tuple[str, int, int]] = []
        self.error: Exception | None = None
        self.lazy = False
        self.local: int | None = None
        self.buffers: list[range] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = asyncio.Event()

    def size(self, cookie: str) -> int | None:
        raise NotImplementedError(cookie)

    def read_local(self, cookie: str, offset: int, length: int, buffer: memoryview) -> int | None:
        if self.local is None:
            return None
        assert (cookie, length <= len(buffer)) == ("device", True)
        self.buffers.append(range(offset, offset + len(buffer)))
        return self.local

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        self.fills.append((cookie, offset, length))
        self.begun.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        if not self.lazy:
            sink.write_now(offset, [BLOCK] * (length // BLOCK_SIZE))


class Served:
    """A server, and everything around it."""

    def __init__(self, directory: Path) -> None:
        self.group = ScriptedGroup()
        self.filler = ScriptedFiller()
        self.path = directory / "journal"
        self.journal = Journal(self.path, PLACES)
        self.device = MemoryDevice(directory / "device", NODE)
        self.found: dict[int, MemoryDevice | Exception] = {}
        self.lost: list[str] = []
        self.lost_one = asyncio.Event()
        self.server = Server(self.group, self.filler, self.journal, find=self.find, lose=self.lose)

    def find(self, node: int) -> MemoryDevice | None:
        found = self.found.get(node)
        if isinstance(found, Exception):
            raise found
        return found

    def lose(self, problem: str) -> None:
        self.lost.append(problem)
        self.lost_one.set()

    def read(self, fd: int, offset: int, count: int, node: int = NODE) -> None:
        """Let a process read."""
        self.group.nodes[fd] = node
        self.group.raise_events(access(fd, offset, count))

    async def answered(self) -> tuple[int, str]:
        return await asyncio.to_thread(self.group.answered)

    def places(self) -> list[Place]:
        journal = Journal(self.path, PLACES)
        try:
            return journal.taken()
        finally:
            journal.close()


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Served]:
    served = Served(directory)
    served.server.start()
    served.server.add(served.device)
    try:
        yield served
    finally:
        served.server.begin_stop()
        await served.server.end_stop()
        assert served.group.closed
        assert served.group.silent()


async def test_present_range_is_allowed_without_a_fill(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.device.blocks = {1, 2}
        served.read(9, BLOCK_SIZE, 2 * BLOCK_SIZE)
        assert await served.answered() == (9, "allow")
        served.read(9, BLOCK_SIZE + 1, 10)
        assert await served.answered() == (9, "allow")
        served.read(9, 64 * BLOCK_SIZE, 10)  # behind the end
        assert await served.answered() == (9, "allow")
        assert served.filler.fills == []
        assert served.server.counters.reads == 3


async def test_absent_range_is_filled_in_whole_blocks_up_to_the_end(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.read(9, 62 * BLOCK_SIZE + 5, 1 << 40)
        assert await served.answered() == (9, "allow")
        assert served.filler.fills == [("device", 62 * BLOCK_SIZE, 2 * BLOCK_SIZE)]
        assert served.places() == []


async def test_local_bytes_are_written_by_the_thread(tmp_path: Path) -> None:
    """More than is asked for where that is free; zeros where a device has ended."""
    async with serving(tmp_path) as served:
        served.filler.local = 2 * BLOCK_SIZE + 1
        served.read(9, 0, BLOCK_SIZE)
        assert await served.answered() == (9, "allow")
        assert served.device.blocks == {0, 1, 2}
        served.filler.local = 5
        served.read(9, 62 * BLOCK_SIZE, 2 * BLOCK_SIZE)
        assert await served.answered() == (9, "allow")
        assert served.device.blocks == {0, 1, 2, 62, 63}
        size = 64 * BLOCK_SIZE
        assert served.filler.buffers == [range(size), range(62 * BLOCK_SIZE, size)]
        assert served.filler.fills == []


async def test_local_bytes_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the reader hears why."""

    def fail(offset: int, parts: Sequence[memoryview]) -> None:
        raise StorageError("device", f"is full at {offset}, {len(parts)}")

    async with serving(tmp_path) as served:
        served.filler.local = BLOCK_SIZE
        monkeypatch.setattr(served.device, "write_now", fail)
        served.read(9, 0, 1)
        assert await served.answered() == (9, "deny 5")
        assert served.server.counters.failure == "device: is full at 0, 1"


async def test_more_than_the_thread_writes_is_left_to_a_task(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.device.size = 1 << 40
        served.filler.local = BLOCK_SIZE
        served.read(9, 0, LOCAL_WINDOW + 1)
        assert await served.answered() == (9, "allow")
        assert ("device", 0, LOCAL_WINDOW + BLOCK_SIZE) in served.filler.fills


async def test_what_waits_for_a_fill_is_in_the_journal(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.filler.gate.clear()
        served.read(9, 0, 1)
        await served.filler.begun.wait()
        assert served.places() == [Place(9, NODE, 0, BLOCK_SIZE)]
        served.filler.gate.set()
        assert await served.answered() == (9, "allow")
        assert served.places() == []


async def test_several_in_one_read_of_which_one_is_present(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.device.blocks = {3}
        served.group.nodes = {9: NODE, 10: NODE}
        served.group.raise_events(access(9, 0, 1) + access(10, 3 * BLOCK_SIZE, 1))
        answers = {await served.answered(), await served.answered()}
        assert answers == {(9, "allow"), (10, "allow")}
        assert served.filler.fills == [("device", 0, BLOCK_SIZE)]


async def test_fill_that_fails_is_an_error_for_the_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as served:
        served.filler.error = RegistryError("blob", "is away")
        for _ in range(2):
            served.read(9, 0, 1)
            assert await served.answered() == (9, "deny 5")
        assert served.server.counters.reads_failed == 2
        assert served.server.counters.failure == "blob: is away"
        said = [each.message for each in caplog.records if each.levelno == logging.WARNING]
        assert said == ["read of 4096 bytes at 0 failed: blob: is away"]
        served.filler.error = None
        served.read(9, 0, 1)
        assert await served.answered() == (9, "allow")


async def test_fill_that_breaks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path) as served:
        served.filler.error = ZeroDivisionError()
        served.read(9, 0, 1)
        assert await served.answered() == (9, "deny 5")
    assert "read of device failed" in caplog.text


async def test_fill_that_writes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path) as served:
        served.filler.lazy = True
        served.read(9, 0, 1)
        assert await served.answered() == (9, "deny 5")
    assert "failed: device: what was fetched is not in the cache" in caplog.text


async def test_reader_that_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path) as served:
        served.device.blocks = {0}
        served.group.gone = {9}
        served.read(9, 0, 1)
        assert await served.answered() == (9, "allow")
        served.group.broken = OSError(errno.EIO, "broken")
        served.read(10, 0, 1)
        assert await served.answered() == (10, "allow")
    assert served.server.counters.reads_lost == 2
    assert "an event of the kernel cannot be answered: [Errno 5] broken" in caplog.text


async def test_event_that_cannot_be_handled_is_denied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as served:
        served.group.raise_events(access(8, 0, 1))  # an fd that has no inode
        assert await served.answered() == (8, "deny 5")
        served.device.broken = True
        served.read(9, 0, 1)
        assert await served.answered() == (9, "deny 5")
        other = struct.pack("=IBBHQii", 24, 3, 0, 24, 2, 10, 77)
        served.group.raise_events(other)
        assert await served.answered() == (10, "deny 5")
        served.group.raise_events(struct.pack("=IBBHQii", 24, 3, 0, 24, 2, -1, 77))
        served.device.broken = False
        served.device.blocks = {0}
        served.read(9, 0, 1)
        assert await served.answered() == (9, "allow")
    assert caplog.text.count("could not be handled") == 2
    assert "is not understood: unknown event 0x2 with fd 10" in caplog.text
    assert "is not understood: unknown event 0x2 with fd -1" in caplog.text


async def test_reading_that_fails_for_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as served:
        served.device.blocks = {0}
        served.group.raise_events(OSError(errno.EMFILE, "Too many open files"))
        served.read(9, 0, 1)
        assert await served.answered() == (9, "allow")
    assert "cannot take an event of the kernel: [Errno 24] Too many open files" in caplog.text


async def test_thread_survives_what_it_does_not_know(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as served:
        served.device.blocks = {0}

        def fail(_: bytes) -> list[object]:
            monkeypatch.undo()
            raise ZeroDivisionError

        monkeypatch.setattr(module, "parse_events", fail)
        served.read(9, 0, 1)
        served.read(10, 0, 1)
        assert await served.answered() == (10, "allow")
    assert "events of the kernel could not be handled" in caplog.text


async def test_file_that_a_process_before_has_marked(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        other = served.found[6] = MemoryDevice(tmp_path / "other", 6)
        served.filler.gate.clear()
        served.read(9, 0, 1, node=6)
        served.read(10, BLOCK_SIZE, 1, node=6)
        await served.filler.begun.wait()
        served.filler.gate.set()
        answers = {await served.answered(), await served.answered()}
        assert answers == {(9, "allow"), (10, "allow")}
        served.read(9, 0, 1, node=6)
        assert await served.answered() == (9, "allow")
        assert sorted(served.filler.fills) == [("other", 0, 4096), ("other", 4096, 4096)]
        served.server.remove(other)
        served.found.clear()
        served.read(9, 0, 1, node=6)
        assert await served.answered() == (9, "deny 5")


@pytest.mark.parametrize("problem", [None, NotFoundError("file", "is none"), ZeroDivisionError()])
async def test_file_that_is_not_in_the_cache(tmp_path: Path, problem: Exception | None) -> None:
    async with serving(tmp_path) as served:
        if problem is not None:
            served.found[6] = problem
        served.read(9, 0, 1, node=6)
        assert await served.answered() == (9, "deny 5")
        assert served.server.counters.reads_failed == 0


async def test_reads_of_this_process_are_denied_and_its_cuts_allowed(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.device.blocks = {0}
        served.group.nodes[9] = NODE
        served.group.raise_events(access(9, 0, 1, pid=os.getpid()))
        assert await served.answered() == (9, "deny 5")
        served.group.raise_events(access(9, 4096, 0, pid=os.getpid()))
        assert await served.answered() == (9, "allow")


async def test_fd_that_was_opened_after_the_mark_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as served:
        late = os.open(tmp_path / "late", os.O_RDWR | os.O_CREAT)
        event = os.open(tmp_path / "event", os.O_RDWR | os.O_CREAT)
        device = MemoryDevice(tmp_path / "other", 6, fd=late)

        def read(fd: int, length: int, offset: int) -> bytes:
            assert (fd, length, offset) == (late, 1, 0)
            served.group.nodes[event] = 6
            served.group.raise_events(access(event, 0, 1, pid=os.getpid()))
            assert served.group.answered() == (event, "deny 5")
            raise OSError(errno.EIO, "denied")

        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", read)
            await served.server.own(device)
        assert os.path.samestat(os.fstat(late), os.fstat(event))
        assert not os.get_inheritable(late)
        for fd in (late, event):
            os.close(fd)
        device.blocks = {0}
        served.read(9, 0, 1, node=6)
        assert await served.answered() == (9, "allow")


async def test_overflow_fails_what_waits_and_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.filler.gate.clear()
        served.read(9, 0, 1)
        await served.filler.begun.wait()
        served.group.raise_events(OVERFLOW)
        assert await served.answered() == (9, "deny 5")
        await served.lost_one.wait()
        assert served.lost == ["the queue of events was full"]
        served.read(9, 0, 1)
        assert await served.answered() == (9, "deny 5")
        assert served.places() == []


async def test_events_that_cannot_be_told_apart(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        served.group.raise_events(b"x")
        await served.lost_one.wait()
        assert served.lost == [
            "events are not understood: fanotify_event_metadata: expected 24 bytes, got 1"
        ]
        served.read(9, 0, 1)
        assert await served.answered() == (9, "deny 5")
        assert served.group.denied == [(errno.EIO, set())]


async def test_stop_denies_what_waits_for_a_fill_or_for_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(tmp_path)
    served.server.start()
    served.server.add(served.device)
    served.filler.gate.clear()
    served.read(9, 0, 1)
    await served.filler.begun.wait()
    finding = asyncio.Event()

    async def never(_: int) -> None:
        finding.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(served.server, "_find_device", never)
    served.read(10, 0, 1, node=6)
    await finding.wait()
    served.server.begin_stop()
    assert served.group.answered() == (9, "deny 5")
    served.read(9, 0, 1)
    assert await served.answered() == (9, "deny 5")
    stopping = asyncio.create_task(served.server.end_stop())
    await asyncio.sleep(0)
    served.read(11, 0, 1, node=6)
    await stopping
    assert {served.group.answered(), served.group.answered()} == {(10, "deny 5"), (11, "deny 5")}
    assert served.group.closed
    assert served.places() == []


async def test_takeover_fills_what_was_waited_for(tmp_path: Path) -> None:
    """One number is in use here: it cannot be kept, so that one is asked again."""
    served = Served(tmp_path)
    taken = os.open(os.devnull, os.O_RDONLY)
    free = free_number()
    for fd in (taken, free):
        served.journal.put(Place(fd, NODE, 0, BLOCK_SIZE))
    served.found[NODE] = served.device
    served.server.take_over()
    assert served.group.denied == [(errno.EAGAIN, {free})]
    os.fstat(free)  # nobody gets it
    assert served.places() == [Place(free, NODE, 0, BLOCK_SIZE)]
    served.server.start()
    assert await served.answered() == (free, "allow")
    assert served.filler.fills == [("device", 0, BLOCK_SIZE)]
    assert served.places() == []
    for fd in (taken, free):
        os.close(fd)  # the scripted group closes nothing
    served.server.begin_stop()
    await served.server.end_stop()
