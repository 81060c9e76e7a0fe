"""What is fuzzed: every parser of bytes from outside, as a function of any bytes.

A target returns, or raises what its parser documents: that is caught here. Anything else that
comes out is a finding. Where a parser is only reached by bytes that another one takes (an index
that is merged and written as a bootstrap), the target goes the whole way.
"""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from yarl import URL

from lazyimg.api.messages import MountRequest, PrefetchRequest, StatusReply
from lazyimg.config_file import load_config
from lazyimg.convert.decompress import MAGIC_SIZE, choose_decompressor
from lazyimg.errors import ConfigurationError, CorruptError, KernelError, LazyimgError
from lazyimg.fill.decode import decode_span
from lazyimg.host.mount_table import find_mount, parse_mount_table
from lazyimg.host.own_mounts import parse_mapped_files
from lazyimg.images.access import parse_access
from lazyimg.images.merge import merge_layers
from lazyimg.registry.auth import parse_challenges
from lazyimg.registry.login import parse_registry
from lazyimg.registry.ranges import ByteRange, plan_range
from lazyimg.registry.redact import printable, redact_url
from lazyimg.registry.retry import parse_retry_after
from lazyimg.registry.transport import join_location
from lazyimg_formats.cachefiles.messages import parse_request
from lazyimg_formats.device_table import BLOCK_SIZE, Codec, DeviceTable, Span
from lazyimg_formats.erofs.reader import Image
from lazyimg_formats.erofs.tree import Device
from lazyimg_formats.erofs.writer import serialize_image
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import parse_config, parse_document, parse_errors
from lazyimg_formats.oci.hosts import parse_hosts
from lazyimg_formats.oci.platform import Platform, parse_platform
from lazyimg_formats.oci.reference import parse_location, parse_reference
from lazyimg_formats.tar.header import parse_header, parse_number
from lazyimg_formats.tar.pax import parse_integer, parse_records, parse_time
from lazyimg_formats.tar.scanner import TarScanner
from lazyimg_formats.tar.sparse import parse_leading, parse_listed, parse_old_entries
from lazyimg_formats.zstd_chunked import entries
from lazyimg_formats.zstd_chunked.location import parse_annotations, parse_footer
from lazyimg_formats.zstd_chunked.toc import parse_toc
from lazyimg_formats.zstd_frames import decode_frame, iterate_frames, parse_frame_header
from tests.fuzz import seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lazyimg_formats.layer import LayerIndex

MAX_DECODED: Final = 1 << 20
MAX_NAMES: Final = 200  # of an image are looked at
MAX_FILE: Final = 1 << 16  # bytes of a file are read

_LOCAL: Final = Platform("linux", "amd64")


class Target(NamedTuple):
    """A parser under test: what to call with any bytes, and bytes that it takes."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]


def each(*calls: Callable[[], object], allowed: type[Exception] = FormatError) -> None:
    """Call everything; each may raise what is allowed."""
    for call in calls:
        with suppress(allowed):
            call()


def text_of(data: bytes) -> str:
    """Give text that any bytes stand for, as file names and variables are read."""
    return data.decode(errors="surrogateescape")


def run_cachefiles(data: bytes) -> None:
    each(lambda: parse_request(data))


def run_erofs(data: bytes) -> None:
    each(lambda: walk_image(data))


def walk_image(data: bytes) -> None:
    image = Image(data, [b"x" * BLOCK_SIZE])
    for _, inode in islice(image.walk(), MAX_NAMES):
        each(
            lambda inode=inode: image.xattrs(inode),  # type: ignore[misc]
            lambda inode=inode: image.read(inode, 0, MAX_FILE),  # type: ignore[misc]
            lambda inode=inode: image.target(inode),  # type: ignore[misc]
        )
    image.lookup(b"a/b")


def run_tar(data: bytes) -> None:
    each(lambda: TarScanner().feed(data))
    half = len(data) // 2
    scanner = TarScanner()
    each(lambda: (scanner.feed(data[:half]), scanner.feed(data[half:])))


def run_tar_parts(data: bytes) -> None:
    block = data[:512].ljust(512, b"\0")
    each(
        lambda: parse_records(data),
        lambda: parse_integer(data),
        lambda: parse_time(data),
        lambda: parse_number(data[:12].ljust(12, b"\0")),
        lambda: parse_header(block),
        lambda: parse_old_entries(block, is_header=True),
        lambda: parse_old_entries(block, is_header=False),
        lambda: parse_leading(data),
        lambda: parse_listed({b"GNU.sparse.map": data}),
        lambda: parse_listed(parse_records(data)),
    )


def run_zstd_frames(data: bytes) -> None:
    each(
        lambda: parse_frame_header(data),
        lambda: list(islice(iterate_frames(data), 1000)),
        lambda: decode_frame(data, MAX_DECODED),
    )


def run_spans(data: bytes) -> None:
    """The first byte says which codec, the next two the length that was promised."""
    codec = Codec(data[0] % len(Codec)) if data else Codec.RAW
    length = int.from_bytes(data[1:3], "little") + 1
    span = Span(0, max(1, len(data) - 3), length, hashlib.sha256(b"").digest(), codec)
    each(lambda: decode_span("d", span, memoryview(data)[3:]), allowed=CorruptError)


def run_decompress(data: bytes) -> None:
    def decompress() -> None:
        decompressor = choose_decompressor(data[:MAGIC_SIZE])
        size = 0
        for at in range(0, len(data), 100):
            for piece in decompressor.feed(data[at : at + 100]):
                size += len(piece)
                if size > 4 * MAX_DECODED:
                    return
        decompressor.finish()

    each(decompress)


def run_toc(data: bytes) -> None:
    """An index, and the bootstrap that is written of it, alone and over itself."""

    def build() -> None:
        index = parse_toc(data)
        DeviceTable(index.table.data)
        for layers in ([index], [index, index]):
            image = write_bootstrap(layers)
            if sum(1 for _ in Image(image).walk()) < 1:
                raise AssertionError("a bootstrap without a root")

    each(build)


def write_bootstrap(layers: list[LayerIndex]) -> bytes:
    root = None
    for tree in merge_layers((layer, 0) for layer in layers):
        root = tree
    if root is None:
        raise AssertionError("no tree")
    table = layers[0].table
    return serialize_image(root, [Device(table.name, table.size // BLOCK_SIZE)])


def run_toc_location(data: bytes) -> None:
    """Annotations: lines of NAME=TEXT."""
    lines = [line.partition("=") for line in text_of(data).split("\n")]
    annotations = {name: text for name, _, text in lines}
    each(
        lambda: parse_annotations(annotations, 1 << 40),
        lambda: parse_footer(data),
        lambda: entries.parse_time(text_of(data)),
    )


def run_device_table(data: bytes) -> None:
    def look() -> None:
        table = DeviceTable(data)
        for number in range(min(table.extent_count, 100)):
            extent = table.extent(number)
            if number not in table.extents_in(extent.device_offset, extent.length):
                raise AssertionError(f"extent {number} is not found")
            table.span(extent.span)
        table.spans_in(0, max(table.size, 1))
        table.blob_end()

    each(look)


def run_documents(data: bytes) -> None:
    each(
        lambda: parse_document(data),
        lambda: parse_document(data, "application/vnd.oci.image.index.v1+json"),
        lambda: parse_document(data, "application/vnd.oci.image.manifest.v1+json"),
        lambda: parse_config(data),
        lambda: parse_errors(data),
    )


def run_references(data: bytes) -> None:
    text = text_of(data)

    def again() -> None:
        reference = parse_reference(text)
        if parse_reference(str(reference)) != reference:
            raise AssertionError(f"{text!r} is another reference when it is parsed again")

    each(
        again,
        lambda: parse_location(text),
        lambda: Digest.parse(text),
        lambda: parse_platform(text, _LOCAL),
    )
    each(lambda: parse_registry(text), allowed=LazyimgError)


def run_hosts(data: bytes) -> None:
    each(lambda: parse_hosts(data, "/certs.d/registry"))


def run_mount_table(data: bytes) -> None:
    each(
        lambda: find_mount(parse_mount_table(data), "/a/b"),
        lambda: parse_mapped_files(data),
        allowed=KernelError,
    )


def run_config(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=seeds.memory_directory()) as file:
        file.write(data)
        file.flush()
        each(lambda: load_config(Path(file.name), {}, {}), allowed=ConfigurationError)
    text = text_of(data)
    variables = ("LAZYIMG_FILL_MEMORY", "LAZYIMG_REGISTRY_PLAIN_HTTP", "LAZYIMG_ROOT")
    for name in (*variables, "LAZYIMG_FILL_READ_DEADLINE"):
        environment = {"LAZYIMG_CONFIG": "/dev/null", name: text}
        each(
            lambda environment=environment: load_config(  # type: ignore[misc]
                None, environment, {}
            ),
            allowed=ConfigurationError,
        )


def run_headers(data: bytes) -> None:
    """What a registry writes into headers of its answers."""
    text = data.decode("latin-1")
    parse_challenges([text, text[::-1]])
    parse_retry_after(text, 0.0)
    base = URL("http://127.0.0.1:5000/v2/")
    location = join_location(base, text)
    if location is not None:
        redact_url(location)
    printable(text)
    each(
        lambda: plan_range("b", 206, {"Content-Range": text}, ByteRange(0, 10, 100)),
        lambda: plan_range("b", 200, {"Content-Length": text}, ByteRange(0, 10, 100)),
        allowed=LazyimgError,
    )


def run_records(data: bytes) -> None:
    """JSON of our own that is read back, and what comes over the local API."""
    each(
        lambda: parse_access(data),
        lambda: msgspec.json.decode(data, type=MountRequest),
        lambda: msgspec.json.decode(data, type=PrefetchRequest),
        lambda: msgspec.json.decode(data, type=StatusReply),
        allowed=ValueError,  # msgspec's own, and of what is no UTF-8
    )


TARGETS: Final = {
    "cachefiles": Target(run_cachefiles, seeds.cachefiles),
    "config": Target(run_config, seeds.config),
    "decompress": Target(run_decompress, seeds.compressed),
    "device-table": Target(run_device_table, seeds.device_tables),
    "documents": Target(run_documents, seeds.documents),
    "erofs": Target(run_erofs, seeds.erofs),
    "headers": Target(run_headers, seeds.headers),
    "mount-table": Target(run_mount_table, seeds.mount_tables),
    "records": Target(run_records, seeds.records),
    "references": Target(run_references, seeds.references),
    "hosts": Target(run_hosts, seeds.hosts),
    "spans": Target(run_spans, seeds.spans),
    "tar": Target(run_tar, seeds.tars),
    "tar-parts": Target(run_tar_parts, seeds.tar_parts),
    "toc": Target(run_toc, seeds.tocs),
    "toc-location": Target(run_toc_location, seeds.toc_locations),
    "zstd-frames": Target(run_zstd_frames, seeds.frames),
}
