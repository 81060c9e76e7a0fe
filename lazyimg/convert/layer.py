"""One layer to zstd:chunked, as a stream of bounded memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from lazyimg.convert.compress import Frames, compress_frames
from lazyimg.convert.cut import Cutter, Frame, Hole
from lazyimg.errors import CorruptError
from lazyimg.layers.decompress import MAGIC_SIZE, Decompressor, choose_decompressor
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.tar.scanner import Member
from lazyimg_formats.tar_split import TarSplit
from lazyimg_formats.zstd_chunked.entries import MAX_TOC
from lazyimg_formats.zstd_chunked.writer import Chunk, TocWriter, serialize_tail

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator
    from concurrent.futures import Executor

    from lazyimg.convert.cut import Batch, Item
    from lazyimg_formats.zstd_chunked.location import TocLocation

_INPUT: Final = 1 << 20
"""Compressed bytes that are worth handing to a thread."""

_BATCH: Final = 2 << 20
"""Bytes of tar that one thread compresses in one go."""


_MAX_CHUNKS: Final = MAX_TOC // 150
"""Chunks of a file that are held in memory; more of them no TOC can hold."""


@dataclass(frozen=True, slots=True)
class ConvertedLayer:
    """A blob that was made.

    Attributes:
        digest: of its bytes.
        size: in bytes.
        toc: where its TOC is.
        problem: why it has no tar-split data; "": it has.
    """

    digest: Digest
    size: int
    toc: TocLocation
    problem: str = ""


class _TarReader:
    """Compressed bytes to batches; checks the diff ID."""

    def __init__(self, diff_id: Digest) -> None:
        self._diff_id = diff_id
        self._hasher = diff_id.hasher()
        self._decompressor: Decompressor | None = None
        self._head = b""
        self._cutter = Cutter()

    def feed(self, data: bytes) -> Iterator[Batch]:
        if self._decompressor is not None:
            yield from self._decompress(self._decompressor, data)
            return
        self._head += data
        if len(self._head) >= MAGIC_SIZE:
            yield from self._begin()

    def _begin(self) -> Iterator[Batch]:
        self._decompressor = choose_decompressor(self._head)
        yield from self._decompress(self._decompressor, self._head)

    def _decompress(self, decompressor: Decompressor, data: bytes) -> Iterator[Batch]:
        for piece in decompressor.feed(data):
            self._hasher.update(piece)
            self._cutter.feed(piece)
            if self._cutter.size >= _BATCH:
                yield self._cutter.take()

    def finish(self) -> Iterator[Batch]:
        if self._decompressor is None:  # all of it is shorter than a magic
            yield from self._begin()
        assert self._decompressor is not None  # noqa: S101 - _begin chose one
        self._decompressor.finish()
        self._cutter.finish()
        if not self._hasher.matches():
            raise FormatError("layer", f"its tar has {self._hasher.digest()}, not {self._diff_id}")
        yield self._cutter.take()


class _Assembler:
    """Compressed cuts to the blob's bytes, and to its TOC."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._offset = 0
        self._hash = hashlib.sha256()
        self._toc = TocWriter()
        self._member: Member | None = None
        self._left = 0  # bytes of its file that are still to come
        self._chunks: list[Chunk] = []
        self._tar_split: TarSplit | None = None
        self._problem = ""  # why there is none

    def add(self, items: list[Item], frames: Frames) -> bytes:
        sizes = iter(frames.sizes)
        for item in items:
            if isinstance(item, Frame):
                offset = self._offset
                self._offset += next(sizes)
                if item.length:
                    self._add_chunk(Chunk(item.length, offset, item.digest), item.whole)
            elif isinstance(item, Member):
                self._member = item
                self._left = item.entry.size if item.has_data else 0
                if not self._left:
                    self._end_file(item, None)
            elif isinstance(item, Hole):
                self._add_chunk(Chunk(item.length, self._offset, None), None)
            elif isinstance(item, TarSplit):
                self._tar_split = item
            else:
                self._problem = item.problem
        return self._emit(frames.data)

    def _add_chunk(self, chunk: Chunk, whole: bytes | None) -> None:
        assert self._member is not None  # noqa: S101 - a chunk is a member's
        if len(self._chunks) > _MAX_CHUNKS:
            raise FormatError("layer", f"a file of over {_MAX_CHUNKS} chunks")
        self._left -= chunk.length
        chunks = self._chunks
        if chunk.digest is None and chunks and chunks[-1].digest is None:
            last = chunks.pop()
            chunk = Chunk(last.length + chunk.length, last.blob_offset, None)
        chunks.append(chunk)
        if not self._left:
            self._end_file(self._member, whole)

    def _end_file(self, member: Member, digest: bytes | None) -> None:
        self._toc.add(member, self._chunks, self._offset, digest)
        self._chunks.clear()

    def finish(self) -> tuple[list[bytes], ConvertedLayer]:
        problem = self._problem or self._toc.problem
        tar_split = None if problem else self._tar_split
        toc = self._toc.finish(tar_split)
        tail, location = serialize_tail(toc, self._offset, self._level, tar_split)
        for piece in tail:
            self._offset += len(self._emit(piece))
        digest = Digest("sha256", self._hash.hexdigest())
        return tail, ConvertedLayer(digest, self._offset, location, problem)

    def _emit(self, data: bytes) -> bytes:
        self._hash.update(data)
        return data


