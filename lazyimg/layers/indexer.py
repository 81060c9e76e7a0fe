"""A layer that has no index: one is made of it in one pass, as its blob arrives.

    blob --> digest
         --> cutter (`stretches`) --> tar --> diff ID
                                  |       --> digest of each span
                                  |       --> tar scanner --> headers, compressed --> kept aside
                                  |                       --> LayerBuilder, which only checks,
                                  |                           and says where files lie
                                  |       --> device (`staging`), if it is wanted
                                  --> cuts, windows compressed --> the index's file

What is made is `lazyimg_formats.stream_index`. Memory is bounded by the number of spans, 100 bytes
each: windows and headers go to files. The index is good only if `finish` says so: then the blob has
its digest, the tar has its own, and every span's digest was computed from these very bytes.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from itertools import accumulate
from typing import IO, TYPE_CHECKING, Final

from zstandard import ZstdCompressor

from lazyimg.errors import CorruptError
from lazyimg.layers.decompress import MAGIC_SIZE
from lazyimg.layers.stretches import SPACING, Cut, NoSpansError, SpanCutter, choose_cutter
from lazyimg_formats.device_table import MAX_SPANS, MAX_STORED_SPAN_SIZE
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import LayerBuilder, Piece, has_entry
from lazyimg_formats.stream_index import (
    HEADER_SIZE,
    StreamHeader,
    StreamSpan,
    serialize_header,
    serialize_spans,
)
from lazyimg_formats.tar.scanner import TarScanner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lazyimg.layers.staging import DeviceWriter
    from lazyimg.layers.stored_digests import StoredDigests
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.tar.scanner import Member

_LEVEL: Final = 9


class LayerIndexer:
    """Takes a layer's blob piece by piece.

    Args:
        blob: its digest.
        diff_id: digest of its tar.
        file: takes the index: new, empty, and can be read and sought.
        spacing: bytes of tar between two points at which a gzip stream can be entered.
        aside: directory for what is kept aside; None: the machine's for such files.
        device: takes the layer's device; None: nothing does.
        stored: is told of the blob's bytes, and where spans begin.
    """

    def __init__(
        self,
        blob: Digest,
        diff_id: Digest,
        file: IO[bytes],
        spacing: int = SPACING,
        *,
        aside: Path | None = None,
        device: DeviceWriter | None = None,
        stored: StoredDigests | None = None,
    ) -> None:
        self._blob, self._blob_hash = blob, blob.hasher()
        self._diff_id, self._tar_hash = diff_id, diff_id.hasher()
        self._spacing = spacing
        self._stored = stored
        self._file = file
        self._head = b""
        self._cutter: SpanCutter | None = None
        self._device = device
        self._builder = LayerBuilder(keep=False, placed=None if device is None else device.place)
        self._scanner = TarScanner(self._take_header)
        self._headers: IO[bytes] = tempfile.TemporaryFile(dir=aside)  # noqa: SIM115 - closed by `close`
        self._compress = ZstdCompressor(level=_LEVEL).compressobj()
        self._window = ZstdCompressor(level=_LEVEL, write_checksum=True).compress
        self._windows = 0  # their bytes
        self._spans: list[StreamSpan] = []
        self._span_hash = hashlib.sha256()
        self._length = 0  # of the span, decoded
        self._problem: FormatError | None = None
        file.write(bytes(HEADER_SIZE))

    def close(self) -> None:
        """Give up what is kept aside, and the scanner, which refers to this."""
        self._headers.close()
        self._scanner = TarScanner()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the blob. What is wrong with them is said by `finish`.

        Raises:
            NoSpansError: no index can be made, whatever comes yet.
            OSError: the disk is full or fails.
        """
        self._blob_hash.update(data)
        if self._stored is not None:
            self._stored.feed(data)
        if self._problem is not None:
            return
        try:
            self._feed(data)
        except NoSpansError:
            raise
        except FormatError as error:
            self._problem = error

    def _feed(self, data: bytes) -> None:
        if self._cutter is None:
            self._head += data
            if len(self._head) < MAGIC_SIZE:
                return
            data, self._head = self._head, b""
            self._cutter = choose_cutter(data, self._spacing)
        self._take(self._cutter.feed(data))

    def _take(self, parts: Iterator[bytes | Cut]) -> None:
        for part in parts:
            if isinstance(part, Cut):
                self._add_span(part)
                continue
            self._tar_hash.update(part)
            self._span_hash.update(part)
            self._length += len(part)
            for member in self._scanner.feed(part):
                self._check(member)
            if self._device is not None:
                self._device.feed(part)

    def _take_header(self, block: bytes) -> None:
        self._headers.write(self._compress.compress(block))

    def _check(self, member: Member) -> None:
        """See that the index can be used: that its entries are possible ones."""
        at, regions = member.data_offset, member.regions
        if not member.data_size or not has_entry(member.entry.path):
            pieces = []
        elif regions is None:
            pieces = [Piece(0, member.data_size, 0, at)]
        else:
            starts = accumulate((length for _, length in regions), initial=at)
            pieces = [
                Piece(offset, length, 0, start)
                for (offset, length), start in zip(regions, starts, strict=False)
            ]
        self._builder.add(member.entry, pieces)

    def _add_span(self, cut: Cut) -> None:
        if len(self._spans) >= MAX_SPANS:
            raise FormatError("layer", f"over {MAX_SPANS} gzip members or zstd frames")
        if cut.length > MAX_STORED_SPAN_SIZE:
            raise FormatError("layer", f"a span of {cut.length} bytes")
        if self._stored is not None:
            self._stored.begin(cut.offset, cut.bit)
        window = self._window(cut.window) if cut.window else b""
        self._file.write(window)
        self._windows += len(window)
        self._spans.append(
            StreamSpan(
                cut.offset, cut.length, self._length, self._span_hash.digest(), cut.bit,
                len(window),
            )
        )  # fmt: skip
        self._span_hash, self._length = hashlib.sha256(), 0

    def finish(self) -> StreamHeader:
        """Write the rest of the index: nothing follows.

        Raises:
            CorruptError: these are not the blob's bytes.
            FormatError: the layer is no tar, not the one that `diff_id` names, or no index can be
                made of it.
            OSError: the disk is full or fails.
        """
        if not self._blob_hash.matches():
            raise CorruptError(
                f"blob {self._blob}",
                f"came as {self._blob_hash.size} bytes with the digest {self._blob_hash.digest()}",
            )
        if self._problem is not None:
            raise self._problem
        if self._cutter is None:
            raise FormatError("layer", f"a blob of {len(self._head)} bytes holds none")
        self._take(self._cutter.finish())
        self._scanner.finish()
        if not self._tar_hash.matches():
            found = self._tar_hash.digest()
            raise FormatError("diff ID", f"its tar has {found}, its image says {self._diff_id}")
        if self._device is not None:
            self._device.finish(self._builder.finish().table.size)
        return self._write()

    def _write(self) -> StreamHeader:
        assert self._cutter is not None  # noqa: S101 - `finish` knows
        self._headers.write(self._compress.flush())
        size = self._headers.tell()
        header = StreamHeader(
            self._cutter.codec, self._blob, self._blob_hash.size, self._diff_id,
            self._tar_hash.size, len(self._spans), self._windows, size,
        )  # fmt: skip
        self._headers.seek(0)
        shutil.copyfileobj(self._headers, self._file)
        self._file.write(serialize_spans(self._spans))
        self._file.seek(0)
        self._file.write(serialize_header(header))
        self._file.flush()
        return header
