"""The loop, with a socket in the kernel's place: who answers, with what, and that all is."""

from __future__ import annotations

import asyncio
import os
import struct
from contextlib import asynccontextmanager, suppress
from errno import EINTR, EIO, ENOENT, ENOSYS, ENOTTY, ESTALE
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest

from lazyimg.cache.device_file import DeviceFile, make_device
from lazyimg.errors import RegistryError, StorageError
from lazyimg.transports import following
from lazyimg.transports.counters import Counters
from lazyimg.transports.fuse import desk
from lazyimg.transports.fuse import server as module
from lazyimg.transports.fuse.device import Device
from lazyimg.transports.fuse.protocol import IllegalStepError, Protocol
from lazyimg.transports.fuse.server import LOCAL_WINDOW, SPLICED, Server
from lazyimg.transports.fuse.taken import Taken
from lazyimg_formats.fuse.layout import Opcode, OpenFlag
from tests.fakes.fuse import WAIT, FakeKernel, PatternFiller
from tests.fakes.keeper import NotingKeeper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

BLOCK = 4096
SIZE = 1 << 20


class Bench:
    """A server, and everything around it. The kernel is asked and heard in threads."""

    def __init__(
        self, directory: Path, *, passthrough: bool = False, taken: int | None = None
    ) -> None:
        if not (directory / "data").exists():
            make_device(directory, SIZE)
        self.keeper = NotingKeeper()
        self.file = DeviceFile(directory, SIZE, "boot", self.keeper)
        self.filler = PatternFiller(SIZE)
        self.content = self.filler.content
        self.kernel = FakeKernel()
        self.counters = Counters()
        self.nodes: dict[int, DeviceFile] = {}
        self.lookups: list[int] = []
        self.broken: StorageError | None = None
        self.running = True
        self.device = Device(self.kernel.fd)
        self.taken = Taken(taken)
        self.lost = asyncio.Event()
        self.server = Server(
            self.device,
            Protocol(passthrough=passthrough),
            self.find,
            filler=self.filler,
            counters=self.counters,
            taken=self.taken,
            lost=self.lost.set,
        )

    def find(self, node: int) -> DeviceFile | None:
        self.lookups.append(node)
        if self.broken is not None:
            raise self.broken
        return self.nodes.get(node)

    def store(self, offset: int, length: int) -> None:
        self.file.write_now(offset, [memoryview(self.content)[offset : offset + length]])

    async def read(self, offset: int, size: int, *, node: int = 0) -> tuple[int, bytes]:
        """Give the errno and the data of one READ."""
        unique = self.kernel.ask_read(node or self.file.node, offset, size)
        answered, error, data = await self.answer()
        assert answered == unique
        return error, data

    async def ask(self, opcode: int, node: int, body: bytes = b"") -> tuple[int, bytes]:
        unique = self.kernel.ask(opcode, node, body)
        answered, error, data = await self.answer()
        assert answered == unique
        return error, data

    async def answer(self) -> tuple[int, int, bytes]:
        return await asyncio.to_thread(self.kernel.answer)

    async def stop(self) -> None:
        """Stop, once."""
        if self.running:
            self.running = False
            with suppress(IllegalStepError):  # the test has begun to
                self.server.begin_stop()
            self.kernel.end()
            await self.server.end_stop()


@asynccontextmanager
async def serving(directory: Path, **options: Any) -> AsyncIterator[Bench]:
    bench = Bench(directory, **options)
    bench.server.add(bench.file)
    bench.server.start()
    try:
        yield bench
    finally:
        await bench.stop()
        bench.kernel.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving(tmp_path) as bench:
        yield bench


async def test_start_is_told(bench: Bench) -> None:
    bench.kernel.ask_init()
    assert await asyncio.wait_for(bench.server.started, WAIT)
    _, error, data = await bench.answer()
    assert (error, len(data)) == (0, 64)


async def test_present_range_comes_from_the_cache(bench: Bench) -> None:
    bench.store(0, SIZE)
    assert await bench.read(5, 100_000) == (0, bench.content[5:100_005])
    assert await bench.read(SIZE - 10, BLOCK) == (0, bench.content[-10:])
    assert bench.filler.fills == []
    await bench.stop()  # what was answered is counted then
    assert bench.counters.reads == 2