class LayerConversion:
    """Converts one layer, once.

    Args:
        what: the layer, for messages.
        diff_id: the digest that its tar must have.
        level: of zstd.
        executor: threads for the work.
        depth: batches that are compressed side by side.

    Attributes:
        read: compressed bytes read so far.
        written: bytes given so far.
    """

    def __init__(
        self, what: str, diff_id: Digest, *, level: int, executor: Executor, depth: int
    ) -> None:
        self.read = 0
        self.written = 0
        self._what = what
        self._reader = _TarReader(diff_id)
        self._assembler = _Assembler(level)
        self._level = level
        self._executor = executor
        self._depth = depth
        self._result: ConvertedLayer | None = None

    @property
    def result(self) -> ConvertedLayer:
        """What was made. Only when `convert` has ended."""
        if self._result is None:
            raise RuntimeError("the conversion has not ended")
        return self._result

    async def convert(self, source: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Give the converted layer in pieces.

        Args:
            source: the layer's blob, in pieces.

        Raises:
            CorruptError: it is no layer, cannot be mounted, or has another diff ID; then the
                pieces given so far mean nothing.
        """
        loop = asyncio.get_running_loop()
        pending: deque[tuple[list[Item], asyncio.Future[Frames]]] = deque()
        try:
            async with aclosing(self._read_batches(source)) as batches:
                async for batch in batches:
                    frames = loop.run_in_executor(
                        self._executor, compress_frames, batch.frames, self._level
                    )
                    pending.append((batch.items, frames))
                    if len(pending) > self._depth:
                        yield await self._assemble(*pending.popleft())
            while pending:
                yield await self._assemble(*pending.popleft())
            tail, self._result = await loop.run_in_executor(self._executor, self._assembler.finish)
            for piece in tail:
                self.written += len(piece)
                yield piece
        except FormatError as error:
            raise CorruptError(self._what, str(error)) from error
        finally:
            for _, future in pending:
                future.cancel()

    async def _assemble(self, items: list[Item], frames: asyncio.Future[Frames]) -> bytes:
        loop = asyncio.get_running_loop()
        add = partial(self._assembler.add, items, await frames)
        data = await loop.run_in_executor(self._executor, add)
        self.written += len(data)
        return data

    async def _read_batches(self, source: AsyncIterator[bytes]) -> AsyncGenerator[Batch]:
        loop = asyncio.get_running_loop()
        async with aclosing(self._feed_reader(source)) as steps:
            async for step in steps:
                run = partial(loop.run_in_executor, self._executor, next, step, None)
                while (batch := await run()) is not None:
                    yield batch

    async def _feed_reader(self, source: AsyncIterator[bytes]) -> AsyncGenerator[Iterator[Batch]]:
        """Give what takes each large enough part of the input; the work is in its `next`."""
        held: list[bytes] = []
        size = 0
        async for data in source:
            self.read += len(data)
            held.append(data)
            size += len(data)
            if size >= _INPUT:
                yield self._reader.feed(b"".join(held))
                held, size = [], 0
        yield self._reader.feed(b"".join(held))
        yield self._reader.finish()
