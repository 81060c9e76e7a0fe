"""One device in the cache: its bytes, and which of them are present."""

from __future__ import annotations

import logging
import os
import weakref
from contextlib import closing, suppress
from errno import EDQUOT, EFBIG, EIO, ENOSPC
from threading import Lock
from typing import TYPE_CHECKING, Final

from lazyimg.cache.blocks import BlockMap
from lazyimg.cache.record import Record
from lazyimg.errors import StorageError
from lazyimg.host.files import sync_directory
from lazyimg.host.mutex import Mutex
from lazyimg.host.space import REMEDY
from lazyimg_formats.device_table import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lazyimg.cache.ports import Keeper

DATA: Final = "data"
PRESENT: Final = "present"
WRITTEN: Final = "written."

KEPT: Final = 16 << 20
"""Bytes that are read, at most, until the kernel is told to forget the pages."""

_COPIED: Final = 1 << 20  # bytes at a time
_MOST_PARTS: Final = 1024  # of one pwritev(2): IOV_MAX
_FULL: Final = {ENOSPC, EDQUOT, EFBIG}

_log = logging.getLogger(__name__)


class DeviceFile:
    """A device's file and records, open; implements `lazyimg.fill.ports.Sink`.

    Args:
        directory: the device's, as `make_device` made it; its name is the device's.
        size: bytes of the device, whole blocks.
        boot: the kernel's boot ID.
        keeper: of the cache.

    Attributes:
        name: the device's.
        size: bytes.
        path: of the data.
        fd: of the data, for reading and writing; closed with the last reference to this object.
        node: the data's inode number; the same as long as the device is in the cache.
        complete: whether all of it is present and synced, so that nothing will be asked for.

    Raises:
        OSError: a file cannot be opened or read.
        ValueError: the files do not fit each other, or the size.
    """

    def __init__(self, directory: Path, size: int, boot: str, keeper: Keeper) -> None:
        self.name = directory.name
        self.size = size
        self.path = directory / DATA
        self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._close = weakref.finalize(self, os.close, self.fd)
        status = os.fstat(self.fd)
        self.node = status.st_ino
        self._durable_path = directory / PRESENT
        with self._durable() as durable:  # few are open at a time, devices are many
            bits = durable.read()
        if bits is None or status.st_size != size:
            raise ValueError(f"{directory}: not the record of a file of {size} bytes")
        self._keeper = keeper
        self._lock = Mutex()
        self._syncing = Lock()
        self._epoch = 0  # how often what was written has been lost
        self._removed = False
        self._read = 0  # bytes, since pages were dropped
        self._linked = False
        self._calls: list[Callable[[], None]] = []
        self._blocks = BlockMap(size // BLOCK_SIZE, bits)
        self._unsynced: range | None = None  # the bytes of the bits that were set since
        self.complete = not self._blocks.missing
        self._written_path = directory / f"{WRITTEN}{boot}"
        self._written: Record | None = None
        if not self.complete:
            self._take_over()

    def _durable(self) -> closing[Record]:
        return closing(Record(self._durable_path, self.size))

    def _take_over(self) -> None:
        """Believe what a process before this one has written since the machine's start."""
        try:
            self._written = Record(self._written_path, self.size)
        except FileNotFoundError:
            return
        bits = self._written.read()
        if bits is None:  # it was ended while making it
            self._written = None
            self._written_path.unlink()
            return
        durable = self._blocks.piece(0, len(self._blocks))
        both = int.from_bytes(durable, "little") | int.from_bytes(bits, "little")
        self._blocks.replace(0, both.to_bytes(len(durable), "little"))
        if self._blocks.piece(0, len(self._blocks)) != durable:
            self._unsynced = range(len(self._blocks))
            self._keeper.note(self, whole=not self._blocks.missing)

    # What is present.

    def present(self) -> list[range]:
        """Give the ranges, in bytes, that are present."""
        return _in_bytes(self._blocks.present(0, self._blocks.count))

    def absent(self, offset: int, length: int) -> list[range]:
        """Give those parts of a range, as whole blocks in bytes, that are not present.

        From memory, at once. What lies past the device's end is not absent.
        """
        if self.complete:
            return []
        first = offset // BLOCK_SIZE
        last = min(-(-(offset + length) // BLOCK_SIZE), self._blocks.count)
        if first >= last or not (found := self._blocks.absent(first, last)):
            return []
        return _in_bytes(found)

    def on_complete(self, call: Callable[[], None]) -> None:
        """Call a function once the device is complete: now, or later in the cache's thread."""
        with self._lock:
            if not self.complete:
                self._calls.append(call)
                return
        call()

    # Data.

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read a range that is present into a buffer; gives the bytes, fewer at the device's end.

        Who wants it keeps it in pages of another file system. Those of this file are dropped again,
        many at a time.

        Raises:
            StorageError: the disk fails.
        """
        try:
            size = os.preadv(self.fd, [buffer], offset)
            self._note_read(size)
        except OSError as error:
            raise StorageError(
                self.name, f"cannot read from the cache: {error.strerror}"
            ) from error
        return size

    def splice_into(self, pipe: int, offset: int, length: int) -> bool:
        """Put a range that is present into a pipe that has room; gives whether all of it is there.

        As `read_into` otherwise, which is for who gets False.
        """
        left = length
        try:
            while left:
                size = os.splice(self.fd, pipe, left, offset_src=offset + length - left)
                if not size:
                    return False
                left -= size
            self._note_read(length)
        except OSError:
            return False
        return True

    def _note_read(self, size: int) -> None:
        self._read += size  # threads may lose some of it
        if self._read >= KEPT:
            self._read = 0
            self.drop_pages()

    def read_cached(self, offset: int, buffer: memoryview) -> bool:
        """Fill a buffer with a range that is present, if the kernel has it in memory."""
        try:
            return os.preadv(self.fd, [buffer], offset, os.RWF_NOWAIT) == len(buffer)
        except OSError:  # EAGAIN: it has not; else `read_into` tells
            return False

    async def write(self, offset: int, data: memoryview) -> None:
        """Write whole blocks in a thread; if cancelled, the write in hand is finished first.

        Raises:
            StorageError: the disk is full or fails, or the device was removed.
        """
        await self._keeper.write(self, offset, [data])

    def write_now(self, offset: int, parts: Sequence[memoryview]) -> None:
        """Write whole blocks in this thread; raises as `write` does.

        What lies past the device's end is ignored: nobody can read it.
        """
        length = sum(map(len, parts))
        if (offset | length) % BLOCK_SIZE:
            raise ValueError(f"{length} bytes at {offset} are not whole blocks")
        if offset + length > self.size:
            length = max(0, self.size - offset)
            parts = _clip(parts, length)
        if not length:
            return
        self._keeper.admit(length)
        epoch = self._epoch
        try:
            _write_parts(self.fd, offset, parts)
        except OSError as error:
            raise StorageError(
                self.name,
                f"cannot write to the cache: {error.strerror}",
                REMEDY if error.errno in _FULL else "",
            ) from error
        self._mark(offset // BLOCK_SIZE, (offset + length) // BLOCK_SIZE, epoch)

    def _mark(self, first: int, last: int, epoch: int) -> None:
        low, high = first >> 3, (last + 7) >> 3
        with self._lock:
            if self._removed:
                raise StorageError(self.name, "was removed from the cache meanwhile")
            if epoch != self._epoch:
                raise StorageError(self.name, "the disk lost what was written")
            self._blocks.add(first, last)
            wanted = self._unsynced is None
            self._unsynced = _join(self._unsynced, low, high)
            if not self.complete:
                self._write_down(low, high)
            whole = not self._blocks.missing
        if wanted or whole:
            self._keeper.note(self, whole=whole)

    def _write_down(self, low: int, high: int) -> None:
        """Put bits into the record of this boot. A failure costs only a fetch, after a crash."""
        try:
            if self._written is None:
                self._written = Record(self._written_path, self.size, make=True)
            self._written.write(low, self._blocks.piece(low, high))
        except OSError as error:
            _log.warning("%s: the record cannot be written: %s", self.name, error.strerror)

    def drop_pages(self, offset: int = 0, length: int = 0) -> None:
        """Let the kernel forget what it has in memory of a range (0: to the end), if it is synced.

        Raises OSError.
        """
        os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_DONTNEED)

    # Records.

    def sync(self) -> None:
        """Sync the data, then say so in the durable record, and sync that. Blocks.

        Raises:
            StorageError: the disk fails. What was written since the last time is absent now, unless
                it is only the record that could not be written.
        """
        with self._syncing:
            if (synced := self._sync_data()) is None:
                return
            low, bits, whole = synced
            try:
                self._write_durable(low, bits)
            except OSError as error:
                with self._lock:
                    self._unsynced = _join(self._unsynced, low, low + len(bits))
                self._keeper.note(self, whole=False)
                raise StorageError(
                    self.name, f"cannot sync the cache's record: {error.strerror}"
                ) from error
            calls = self._complete() if whole else []
        for call in calls:
            call()

    def _sync_data(self) -> tuple[int, bytes, bool] | None:
        """Give which bits the durable record may have now, from which byte on; and if all are."""
        with self._lock:
            unsynced, self._unsynced = self._unsynced, None
            if unsynced is None or self._removed:
                return None
            low, high = unsynced.start, unsynced.stop
            bits = self._blocks.piece(low, high)
            whole = not self._blocks.missing
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            self._lose(low, high)
            raise StorageError(
                self.name, f"cannot sync the cache: {error.strerror}", REMEDY
            ) from error
        return low, bits, whole

    def _write_durable(self, low: int, bits: bytes) -> None:
        with self._durable() as durable:
            durable.write(low, bits)
            durable.sync()
        if not self._linked:
            sync_directory(self.path.parent)
            sync_directory(self.path.parent.parent)
            self._linked = True

    def _complete(self) -> list[Callable[[], None]]:
        with self._lock:
            if self.complete:
                return []
            self.complete = True
            calls, self._calls = self._calls, []
            self._written = None
        with suppress(FileNotFoundError):
            self._written_path.unlink()
        return calls

    def copy_from(self, path: Path) -> None:
        """Write what is absent, from a file that has all of it. Blocks; raises OSError, as `write`.

        What is written is not synced yet.
        """
        buffer = memoryview(bytearray(_COPIED))
        with path.open("rb", buffering=0) as whole:
            for run in self.absent(0, self.size):
                for start in range(run.start, run.stop, _COPIED):
                    part = buffer[: min(_COPIED, run.stop - start)]
                    if os.preadv(whole.fileno(), [part], start) != len(part):
                        raise OSError(EIO, "is shorter than it was")
                    self.write_now(start, [part])

    def discard(self, ranges: Sequence[range]) -> None:
        """Let ranges, in bytes, of whole blocks be absent, so that they are fetched again. Blocks.

        When this returns, no process after this one believes otherwise. The data stays as it is.

        Raises:
            StorageError: the disk fails.
        """
        with self._syncing:
            try:
                with self._durable() as record:
                    durable = BlockMap(self._blocks.count, record.read() or b"")
                    with self._lock:
                        for each in (durable, self._blocks):
                            for run in ranges:
                                each.discard(run.start // BLOCK_SIZE, -(-run.stop // BLOCK_SIZE))
                        self.complete = False
                        self._take_back(0, self._blocks.piece(0, len(self._blocks)))
                    record.write(0, durable.piece(0, len(durable)))
                    record.sync()
            except OSError as error:
                raise StorageError(
                    self.name, f"cannot write the cache's record: {error.strerror}"
                ) from error

    def _lose(self, low: int, high: int) -> None:
        """Take back what was marked since the last sync."""
        with self._lock:
            self._epoch += 1
            lost = _join(self._unsynced, low, high)
            self._unsynced = None
            self._take_back(lost.start, self._read_durable(lost.start, lost.stop))

    def _read_durable(self, low: int, high: int) -> bytes:
        try:
            with self._durable() as durable:
                bits = durable.read_piece(low, high)
        except OSError as error:
            _log.warning("%s: the record cannot be read: %s", self.name, error.strerror)
            bits = b""
        return bits.ljust(high - low, b"\0")

    def _take_back(self, low: int, bits: bytes) -> None:
        """Let only these bits be set, from byte `low` on; the next process must know too."""
        self._blocks.replace(low, bits)
        if self._written is None:
            return
        try:
            self._written.write(low, bits)
        except OSError as error:
            _log.warning("%s: the record cannot be written: %s", self.name, error.strerror)
            self._written = None
            with suppress(OSError):
                self._written_path.unlink()

    def close(self) -> None:
        """Close what is open; what is read or written from now on fails. Nobody may be at it."""
        with self._lock:
            self.fd = -1
            self._close()
            if self._written is not None:
                self._written.close()

    def forget(self) -> None:
        """Take no more writes: the device is being removed."""
        with self._lock:
            self._removed = True


def make_device(directory: Path, size: int) -> None:
    """Make the files of a device of `size` bytes, nothing of it present, in an empty directory.

    Raises OSError.
    """
    fd = os.open(directory / DATA, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.truncate(fd, size)
    finally:
        os.close(fd)
    Record(directory / PRESENT, size, make=True)


def make_record(directory: Path, size: int) -> None:
    """Say of a device that is there whole, and synced, that it is; raises OSError."""
    with closing(Record(directory / PRESENT, size, make=True)) as record:
        record.write(0, b"\xff" * len(BlockMap(size // BLOCK_SIZE)))
        record.sync()
    sync_directory(directory)


def _in_bytes(blocks: list[range]) -> list[range]:
    return [range(run.start * BLOCK_SIZE, run.stop * BLOCK_SIZE) for run in blocks]


def _join(unsynced: range | None, low: int, high: int) -> range:
    if unsynced is None:
        return range(low, high)
    return range(min(low, unsynced.start), max(high, unsynced.stop))


def _clip(parts: Sequence[memoryview], length: int) -> list[memoryview]:
    """Give the first `length` bytes of `parts`."""
    clipped = []
    for part in parts:
        clipped.append(part[:length])
        length -= len(clipped[-1])
    return clipped


def _write_parts(fd: int, offset: int, parts: Sequence[memoryview]) -> None:
    """Write all of `parts`, one behind the other. Raises OSError."""
    left = [part for part in parts if len(part)]
    while left:
        done = os.pwritev(fd, left[:_MOST_PARTS], offset)
        if not done:
            raise OSError(EIO, "nothing was written")
        offset += done
        whole = 0
        while whole < len(left) and done >= len(left[whole]):
            done -= len(left[whole])
            whole += 1
        left = left[whole:]
        if done:
            left[0] = left[0][done:]
