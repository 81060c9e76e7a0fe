"""Images are made local, and checked, in the background: layer by layer, each blob read once.

Nobody checks the diff ID of a layer that is loaded lazily: what is read is checked against the
index, and the manifest commits to the index; but an index may describe another tar than the one
whose diff ID the image's config, and so its chain ID, names. Who unpacks the blob finds out.

    registry --> ranges of the blob, one after the other, at background priority and a limited rate
                   |--> `check`, in a child: digest, diff ID, and the index against the tar
                   |--> window --> fill engine: what the device lacks, decoded and verified

So a layer costs its compressed size, however much of it was read before, and nothing is fetched
twice for both. What is present already is not written again. Of a layer that was checked before, as
one was of which this node made the index, only what the device lacks is read, in the same order and
as slowly.

Who reads goes first: requests and fills have the background's share, and wait for those of readers;
between two ranges it pauses as long as there are new reads, for `PATIENCE` at most. When the kernel
culls its cache, or is about to, nothing is read: what nobody asked for would take the place of what
somebody did.

A layer that was begun is begun anew after a restart; what of it is local stays so. What was found
is recorded for (blob, diff ID, index), and holds for every image that says the same.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from lazyimg.errors import CorruptError, NotFoundError, StorageError
from lazyimg.fill.budget import Priority
from lazyimg.fill.device import Source
from lazyimg.fill.plan import block_floor, plan_blob_ranges
from lazyimg.fill.prefetch import cut, subtract, union_blocks
from lazyimg.images.check import CheckRequest, open_check
from lazyimg.registry.ports import Access
from lazyimg.registry.turns import URGENCY
from lazyimg_formats.device_table import BLOCK_SIZE, MAX_STORED_SPAN_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lazyimg.fill.engine import Engine
    from lazyimg.fill.plan import BlobRange
    from lazyimg.fill.ports import Sink
    from lazyimg.images.catalog import Catalog
    from lazyimg.images.image import Image, ImageLayer
    from lazyimg.images.library import LayerRecord, Library
    from lazyimg.images.mounts import Mounts
    from lazyimg.images.prefetching import Prefetcher
    from lazyimg.images.service import Images
    from lazyimg.limits import BuildLimits
    from lazyimg_formats.device_table import DeviceTable

_log = logging.getLogger(__name__)

PIECE: Final = 4 << 20
"""Bytes of a blob that are asked for at a time."""

QUIET: Final = 0.25
"""Seconds without a new read after which it goes on."""

PATIENCE: Final = 5.0
"""Seconds for which new reads hold up the next range."""

TIGHT_WAIT: Final = 30.0
"""Seconds after which it is looked again whether the cache has room."""

MAX_WINDOW: Final = MAX_STORED_SPAN_SIZE + 2 * PIECE
"""Bytes of a blob that are kept for filling. What needs more is asked for again."""

NODE: Final = Access(node=True)
"""For the node: what containerd was told is there is completed with what it was shown."""


@dataclass(frozen=True, slots=True)
class Lie:
    """A layer that is not what its image says: the `number`th, and how."""

    number: int
    problem: str


@dataclass(slots=True)
class Counters:
    """What was done since the start.

    Attributes:
        layers: that were read to the end, and found to be what their images say.
        lies: that were not.
        fetched: bytes of blobs.
    """

    layers: int = 0
    lies: int = 0
    fetched: int = 0


class Presence(Protocol):
    """What completion needs of a transport."""

    def present(self, cookie: str) -> list[range] | None:
        """Give the ranges that an open object has, in bytes; None if it is not open. Blocks."""
        ...

    def is_tight(self) -> bool:
        """Tell whether only what is read should come into the cache. Blocks; raises OSError."""
        ...


class Pace:
    """Spreads bytes over time.

    Args:
        rate: bytes per second.
        clock: seconds, never going back.
    """

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._free = 0.0  # from when on there may be more

    def take(self, size: int) -> float:
        """Give the seconds to wait before so many bytes more."""
        now = self._clock()
        begin = max(now, self._free)
        self._free = begin + size / self._rate
        return begin - now


class _Background:
    """How urgent the requests are; see `lazyimg.registry.turns.Urgent`."""

    priority = int(Priority.BACKGROUND)


class Completer:
    """Makes images local, and finds out whether they are what they say.

    Args:
        images: makes them ready.
        mounts: holds them, so that the kernel keeps their devices open.
        prefetcher: opens the devices.
        catalog: knows them.
        engine: fills them.
        presence: the transport.
        library: the records.
        limits: of the process that checks a layer.
        rate: bytes of blobs per second.

    Attributes:
        counters: see `Counters`.
        tight: it waits for room in the cache.
    """

    def __init__(
        self,
        *,
        images: Images,
        mounts: Mounts,
        prefetcher: Prefetcher,
        catalog: Catalog,
        engine: Engine,
        presence: Presence,
        library: Library,
        limits: BuildLimits,
        rate: int,
    ) -> None:
        self.counters = Counters()
        self.tight = False
        self._images = images
        self._mounts = mounts
        self._prefetcher = prefetcher
        self._catalog = catalog
        self._engine = engine
        self._presence = presence
        self._library = library
        self._limits = limits
        self._pace = Pace(rate)
        self._reads = 0

    async def complete(self, reference: str, platform: str, depth: int) -> Lie | None:
        """Make the lowest layers of an image local, and check them.

        Args:
            reference: with the digest of the platform's manifest.
            platform: os/arch[/variant].
            depth: how many layers.

        Returns:
            The lowest layer that is not what the image says; None: all are.

        Raises:
            LazyimgError: the registry, the disk or the kernel fails; it may be tried again.
        """
        URGENCY.set(_Background())
        image = await self._images.open(reference, platform, NODE, depth)
        layers = await self._images.layers(reference, platform, NODE, depth)
        async with self._mounts.held(image) as top:
            for number, (layer, record) in enumerate(
                zip(layers, image.chain.layers, strict=True), 1
            ):
                problem = await self._complete_layer(image, top, layer, record)
                if problem:
                    blob = layer.descriptor.digest
                    return Lie(number, f"layer {number} of {len(layers)}, {blob}: {problem}")
        return None

    async def _complete_layer(
        self, image: Image, top: Path, layer: ImageLayer, record: LayerRecord
    ) -> str:
        """Give what is wrong with a layer; "" if nothing is."""
        claim = layer.claim
        known = await asyncio.to_thread(self._library.checked, [claim])
        if known.get(claim):
            return known[claim]
        filling = await self._begin_filling(image, top, record)
        if claim in known:
            if filling is not None:
                await self._fill_rest(layer, filling)
            return ""
        what = f"{layer.source.name}: layer {claim.blob}"
        request = CheckRequest(
            claim.blob,
            layer.descriptor.size,
            claim.diff_id,
            layer.location,
            str(layer.path),
            record.device,
            self._limits.memory,
            self._limits.processor_time,
        )
        unfilled: CorruptError | None = None
        async with open_check(what, request) as check:
            for offset in range(0, layer.descriptor.size, PIECE):
                data = await self._read(layer, offset, layer.descriptor.size)
                await check.feed(data)
                if filling is not None and unfilled is None:
                    try:
                        await filling.take(data)
                    except CorruptError as error:  # the check says whose fault it is
                        unfilled = error
            try:
                problem, lasting = await check.finish()
            except CorruptError:
                layer.source.distrust(layer.descriptor, 0, layer.descriptor.size)
                raise
        problem = problem or str(unfilled or "")
        if lasting:
            await asyncio.to_thread(self._library.add_checked, claim, problem)
        self.counters.layers += not problem
        self.counters.lies += bool(problem)
        return problem

    async def _fill_rest(self, layer: ImageLayer, filling: _Filling) -> None:
        """Read what of a blob is still wanted, in its order."""
        for part in await asyncio.to_thread(filling.wanted):
            offset, stop = filling.skip_to(part.offset), part.offset + part.length
            while offset < stop:
                data = await self._read(layer, offset, stop)
                await filling.take(data)
                offset += len(data)
        await filling.finish()

    async def _begin_filling(self, image: Image, top: Path, record: LayerRecord) -> _Filling | None:
        """Give what fills a layer's device; None if it lacks nothing, or has nothing."""
        name = record.device
        if not record.device_size:
            return None
        await self._catalog.device(name)  # the engine has it from now on
        sink = await self._prefetcher.open_device(image, top, name, record.device_size)
        if sink is None:
            return None
        table = await asyncio.to_thread(self._catalog.load_table, name, record.table)
        return _Filling(self._engine, table, sink, await self._present(name))

    async def _present(self, name: str) -> Sequence[range]:
        return await asyncio.to_thread(self._presence.present, name) or []

    async def _read(self, layer: ImageLayer, offset: int, stop: int) -> bytes:
        length = min(PIECE, stop - offset)
        await self._wait_for_room()
        await self._wait_for_readers()
        await asyncio.sleep(self._pace.take(length))
        data = await layer.source.read_blob(layer.descriptor, offset, length)
        self.counters.fetched += len(data)
        return data

    async def _wait_for_room(self) -> None:
        try:
            while await asyncio.to_thread(self._presence.is_tight):
                if not self.tight:
                    _log.warning("images are not completed while the cache has little room")
                self.tight = True
                await asyncio.sleep(TIGHT_WAIT)
        except OSError as error:
            raise StorageError("cache", f"cannot be looked at: {error.strerror}") from error
        self.tight = False

    async def _wait_for_readers(self) -> None:
        end = time.monotonic() + PATIENCE
        while self._reads != self._engine.counters.reads and time.monotonic() < end:
            self._reads = self._engine.counters.reads
            await asyncio.sleep(QUIET)


