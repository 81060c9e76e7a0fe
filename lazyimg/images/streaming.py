"""Layers without an index: the first use reads their blobs whole, once.

    blob --> child (`indexing`) --> index, and the device, in a file aside (`ports.Staging`)
    blob digest and diff ID are right --> the device is the cache's, complete
                                      --> the index is recorded

In this order, so that a layer with a recorded index was not read in vain. From then on it is like
any layer of which this node has made the index: what is removed from the cache is fetched lazily.
Such a first use is not lazy, and the log and the caller say so.

Who asks for a layer that is being read waits for it, and goes on alone if it fails; it is given up
when nobody waits. Nothing is left of what is given up; what is left of a process that died is
removed by the next one. A few layers are read side by side, each by a child of bounded memory.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, ParamSpec, TypeVar

from lazyimg.errors import LazyimgError, StorageError
from lazyimg.images.indexes import IndexFiles
from lazyimg.images.indexing import IndexMaker, IndexRequest
from lazyimg.images.library import OwnIndex

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from pathlib import Path

    from lazyimg.images.library import Library
    from lazyimg.images.ports import Staging
    from lazyimg.limits import BuildLimits
    from lazyimg.registry.ports import ImageSource
    from lazyimg_formats.oci.documents import Descriptor

AT_ONCE: Final = 3
"""Layers that are read side by side."""

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Wanted(NamedTuple):
    """A layer that has no index.

    Attributes:
        what: for messages: the image, and which layer.
        source: has its blob.
        layer: the blob.
        diff_id: digest of its tar.
    """

    what: str
    source: ImageSource
    layer: Descriptor
    diff_id: str


@dataclass(slots=True)
class Stream:
    """A layer that is being read.

    Attributes:
        wanted: which.
        done: bytes of its blob that have come.
        waiters: how many wait for it.
        task: reads it.
    """

    wanted: Wanted
    done: int = 0
    waiters: int = 0
    task: asyncio.Task[OwnIndex] = field(init=False)


class Streams:
    """Reads layers.

    Args:
        root: the daemon's directory.
        library: the records.
        limits: of the process that does it.
        staging: makes the devices.
    """

    def __init__(self, root: Path, library: Library, limits: BuildLimits, staging: Staging) -> None:
        self._files = IndexFiles(root / "content", library)
        self._limits = limits
        self._staging = staging
        self._running: dict[tuple[str, str], Stream] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)

    def running(self) -> list[Stream]:
        """Give what is being read, or waits for its turn."""
        return list(self._running.values())

    async def read(self, wanted: list[Wanted]) -> None:
        """Read layers that have no index: each has one afterwards, and its device is complete.

        Raises:
            NotLazyError: no index can be made of one.
            LazyimgError: the registry, an image or the disk fails; the first failure ends it all.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for one in {(str(one.layer.digest), one.diff_id): one for one in wanted}.values():
                    group.create_task(self._read(one))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    async def _read(self, wanted: Wanted) -> None:
        """Read a layer, or wait for who does; another's failure is not this one's."""
        key = (str(wanted.layer.digest), wanted.diff_id)
        while True:
            stream = self._running.get(key)
            joined = stream is not None
            if stream is None:
                stream = self._begin(key, wanted)
            stream.waiters += 1
            try:
                await asyncio.shield(stream.task)
            except LazyimgError:
                if joined:
                    continue
                raise
            finally:
                stream.waiters -= 1
                if not stream.waiters and not stream.task.done():
                    self._running.pop(key, None)
                    stream.task.cancel()
                    await asyncio.wait([stream.task])
            return

    def _begin(self, key: tuple[str, str], wanted: Wanted) -> Stream:
        stream = self._running[key] = Stream(wanted)
        stream.task = asyncio.create_task(self._run(stream))

        def end(task: asyncio.Task[OwnIndex]) -> None:
            if self._running.get(key) is stream:
                del self._running[key]
            if not task.cancelled():
                task.exception()  # its waiters raise it; there may be none left

        stream.task.add_done_callback(end)
        return stream

    async def _run(self, stream: Stream) -> OwnIndex:
        what, _, layer, _ = stream.wanted
        known = await asyncio.to_thread(self._files.find, str(layer.digest), stream.wanted.diff_id)
        if known is not None:  # who was before this one has read it
            return known
        async with self._turns:
            _log.info("%s: has no index; its %d bytes are read before it is used", what, layer.size)
            index = await self._stage(stream)
            _log.info("%s: is local and has an index of %d bytes", what, index.size)
            return index

    async def _stage(self, stream: Stream) -> OwnIndex:
        reserve = await asyncio.to_thread(self._look_for_room, stream.wanted.what)
        files: list[Path] = []  # where the device and the index are written

        def open_files() -> None:
            files.append(self._staging.stage())
            files.append(self._files.open_aside())

        def remove_files() -> None:
            with suppress(OSError):  # the next start removes it
                for staged in files[:1]:
                    self._staging.abandon(staged)
                for aside in files[1:]:
                    aside.unlink(missing_ok=True)

        try:
            await _finished(open_files)
            staged, aside = files
            return await self._make(stream, staged, aside, reserve)
        finally:
            await _finished(remove_files)

    async def _make(self, stream: Stream, staged: Path, aside: Path, reserve: int) -> OwnIndex:
        what, source, layer, diff_id = stream.wanted
        request = IndexRequest(
            str(layer.digest), layer.size, diff_id, str(aside), self._limits.memory,
            self._limits.processor_time, str(staged), reserve,
        )  # fmt: skip
        maker = IndexMaker()
        try:
            async with aclosing(_count(source.stream_blob(layer), stream)) as pieces:
                reply = await maker.make(what, request, pieces)
        finally:
            await maker.close()
        index = OwnIndex(str(layer.digest), diff_id, layer.size, reply.digest, reply.size)

        def publish() -> None:
            if reply.device_size:
                self._staging.publish(staged, reply.device)
            self._files.keep(aside, index)

        await _finished(publish)
        return index

    def _look_for_room(self, what: str) -> int:
        """Give the bytes that must stay free. Raises StorageError."""
        try:
            if (shortage := self._staging.shortage()) is not None:
                raise shortage
            return self._staging.reserve()
        except OSError as error:
            raise StorageError(what, f"the cache cannot be looked at: {error.strerror}") from error


async def _count(pieces: AsyncIterator[bytes], stream: Stream) -> AsyncGenerator[bytes]:
    try:
        async for piece in pieces:
            stream.done += len(piece)
            yield piece
    finally:
        close = getattr(pieces, "aclose", None)  # else it is left to whenever it is freed
        if close is not None:
            await close()


async def _finished(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a thread; if this is cancelled, it has ended nevertheless."""
    call = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise
