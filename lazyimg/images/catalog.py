"""What the kernel may ask for, by name: bootstraps and devices.

A bootstrap's bytes are in a local file. A device is filled by the engine, which is given the
device's table and blobs when the first fill needs them, so that nothing is read at start but the
names and sizes, and an OPEN is answered from memory. When the last image that has a device is
unmounted, table and blobs are given up; the next fill opens them again.

A table is held in memory, not mapped: a file that is cut short under a mapping, or that the disk
cannot read any more, is a signal that ends the process.
"""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from lazyimg.errors import CorruptError, LazyimgError, NotFoundError, StorageError
from lazyimg.images.bootstrap import verify_bootstrap
from lazyimg.images.readers import Readers, ReadersBlob
from lazyimg.logs import Repeats
from lazyimg_formats.device_table import HEADER_SIZE, DeviceTable, find_windows
from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from lazyimg.fill.engine import Engine
    from lazyimg.fill.ports import BlobReader, Sink
    from lazyimg.images.library import ChainRecord, Library, SourceRecord
    from lazyimg.images.shown import ShownAccess
    from lazyimg.registry.ports import Access

    OpenBlob = Callable[[SourceRecord, Access | None], Awaitable[BlobReader]]

_log = logging.getLogger(__name__)

_PIECE: Final = 1 << 20
"""Bytes of a bootstrap that are written at once."""

MAX_STRAYS: Final = 16
"""Devices that are kept open though no image that is mounted here has them: those of mounts that
somebody made by hand, or that outlive their unmounting."""


class Presence(Protocol):
    """What the catalog needs of a transport."""

    def present(self, cookie: str) -> list[range] | None:
        """Give the ranges that an open object has, in bytes; None if it is not open. Blocks."""
        ...