class _Filling:
    """Fills what a device lacks from its blob, as the blob arrives."""

    def __init__(
        self, engine: Engine, table: DeviceTable, sink: Sink, present: Sequence[range]
    ) -> None:
        self._engine = engine
        self._table = table
        self._sink = sink
        self._present = union_blocks(present, table.size, inward=True)
        self._window = _Window(table.name)
        self._source = Source(table, self._window)
        self._span = 0  # the first one that has not arrived
        self._done = 0  # of the device

    def wanted(self) -> list[BlobRange]:
        """Give what of the blob is needed to fill what is missing, in its order."""
        table = self._table
        missing = subtract([range(table.size)], self._present)
        spans = {span for part in missing for span in table.spans_in(part.start, len(part))}
        return plan_blob_ranges(table, spans, self._engine.limits)

    def skip_to(self, offset: int) -> int:
        """Say that the next bytes are those at `offset`; gives from where on they are new."""
        return self._window.skip_to(offset)

    async def take(self, data: bytes) -> None:
        """Take the next bytes of the blob, and fill what they suffice for.

        Raises:
            LazyimgError: as `Engine.fill`.
        """
        self._window.add(data)
        table = self._table
        while self._span < table.span_count and sum(table.blob_range(self._span)) <= (
            self._window.end
        ):
            self._span += 1
        ready = table.size
        if self._span < table.span_count:
            first = table.extents_of(range(self._span, self._span + 1)).start
            ready = block_floor(table.extent(first).device_offset)
        await self._fill(ready)
        needed = table.spans_in(ready, BLOCK_SIZE)
        if needed:  # the block has parts of several
            self._window.drop(table.blob_range(needed.start)[0])
        else:
            self._window.drop(self._window.end)

    async def finish(self) -> None:
        """Fill what is missing yet; what was read has all of it but zeros. Raises as `take`."""
        await self._fill(self._table.size)

    async def _fill(self, ready: int) -> None:
        missing = subtract([range(self._done, ready)], self._present)
        for piece in cut(missing, self._engine.limits.prefetch_piece):
            await self._engine.fill(
                self._table.name,
                piece.start,
                len(piece),
                self._sink,
                priority=Priority.BACKGROUND,
                at_hand=self._source,
            )
        self._done = max(self._done, ready)
        self._present = [part for part in self._present if part.stop > self._done]


