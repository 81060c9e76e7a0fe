"""Blobs that are sent whole: who waits for what, and when the file goes."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import RegistryError, StorageError
from lazyimg.registry import spool as module
from lazyimg.registry.spool import REMEMBER, RETRY, Incoming, Spool, Spooled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DATA = bytes(range(256)) * 16
STEP = 1024


class Answer:
    """An answer whose body comes piece by piece, as `more` lets it."""

    def __init__(self, data: bytes = DATA, size: int = len(DATA)) -> None:
        self.data = data
        self.size = size
        self.more = asyncio.Semaphore(0)
        self.failure: Exception | None = None
        self.counted = 0
        self.closed = False
        self.stack = AsyncExitStack()
        self.stack.callback(self.close)

    def close(self) -> None:
        self.closed = True

    def count(self, size: int) -> None:
        self.counted += size

    async def body(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.data), STEP):
            await self.more.acquire()
            if self.failure is not None:
                raise self.failure
            yield self.data[start : start + STEP]

    def let(self, pieces: int = 1000) -> None:
        for _ in range(pieces):
            self.more.release()

    def incoming(self) -> Incoming:
        return Incoming("the blob", self.size, self.stack, self.body(), self.count)


class Setup:
    def __init__(self, directory: Path) -> None:
        self.now = 100.0
        self.directory = directory / "spool"
        self.spool = Spool(self.directory, 2 * len(DATA), lambda: self.now)

    async def start(self, answer: Answer, key: str = "blob") -> Spooled:
        blob = await self.spool.start("host", key, answer.incoming())
        assert blob is not None
        return blob

    async def until_it_is_gone(self) -> None:
        while self.spool.find("blob") is not None:  # noqa: ASYNC110 - nobody else is told
            await asyncio.sleep(0.001)
        await self.settle()

    async def settle(self) -> None:
        while self.spool._closing:
            await asyncio.wait(self.spool._closing)


@pytest.fixture
async def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setup]:
    monkeypatch.setattr(module, "PIECE", STEP)
    made = Setup(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield made
    await made.spool.close()
    assert made.spool._used == 0
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert len(asyncio.all_tasks()) <= 2  # the test and its fixture


async def test_reads_get_their_bytes_as_soon_as_they_have_come(setup: Setup) -> None:
    answer = Answer()
    blob = await setup.start(answer)
    assert setup.spool.find("blob") is blob
    late, early = (asyncio.create_task(blob.read(at, 1000)) for at in (3000, 10))
    answer.let(1)
    assert await early == DATA[10:1010]
    assert not late.done()
    assert blob.received == STEP
    answer.let()
    assert await late == DATA[3000:4000]
    assert await blob.read(0, len(DATA)) == DATA
    assert answer.counted == len(DATA)
    assert answer.closed
    assert not list(setup.directory.iterdir())


async def test_unused_blob_goes(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE", 0.01)
    answer = Answer()
    blob = await setup.start(answer)
    answer.let()
    await blob.read(0, 10)
    await setup.until_it_is_gone()
    assert setup.spool._used == 0


async def test_blob_that_nobody_waits_for_any_more_is_received_no_further(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE", 0.01)
    answer = Answer()
    blob = await setup.start(answer)
    reader = asyncio.create_task(blob.read(0, 10))
    await asyncio.sleep(0)
    reader.cancel()
    await setup.until_it_is_gone()
    assert answer.closed


async def test_thread_that_is_late_writes_to_no_other_file(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun, go, pwrite = threading.Event(), threading.Event(), os.pwrite

    def write_late(fd: int, data: bytes, offset: int) -> int:
        begun.set()
        assert go.wait(20)
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", write_late)
    answer = Answer()
    await setup.start(answer)
    answer.let()
    await asyncio.to_thread(begun.wait, 20)
    setup.spool.drop("blob")
    while not answer.closed:  # noqa: ASYNC110 - nobody else is told
        await asyncio.sleep(0)
    await asyncio.wait(setup.spool._closing, timeout=0.01)  # the file, if it does not wait
    others = [os.open(tmp_path / f"other{n}", os.O_RDWR | os.O_CREAT) for n in range(8)]
    go.set()
    await setup.settle()
    assert [os.fstat(other).st_size for other in others] == [0] * 8
    for other in others:
        os.close(other)


@pytest.mark.parametrize(
    ("failure", "kind", "text"),
    [
        (RegistryError("host", "breaks off", retryable=True), RegistryError, "breaks off"),
        (OSError(28, "No space left on device"), StorageError, "cannot be spooled: No space left"),
    ],
)
async def test_failure_goes_to_all_who_wait(
    setup: Setup, failure: Exception, kind: type[Exception], text: str
) -> None:
    answer = Answer()
    blob = await setup.start(answer)
    readers = [asyncio.create_task(blob.read(at, 1000)) for at in (2000, 3000)]
    answer.let(1)
    assert await blob.read(0, 10) == DATA[:10]
    answer.failure = failure
    answer.let()
    for reader in readers:
        with pytest.raises(kind, match=text):
            await reader
    assert setup.spool.find("blob") is None
    await setup.settle()
    assert answer.closed


async def test_answer_that_is_too_short(setup: Setup) -> None:
    answer = Answer(DATA[:-1])
    blob = await setup.start(answer)
    answer.let()
    with pytest.raises(RegistryError) as caught:
        await blob.read(4000, 96)
    assert caught.value.retryable
    await setup.settle()
    with pytest.raises(RegistryError, match="the blob: is not received further"):
        await blob.read(0, 1)


async def test_answer_that_is_too_long(setup: Setup) -> None:
    answer = Answer(DATA + b"x")
    blob = await setup.start(answer)
    answer.let()
    await blob.read(0, 10)
    await setup.until_it_is_gone()


async def test_wrong_bytes_are_dropped(setup: Setup) -> None:
    answer = Answer()
    blob = await setup.start(answer)
    reader = asyncio.create_task(blob.read(0, 10))
    await asyncio.sleep(0)
    setup.spool.drop("blob")
    setup.spool.drop("blob")
    assert setup.spool.find("blob") is None
    with pytest.raises(RegistryError, match="the blob: is not received further"):
        await reader


async def test_second_answer_is_not_needed(setup: Setup) -> None:
    first, second = Answer(), Answer()
    blob = await setup.start(first)
    assert await setup.start(second) is blob
    assert second.closed
    assert setup.spool._used == len(DATA)


async def test_two_answers_at_once(setup: Setup) -> None:
    answers = [Answer(), Answer()]
    one, other = await asyncio.gather(*(setup.start(answer) for answer in answers))
    assert one is other
    assert sorted(answer.closed for answer in answers) == [False, True]


async def test_no_room(setup: Setup) -> None:
    for key in ("a", "b"):
        await setup.start(Answer(), key)
    answer = Answer()
    assert await setup.spool.start("host", "c", answer.incoming()) is None
    assert not answer.closed
    assert await Spool(None, 1 << 30).start("host", "c", answer.incoming()) is None


async def test_directory_that_cannot_be_made(setup: Setup) -> None:
    setup.directory.write_text("a file")
    answer = Answer()
    blob = await setup.start(answer)
    answer.let()
    with pytest.raises(StorageError, match="cannot be spooled: File exists"):
        await blob.read(0, 10)
    assert answer.closed


async def test_first_request_to_a_host_that_sends_whole_blobs_is_a_probe(setup: Setup) -> None:
    spool = setup.spool
    with spool.probe("host", "blob"):
        assert not spool.is_probed("blob")  # nothing is known of this host
    await setup.start(Answer(), "another")
    with spool.probe("elsewhere", "blob"):
        assert not spool.is_probed("blob")
    with spool.probe("host", "blob"):
        assert spool.is_probed("blob")
        assert not spool.is_probed("other")
        with spool.probe("host", "other"), spool.probe("host", "blob"):
            assert spool.is_probed("other")
        assert spool.is_probed("blob")
        waiting = asyncio.create_task(spool.wait_for_probe("blob"))
        cancelled = asyncio.create_task(spool.wait_for_probe("blob"))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert not waiting.done()
    await waiting
    assert not spool._probes


async def test_probe_that_gets_no_status_is_waited_for_a_while_only(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    await setup.start(Answer(), "another")
    with setup.spool.probe("host", "blob"):
        await setup.spool.wait_for_probe("blob")
        assert setup.spool.is_probed("blob")


async def test_no_probe_once_the_host_is_forgotten(setup: Setup) -> None:
    await setup.start(Answer(), "another")
    setup.now += REMEMBER + 1
    with setup.spool.probe("host", "blob"):
        assert not setup.spool.is_probed("blob")


async def test_no_probe_of_what_comes_in_parts(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = setup.spool
    spool.note_part("host", "blob")
    assert not spool._free  # of a host that always does, nothing is remembered
    await setup.start(Answer(), "another")
    spool.note_part("host", "blob")
    with spool.probe("host", "blob"):
        assert not spool.is_probed("blob")
    await setup.start(Answer(), "blob")  # it is sent whole again
    spool.drop("blob")
    with spool.probe("host", "blob"):
        assert spool.is_probed("blob")
    monkeypatch.setattr(module, "MAX_KNOWN", 2)
    for number in range(5):
        spool.note_part("host", number)
    assert list(spool._free) == [3, 4]


async def test_no_probe_of_what_there_is_no_room_for(setup: Setup) -> None:
    for key in ("a", "b"):
        await setup.start(Answer(), key)
    assert await setup.spool.start("host", "c", Answer().incoming()) is None
    with setup.spool.probe("host", "c"):
        assert not setup.spool.is_probed("c")
    nothing = Spool(None, 1 << 30)
    await nothing.start("host", "a", Answer().incoming())
    with nothing.probe("host", "b"):
        assert not nothing.is_probed("b")


async def test_blob_on_its_way_is_asked_for_in_part_now_and_then(setup: Setup) -> None:
    await setup.start(Answer())
    assert not setup.spool.is_due("blob")
    setup.now += RETRY
    assert setup.spool.is_due("blob")
    assert not setup.spool.is_due("blob")