class Catalog:
    """All names of this node; what a transport asks.

    Args:
        root: the daemon's directory.
        library: the records.
        engine: fills devices.
        open_blob: gives the reader of a source, with what was last shown to its repository, or,
            if None, as it is recorded.
        shown: has that, where it is a name and a password.

    Attributes:
        readers: say which repositories a device may be filled from now.
    """

    def __init__(
        self,
        root: Path,
        library: Library,
        engine: Engine,
        open_blob: OpenBlob,
        shown: ShownAccess,
    ) -> None:
        self._root = root
        self._library = library
        self._engine = engine
        self._open_blob = open_blob
        self._bootstraps: dict[str, int] = {}
        self._devices: dict[str, int] = {}
        self._verified: set[str] = set()  # bootstraps whose files have the bytes of their names
        self._tables: dict[str, asyncio.Task[DeviceTable]] = {}
        self._blobs: dict[tuple[str, str, str], BlobReader] = {}
        self._strays: dict[str, None] = {}
        self._shown = shown
        self.readers = Readers(self._release)
        self._noted: dict[str, Sink] = {}
        self._presence: Presence | None = None
        self._failures = Repeats()

    def use(self, presence: Presence) -> None:
        """Ask `presence` (the transport) what is local already."""
        self._presence = presence

    def load(self) -> None:
        """Learn the names that are recorded, and what is mounted. Blocks for local queries.

        Raises:
            StorageError: the records cannot be read.
        """
        self._bootstraps.update(self._library.bootstraps())
        self._devices.update(self._library.devices())
        mounted = [record.image for record in self._library.mounts()]
        chains = [(one.reference, self._library.find_chain(one.chain)) for one in mounted]
        self.readers.replace((reference, chain) for reference, chain in chains if chain)

    def _release(self, device: str) -> None:
        """Give up what is kept of a device that no mounted image has; a fill opens it again."""
        if self.readers.has(device):
            return
        opening = self._tables.get(device)
        if opening is not None and not opening.done():
            opening.add_done_callback(lambda _: self._release(device))
            return
        self._tables.pop(device, None)
        self._strays.pop(device, None)
        self._noted.pop(device, None)
        for key in [key for key in self._blobs if key[0] == device]:
            blob = self._blobs.pop(key)
            self._engine.remove_device(device, blob)
            blob.release()

    def add(self, chain: ChainRecord) -> None:
        """Learn the names of an image that was just recorded."""
        self._bootstraps[chain.fsid] = chain.size
        for layer in chain.layers:
            if layer.device_size:
                self._devices[layer.device] = layer.device_size

    def size(self, cookie: str) -> int | None:
        """Give the bytes of a bootstrap or device; None when there is none of this name."""
        size = self._bootstraps.get(cookie)
        return self._devices.get(cookie) if size is None else size

    def read_local(self, cookie: str, offset: int, length: int, buffer: memoryview) -> int | None:
        """Put a range that is in memory into `buffer`; see the port `Filler`."""
        if cookie not in self._verified:
            return self._engine.read_local(cookie, offset, length, buffer)
        expected = max(0, min(len(buffer), self._bootstraps[cookie] - offset))
        try:
            if _read(self._root / "bootstraps" / cookie, offset, buffer) >= expected:
                return expected
        except OSError:
            pass
        self._verified.discard(cookie)  # a fill says what is wrong; the rest is no zeros
        return None

    async def fill(self, cookie: str, offset: int, length: int, sink: Sink) -> None:
        """Make a range present: both numbers are multiples of `BLOCK_SIZE`.

        Raises:
            LazyimgError: it cannot be filled now.
        """
        if cookie in self._bootstraps:
            await self._fill_bootstrap(cookie, offset, length, sink)
            return
        deadline = self._engine.limits.read_deadline
        try:
            async with asyncio.timeout(deadline):
                await self.device(cookie)
                await self._note_present(cookie, sink)
        except TimeoutError:
            raise StorageError(
                f"device {cookie}", f"its records could not be read within {deadline:g} s"
            ) from None
        await self._engine.fill(cookie, offset, length, sink)

    async def _note_present(self, name: str, sink: Sink) -> None:
        """Tell the engine, once for each opening of the device, what it need not fetch."""
        if self._presence is None or self._noted.get(name) == sink:
            return
        self._noted[name] = sink
        try:
            ranges = await asyncio.to_thread(self._presence.present, name)
        except LazyimgError as error:  # a hint only: the fill says what matters
            _log.info("what is present is not known: %s", error)
            return
        self._engine.note_present(name, sink, ranges or [])

    async def device(self, name: str) -> DeviceTable:
        """Give a device's table; afterwards the engine can fill the device.

        Raises:
            LazyimgError: no such device, or its table or records cannot be read.
        """
        task = self._tables.get(name)
        if task is None:
            task = self._tables[name] = asyncio.create_task(self._open_device(name))
            task.add_done_callback(lambda done: self._forget_failure(name, done))
            if not self.readers.has(name):
                self._keep_stray(name)
        return task.result() if task.done() else await asyncio.shield(task)

    async def add_source(self, name: str, source: SourceRecord, access: Access) -> None:
        """Let a device be filled from a blob that `access` is good for.

        A source that the device has already is reached as `access` says from now on.

        Raises:
            LazyimgError: the table cannot be read, or the place of the blob is gone.
        """
        self._shown.note(source.repository, access)
        if name in self._tables:
            await self._open_source(name, source)

    def _keep_stray(self, name: str) -> None:
        self._strays[name] = None
        while len(self._strays) > MAX_STRAYS:
            oldest = next(iter(self._strays))
            del self._strays[oldest]
            self._release(oldest)

    def _forget_failure(self, name: str, task: asyncio.Task[DeviceTable]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._tables.pop(name, None)
            self._strays.pop(name, None)

    async def _open_device(self, name: str) -> DeviceTable:
        table: DeviceTable | None = None
        failure: LazyimgError | None = None
        sources = await asyncio.to_thread(self._library.sources, name)
        sources.sort(key=lambda one: self.readers.may_use(name, one.repository))
        for source in sources:  # the last one is asked first
            try:
                table = await self._open_source(name, source)
            except LazyimgError as error:
                more = self._failures.due((name, source.repository))
                if more is not None:
                    place = source.repository
                    _log.warning("device %s is not filled from %s: %s%s", name, place, error, more)
                failure = failure or error
        if table is None:
            raise failure or NotFoundError(f"device {name}", "no image that is known here has it")
        return table

    async def _open_source(self, name: str, source: SourceRecord) -> DeviceTable:
        table = await asyncio.to_thread(self.load_table, name, source.table)
        opened = await self._open_blob(source, self._shown.find(source.repository))
        if name not in self._tables:  # nobody reads it any more
            opened.release()
            return table
        blob = ReadersBlob(opened, self.readers, name, source.repository)
        registry = source.repository.partition("/")[0]
        self._engine.add_device(table, blob, (registry, source.repository))
        key = (name, source.repository, source.blob)
        replaced, self._blobs[key] = self._blobs.get(key), blob
        if replaced is not None:
            self._engine.remove_device(name, replaced)
        return table

    def load_table(self, name: str, file: str) -> DeviceTable:
        """Give the table of a device that goes with one of its blobs. Blocks.

        Args:
            name: of the device.
            file: name of the table's file.

        Raises:
            LazyimgError: it cannot be read, or is another's.
        """
        path = self._root / "tables" / file
        try:
            columns, read = _read_columns(path)
            return DeviceTable(columns, read=read, expected_name=name)
        except (OSError, FormatError) as error:
            problem = error.strerror if isinstance(error, OSError) else str(error)
            kind = CorruptError if isinstance(error, FormatError) else StorageError
            raise kind(str(path), f"cannot be used: {problem}", "mount the image again") from error

    async def _fill_bootstrap(self, fsid: str, offset: int, length: int, sink: Sink) -> None:
        """Write from the file, once its bytes are known to be right; the next ones are `local`."""
        path = self._root / "bootstraps" / fsid
        if fsid not in self._verified:
            await asyncio.to_thread(verify_bootstrap, path)
            self._verified.add(fsid)
        for start in range(offset, offset + length, _PIECE):
            piece = min(_PIECE, offset + length - start)
            data = memoryview(bytearray(piece))
            if self.read_local(fsid, start, piece, data) is None:
                raise StorageError(str(path), "cannot be read any more", "mount it again")
            await sink.write(start, data)


def _read_columns(path: Path) -> tuple[bytes, Callable[[int, int], bytes] | None]:
    """Give a table without its windows, and what reads them when they are wanted.

    Raises OSError, FormatError.
    """
    with path.open("rb") as file:
        header = file.read(HEADER_SIZE)
        end = find_windows(header)
        if end is None:
            return header + file.read(), None
        return header + file.read(end - len(header)), partial(_read_window, path)


def _read_window(path: Path, offset: int, length: int) -> bytes:
    data = bytearray(length)
    try:
        size = _read(path, offset, memoryview(data))
    except OSError as error:
        raise StorageError(
            str(path), f"cannot be read: {error.strerror}", "mount the image again"
        ) from error
    return bytes(data[:size])


def _read(path: Path, offset: int, buffer: memoryview) -> int:
    """Read from a file that is not kept open, nor in memory: the kernel caches what it asked for.

    Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.preadv(fd, [buffer], offset)
    finally:
        os.close(fd)