class _Window:
    """The bytes of a blob that arrived last; implements `lazyimg.fill.ports.BlobReader`.

    Attributes:
        end: how much of the blob has arrived.
    """

    def __init__(self, name: str) -> None:
        self.end = 0
        self._name = name
        self._parts: deque[tuple[int, bytes]] = deque()

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        self._parts.append((self.end, data))
        self.end += len(data)
        self.drop(self.end - MAX_WINDOW)

    def skip_to(self, offset: int) -> int:
        """Go on at `offset`, or where it is, if that is further; gives which."""
        if offset > self.end:
            self._parts.clear()
            self.end = offset
        return self.end

    def drop(self, offset: int) -> None:
        """Keep nothing that lies wholly before an offset."""
        while self._parts and self._parts[0][0] + len(self._parts[0][1]) <= offset:
            self._parts.popleft()

    async def read(self, offset: int, length: int) -> bytes:
        """Give bytes that are here; raises NotFoundError for others."""
        stop = offset + length
        if not self._parts or not self._parts[0][0] <= offset <= stop <= self.end:
            raise NotFoundError(f"device {self._name}", "its blob has not come that far")
        return b"".join(
            data[max(0, offset - start) : max(0, stop - start)] for start, data in self._parts
        )

    def peek(self, offset: int, length: int) -> None:
        """Give nothing: nobody asks."""

    def release(self) -> None:
        """Keep what there is."""

    def distrust(self, offset: int, length: int) -> bool:  # noqa: ARG002 - see the port
        """Say that the same bytes would come again."""
        return False
