"""Is a layer what its image says? Asks its blob, in a process of its own.

Run as ``python -m lazyimg.images.check``: a CheckRequest as a line of JSON on standard input, then
the blob; a CheckReply on standard output. The parent calls `open_check`, and feeds the blob as it
arrives. Decompressing, hashing and comparing cost processor time, and an index memory: the daemon
pays neither, and the child goes behind everything else that the machine has to do.

Checked: the blob has its digest; its tar has the diff ID that the image's config says; and the
index from which the image's metadata was made, and whose digests every fill is checked against,
describes this very tar (`lazyimg_formats.tar.comparison`, `lazyimg_formats.stream_comparison`).
If it is asked for, also that each span decodes, from where the index says that it lies, to bytes
with its digest: `completion` finds that out when it fills the device. What is wrong is believed
only if the blob has its digest: else it is the transfer that was wrong.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec

from lazyimg.errors import CorruptError, LazyimgError, StorageError
from lazyimg.fill.decode import iterate_spans
from lazyimg.images.build import lower_limit
from lazyimg.images.ztoc_check import ZtocCheck
from lazyimg.layers.decompress import MAGIC_SIZE, Decompressor, choose_decompressor
from lazyimg.layers.locate import PLAIN, SOCI, STARGZ, IndexLocation
from lazyimg.layers.parse import check_index, parse_index
from lazyimg.limits import MIB, BuildLimits
from lazyimg_formats.device_table import BLOCK_SIZE, DeviceTable
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import ChunkMap, LayerIndex
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.soci.toc import parse_ztoc
from lazyimg_formats.stream_comparison import StreamComparison
from lazyimg_formats.tar.comparison import TarComparison

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence


_PIECE: Final = 1 << 20
_BEHIND: Final = 19  # nice(2): after everybody else
_PACE: Final = 2 * MIB  # bytes of a blob that are worth a second of a processor


class CheckRequest(msgspec.Struct, frozen=True):
    """A layer, and what is said of it.

    Attributes:
        blob: the blob's digest.
        size: its bytes.
        diff_id: what its tar must have; "": it is no tar.
        location: of its index; None: it has none, and only blob and tar are checked.
        index: path of the index, as it was fetched.
        device: name of the device that was made from the index; "": none was.
        memory: as in `lazyimg.limits.BuildLimits`.
        processor_time: likewise; a large blob has more.
        spans: whether each span is decoded, too.
        table: path of a device table whose spans lie in the blob, if there is no index of it.
    """

    blob: str
    size: int
    diff_id: str
    location: IndexLocation | None = None
    index: str = ""
    device: str = ""
    memory: int = BuildLimits.memory
    processor_time: int = BuildLimits.processor_time
    spans: bool = False
    table: str = ""

    @property
    def seconds(self) -> int:
        """Processor time that the check may take."""
        return self.processor_time + self.size // _PACE


class CheckReply(msgspec.Struct, frozen=True):
    """What was found: all empty, if the layer is what its image says.

    Attributes:
        problem: how it is not.
        corrupt: how the blob is not the one that was asked for.
        storage: why the index cannot be used.
        out_of_memory: the request's `memory` is too little.
    """

    problem: str = ""
    corrupt: str = ""
    storage: str = ""
    out_of_memory: bool = False


class Finding(NamedTuple):
    """What is wrong with a layer.

    Attributes:
        problem: in words; "" if nothing is.
        lasting: whether it will be so whenever the same layer is checked again.
    """

    problem: str
    lasting: bool = True


class LayerCheck:
    """A check that is under way; see `open_check`."""

    def __init__(
        self, what: str, request: CheckRequest, process: asyncio.subprocess.Process
    ) -> None:
        self._what = what
        self._request = request
        self._process = process
        assert process.stdin is not None  # noqa: S101 - a pipe was asked for
        self._input = process.stdin

    async def feed(self, data: bytes) -> None:
        """Give the next bytes of the blob; waits until they are nearly taken."""
        with suppress(BrokenPipeError, ConnectionResetError):  # the child's end says why
            self._input.write(data)
            await self._input.drain()

    async def finish(self) -> Finding:
        """Say that this was all of the blob, and wait for what was found.

        Raises:
            CorruptError: these are not the blob's bytes.
            StorageError: the index cannot be used.
            LazyimgError: the child died.
        """
        self._input.close()
        output, errors = await self._process.communicate()
        code, request = self._process.returncode, self._request
        if code == -signal.SIGXCPU:
            return Finding(
                f"takes over {request.seconds} s of a processor to check (build.processor_time)",
                lasting=False,
            )
        if code == -signal.SIGSEGV:  # msgspec, where there is no memory
            return _too_large(request)
        if code != 0:
            last = errors.decode(errors="replace").strip().rpartition("\n")[2]
            raise LazyimgError(self._what, f"its check ended with {code}: {last}")
        reply = msgspec.json.decode(output, type=CheckReply)
        if reply.out_of_memory:
            return _too_large(request)
        if reply.corrupt:
            raise CorruptError(self._what, reply.corrupt)
        if reply.storage:
            raise StorageError(self._what, reply.storage)
        return Finding(reply.problem)


def _too_large(request: CheckRequest) -> Finding:
    return Finding(
        f"takes over {request.memory // MIB} MiB of memory to check (build.memory)", lasting=False
    )


@asynccontextmanager
async def open_check(what: str, request: CheckRequest) -> AsyncIterator[LayerCheck]:
    """Begin to check a layer; what is not finished inside the block is given up.

    Args:
        what: the layer, for messages.
        request: what is said of it.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-m",
        "lazyimg.images.check",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    checking = LayerCheck(what, request, process)
    try:
        await checking.feed(msgspec.json.encode(request) + b"\n")
        yield checking
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.shield(process.communicate())  # else its pipes may outlive the loop


