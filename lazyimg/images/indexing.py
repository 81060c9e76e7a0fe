"""The index of a layer that has none is made in a process of its own.

Run as ``python -m lazyimg.images.indexing``: an IndexRequest as a line of JSON on standard input,
then the blob; an IndexReply on standard output. The parent calls `make_index`. It costs as much
processor time as unpacking the layer does, and a layer may be made to cost more than that: the
child limits its own memory and time.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import signal
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from lazyimg.errors import CorruptError, LazyimgError, NotLazyError, StorageError
from lazyimg.images.build import lower_limit
from lazyimg.layers.indexer import LayerIndexer
from lazyimg.limits import MIB, BuildLimits
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest

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
    """

    blob: str
    size: int
    diff_id: str
    path: str
    memory: int = BuildLimits.memory
    processor_time: int = BuildLimits.processor_time

    @property
    def seconds(self) -> int:
        """Processor time that it may take."""
        return self.processor_time + self.size // _PACE


class IndexReply(msgspec.Struct, frozen=True):
    """The digest of the index and its bytes; or what is wrong.

    Attributes:
        digest: of the index.
        size: its bytes.
        problem: why there is none.
        corrupt: how the blob is not the one that was asked for.
        storage: why it cannot be written.
        out_of_memory: the request's `memory` is too little.
        failure: what this machine lacks.
    """

    digest: str = ""
    size: int = 0
    problem: str = ""
    corrupt: str = ""
    storage: str = ""
    out_of_memory: bool = False
    failure: str = ""


async def make_index(what: str, request: IndexRequest, pieces: AsyncIterator[bytes]) -> IndexReply:
    """Make the index of a layer; its file is whole and synced then.

    Args:
        what: the layer, for messages.
        request: which.
        pieces: its blob, as it arrives.

    Raises:
        NotLazyError: no index can be made of the layer, or it takes too much.
        CorruptError: these are not the blob's bytes.
        StorageError: the disk is full or fails.
        LazyimgError: the blob cannot be read, or the child died.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-m",
        "lazyimg.images.indexing",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None  # noqa: S101 - a pipe was asked for
    try:
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        async for piece in pieces:
            with suppress(BrokenPipeError, ConnectionResetError):  # the child's end says why
                process.stdin.write(piece)
                await process.stdin.drain()
        process.stdin.close()
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.communicate())
    return _read_reply(what, request, process.returncode, output, errors)


def _read_reply(
    what: str, request: IndexRequest, code: int | None, output: bytes, errors: bytes
) -> IndexReply:
    if code == -signal.SIGXCPU:
        problem = f"takes over {request.seconds} s of a processor to index"
        raise NotLazyError(what, f"{problem} (build.processor_time)")
    if code != 0:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise LazyimgError(what, f"its indexing ended with {code}: {last}")
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
    with path.open("w+b") as file:
        indexer = LayerIndexer(
            Digest.parse(request.blob), Digest.parse(request.diff_id), file, aside=path.parent
        )
        with closing(indexer):
            for piece in pieces:
                indexer.feed(piece)
            size = indexer.finish().size
        os.fsync(file.fileno())
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return IndexReply(f"sha256:{digest}", size)


def _read_pieces() -> Iterator[bytes]:
    while data := sys.stdin.buffer.read(_PIECE):
        yield data


def main() -> None:
    """Answer one request on standard input."""
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=IndexRequest)
    lower_limit(resource.RLIMIT_DATA, request.memory)
    lower_limit(resource.RLIMIT_CPU, request.seconds)
    try:
        reply = index(request, _read_pieces())
    except MemoryError:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))  # there must be some for the answer
        reply = IndexReply(out_of_memory=True)
    except FormatError as error:
        reply = IndexReply(problem=str(error))
    except CorruptError as error:
        reply = IndexReply(corrupt=str(error))
    except LazyimgError as error:
        reply = IndexReply(failure=str(error))
    except OSError as error:
        reply = IndexReply(storage=f"{request.path}: {error.strerror}")
    sys.stdout.buffer.write(msgspec.json.encode(reply))


if __name__ == "__main__":
    main()
