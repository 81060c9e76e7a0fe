"""Indexes of layers -> bootstrap and device tables, in a process of its own.

Run as ``python -m lazyimg.images.build``: a BuildRequest as JSON on standard input, a BuildReply
on standard output. The parent calls `build_image`. An index may lie about everything, so the child
limits its own memory and time (`BuildLimits`), once it has read the request.
"""

from __future__ import annotations

import asyncio
import hashlib
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from lazyimg.errors import CorruptError, LazyimgError, NotLazyError, StorageError
from lazyimg.host.files import write_file
from lazyimg.images.comparable import mark_times
from lazyimg.images.merge import merge_layers
from lazyimg.images.nydus import BuiltBlob, MissingContext, NydusSource, build_nydus
from lazyimg.layers.locate import IndexLocation  # noqa: TC001 - msgspec reads the annotation
from lazyimg.layers.parse import parse_index
from lazyimg.limits import MIB, BuildLimits
from lazyimg_formats.device_table import BLOCK_SIZE
from lazyimg_formats.erofs.tree import Device
from lazyimg_formats.erofs.writer import serialize_image
from lazyimg_formats.errors import FormatError
from lazyimg_formats.nydus.bootstrap import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazyimg_formats.erofs.tree import Node
    from lazyimg_formats.layer import LayerIndex


_REMEDY: Final = "convert it again, or report it to its owner"
_CONVERT: Final = "convert the image it was made from: lazyimg convert SRC DST"


class LayerSource(msgspec.Struct, frozen=True):
    """A layer to build from.

    Attributes:
        name: what an error calls it: the blob's digest.
        location: of its index in the blob.
        index: path of its index, as it was fetched.
        table: path for its device table.
    """

    name: str
    location: IndexLocation
    index: str
    table: str


class BuildRequest(msgspec.Struct, frozen=True):
    """Build the image of these layers, lowest first, into a directory of bootstraps.

    Attributes:
        layers: lowest first.
        bootstraps: path of the directory.
        memory: as in `lazyimg.limits.BuildLimits`.
        processor_time: likewise.
        comparable: whether its times are marked, as in `lazyimg.images.comparable`.
        nydus: a Nydus image, in place of layers.
    """

    layers: list[LayerSource]
    bootstraps: str
    memory: int = BuildLimits.memory
    processor_time: int = BuildLimits.processor_time
    comparable: bool = False
    nydus: NydusSource | None = None


class BuiltLayer(msgspec.Struct, frozen=True):
    """A layer's device.

    Attributes:
        device: its name.
        size: its bytes (0: the layer holds no file data).
        first: bytes at its start that are wanted first.
    """

    device: str
    size: int
    first: int = 0


class BuildReply(msgspec.Struct, frozen=True):
    """The bootstrap's name and size in bytes, and each layer's device; or what is wrong.

    Of a Nydus image, `blobs` in place of layers, or what is `missing` to build it.
    `out_of_memory` means that the request's `memory` is too little.
    """

    fsid: str = ""
    size: int = 0
    layers: list[BuiltLayer] = []
    blobs: list[BuiltBlob] = []
    missing: list[MissingContext] = []
    unsupported: str = ""
    out_of_memory: bool = False
    corrupt: str = ""
    storage: str = ""


async def build_image(what: str, request: BuildRequest) -> BuildReply:
    """Build in a child process, so that its memory and its time are its own.

    Args:
        what: the image, for messages.
        request: what to build it from.

    Raises:
        CorruptError: an index breaks its format, the layers contradict each other, or the image
            takes more than `BuildLimits` to build.
        NotLazyError: it is a Nydus image of a kind that is not read here.
        StorageError: the disk is full or fails.
        LazyimgError: the child died.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-m",
        "lazyimg.images.build",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate(msgspec.json.encode(request))
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode == -signal.SIGXCPU:
        raise CorruptError(
            what,
            f"takes over {request.processor_time} s of a processor to build",
            "if it is to be trusted, set build.processor_time to more",
        )
    if process.returncode == -signal.SIGSEGV:  # msgspec, where there is no memory
        raise _too_large(what, request)
    if process.returncode != 0:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise LazyimgError(what, f"its build ended with {process.returncode}: {last}")
    reply = msgspec.json.decode(output, type=BuildReply)
    if reply.out_of_memory:
        raise _too_large(what, request)
    if reply.unsupported:
        raise NotLazyError(what, reply.unsupported, _CONVERT)
    if reply.corrupt:
        raise CorruptError(what, reply.corrupt, _REMEDY)
    if reply.storage:
        raise StorageError(what, reply.storage)
    return reply


def _too_large(what: str, request: BuildRequest) -> CorruptError:
    return CorruptError(
        what,
        f"takes over {request.memory // MIB} MiB of memory to build",
        "if it is to be trusted, set build.memory to more",
    )


def build(request: BuildRequest) -> BuildReply:
    """Do it, in this process.

    Raises:
        FormatError: an index breaks its format, or the layers contradict each other.
        OSError: a file cannot be read or written.
    """
    if request.nydus is not None:
        return _build_nydus(request, request.nydus)
    devices: list[Device] = []
    numbers: dict[str, int] = {}
    built: list[BuiltLayer] = []

    def parsed() -> Iterator[tuple[LayerIndex, int]]:
        for layer in request.layers:
            index = _parse(layer)
            table = index.table
            number = numbers.setdefault(table.name, len(numbers))
            if number == len(devices):
                devices.append(Device(table.name, table.size // BLOCK_SIZE))
            built.append(BuiltLayer(table.name, table.size, index.first))
            write_file(Path(layer.table), table.data)
            yield index, number

    root = None
    for tree in merge_layers(parsed()):
        root = tree
    if root is None:
        raise FormatError("image", "it has no layers")
    if request.comparable:
        mark_times(root)
    fsid, size = _write(request, root, devices)
    return BuildReply(fsid, size, built)


def _build_nydus(request: BuildRequest, source: NydusSource) -> BuildReply:
    built = build_nydus(source)
    if built.root is None:
        return BuildReply(missing=built.missing)
    fsid, size = _write(request, built.root, built.devices)
    return BuildReply(fsid, size, blobs=built.blobs)


def _write(request: BuildRequest, root: Node, devices: list[Device]) -> tuple[str, int]:
    image = serialize_image(root, devices)
    fsid = hashlib.sha256(image).hexdigest()
    write_file(Path(request.bootstraps) / fsid, image)
    return fsid, len(image)


def _parse(layer: LayerSource) -> LayerIndex:
    try:
        return parse_index(layer.location, Path(layer.index).read_bytes())
    except FormatError as error:
        raise FormatError(f"layer {layer.name}", str(error)) from error


def lower_limit(kind: int, most: int) -> None:
    """Lower a limit of this process, as far as it is not lower already."""
    soft, hard = resource.getrlimit(kind)
    soft = most if soft == resource.RLIM_INFINITY else min(soft, most)
    resource.setrlimit(kind, (soft, hard))


def main() -> None:
    """Answer one request on standard input."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=BuildRequest)
    lower_limit(resource.RLIMIT_DATA, request.memory)
    lower_limit(resource.RLIMIT_CPU, request.processor_time)
    try:
        reply = build(request)
    except MemoryError:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))  # there must be some for the answer
        reply = BuildReply(out_of_memory=True)
    except UnsupportedError as error:
        reply = BuildReply(unsupported=str(error))
    except FormatError as error:
        reply = BuildReply(corrupt=str(error))
    except OSError as error:
        reply = BuildReply(storage=f"{error.filename or request.bootstraps}: {error.strerror}")
    sys.stdout.buffer.write(msgspec.json.encode(reply))


if __name__ == "__main__":
    main()
