"""The loop with a scripted kernel: every request is answered, whatever happens."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import threading
from contextlib import asynccontextmanager
from errno import EINVAL, EMFILE
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import KernelError, RegistryError
from lazyimg.host.space import CacheLimits, CacheSpace
from lazyimg.transports.cachefiles import server as server_module
from lazyimg.transports.cachefiles.object_file import BUFFER_SIZE
from lazyimg.transports.cachefiles.server import LOCAL_LIMIT, Server
from tests.fakes.kernel import FakeKernel, KernelObject

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from lazyimg.fill.ports import Sink
    from lazyimg.transports.cachefiles.object_file import ObjectFile
    from lazyimg.transports.cachefiles.protocol import PendingRead

BLOCK = 4096
DEVICE = b"d" * 64
BOOTSTRAP = b"b" * 64


class Filler:
    """A device of 256 blocks whose fills wait for `gate`, and a bootstrap that is local."""

    def __init__(self) -> None:
        self.device = bytes(range(256)) * BLOCK
        self.bootstrap = b"bootstrap" * 1000
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.size_error: Exception | None = None
        self.filling = 0
        self.started = asyncio.Event()

    def size(self, cookie: str) -> int | None:
        if self.size_error:
            raise self.size_error
        sizes = {DEVICE.decode(): len(self.device), BOOTSTRAP.decode(): len(self.bootstrap)}
        return sizes.get(cookie)

    def read_local(self, cookie: str, offset: int, length: int, buffer: memoryview) -> int | None:
        if cookie != BOOTSTRAP.decode():
            return None
        assert len(buffer) >= length
        buffer[:] = b"!" * len(buffer)
        found = self.bootstrap[offset : offset + len(buffer)]
        buffer[: len(found)] = found
        return len(found)

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        content = self.device if cookie == DEVICE.decode() else self.bootstrap
        self.filling += 1
        self.started.set()
        try:
            await self.gate.wait()
            if self.error:
                raise self.error
            data = content[offset : offset + length]
            await sink.write(offset, memoryview(data + bytes(length - len(data))))
        finally:
            self.filling -= 1


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@asynccontextmanager
async def serving(kernel: FakeKernel, tmp_path: Path) -> AsyncIterator[tuple[Server, Filler]]:
    filler = Filler()
    space = CacheSpace(tmp_path, CacheLimits(bstop=0, fstop=0), tmp_path)
    server = Server(kernel, filler, space)
    server.start()
    try:
        yield server, filler
    finally:
        if not kernel.closed:
            await server.stop()


async def opened(kernel: FakeKernel, cookie: bytes = DEVICE) -> KernelObject:
    opened = kernel.open(cookie)
    assert await asyncio.to_thread(kernel.wait_reply, opened) >= 0
    return opened


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - done by a thread that tells nobody
            await asyncio.sleep(0.001)


async def completed(kernel: FakeKernel, msg_id: int) -> None:
    await asyncio.to_thread(kernel.wait_completed, msg_id)


async def test_open_and_read(kernel: FakeKernel, tmp_path: Path) -> None:
    async with serving(kernel, tmp_path) as (server, filler):
        device = await opened(kernel)
        assert kernel.replies[device.msg_id] == len(filler.device)
        await completed(kernel, kernel.read(device, 2 * BLOCK, 3 * BLOCK))
        assert device.read(2 * BLOCK, 3 * BLOCK) == filler.device[2 * BLOCK : 5 * BLOCK]
        assert server.counters.opens == 1
        assert server.counters.reads == 1


async def test_read_behind_the_end_gives_zeros(kernel: FakeKernel, tmp_path: Path) -> None:
    async with serving(kernel, tmp_path) as (_, filler):
        device, bootstrap = await opened(kernel), await opened(kernel, BOOTSTRAP)
        for file, size in ((device, len(filler.device)), (bootstrap, 3 * BLOCK)):
            await completed(kernel, kernel.read(file, size, BLOCK))
            assert file.read(size, BLOCK) == bytes(BLOCK)


async def test_local_bytes_are_written_in_one_go(kernel: FakeKernel, tmp_path: Path) -> None:
    async with serving(kernel, tmp_path) as (_, filler):
        bootstrap = await opened(kernel, BOOTSTRAP)
        await completed(kernel, kernel.read(bootstrap, 0, BLOCK))
        assert bootstrap.read(0, 1 << 20) == filler.bootstrap + bytes(3 * BLOCK - 9000)


async def test_local_bytes_while_the_event_loop_is_blocked(
    kernel: FakeKernel, tmp_path: Path
) -> None:
    async with serving(kernel, tmp_path):
        bootstrap = kernel.open(BOOTSTRAP)
        assert kernel.wait_reply(bootstrap) == 9000  # blocks the event loop, as does the next
        kernel.wait_completed(kernel.read(bootstrap, BLOCK, BLOCK))


async def test_local_bytes_for_an_object_that_is_not_ready(
    kernel: FakeKernel, tmp_path: Path
) -> None:
    async with serving(kernel, tmp_path) as (_, filler):
        bootstrap = await opened(kernel, BOOTSTRAP)
        bootstrap.not_ready = 3
        await completed(kernel, kernel.read(bootstrap, 0, BLOCK))
        assert bootstrap.read(0, 1 << 20) == filler.bootstrap[:BLOCK]


async def test_local_bytes_of_a_range_larger_than_the_buffer(
    kernel: FakeKernel, tmp_path: Path
) -> None:
    async with serving(kernel, tmp_path) as (_, filler):
        filler.bootstrap = os.urandom(5 * BUFFER_SIZE // 2)
        bootstrap = await opened(kernel, BOOTSTRAP)
        await completed(kernel, kernel.read(bootstrap, BLOCK, 3 * BUFFER_SIZE))
        expected = filler.bootstrap[BLOCK:].ljust(3 * BUFFER_SIZE, b"\0")
        assert bootstrap.read(BLOCK, 4 * BUFFER_SIZE) == expected
        assert not filler.started.is_set()


async def test_local_bytes_of_a_range_that_takes_long(kernel: FakeKernel, tmp_path: Path) -> None:
    async with serving(kernel, tmp_path) as (_, filler):
        filler.bootstrap = os.urandom(2 * BLOCK)
        bootstrap = await opened(kernel, BOOTSTRAP)
        await completed(kernel, kernel.read(bootstrap, 0, LOCAL_LIMIT + BLOCK))
        expected = filler.bootstrap.ljust(LOCAL_LIMIT + BLOCK, b"\0")
        assert bootstrap.read(0, 2 * LOCAL_LIMIT) == expected
        assert filler.started.is_set()


async def test_unknown_cookies_are_refused(kernel: FakeKernel, tmp_path: Path) -> None:
    async with serving(kernel, tmp_path) as (server, _):
        for cookie in (b"unknown", b"\xff\xfe"):
            unknown = kernel.open(cookie)
            assert await asyncio.to_thread(kernel.wait_reply, unknown) == -2
            assert unknown.closed
        assert server.counters.opens_refused == 2


async def test_filler_that_breaks_its_duty_at_open(
    kernel: FakeKernel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(kernel, tmp_path) as (_, filler):
        filler.size_error = RuntimeError("broken")
        unlucky = kernel.open(DEVICE)
        assert await asyncio.to_thread(kernel.wait_reply, unlucky) == -2
        filler.size_error = None
        await opened(kernel)
    assert unlucky.closed
    assert "the size of b'dddd" in caplog.text


@pytest.mark.parametrize("error", [RegistryError("registry", "is away"), RuntimeError("broken")])
async def test_failed_fill_is_completed_without_data(
    kernel: FakeKernel, tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(kernel, tmp_path) as (server, filler):
        device = await opened(kernel)
        filler.error = error
        await completed(kernel, kernel.read(device, 0, BLOCK))
        assert device.read(0, BLOCK) == b""
        assert server.counters.reads_failed == 1
        filler.error = None
        await completed(kernel, kernel.read(device, 0, BLOCK))
        assert device.read(0, BLOCK) == filler.device[:BLOCK]
    assert str(error) in caplog.text


async def test_local_bytes_that_cannot_be_given(kernel: FakeKernel, tmp_path: Path) -> None:
    async with serving(kernel, tmp_path) as (server, filler):
        bootstrap = await opened(kernel, BOOTSTRAP)
        del filler.bootstrap
        await completed(kernel, kernel.read(bootstrap, 0, BLOCK))
        assert server.counters.reads_failed == 1


async def test_reads_are_filled_together_and_completed_in_any_order(
    kernel: FakeKernel, tmp_path: Path
) -> None:
    async with serving(kernel, tmp_path) as (_, filler):
        device = await opened(kernel)
        filler.gate.clear()
        reads = [kernel.read(device, n * BLOCK, BLOCK) for n in range(20)]
        while filler.filling < 20:
            filler.started.clear()
            await filler.started.wait()
        bootstrap = await opened(kernel, BOOTSTRAP)
        await completed(kernel, kernel.read(bootstrap, 0, BLOCK))
        assert kernel.pending == set(reads)
        filler.gate.set()
        for msg_id in reads:
            await completed(kernel, msg_id)
        assert device.read(0, 20 * BLOCK) == filler.device[: 20 * BLOCK]


async def test_reads_that_come_together_wake_the_event_loop_once(
    kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(kernel, tmp_path) as (server, filler):
        device, bootstrap = await opened(kernel), await opened(kernel, BOOTSTRAP)
        calls: list[int] = []
        real = server._start_filling

        def start(reads: list[tuple[PendingRead, ObjectFile]]) -> None:
            calls.append(len(reads))
            real(reads)

        monkeypatch.setattr(server, "_start_filling", start)
        with kernel.held():
            reads = [kernel.read(device, n * BLOCK, BLOCK) for n in range(3)]
            reads.append(kernel.read(bootstrap, 0, BLOCK))
            reads += [kernel.read(device, n * BLOCK, BLOCK) for n in range(3, 5)]
        for msg_id in reads:
            await completed(kernel, msg_id)
        assert calls == [3, 2]
        assert device.read(0, 5 * BLOCK) == filler.device[: 5 * BLOCK]


def test_reads_after_the_event_loop_has_ended(kernel: FakeKernel, tmp_path: Path) -> None:
    async def start() -> tuple[Server, KernelObject]:
        server = Server(
            kernel, Filler(), CacheSpace(tmp_path, CacheLimits(bstop=0, fstop=0), tmp_path)
        )
        server.start()
        return server, await opened(kernel)

    server, device = asyncio.run(start())
    kernel.wait_completed(kernel.read(device, 0, BLOCK))
    assert device.read(0, BLOCK) == b""
    asyncio.run(server.stop())
    assert server.counters.reads_failed == 1


async def test_killed_reader(kernel: FakeKernel, tmp_path: Path) -> None:
    async with serving(kernel, tmp_path) as (server, filler):
        device = await opened(kernel)
        filler.gate.clear()
        msg_id = kernel.read(device, 0, BLOCK)
        await filler.started.wait()
        kernel.kill_reader(msg_id)
        filler.gate.set()
        await completed(kernel, kernel.read(device, BLOCK, BLOCK))
        await eventually(lambda: server.counters.reads_lost == 1)  # each write has its own thread
        assert device.read(0, BLOCK) == filler.device[:BLOCK]


async def test_msg_id_used_again_is_completed_for_the_newer_read_only(
    kernel: FakeKernel, tmp_path: Path
) -> None:
    async with serving(kernel, tmp_path) as (_, filler):
        device = await opened(kernel)
        filler.gate.clear()
        killed = kernel.read(device, 0, BLOCK)
        await filler.started.wait()
        kernel.kill_reader(killed)
        filler.started.clear()
        kernel.read(device, BLOCK, BLOCK, msg_id=killed)
        await filler.started.wait()
        filler.gate.set()
        await completed(kernel, killed)
        assert kernel.completed == [killed]
        assert device.read(BLOCK, BLOCK) == filler.device[BLOCK : 2 * BLOCK]


async def test_close_during_a_fill_keeps_bytes_out_of_the_next_object(
    kernel: FakeKernel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(kernel, tmp_path) as (server, filler):
        device = await opened(kernel)
        filler.gate.clear()
        msg_id = kernel.read(device, 0, BLOCK)
        await filler.started.wait()
        kernel.kill_reader(msg_id)
        kernel.close_object(device)
        other = await opened(kernel, BOOTSTRAP)  # gets the same number
        assert device.closed
        filler.gate.set()
        await completed(kernel, kernel.read(other, 0, BLOCK))
        await eventually(lambda: not filler.filling)
        assert other.read(0, 9000) == filler.bootstrap
        assert server.find("erofs,domain", DEVICE.decode()) is None
    assert "the kernel has closed this object meanwhile" in caplog.text


async def test_read_of_an_object_that_is_not_open(
    kernel: FakeKernel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(kernel, tmp_path):
        device = await opened(kernel)
        kernel.close_object(device)
        kernel.read(device, 0, BLOCK)
        await opened(kernel)
    assert "READ of object 1, which is not open" in caplog.text


@pytest.mark.parametrize("raw", [b"x", b"\x09" * 16, b"\xff" * 40])
async def test_message_that_is_not_understood(
    kernel: FakeKernel, tmp_path: Path, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(kernel, tmp_path):
        kernel.send(raw)
        await opened(kernel)
    assert "a request of the kernel is not understood: cachefiles_msg" in caplog.text


@pytest.mark.parametrize("refused", [0, EINVAL])
async def test_open_that_is_not_understood_is_refused_all_the_same(
    kernel: FakeKernel, tmp_path: Path, caplog: pytest.LogCaptureFixture, refused: int
) -> None:
    async with serving(kernel, tmp_path):
        kernel.refuse_commands = refused
        strange = kernel.open(DEVICE, with_nul=False)
        if not refused:
            assert await asyncio.to_thread(kernel.wait_reply, strange) == -5
        await eventually(lambda: "does not end in NUL" in caplog.text)
        kernel.refuse_commands = 0
        await opened(kernel)


async def test_open_that_cannot_be_handled_is_refused(
    kernel: FakeKernel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_fd: int) -> None:
        raise OSError(EMFILE, "odd")

    async with serving(kernel, tmp_path):
        with monkeypatch.context() as patch:
            patch.setattr(kernel, "adopt", fail)
            unlucky = kernel.open(DEVICE)
            assert await asyncio.to_thread(kernel.wait_reply, unlucky) == -5
        await opened(kernel)
    assert "a request of the kernel could not be handled" in caplog.text


async def test_no_more_fds(
    kernel: FakeKernel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(kernel, tmp_path):
        kernel.read_errors.append(EMFILE)
        lost = kernel.open(DEVICE)
        await opened(kernel)
        assert lost.msg_id not in kernel.replies
    assert "cannot take a request of the kernel: [Errno 24]" in caplog.text


async def test_open_that_vanished(
    kernel: FakeKernel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(kernel, tmp_path) as (server, _):
        kernel.refuse_commands = EINVAL
        gone = kernel.open(DEVICE)
        await eventually(lambda: "the kernel takes no answer to an OPEN" in caplog.text)
        kernel.refuse_commands = 0
        await opened(kernel, BOOTSTRAP)
        assert gone.closed
        assert server.find("erofs,domain", DEVICE.decode()) is None


async def test_stop_fails_what_is_pending_and_gives_all_back(
    kernel: FakeKernel, tmp_path: Path
) -> None:
    async with serving(kernel, tmp_path) as (server, filler):
        device, bootstrap = await opened(kernel), await opened(kernel, BOOTSTRAP)
        filler.gate.clear()
        msg_id = kernel.read(device, 0, BLOCK)
        await filler.started.wait()
        await server.stop()
        assert kernel.completed == [msg_id]
        assert device.read(0, BLOCK) == b""
        assert filler.filling == 0
        assert (device.closed, bootstrap.closed, kernel.closed) == (True, True, True)
        assert server.counters.reads_failed == 1
        assert not [thread for thread in threading.enumerate() if "cachefiles" in thread.name]


async def test_requests_that_come_while_stopping_are_failed(
    kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(kernel, tmp_path) as (server, _):
        device = await opened(kernel)
        late: list[KernelObject] = []
        reads: list[int] = []
        end = server._end

        def end_after_late_requests() -> None:
            late.append(kernel.open(DEVICE))
            reads.append(kernel.read(device, 0, BLOCK))
            end()

        monkeypatch.setattr(server, "_end", end_after_late_requests)
        await server.stop()
        assert kernel.replies[late[0].msg_id] == -5
        assert kernel.completed == reads
        assert kernel.pending == set()


async def test_stop_waits_for_the_write_in_hand(kernel: FakeKernel, tmp_path: Path) -> None:
    async with serving(kernel, tmp_path) as (server, filler):
        device = await opened(kernel)
        device.not_ready = 20  # the write takes a while
        kernel.read(device, 0, BLOCK)
        await filler.started.wait()
        await asyncio.sleep(0)
        await server.stop()
        assert device.not_ready == 0
        assert device.read(0, BLOCK) in {b"", filler.device[:BLOCK]}


async def test_sink_of_an_object_that_was_closed(kernel: FakeKernel, tmp_path: Path) -> None:
    async with serving(kernel, tmp_path) as (server, filler):
        device = await opened(kernel)
        found = server.find("erofs,domain", DEVICE.decode())
        assert found is not None
        sink = server.sink(*found)
        await sink.write(0, memoryview(filler.device))
        assert device.read(0, 1 << 20) == filler.device
        kernel.close_object(device)
        await opened(kernel, BOOTSTRAP)
        with pytest.raises(KernelError, match="the kernel has closed this object meanwhile"):
            await sink.write(0, memoryview(filler.device))


async def test_culling(
    kernel: FakeKernel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(server_module, "CULL_PAUSE", 0.01)
    monkeypatch.setattr(CacheSpace, "below_run", lambda _self: len(kernel.commands) < 2)
    directory = tmp_path / "cache" / "Ierofs,domain" / "@00"
    directory.mkdir(parents=True)
    for name in ("Dold", "Dnew", "Dthird"):
        (directory / name).touch()
    caplog.set_level(logging.INFO)
    async with serving(kernel, tmp_path) as (server, _):
        kernel.want_culling()
        await eventually(lambda: server.counters.culled == 2)
        await opened(kernel)  # it answers all the while
    assert len(kernel.commands) == 2
    assert all(command.startswith(b"cull D") for command in kernel.commands)
    assert "culled 2 files" in caplog.text


async def test_culling_goes_on_after_a_round_that_took_longer_than_the_pause(
    kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[str] = []
    wake = kernel.wake

    def cull(_space: CacheSpace, _command: Callable[[bytes], None]) -> None:
        rounds.append(threading.current_thread().name)
        threading.Event().wait(0.02)

    def wake_before_the_end() -> None:
        wake()
        if "cull" in threading.current_thread().name:
            threading.Event().wait(0.05)  # still alive when the loop looks

    monkeypatch.setattr(server_module, "CULL_PAUSE", 0.01)
    monkeypatch.setattr(server_module, "run_culling", cull)
    monkeypatch.setattr(kernel, "wake", wake_before_the_end)
    async with serving(kernel, tmp_path):
        kernel.want_culling()
        await eventually(lambda: len(rounds) > 1)


async def test_culling_that_gets_no_thread(
    kernel: FakeKernel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(server_module, "CULL_PAUSE", 0.01)
    async with serving(kernel, tmp_path):
        monkeypatch.setattr(server_module, "Thread", NoThread)
        kernel.want_culling()
        await eventually(lambda: caplog.text.count("cannot cull the cache: can't start") > 1)
        await opened(kernel)


async def test_failures_of_one_kind_get_one_line(
    kernel: FakeKernel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(kernel, tmp_path) as (server, filler):
        device = await opened(kernel)
        for error in (RegistryError("registry", "is away"), KernelError("object", "is closed")):
            filler.error = error
            for number in range(20):
                await completed(kernel, kernel.read(device, number * BLOCK, BLOCK))
        assert server.counters.reads_failed == 40
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "read of 4096 bytes at 0 failed: registry: is away",
        "read of 4096 bytes at 0 failed: object: is closed",
    ]


async def test_read_that_reaches_the_event_loop_after_the_stop(
    kernel: FakeKernel, tmp_path: Path
) -> None:
    async with serving(kernel, tmp_path) as (server, filler):
        device = await opened(kernel)
        msg_id = kernel.read(device, 0, BLOCK)
        while not server._protocol._pending:  # the event loop, which is not let in, has it next
            pass
        await server.stop()
        assert kernel.completed == [msg_id]
        assert server.counters.reads_failed == 1
        assert not filler.started.is_set()


async def test_completion_that_fails_is_said_and_survived(
    kernel: FakeKernel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(_fd: int, _msg_id: int) -> bool:
        raise OSError(EINVAL, "odd")

    async with serving(kernel, tmp_path) as (server, _):
        device = await opened(kernel)
        monkeypatch.setattr(kernel, "complete", refuse)
        kernel.read(device, 0, BLOCK)
        await eventually(lambda: server.counters.reads_lost == 1)
        await server.stop()
        assert kernel.closed
    assert "READ 1 cannot be completed: [Errno 22] odd" in caplog.text


async def test_disk_that_fails_while_local_bytes_are_written(
    kernel: FakeKernel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(kernel, tmp_path) as (server, _):
        bootstrap = await opened(kernel, BOOTSTRAP)
        os.ftruncate(bootstrap.content, 0)
        fcntl.fcntl(bootstrap.content, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        await completed(kernel, kernel.read(bootstrap, 0, BLOCK))
        assert server.counters.reads_failed == 1
        said = f"{BOOTSTRAP.decode()}: cannot write to the cache: Operation not permitted"
        assert server.counters.failure == said
    assert said in caplog.text
