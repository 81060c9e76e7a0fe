"""The indexes of layers that have none are made in a process of its own.

Run as ``python -m lazyimg.images.indexing``: an IndexRequest as a line of JSON on standard input,
then the blob, again and again; each time an IndexReply as a line on standard output. The parent has
an `IndexMaker`. Where the layer's device is wanted, too, it is written in the same pass. It costs
as much processor time as unpacking the layer does, and a layer may be made to cost more than that:
the child limits its own memory and time.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import mmap
import os
import resource
import signal
import sys
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from lazyimg.errors import CorruptError, LazyimgError, NotLazyError, StorageError
from lazyimg.images.build import lower_limit
from lazyimg.layers.indexer import LayerIndexer
from lazyimg.layers.staging import DeviceWriter
from lazyimg.layers.stored_digests import StoredDigests
from lazyimg.layers.stretches import SPACING
from lazyimg.limits import MIB, BuildLimits
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.soci.writer import make_ztoc
from lazyimg_formats.stream_index import parse_device

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_PIECE: Final = 1 << 20
_PACE: Final = 2 * MIB  # bytes of a blob that are worth a second of a processor


class IndexRequest(msgspec.Struct, frozen=True):
    """A layer, and where its index is to be.

    Attributes:
        blob: the blob's digest.
        size: its bytes.
        diff_id: what its tar must have.
        path: of the index: a new file, in a directory where there is room.
        memory: as in `lazyimg.limits.BuildLimits`.
        processor_time: likewise; a large blob has more.
        device: path of the layer's device, a new file; "": it is not wanted.
        reserve: bytes that stay free where the device is.
        ztoc: of the layer's zTOC, a new file; "": none is wanted.
    """

    blob: str
    size: int
    diff_id: str
    path: str
    memory: int = BuildLimits.memory
    processor_time: int = BuildLimits.processor_time
    device: str = ""
    reserve: int = 0
    ztoc: str = ""

    @property
    def seconds(self) -> int:
        """Processor time that it may take."""
        return self.processor_time + self.size // _PACE


class IndexReply(msgspec.Struct, frozen=True):
    """The digest of the index and its bytes; or what is wrong.

    Attributes:
        digest: of the index.
        size: its bytes.
        device: name of the device, if it was wanted.
        device_size: its bytes.
        problem: why there is none.
        corrupt: how the blob is not the one that was asked for.
        storage: why it cannot be written.
        out_of_memory: the request's `memory` is too little.
        failure: what this machine lacks.
    """

    digest: str = ""
    size: int = 0
    device: str = ""
    device_size: int = 0
    problem: str = ""
    corrupt: str = ""
    storage: str = ""
    out_of_memory: bool = False
    failure: str = ""


class IndexMaker:
    """Makes the indexes of layers, one after the other, in one process; begun when it is needed."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def make(
        self, what: str, request: IndexRequest, pieces: AsyncIterator[bytes]
    ) -> IndexReply:
        """Make the index of a layer; its file is whole and synced then. No failure is survived.

        Args:
            what: the layer, for messages.
            request: which.
            pieces: its blob, as it arrives.

        Raises:
            NotLazyError: no index can be made of the layer, or it takes too much.
            CorruptError: these are not the blob's bytes.
            StorageError: the disk is full or fails.
            LazyimgError: the blob cannot be read, or the process died.
        """
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-m",
                "lazyimg.images.indexing",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        process = self._process
        assert process.stdin is not None  # noqa: S101 - pipes were asked for
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        sent = 0
        broken = False
        async for piece in pieces:
            sent += len(piece)
            if sent > request.size:
                break
            try:
                process.stdin.write(piece)
                await process.stdin.drain()
            except (BrokenPipeError, ConnectionResetError):  # its last answer, or its end, says why
                broken = True
                break
        if (
            sent != request.size and not broken
        ):  # the child would wait for more, or take it for a request
            raise CorruptError(what, f"came as {sent} bytes or more, expected {request.size}")
        output = await process.stdout.readline()
        if output:
            return _read_reply(what, request, output)
        _, errors = await process.communicate()
        raise _explain_end(what, request, process.returncode, errors)

    async def close(self) -> None:
        """End the process; nothing of it is left, also if it has ended by itself."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        assert process.stdin is not None  # noqa: S101 - a pipe was asked for
        process.stdin.close()
        await asyncio.shield(process.communicate())
        with suppress(BrokenPipeError, ConnectionResetError):  # what it has not taken
            await process.stdin.wait_closed()


def _explain_end(what: str, request: IndexRequest, code: int | None, errors: bytes) -> LazyimgError:
    if code == -signal.SIGXCPU:
        problem = f"takes over {request.seconds} s of a processor to index"
        return NotLazyError(what, f"{problem} (build.processor_time)")
    last = errors.decode(errors="replace").strip().rpartition("\n")[2]
    return LazyimgError(what, f"its indexing ended with {code}: {last}")


def _read_reply(what: str, request: IndexRequest, output: bytes) -> IndexReply:
    reply = msgspec.json.decode(output, type=IndexReply)
    if reply.out_of_memory:
        size = request.memory // MIB
        raise NotLazyError(what, f"takes over {size} MiB of memory to index (build.memory)")
    if reply.problem:
        raise NotLazyError(
            what,
            f"no index can be made of it: {reply.problem}",
            "convert the image: lazyimg convert SRC DST",
        )
    if reply.corrupt:
        raise CorruptError(what, reply.corrupt)
    if reply.storage:
        raise StorageError(what, reply.storage)
    if reply.failure:
        raise LazyimgError(what, reply.failure)
    return reply


def index(request: IndexRequest, pieces: Iterator[bytes]) -> IndexReply:
    """Do it, in this process.

    Args:
        request: what to make.
        pieces: of the blob.

    Raises:
        FormatError: no index can be made of the layer.
        LazyimgError: these are not the blob's bytes, or the machine lacks something.
        OSError: the index cannot be written.
    """
    path = Path(request.path)
    stored = StoredDigests() if request.ztoc else None
    with ExitStack() as stack:
        file = stack.enter_context(path.open("w+b"))
        device = None
        if request.device:
            staged = stack.enter_context(Path(request.device).open("w+b"))
            device = DeviceWriter(staged, request.reserve)
        indexer = LayerIndexer(
            Digest.parse(request.blob), Digest.parse(request.diff_id), file, aside=path.parent,
            device=device, stored=stored,
        )  # fmt: skip
        with closing(indexer):
            for piece in pieces:
                indexer.feed(piece)
            size = indexer.finish().size
        del indexer
        if stored is not None:
            file.seek(0)
            Path(request.ztoc).write_bytes(make_ztoc(file.read(), stored.finish(), SPACING))
        os.fsync(file.fileno())
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if device is None:
            return IndexReply(f"sha256:{digest}", size)
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            name, device_size = _name_device(data)
    return IndexReply(f"sha256:{digest}", size, name, device_size)


def _name_device(index: mmap.mmap) -> tuple[str, int]:
    """Give the name of the device that this index describes, and its bytes."""
    with memoryview(index) as data:
        table = parse_device(data)
        return table.name, table.size


def _read_pieces(size: int) -> Iterator[bytes]:
    while size and (data := sys.stdin.buffer.read(min(_PIECE, size))):
        size -= len(data)
        yield data


def _allow(seconds: int) -> None:
    """Let this process take so many seconds more of a processor, if it may."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime) + seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(
        resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
    )


def main() -> None:
    """Answer requests on standard input; a failure is the last answer."""
    while line := sys.stdin.buffer.readline():
        request = msgspec.json.decode(line, type=IndexRequest)
        reply = _answer(request)
        sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
        sys.stdout.buffer.flush()
        if not reply.digest:
            break


def _answer(request: IndexRequest) -> IndexReply:
    lower_limit(resource.RLIMIT_DATA, request.memory)
    _allow(request.seconds)
    try:
        return index(request, _read_pieces(request.size))
    except MemoryError:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))  # there must be some for the answer
        return IndexReply(out_of_memory=True)
    except FormatError as error:
        return IndexReply(problem=str(error))
    except CorruptError as error:
        return IndexReply(corrupt=str(error))
    except LazyimgError as error:
        return IndexReply(failure=str(error))
    except OSError as error:
        return IndexReply(storage=f"{request.path}: {error.strerror}")


if __name__ == "__main__":
    main()