class _Step(Protocol):
    """Compares a tar, or a blob, with its index; raises FormatError at the first difference."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        ...

    def finish(self) -> None:
        """Take that there are no more."""
        ...


class _Tar:
    """Compressed bytes to a verdict; raises FormatError as soon as it is known."""

    def __init__(self, diff_id: Digest, comparison: _Step | None) -> None:
        self._diff_id = diff_id
        self._hasher = diff_id.hasher()
        self._comparison = comparison
        self._decompressor: Decompressor | None = None
        self._head = b""

    def feed(self, data: bytes) -> None:
        if self._decompressor is None:
            self._head += data
            if len(self._head) < MAGIC_SIZE:
                return
            self._decompressor = choose_decompressor(self._head)
            data = self._head
        for piece in self._decompressor.feed(data):
            self._hasher.update(piece)
            if self._comparison is not None:
                self._comparison.feed(piece)

    def finish(self) -> None:
        if self._decompressor is None:
            raise FormatError("layer", f"a blob of {len(self._head)} bytes holds none")
        self._decompressor.finish()
        if self._comparison is not None:
            self._comparison.finish()
        if not self._hasher.matches():
            found = self._hasher.digest()
            raise FormatError("diff ID", f"its tar has {found}, its image says {self._diff_id}")


class _Spans:
    """Decodes each span as soon as its bytes are there; raises FormatError for the first bad one.

    Of the blob no more is kept than what spans that have begun need.
    """

    def __init__(self, index: LayerIndex) -> None:
        self._index = index
        self._table = index.table
        count = self._table.span_count
        self._order: Sequence[int] = range(count)  # of the blob
        starts = [self._table.blob_range(number)[0] for number in self._order]
        if any(before > after for before, after in pairwise(starts)):
            self._order = sorted(self._order, key=starts.__getitem__)
        self._next = 0  # of that order
        self._held = bytearray()
        self._start = 0  # where what is held begins in the blob

    def feed(self, data: bytes) -> None:
        self._held += data
        end = self._start + len(self._held)
        while self._next < len(self._order):
            offset, length = self._table.blob_range(self._order[self._next])
            if offset + length > end:
                break
            self._check(offset, length)
        else:
            offset = end
        done = min(offset, end) - self._start
        if done > 0:
            del self._held[:done]
            self._start += done

    def finish(self) -> None:
        if self._next < len(self._order):
            number = self._order[self._next]
            offset, length = self._table.blob_range(number)
            raise self._differs(
                number, f"bytes {offset}-{offset + length - 1} are past the blob's end"
            )

    def _check(self, offset: int, length: int) -> None:
        """Check the next span, and all others that lie in the same bytes."""
        stop = self._next + 1
        while stop < len(self._order) and self._table.blob_range(self._order[stop]) == (
            offset, length,
        ):  # fmt: skip
            stop += 1
        at = offset - self._start
        data = bytes(self._held[at : at + length])
        number = self._order[self._next]
        try:
            for number, decoded in iterate_spans(
                self._table, self._order[self._next : stop], offset, data
            ):
                if isinstance(decoded, CorruptError):
                    raise self._differs(number, decoded.problem)
        except StorageError as error:  # a window that is none
            raise self._differs(number, error.problem) from error
        self._next = stop

    def _differs(self, number: int, problem: str) -> FormatError:
        extents = self._table.extents_of(range(number, number + 1))
        path = find_file(self._index, self._table.extent(extents[0]).device_offset)
        of = f", of {path[:80]!r}" if path else ""
        return FormatError("index", f"span {number} of {self._table.span_count}{of}: {problem}")


def find_file(index: LayerIndex, offset: int) -> bytes:
    """Give the path of a file that has a byte of its layer's device.

    Args:
        index: the layer.
        offset: of a byte that some file has.
    """
    block, path = offset - offset % BLOCK_SIZE, b""
    for entry in index.entries:
        if isinstance(entry.data, int) and entry.data <= offset < entry.data + entry.size:
            return entry.path
        if isinstance(entry.data, ChunkMap) and any(
            first * BLOCK_SIZE <= block < (first * BLOCK_SIZE) + (1 << entry.data.bits)
            for first in entry.data.blocks
        ):
            path = entry.path
    return path


def check(request: CheckRequest, pieces: Iterator[bytes]) -> CheckReply:
    """Do it, in this process.

    Args:
        request: what is said of the layer.
        pieces: of its blob.

    Raises:
        FormatError: the index is not the one that the request is about.
        OSError: it cannot be read.
    """
    expected = Digest.parse(request.blob)
    comparison, spans, problem = _open_index(request)
    steps: list[_Step] = [] if spans is None else [spans]
    if request.diff_id:
        steps.insert(0, _Tar(Digest.parse(request.diff_id), comparison))
    blob = expected.hasher()
    for piece in pieces:  # all of them, whatever is found: see above
        blob.update(piece)
        for step in steps:
            problem = problem or _problem_of(partial(step.feed, piece))
    if not blob.matches():
        return CheckReply(
            corrupt=f"its blob came as {blob.size} bytes with the digest {blob.digest()}"
        )
    for step in steps:
        problem = problem or _problem_of(step.finish)
    return CheckReply(problem)


def _open_index(request: CheckRequest) -> tuple[_Step | None, _Step | None, str]:
    """Give what compares tar and blob with the index; or how the index breaks its format."""
    location = request.location
    if request.table:
        table = DeviceTable(Path(request.table).read_bytes())
        return None, _Spans(LayerIndex([], table)), ""
    if location is None:
        return None, None, ""
    data = Path(request.index).read_bytes()
    comparison: _Step
    spans: _Step | None = None
    try:
        if location.format == SOCI:
            check_index(location, data)
            ztoc = parse_ztoc(data)
            both = ZtocCheck(ztoc)
            index, comparison, spans = ztoc.layer, both.tar, both
        else:
            index = parse_index(location, data)
            comparison = _compare_with(request, location, index, data)
    except FormatError as error:
        check_index(location, data)  # raises: it is this file that is damaged
        return None, None, f"index: {error}"
    if request.device not in {"", index.table.name}:
        raise FormatError("index", f"makes device {index.table.name}, not {request.device}")
    if spans is None and request.spans:
        spans = _Spans(index)
    return comparison, spans, ""


def _compare_with(
    request: CheckRequest, location: IndexLocation, index: LayerIndex, data: bytes
) -> _Step:
    if location.format in PLAIN:
        return StreamComparison(data, Digest.parse(request.blob), Digest.parse(request.diff_id))
    return TarComparison(index, stargz=location.format in STARGZ)


def _problem_of(step: Callable[[], None]) -> str:
    try:
        step()
    except FormatError as error:
        return str(error)
    return ""


def _read_pieces() -> Iterator[bytes]:
    while data := sys.stdin.buffer.read(_PIECE):
        yield data


def main() -> None:
    """Answer one request on standard input."""
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=CheckRequest)
    os.nice(_BEHIND)
    lower_limit(resource.RLIMIT_DATA, request.memory)
    lower_limit(resource.RLIMIT_CPU, request.seconds)
    try:
        reply = check(request, _read_pieces())
    except MemoryError:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))  # there must be some for the answer
        reply = CheckReply(out_of_memory=True)
    except OSError as error:
        reply = CheckReply(storage=f"{request.index}: {error.strerror}")
    except FormatError as error:
        reply = CheckReply(storage=f"{request.index}: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(reply))


if __name__ == "__main__":
    main()
