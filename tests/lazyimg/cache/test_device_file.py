"""A device's file: what is marked, when it is, and what is believed afterwards."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from errno import EIO, ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lazyimg.cache import device_file
from lazyimg.cache.device_file import DATA, PRESENT, WRITTEN, DeviceFile, make_device
from lazyimg.cache.record import Record
from lazyimg.errors import StorageError
from lazyimg.host.space import REMEDY
from tests.fakes.keeper import NotingKeeper

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 4096
SIZE = 20 * BLOCK
BOOT = "boot-1"
REFERENCE = random.Random(1).randbytes(SIZE)  # noqa: S311 - any bytes


def piece(first: int, last: int) -> memoryview:
    return memoryview(REFERENCE)[first * BLOCK : last * BLOCK]


@pytest.fixture
def keeper() -> NotingKeeper:
    return NotingKeeper()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "device"
    directory.mkdir()
    make_device(directory, SIZE)
    return directory


@pytest.fixture
def file(directory: Path, keeper: NotingKeeper) -> DeviceFile:
    return DeviceFile(directory, SIZE, BOOT, keeper)


def blocks(ranges: list[range]) -> list[range]:
    assert all(run.start % BLOCK == run.stop % BLOCK == 0 for run in ranges)
    return [range(run.start // BLOCK, run.stop // BLOCK) for run in ranges]


def present_after(directory: Path, boot: str) -> list[range]:
    return blocks(DeviceFile(directory, SIZE, boot, NotingKeeper()).present())


def fail(number: int) -> Callable[..., None]:
    def call(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def test_new_device_has_nothing(file: DeviceFile, directory: Path) -> None:
    assert (file.name, file.size, file.path) == ("device", SIZE, directory / "data")
    assert file.node == file.path.stat().st_ino
    assert file.path.stat().st_size == SIZE
    assert file.present() == []
    assert file.absent(0, SIZE) == [range(SIZE)]
    assert not file.complete


def test_what_is_absent_is_said_in_whole_blocks(file: DeviceFile) -> None:
    file.write_now(2 * BLOCK, [piece(2, 5)])
    assert blocks(file.present()) == [range(2, 5)]
    assert file.absent(2 * BLOCK + 1, 3 * BLOCK - 1) == []
    assert blocks(file.absent(BLOCK + 100, 10)) == [range(1, 2)]
    assert blocks(file.absent(BLOCK, 5 * BLOCK)) == [range(1, 2), range(5, 6)]
    assert blocks(file.absent(18 * BLOCK, 10 * BLOCK)) == [range(18, 20)]
    assert file.absent(SIZE, BLOCK) == file.absent(0, 0) == []


async def test_written_bytes_are_read(file: DeviceFile) -> None:
    await file.write(0, piece(0, 3))
    file.write_now(5 * BLOCK, [piece(5, 6), memoryview(b""), piece(6, 6), piece(6, 9)])
    buffer = bytearray(4 * BLOCK)
    assert file.read_into(5 * BLOCK, memoryview(buffer)) == 4 * BLOCK
    assert buffer == piece(5, 9)
    assert file.read_into(SIZE - 5, memoryview(buffer)) == 5
    assert blocks(file.present()) == [range(3), range(5, 9)]


def test_many_parts_and_short_writes(file: DeviceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    pwritev = os.pwritev
    monkeypatch.setattr(device_file, "_MOST_PARTS", 3)
    monkeypatch.setattr(
        os,
        "pwritev",
        lambda fd, parts, offset: pwritev(fd, [b"".join(parts)[:2577]], offset),
    )
    view = piece(0, 20)
    file.write_now(0, [view[start : start + 1000] for start in range(0, SIZE, 1000)])
    assert file.path.read_bytes() == REFERENCE
    assert file.absent(0, SIZE) == []


def test_what_lies_past_the_end_is_ignored(file: DeviceFile) -> None:
    file.write_now(18 * BLOCK, [piece(18, 19), piece(19, 20), piece(0, 3)])
    file.write_now(20 * BLOCK, [piece(0, 1)])
    file.write_now(25 * BLOCK, [piece(0, 1)])
    assert file.path.read_bytes() == bytes(18 * BLOCK) + piece(18, 20)
    assert blocks(file.present()) == [range(18, 20)]


@pytest.mark.parametrize(("offset", "length"), [(1, BLOCK), (0, BLOCK - 1), (BLOCK, 1)])
def test_parts_of_blocks_are_refused(file: DeviceFile, offset: int, length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} bytes at {offset} are not whole blocks"):
        file.write_now(offset, [memoryview(REFERENCE)[:length]])
    assert file.present() == []


def test_what_is_written_is_known_to_the_next_process(file: DeviceFile, directory: Path) -> None:
    file.write_now(3 * BLOCK, [piece(3, 9)])
    assert present_after(directory, BOOT) == [range(3, 9)]
    file.write_now(9 * BLOCK, [piece(9, 10)])
    assert present_after(directory, BOOT) == [range(3, 10)]


def test_after_a_restart_only_what_was_synced_is_believed(
    file: DeviceFile, directory: Path
) -> None:
    file.write_now(3 * BLOCK, [piece(3, 9)])
    assert present_after(directory, "boot-2") == []
    file.sync()
    file.write_now(12 * BLOCK, [piece(12, 13)])
    assert present_after(directory, "boot-2") == [range(3, 9)]
    assert present_after(directory, BOOT) == [range(3, 9), range(12, 13)]


def test_successor_syncs_what_its_predecessor_wrote(
    file: DeviceFile, directory: Path, keeper: NotingKeeper
) -> None:
    file.write_now(0, [piece(0, 7)])
    successor = DeviceFile(directory, SIZE, BOOT, keeper)
    assert keeper.noted == [("device", False)] * 2
    successor.sync()
    assert present_after(directory, "boot-2") == [range(7)]


def test_data_is_synced_before_the_record_says_so(
    file: DeviceFile, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_now(0, [piece(0, 1)])
    seen = []
    fdatasync = os.fdatasync

    def sync(fd: int) -> None:
        seen.append((fd == file.fd, present_after(directory, "boot-2")))
        file.write_now(5 * BLOCK, [piece(5, 6)])  # too late for this sync
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", sync)
    file.sync()
    assert seen == [(True, []), (False, [range(1)])]
    monkeypatch.undo()
    assert present_after(directory, "boot-2") == [range(1)]
    file.sync()
    assert present_after(directory, "boot-2") == [range(1), range(5, 6)]


def test_sync_is_asked_for_once(file: DeviceFile, keeper: NotingKeeper) -> None:
    file.write_now(0, [piece(0, 1)])
    file.write_now(BLOCK, [piece(1, 2)])
    assert keeper.noted == [("device", False)]
    file.sync()
    file.sync()
    file.write_now(2 * BLOCK, [piece(2, 3)])
    assert keeper.noted == [("device", False)] * 2


def test_device_is_complete_once_all_is_synced(
    file: DeviceFile, directory: Path, keeper: NotingKeeper
) -> None:
    calls: list[str] = []
    file.on_complete(lambda: calls.append("early"))
    file.write_now(0, [piece(0, 19)])
    file.sync()
    file.write_now(19 * BLOCK, [piece(19, 20)])
    assert keeper.noted[-1] == ("device", True)
    assert file.absent(0, SIZE) == []
    assert (file.complete, calls) == (False, [])
    file.sync()
    assert (file.complete, calls) == (True, ["early"])
    assert file.absent(0, SIZE) == file.absent(SIZE, BLOCK) == []
    file.on_complete(lambda: calls.append("late"))
    assert calls == ["early", "late"]
    assert sorted(path.name for path in directory.iterdir()) == ["data", "present"]
    assert DeviceFile(directory, SIZE, "boot-2", keeper).complete
    file.write_now(0, [piece(0, 1)])  # again, with the same bytes
    file.sync()
    assert calls == ["early", "late"]
    assert file.complete
    assert file.path.read_bytes() == REFERENCE


def test_what_a_failing_sync_was_about_is_absent_again(
    file: DeviceFile, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_now(0, [piece(0, 2)])
    file.sync()
    file.write_now(2 * BLOCK, [piece(2, 20)])

    def lose(_fd: int) -> None:
        raise OSError(EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", lose)
    with pytest.raises(StorageError) as raised:
        file.sync()
    assert str(raised.value) == f"device: cannot sync the cache: Input/output error; {REMEDY}"
    monkeypatch.undo()
    assert blocks(file.present()) == [range(2)]
    assert not file.complete
    for boot in (BOOT, "boot-2"):
        assert present_after(directory, boot) == [range(2)]
    file.write_now(2 * BLOCK, [piece(2, 20)])
    file.sync()
    assert file.complete


def test_what_others_write_during_a_failing_sync_is_not_believed(
    file: DeviceFile, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_now(0, [piece(0, 2)])
    pwritev = os.pwritev

    def lose(_fd: int) -> None:
        file.write_now(9 * BLOCK, [piece(9, 11)])
        raise OSError(EIO, "Input/output error")

    def write(fd: int, parts: list[memoryview], offset: int) -> int:
        monkeypatch.setattr(os, "pwritev", pwritev)
        done = pwritev(fd, parts, offset)
        monkeypatch.setattr(os, "fdatasync", lose)
        with pytest.raises(StorageError):
            file.sync()
        return done

    monkeypatch.setattr(os, "pwritev", write)
    with pytest.raises(StorageError) as raised:
        file.write_now(4 * BLOCK, [piece(4, 5)])
    assert str(raised.value) == "device: the disk lost what was written"
    assert file.present() == []
    assert present_after(directory, BOOT) == []


def test_record_that_cannot_be_written_durably_is_tried_again(
    file: DeviceFile,
    directory: Path,
    keeper: NotingKeeper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file.write_now(0, [piece(0, 20)])
    monkeypatch.setattr(Record, "sync", fail(ENOSPC))
    with pytest.raises(StorageError) as raised:
        file.sync()
    assert str(raised.value) == ("device: cannot sync the cache's record: No space left on device")
    assert file.absent(0, SIZE) == []
    assert not file.complete
    assert keeper.noted[-1] == ("device", False)
    monkeypatch.undo()
    file.sync()
    assert file.complete


def test_record_of_this_boot_that_cannot_be_written_costs_a_fetch(
    file: DeviceFile,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file.write_now(0, [piece(0, 1)])
    monkeypatch.setattr(file._written, "write", fail(ENOSPC))
    file.write_now(BLOCK, [piece(1, 2)])
    assert file.absent(0, 2 * BLOCK) == []
    assert present_after(directory, BOOT) == [range(1)]
    assert caplog.messages == ["device: the record cannot be written: No space left on device"]


def test_record_of_this_boot_that_cannot_be_taken_back_is_removed(
    file: DeviceFile, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_now(0, [piece(0, 1)])
    monkeypatch.setattr(file._written, "write", fail(EIO))
    monkeypatch.setattr(Record, "read_piece", fail(EIO))
    monkeypatch.setattr(os, "fdatasync", fail(EIO))
    with pytest.raises(StorageError):
        file.sync()
    monkeypatch.undo()
    assert file.present() == []
    assert present_after(directory, BOOT) == []
    file.write_now(BLOCK, [piece(1, 2)])
    assert present_after(directory, BOOT) == [range(1, 2)]


def test_record_of_this_boot_that_is_none_is_made_anew(file: DeviceFile, directory: Path) -> None:
    (directory / f"written.{BOOT}").write_bytes(b"lazyblk1")  # killed while making it
    again = DeviceFile(directory, SIZE, BOOT, NotingKeeper())
    assert again.present() == []
    again.write_now(0, [piece(0, 1)])
    assert present_after(directory, BOOT) == [range(1)]


@pytest.mark.parametrize("number", [ENOSPC, EIO])
def test_full_or_failing_disk(
    file: DeviceFile, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "pwritev", fail(number))
    with pytest.raises(StorageError) as raised:
        file.write_now(0, [piece(0, 1)])
    expected = f"device: cannot write to the cache: {os.strerror(number)}"
    assert str(raised.value) == (f"{expected}; {REMEDY}" if number == ENOSPC else expected)
    assert file.present() == []


def test_disk_that_takes_nothing(file: DeviceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_arguments: 0)
    with pytest.raises(StorageError, match="nothing was written"):
        file.write_now(0, [piece(0, 1)])


def test_read_that_fails(file: DeviceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", fail(EIO))
    with pytest.raises(StorageError) as raised:
        file.read_into(0, memoryview(bytearray(BLOCK)))
    assert str(raised.value) == "device: cannot read from the cache: Input/output error"


def test_nothing_is_written_when_space_is_short(file: DeviceFile, keeper: NotingKeeper) -> None:
    keeper.refusal = StorageError("cache", "is full")
    with pytest.raises(StorageError, match="cache: is full"):
        file.write_now(0, [piece(0, 1)])
    assert file.path.stat().st_blocks == 0


def test_discarded_ranges_are_absent_for_everybody(file: DeviceFile, directory: Path) -> None:
    file.write_now(0, [piece(0, 9)])
    file.sync()
    file.write_now(9 * BLOCK, [piece(9, 12)])
    file.discard([range(2 * BLOCK, 4 * BLOCK), range(10 * BLOCK, 11 * BLOCK)])
    assert blocks(file.present()) == [range(2), range(4, 10), range(11, 12)]
    assert present_after(directory, BOOT) == [range(2), range(4, 10), range(11, 12)]
    assert present_after(directory, "boot-2") == [range(2), range(4, 9)]
    assert file.path.read_bytes()[: 12 * BLOCK] == piece(0, 12)  # whoever reads it, reads no zeros
    file.write_now(2 * BLOCK, [piece(2, 4)])
    file.sync()
    assert present_after(directory, "boot-2") == [range(10), range(11, 12)]


def test_discarding_from_a_complete_device(file: DeviceFile, directory: Path) -> None:
    file.write_now(0, [piece(0, 20)])
    file.sync()
    file.discard([range(5 * BLOCK, 6 * BLOCK)])
    assert not file.complete
    assert blocks(file.absent(0, SIZE)) == [range(5, 6)]
    assert present_after(directory, BOOT) == [range(5), range(6, 20)]
    file.write_now(5 * BLOCK, [piece(5, 6)])
    file.sync()
    assert file.complete


def test_discarding_that_fails(file: DeviceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_now(0, [piece(0, 20)])
    monkeypatch.setattr(Record, "sync", fail(EIO))
    with pytest.raises(StorageError) as raised:
        file.discard([range(BLOCK)])
    assert str(raised.value) == "device: cannot write the cache's record: Input/output error"


def test_removed_device_takes_no_writes(file: DeviceFile) -> None:
    file.write_now(0, [piece(0, 1)])
    file.forget()
    with pytest.raises(StorageError) as raised:
        file.write_now(0, [piece(0, 1)])
    assert str(raised.value) == "device: was removed from the cache meanwhile"
    file.sync()


@pytest.mark.parametrize("name", ["data", "present"])
def test_files_that_do_not_fit(directory: Path, name: str) -> None:
    os.truncate(directory / name, 10)
    with pytest.raises(ValueError, match=f"not the record of a file of {SIZE} bytes"):
        DeviceFile(directory, SIZE, BOOT, NotingKeeper())


def test_pages_are_dropped(file: DeviceFile) -> None:
    file.write_now(0, [piece(0, 20)])
    file.sync()
    file.drop_pages(0, BLOCK)
    file.drop_pages()
    assert file.path.read_bytes() == REFERENCE


def test_fd_is_closed_with_the_last_reference(directory: Path) -> None:
    file = DeviceFile(directory, SIZE, BOOT, NotingKeeper())
    fd = file.fd
    other = file
    del file
    os.fstat(fd)
    del other
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_pages_are_dropped_after_so_much_was_read(
    file: DeviceFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[tuple[int, int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: dropped.append(arguments))
    monkeypatch.setattr(device_file, "KEPT", 4 * BLOCK)
    file.write_now(0, [piece(0, 20)])
    buffer = memoryview(bytearray(BLOCK))
    for number in range(9):
        assert file.read_into(number * BLOCK, buffer) == BLOCK
        assert buffer == piece(number, number + 1)
    assert dropped == [(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)] * 2


def spliced(file: DeviceFile, offset: int, length: int) -> tuple[bool, bytes]:
    """Give what comes out of a pipe."""
    exit_, entry = os.pipe()
    try:
        whole = file.splice_into(entry, offset, length)
        os.set_blocking(exit_, False)
        with suppress(BlockingIOError):
            return whole, os.read(exit_, 10 * BLOCK)
        return whole, b""
    finally:
        os.close(exit_)
        os.close(entry)


def test_range_by_a_pipe(file: DeviceFile, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[tuple[int, int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: dropped.append(arguments))
    monkeypatch.setattr(device_file, "KEPT", 4 * BLOCK)
    file.write_now(0, [piece(0, 20)])
    assert spliced(file, BLOCK + 3, 2 * BLOCK) == (True, bytes(REFERENCE[BLOCK + 3 :][: 2 * BLOCK]))
    assert dropped == []
    assert spliced(file, 0, 2 * BLOCK) == (True, bytes(piece(0, 2)))
    assert dropped == [(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)]
    assert spliced(file, SIZE - BLOCK, 2 * BLOCK) == (False, bytes(piece(19, 20)))


def test_range_that_does_not_get_into_a_pipe(
    file: DeviceFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_now(0, [piece(0, 20)])
    monkeypatch.setattr(os, "splice", fail(EIO))
    assert spliced(file, 0, BLOCK) == (False, b"")


def test_range_that_the_kernel_has_in_memory(
    file: DeviceFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_now(BLOCK, [piece(1, 3)])
    buffer = memoryview(bytearray(2 * BLOCK))
    assert file.read_cached(BLOCK, buffer)
    assert buffer == piece(1, 3)
    monkeypatch.setattr(os, "preadv", lambda *_: BLOCK)
    assert not file.read_cached(BLOCK, buffer)
    monkeypatch.setattr(os, "preadv", fail(EIO))
    assert not file.read_cached(BLOCK, buffer)


def test_few_files_are_open(file: DeviceFile) -> None:
    """Two while something is missing, one afterwards: there may be thousands of devices."""
    names = {DATA, PRESENT, f"{WRITTEN}{BOOT}"}
    file.write_now(0, [piece(0, 19)])
    assert open_files(file.path.parent) == names - {PRESENT}
    file.sync()
    assert open_files(file.path.parent) == names - {PRESENT}
    file.write_now(19 * BLOCK, [piece(19, 20)])
    file.sync()
    assert open_files(file.path.parent) == {DATA}


def open_files(directory: Path) -> set[str]:
    """Give the names of a directory's files that this process has open."""
    targets = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            targets.add(entry.readlink())
    return {path.name for path in targets if path.parent == directory}