async def test_large_answers_take_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    read_into = DeviceFile.read_into

    def note(file: DeviceFile, offset: int, buffer: memoryview) -> int:
        copied.append(len(buffer))
        return read_into(file, offset, buffer)

    monkeypatch.setattr(DeviceFile, "read_into", note)
    monkeypatch.setattr(desk, "PIPE_SIZE", 2 * SPLICED)
    async with serving(tmp_path) as bench:
        bench.store(0, SIZE)
        for length in (SPLICED - 1, SPLICED, SPLICED + 1):
            assert await bench.read(7, length) == (0, bench.content[7 : 7 + length])
    assert copied == [SPLICED - 1, SPLICED + 1]  # too small, and too large for the pipe


async def test_pipe_that_the_data_does_not_get_into(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in it by then reaches nobody."""
    bench.store(0, SIZE)
    splice = os.splice

    def end_early(source: int, target: int, count: int, **options: int) -> int:
        if source != bench.file.fd:
            return splice(source, target, count, **options)
        return splice(source, target, min(count, BLOCK), **options) if count == SPLICED else 0

    with monkeypatch.context() as patch:
        patch.setattr(os, "splice", end_early)
        for offset in (0, BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK):  # every thread
            expected = bench.content[offset : offset + SPLICED]
            assert await bench.read(offset, SPLICED) == (0, expected)
    assert await bench.read(0, 2 * SPLICED) == (0, bench.content[: 2 * SPLICED])


async def test_answer_in_a_pipe_that_the_kernel_does_not_take(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.store(0, SIZE)

    def refuse(_device: Device, _pipe: int, _length: int) -> bool:
        raise OSError(EIO, os.strerror(EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Device, "splice", refuse)
        for _ in range(5):
            assert await bench.read(0, SPLICED) == (EIO, b"")
    assert "the kernel does not take 32768 bytes: [Errno 5]" in caplog.text
    for _ in range(5):  # nothing is left in a pipe
        assert await bench.read(BLOCK, SPLICED) == (0, bench.content[BLOCK : BLOCK + SPLICED])


async def test_range_behind_the_end_is_empty(bench: Bench) -> None:
    assert await bench.read(SIZE, BLOCK) == (0, b"")


async def test_absent_range_is_filled(bench: Bench) -> None:
    bench.store(BLOCK, BLOCK)
    assert await bench.read(0, 4 * BLOCK) == (0, bench.content[: 4 * BLOCK])
    assert bench.filler.fills == [(0, 4 * BLOCK)]
    assert await bench.read(0, 4 * BLOCK) == (0, bench.content[: 4 * BLOCK])
    assert len(bench.filler.fills) == 1


async def test_what_was_filled_and_is_in_memory_no_more_comes_from_the_disk(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeviceFile, "read_cached", lambda *_: False)
    assert await bench.read(3, 4 * BLOCK) == (0, bench.content[3 : 3 + 4 * BLOCK])


async def test_what_is_at_hand_needs_no_fill_and_is_stored(bench: Bench) -> None:
    bench.filler.local = True
    assert await bench.read(BLOCK + 7, BLOCK) == (0, bench.content[BLOCK + 7 :][:BLOCK])
    assert await bench.read(SIZE - BLOCK, 4 * BLOCK) == (0, bench.content[-BLOCK:])
    await bench.stop()
    assert bench.filler.fills == []
    assert bench.file.absent(BLOCK, LOCAL_WINDOW) == []


async def test_what_is_at_hand_is_given_also_where_the_disk_is_full(bench: Bench) -> None:
    bench.filler.local = True
    bench.keeper.refusal = StorageError("cache", "is full")
    for _ in range(2):
        assert await bench.read(0, BLOCK) == (0, bench.content[:BLOCK])
    assert bench.counters.failure == "cache: is full"
    assert bench.file.absent(0, BLOCK) == [range(BLOCK)]


async def test_reads_side_by_side(bench: Bench) -> None:
    bench.store(0, SIZE // 2)
    asked = {
        bench.kernel.ask_read(bench.file.node, offset, 8 * BLOCK): offset
        for offset in range(0, SIZE, 8 * BLOCK)
    }
    answers = await asyncio.to_thread(bench.kernel.answers, len(asked))
    for unique, offset in asked.items():
        assert answers[unique] == (0, bench.content[offset : offset + 8 * BLOCK])


async def test_failed_fill_is_an_error_and_the_next_read_asks_again(bench: Bench) -> None:
    bench.filler.failure = RegistryError("registry", "does not answer")
    assert await bench.read(0, BLOCK) == (EIO, b"")
    assert (bench.counters.reads, bench.counters.reads_failed) == (0, 1)
    assert bench.counters.failure == "registry: does not answer"
    bench.filler.failure = None
    assert await bench.read(0, BLOCK) == (0, bench.content[:BLOCK])


async def test_disk_that_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.store(0, SIZE)

    def fail(*_arguments: object) -> int:
        raise StorageError("device", "cannot be read")

    monkeypatch.setattr(DeviceFile, "read_into", fail)
    assert await bench.read(0, BLOCK) == (EIO, b"")
    assert bench.counters.failure == "device: cannot be read"


async def test_cache_that_gives_less_than_it_has(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.store(0, SIZE)
    monkeypatch.setattr(DeviceFile, "read_into", lambda *_: 10)
    assert await bench.read(0, BLOCK) == (EIO, b"")


async def test_defect_is_an_error_for_the_reader(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_arguments: object) -> int:
        raise ZeroDivisionError("defect")

    bench.store(0, SIZE)
    monkeypatch.setattr(DeviceFile, "read_into", fail)
    assert await bench.read(0, BLOCK) == (EIO, b"")
    await bench.ask(Opcode.STATFS, 1)  # the thread goes on
    await bench.stop()
    assert "a request of the kernel could not be handled" in caplog.text


async def test_request_that_is_not_understood(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    assert await bench.ask(Opcode.READ, bench.file.node, b"short") == (EIO, b"")
    assert "a request of the kernel is not understood: fuse_read_in" in caplog.text
    bench.kernel.ask(Opcode.FORGET, 5, b"short")  # has no answer
    assert await bench.ask(52, 1) == (ENOSYS, b"")


async def test_read_longer_than_a_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUFFER", 2 * BLOCK)
    async with serving(tmp_path) as bench:
        bench.filler.local = True
        for _ in range(2):  # fetched; present
            assert await bench.read(1, 4 * BLOCK) == (0, bench.content[1 : 1 + 4 * BLOCK])
        assert bench.filler.fills == [(0, 5 * BLOCK)]


async def test_answer_that_the_kernel_does_not_take(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = Device.write

    def refuse(device: Device, *parts: bytes | memoryview) -> bool:
        if len(parts) == 2:
            raise OSError(EIO, os.strerror(EIO))
        return write(device, *parts)

    monkeypatch.setattr(Device, "write", refuse)
    assert await bench.read(0, BLOCK) == (EIO, b"")
    assert await bench.read(0, BLOCK) == (EIO, b"")
    assert "the kernel does not take 4096 bytes: [Errno 5]" in caplog.text


async def test_node_that_the_process_before_had(bench: Bench) -> None:
    bench.server.remove(bench.file)
    bench.nodes[bench.file.node] = bench.file
    bench.store(0, SIZE)
    assert await bench.read(0, BLOCK) == (0, bench.content[:BLOCK])
    assert await bench.read(0, BLOCK) == (0, bench.content[:BLOCK])
    assert bench.lookups == [bench.file.node]
    bench.server.remove(bench.file)
    error, _ = await bench.ask(Opcode.GETATTR, bench.file.node, bytes(16))
    assert error == 0


async def test_node_that_nobody_knows(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    assert await bench.read(0, BLOCK, node=99) == (EIO, b"")
    assert await bench.ask(Opcode.GETATTR, 99, bytes(16)) == (ESTALE, b"")
    bench.broken = StorageError("cache", "fails")
    assert await bench.read(0, BLOCK, node=99) == (EIO, b"")
    assert "node 99 is not known: cache: fails" in caplog.text


async def test_device_of_which_the_number_was_taken_by_another(bench: Bench) -> None:
    bench.server.remove(bench.file)
    bench.server.remove(bench.file)
    assert await bench.read(0, BLOCK) == (EIO, b"")


async def test_interrupted_read_ends_and_its_range_is_filled_all_the_same(bench: Bench) -> None:
    bench.filler.held.clear()
    unique = bench.kernel.ask_read(bench.file.node, 0, BLOCK)
    await asyncio.wait_for(bench.filler.asked.wait(), WAIT)
    bench.kernel.ask(Opcode.INTERRUPT, 0, struct.pack("=Q", unique))
    assert await bench.answer() == (unique, EINTR, b"")
    bench.filler.held.set()
    assert await bench.read(0, BLOCK) == (0, bench.content[:BLOCK])


async def test_number_with_the_mark_of_a_request_that_was_sent_again(bench: Bench) -> None:
    unique = 1 << 63 | 14
    bench.kernel.ask_read(bench.file.node, 0, BLOCK, unique=unique)
    assert await bench.answer() == (unique, 0, bench.content[:BLOCK])


async def test_open_and_release(bench: Bench) -> None:
    opened = await bench.ask(Opcode.OPEN, bench.file.node, bytes(8))
    assert opened == (0, struct.pack("=QIi", 0, OpenFlag.DIRECT_IO, 0))
    assert await bench.ask(Opcode.RELEASE, bench.file.node, bytes(24)) == (0, b"")


async def test_stop_fails_what_waits_and_what_comes(bench: Bench) -> None:
    bench.store(0, BLOCK)
    bench.filler.held.clear()
    waits = bench.kernel.ask_read(bench.file.node, BLOCK, BLOCK)
    await asyncio.wait_for(bench.filler.asked.wait(), WAIT)
    bench.server.begin_stop()
    assert await bench.answer() == (waits, EIO, b"")
    assert await bench.read(0, BLOCK) == (EIO, b"")
    await bench.stop()
    assert bench.counters.reads_failed == 1


async def test_read_that_comes_while_stopping_begins(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = bench.filler.read_local

    def stop_first(*arguments: Any) -> int | None:
        bench.server.begin_stop()
        return local(*arguments)

    monkeypatch.setattr(bench.filler, "read_local", stop_first)
    assert await bench.read(0, BLOCK) == (EIO, b"")
    assert bench.filler.fills == []


async def test_connection_that_the_kernel_ends(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.kernel.end()
    assert not await asyncio.wait_for(bench.server.started, WAIT)
    await bench.stop()
    said = [record.message for record in caplog.records]
    assert said == ["the kernel has ended the connection of FUSE: all reads fail from now on"]
    await asyncio.wait_for(bench.lost.wait(), WAIT)


async def test_device_that_cannot_be_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_arguments: object) -> int:
        raise OSError(EIO, os.strerror(EIO))

    monkeypatch.setattr(Device, "read", fail)
    await bench.ask(Opcode.STATFS, 1)  # by a thread that was waiting
    assert not await asyncio.wait_for(bench.server.started, WAIT)
    assert "cannot take a request of the kernel: [Errno 5] Input/output error" in caplog.text


def failing(number: int) -> Callable[..., int]:
    def call(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


async def test_backing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: SimpleQueue[int] = SimpleQueue()
    async with serving(tmp_path, passthrough=True) as bench:
        monkeypatch.setattr(bench.device, "open_backing", lambda fd: fd + 1000)
        monkeypatch.setattr(bench.device, "close_backing", closed.put)
        bench.server.add(bench.file, backed=True)
        backing = bench.file.fd + 1000
        expected = (0, struct.pack("=QIi", 1, OpenFlag.PASSTHROUGH, backing))
        assert await bench.ask(Opcode.OPEN, bench.file.node, bytes(8)) == expected
        body = struct.pack("=QIIQ", 1, 0, 0, 0)
        assert await bench.ask(Opcode.RELEASE, bench.file.node, body) == (0, b"")
        assert await asyncio.to_thread(closed.get, timeout=WAIT) == backing
        monkeypatch.setattr(bench.device, "close_backing", failing(EIO))
        assert await bench.ask(Opcode.OPEN, bench.file.node, bytes(8)) == expected
        assert await bench.ask(Opcode.RELEASE, bench.file.node, body) == (0, b"")
    assert closed.empty()


async def test_backing_file_that_the_kernel_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path, passthrough=True) as bench:
        monkeypatch.setattr(bench.device, "open_backing", failing(ENOTTY))
        bench.server.add(bench.file, backed=True)
        opened = await bench.ask(Opcode.OPEN, bench.file.node, bytes(8))
    assert opened == (0, struct.pack("=QIi", 0, OpenFlag.DIRECT_IO, 0))
    assert "is not read by the kernel itself: [Errno 25]" in caplog.text


async def test_answer_for_nobody_is_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.store(0, SIZE)
    written: SimpleQueue[tuple[object, ...]] = SimpleQueue()

    def lose(*parts: object) -> bool:
        written.put(parts)
        return False

    monkeypatch.setattr(Device, "write", lose)
    bench.kernel.ask_read(bench.file.node, 0, BLOCK)
    await asyncio.to_thread(written.get, timeout=WAIT)
    await bench.stop()
    assert (bench.counters.reads, bench.counters.reads_lost) == (0, 1)


async def test_reader_in_order_finds_what_lies_ahead_filled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much again as was read."""
    monkeypatch.setattr(following, "AFTER", 4 * BLOCK)
    noted: SimpleQueue[None] = SimpleQueue()
    note = following.Following.note

    def tell(*arguments: Any) -> None:
        note(*arguments)
        noted.put(None)

    monkeypatch.setattr(following.Following, "note", tell)
    for offset in range(0, 4 * BLOCK, BLOCK):
        assert (await bench.read(offset, BLOCK))[0] == 0
        await asyncio.to_thread(noted.get, timeout=WAIT)  # an answer comes before
    for _ in range(1000):
        if not bench.file.absent(0, 8 * BLOCK):
            break
        await asyncio.sleep(0.01)
    assert bench.file.absent(0, 8 * BLOCK) == []


# What a process that died had taken.


def left(bench: Bench) -> list[int]:
    """Give the numbers of the READs that the next process would answer."""
    return [read.unique for read in Taken(os.dup(bench.taken.fd)).left()[1]]


async def test_read_that_waits_is_kept_until_it_is_answered(bench: Bench) -> None:
    bench.filler.held.clear()
    unique = bench.kernel.ask_read(bench.file.node, 0, BLOCK)
    await asyncio.wait_for(bench.filler.asked.wait(), WAIT)
    assert left(bench) == [unique]
    bench.filler.held.set()
    assert await bench.answer() == (unique, 0, bench.content[:BLOCK])
    await bench.stop()  # which waits for what is done after an answer
    assert bench.taken._places == {}


async def test_what_was_left_is_answered(tmp_path: Path) -> None:
    before = Taken()
    make_device(tmp_path, SIZE)
    node = (tmp_path / "data").stat().st_ino
    before.note(4, node, 0, BLOCK)  # is present
    before.note(6, node, BLOCK, BLOCK)  # is not
    before.note(8, 12345, 0, BLOCK)  # nobody knows it
    lookup = struct.pack("=IIQQIIIHH", 45, Opcode.LOOKUP, 2, 1, 0, 0, 0, 0, 0) + b"none\0"
    before.buffers[0][:45] = lookup
    bench = Bench(tmp_path, taken=os.dup(before.fd))
    bench.nodes[node] = bench.file
    bench.store(0, BLOCK)
    bench.server.start(again=True)
    try:
        assert await asyncio.to_thread(bench.kernel.answers, 4) == {
            2: (ENOENT, b""),
            4: (0, bench.content[:BLOCK]),
            6: (0, bench.content[BLOCK : 2 * BLOCK]),
            8: (EIO, b""),
        }
        assert await bench.read(0, BLOCK) == (0, bench.content[:BLOCK])
    finally:
        await bench.stop()
        bench.kernel.close()
    assert Taken(before.fd)._places == {}


async def test_left_request_that_cannot_be_handled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = Taken()
    before.note(4, 7, 0, BLOCK)
    bench = Bench(tmp_path, taken=os.dup(before.fd))

    def fail(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(Protocol, "receive_read", fail)
    bench.server.add(bench.file)
    bench.server.start(again=True)
    assert await bench.answer() == (4, EIO, b"")
    await bench.stop()
    bench.kernel.close()
    assert "a request of before could not be handled" in caplog.text
    assert Taken(before.fd)._places == {}


async def test_more_reads_than_can_be_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bench.taken, "note", lambda *_: False)
    assert await bench.read(0, BLOCK) == (EIO, b"")
    assert "more reads wait than can be kept" in caplog.text
