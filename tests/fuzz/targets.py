"""What is fuzzed: every parser of bytes from outside, as a function of any bytes.

A target returns, or raises what its parser documents: that is caught here. Anything else that
comes out is a finding. Where a parser is only reached by bytes that another one takes (an index
that is merged and written as a bootstrap), the target goes the whole way.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec

from lazyimg.api import messages
from lazyimg.api.client import Client, rebuild_error
from lazyimg.api.server import read_request
from lazyimg.config_file import load_config
from lazyimg.convert.cut import Cutter
from lazyimg.errors import (
    ConfigurationError,
    CorruptError,
    KernelError,
    LazyimgError,
    UsageError,
)
from lazyimg.fill.assembly import gather
from lazyimg.fill.decode import decode_span, decode_spans
from lazyimg.host.mount_table import find_mount, parse_mount_table, parse_mounts_on
from lazyimg.host.own_mounts import parse_mapped_files
from lazyimg.images.access import parse_access
from lazyimg.images.build import BuildReply
from lazyimg.images.check import CheckReply
from lazyimg.images.given import GivenCredentials
from lazyimg.images.library import LayerRecord
from lazyimg.images.merge import merge_layers
from lazyimg.images.shown import ShownAccess
from lazyimg.imageservice.pull import parse_pull
from lazyimg.layers.decompress import MAGIC_SIZE, choose_decompressor
from lazyimg.layers.indexer import LayerIndexer
from lazyimg.layers.locate import IndexLocation, locate_index, name_format
from lazyimg.layers.parse import parse_index
from lazyimg.layers.staging import DeviceWriter
from lazyimg.registry import resolve
from lazyimg.registry.login import parse_registry
from lazyimg.registry.manifests import parse_digest
from lazyimg.setup.edit import edit_configuration, parse_configuration
from lazyimg.setup.settings import configuration_version, parse_version, settings_for
from lazyimg.snapshotter.lifecycle import parse_id_maps
from lazyimg.supervisor.messages import is_name, parse_notification
from lazyimg_formats import stream_index
from lazyimg_formats.cachefiles.messages import parse_request, refuse_unreadable
from lazyimg_formats.containerd.filters import parse_filter
from lazyimg_formats.containerd.labels import parse_image_labels
from lazyimg_formats.device_table import BLOCK_SIZE, INPUTS, PARTS, Codec, DeviceTable, Span
from lazyimg_formats.erofs.chunk import ChunkFormat, parse_chunk_format, parse_chunks
from lazyimg_formats.erofs.dirent import parse_block, serialize_block
from lazyimg_formats.erofs.inode import parse_inode
from lazyimg_formats.erofs.reader import Image
from lazyimg_formats.erofs.superblock import parse_slots, parse_superblock
from lazyimg_formats.erofs.tree import Device
from lazyimg_formats.erofs.writer import serialize_image
from lazyimg_formats.erofs.xattr import parse_body, parse_long_prefix
from lazyimg_formats.errors import FormatError
from lazyimg_formats.estargz.location import FOOTER_SIZE, check_toc, decode_toc
from lazyimg_formats.estargz.location import parse_footer as parse_stargz_footer
from lazyimg_formats.estargz.toc import parse_stargz_toc
from lazyimg_formats.fanotify.messages import parse_events
from lazyimg_formats.fuse import messages as fuse
from lazyimg_formats.gzip_spans import digest_input
from lazyimg_formats.index_artifact import parse_artifact, parse_embedded
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_LAYER_ZSTD,
    Descriptor,
    Manifest,
    parse_config,
    parse_document,
    parse_errors,
    serialize_document,
)
from lazyimg_formats.oci.platform import Platform, parse_platform
from lazyimg_formats.oci.reference import parse_location, parse_reference
from lazyimg_formats.oci.referrers import parse_referrers
from lazyimg_formats.soci.manifest import parse_soci_index
from lazyimg_formats.soci.toc import parse_ztoc
from lazyimg_formats.stream_comparison import StreamComparison
from lazyimg_formats.stream_index import parse_device, parse_stream_index
from lazyimg_formats.tar.header import BLOCK, parse_header, parse_number
from lazyimg_formats.tar.pax import parse_integer, parse_records, parse_time
from lazyimg_formats.tar.scanner import Member, TarScanner
from lazyimg_formats.tar.sparse import parse_leading, parse_listed, parse_old_entries
from lazyimg_formats.zstd_chunked import entries
from lazyimg_formats.zstd_chunked.location import parse_annotations, parse_footer
from lazyimg_formats.zstd_chunked.toc import parse_toc
from lazyimg_formats.zstd_chunked.writer import TocWriter
from lazyimg_formats.zstd_frames import decode_frame, iterate_frames, parse_frame_header
from lazyimg_formats.zstd_stream import StreamCutter
from tests.fuzz import nydus_targets, registry_targets, seeds
from tests.fuzz.registry_targets import each

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


def text_of(data: bytes) -> str:
    """Give text that any bytes stand for, as file names and variables are read."""
    return data.decode(errors="surrogateescape")


def run_cachefiles(data: bytes) -> None:
    each(lambda: parse_request(data), lambda: refuse_unreadable(data, 5))


def run_fanotify(data: bytes) -> None:
    each(lambda: parse_events(data))


def run_fuse(data: bytes) -> None:
    """Each request is answered, or needs no answer."""
    refusal = fuse.refuse_unreadable(data, 5)
    try:
        request = fuse.parse_request(data)
    except FormatError:
        return
    unique = getattr(request, "unique", None)
    if unique is not None and refusal != fuse.reply_error(unique, 5):
        raise AssertionError("a request that would stay without an answer")


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


def run_erofs_parts(data: bytes) -> None:
    """Each structure by itself; a whole image seldom gets as far."""

    def directory() -> None:
        found = parse_block(data)
        again = serialize_block(
            [one.name for one in found],
            [one.nid for one in found],
            [one.file_type for one in found],
        )
        if parse_block(again) != found:
            raise AssertionError("another directory when it is parsed again")

    each(
        lambda: parse_superblock(data[:128]),
        lambda: parse_slots(data),
        lambda: parse_inode(data[:32], 1),
        lambda: parse_inode(data[:64], 1),
        directory,
        lambda: parse_body(data, (b"user.long.",)),
        lambda: parse_long_prefix(data),
        lambda: parse_chunk_format(int.from_bytes(data[:4], "little"), 12),
        lambda: parse_chunks(data, ChunkFormat(12, indexes=True)),
        lambda: parse_chunks(data, ChunkFormat(12, indexes=False)),
    )


def run_tar(data: bytes) -> None:
    """A tar as it is, and with its headers' checksums mended: a fuzzer would find none again."""
    for tar in (data, mend_checksums(data)):
        each(lambda tar=tar: scan_twice(tar), lambda tar=tar: cut(tar))  # type: ignore[misc]


def mend_checksums(data: bytes) -> bytes:
    mended = bytearray(data)
    for at in range(0, len(data) - BLOCK + 1, BLOCK):
        if mended[at + 257 : at + 262] == b"ustar":
            mended[at + 148 : at + 156] = b" " * 8
            mended[at + 148 : at + 156] = b"%06o\0 " % sum(mended[at : at + BLOCK])
    return bytes(mended)


def scan_twice(data: bytes) -> None:
    """Scan whole, then in two pieces: the members must be the same."""
    members = TarScanner().feed(data)
    half = len(data) // 2
    scanner = TarScanner()
    if scanner.feed(data[:half]) + scanner.feed(data[half:]) != members:
        raise AssertionError("other members in two pieces")


def cut(data: bytes) -> None:
    """Cut as for frames, which put together are the tar, and describe what was cut."""
    cutter, toc = Cutter(), TocWriter()
    for at in range(0, len(data), 1000):
        cutter.feed(data[at : at + 1000])
    cutter.finish()
    batch = cutter.take()
    if b"".join(batch.frames) != data:
        raise AssertionError("the frames are not the tar")
    for item in batch.items:
        if isinstance(item, Member) and not item.has_data:
            toc.add(item)
    parse_toc(toc.finish())


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
    location = IndexLocation("zstd:chunked", 1 << 40, len(data), 1000, str(Digest.of(data)))
    each(
        lambda: parse_frame_header(data),
        lambda: list(islice(iterate_frames(data), 1000)),
        lambda: decode_frame(data, MAX_DECODED),
        lambda: [bytes(part) for part in StreamCutter(1000).cut(data)],
        lambda: parse_index(location, data),
    )


def run_spans(data: bytes) -> None:
    """The first byte says which codec and what is skipped, the next two the length promised."""
    codec = Codec(data[0] % len(Codec)) if data else Codec.RAW
    skip = data[0] // len(Codec) if data and codec in PARTS else 0
    length = int.from_bytes(data[1:3], "little") + 1
    digest = hashlib.sha256(b"").digest()
    if codec in INPUTS:  # it has to be right, or nothing is decoded
        digest = digest_input(hashlib.sha256(data[3:]).digest(), digest)
    span = Span(0, max(1, len(data) - 3), length, digest, codec, skip)
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


def run_stargz_toc(data: bytes) -> None:
    """The same of stargz-snapshotter's, in both of its formats."""

    def build(codec: Codec) -> None:
        index = parse_stargz_toc(data, end=1 << 40, codec=codec)
        DeviceTable(index.table.data)
        Image(write_bootstrap([index])).lookup(b"a/b")

    each(lambda: build(Codec.GZIP), lambda: build(Codec.ZSTD_PART))


def run_stargz_location(data: bytes) -> None:
    """A blob's end, from the TOC's member on."""
    digest = Digest.of(b"")
    each(
        lambda: parse_stargz_footer(data[-FOOTER_SIZE:], len(data)),
        lambda: decode_toc(data, None),
        lambda: check_toc(data, digest),
    )


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
    layer = Descriptor(
        media_type=OCI_LAYER_ZSTD, digest=Digest.of(b""), size=1 << 40, annotations=annotations
    )
    name_format(layer)
    each(lambda: locate_index(layer, "a layer"), allowed=LazyimgError)


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
    def again() -> None:
        document = parse_document(data)
        kind = "manifest" if isinstance(document, Manifest) else "index"
        if parse_document(serialize_document(document)) != document:
            raise AssertionError(f"another {kind} when it is parsed again")

    def indexes() -> None:
        document = parse_document(data)
        if isinstance(document, Manifest):
            for layer in document.layers:
                each(partial(parse_embedded, layer))
        if document.subject is not None:
            parse_artifact(document, document.subject.digest)

    each(
        again,
        indexes,
        lambda: parse_referrers(data),
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
    each(
        lambda: parse_registry(text),
        lambda: parse_digest("a registry", text),
        lambda: resolve.parse_location(text),
        lambda: resolve.parse_platform(text),
        allowed=LazyimgError,
    )


def run_labels(data: bytes) -> None:
    """Filters and labels that containerd's callers write; labels as lines of NAME=TEXT."""
    text = text_of(data)
    lines = [line.partition("=") for line in text.split("\n")]
    labels = {name: value for name, _, value in lines}
    fields = {("name",): "abc", ("labels", "a.b"): ""}
    each(
        lambda: parse_filter(text).matches(fields.get),
        lambda: parse_image_labels(labels),
    )
    each(lambda: parse_id_maps("key", labels), allowed=UsageError)


def run_image_pull(data: bytes) -> None:
    """What the kubelet asks containerd's image service for, on the way through."""
    each(lambda: parse_pull(data))


def run_containerd_configuration(data: bytes) -> None:
    """A configuration of containerd's, with the settings that it is given; and a version."""

    def edit() -> None:
        document = parse_configuration(text)
        version = configuration_version(document, (2, 1, 0))
        settings = settings_for(version, (2, 1, 0), address="/run/x", root="/var/x")
        edited = edit_configuration(text, version, settings)
        if edit_configuration(edited, version, settings) != edited:
            raise AssertionError("settings that are there are put in again")

    text = data.decode(errors="replace")
    each(edit, lambda: parse_version(text), allowed=ConfigurationError)


def run_mount_table(data: bytes) -> None:
    each(
        lambda: find_mount(parse_mount_table(data), "/a/b"),
        lambda: parse_mounts_on(data, "/a/b"),
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


class Request:
    """Stands for a request over the local API that has this body."""

    path = "/v1/x"

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        return self._body


def run_messages(data: bytes) -> None:
    """What comes over the local API, to the daemon and back."""
    client = Client("/run/x")
    requests = (messages.MountRequest, messages.PrefetchRequest, messages.InspectRequest)
    replies = (messages.StatusReply, messages.InspectReply, messages.PrefetchEvent)

    for kind in requests:
        with suppress(LazyimgError):
            registry_targets.run(read_request(cast("Any", Request(data)), kind))
    for reply in (*replies, messages.ErrorReply):
        with suppress(LazyimgError):
            said = client._decode(data, reply)
            if isinstance(said, messages.ErrorReply):
                str(rebuild_error(said))


def run_records(data: bytes) -> None:
    """JSON of our own that is read back, and what the worker tells the supervisor."""
    with suppress(ValueError, RecursionError):
        parse_access(data)
    for kind in (BuildReply, CheckReply, list[LayerRecord]):
        with suppress(ValueError, RecursionError):
            msgspec.json.decode(data, type=kind)
    if not is_name(parse_notification(data).name):
        raise AssertionError("a name that no fd can have")
    descriptor = os.memfd_create("records")
    try:
        os.write(descriptor, data)
        ShownAccess(descriptor).find("a")
        GivenCredentials(60.0, descriptor).find("a")
    finally:
        os.close(descriptor)


def run_soci(data: bytes) -> None:
    """A zTOC goes all the way to a bootstrap; an index of them only says where they are."""
    each(lambda: write_bootstrap([parse_ztoc(data).layer]), lambda: parse_soci_index(data))


def run_stream_index(data: bytes) -> None:
    """An index of our own that came from elsewhere, and the bytes before a stretch."""

    def parse() -> None:
        index = parse_stream_index(data)
        if DeviceTable(index.table.data).name != index.table.name:
            raise AssertionError("another device than was said")
        if parse_device(data).name != index.table.name:
            raise AssertionError("another device without its entries")
        for number in range(index.table.span_count):
            each(lambda number=number: index.table.window(number))  # type: ignore[misc]

    def compare() -> None:
        header = stream_index.parse_header(data)
        comparison = StreamComparison(data, header.blob, header.diff_id)
        comparison.feed(seeds.tar())
        comparison.finish()

    each(parse)
    each(compare)


def run_indexer(data: bytes) -> None:
    """A layer of which an index is made: then it can be used, and gives the same tar's size."""

    def index() -> None:
        tar = b"".join(islice(choose_decompressor(data[:MAGIC_SIZE]).feed(data), 100))
        file = io.BytesIO()
        with open(os.memfd_create("device"), "w+b") as staged:  # noqa: PTH123 - an fd
            device = DeviceWriter(staged)
            indexer = LayerIndexer(Digest.of(data), Digest.of(tar), file, 1000, device=device)
            with closing(indexer):
                for at in range(0, len(data), 100):
                    indexer.feed(data[at : at + 100])
                header = indexer.finish()
            written = os.pread(staged.fileno(), 1 << 24, 0)
        try:
            table = parse_stream_index(file.getvalue()).table
        except FormatError as error:
            raise AssertionError("an index that cannot be used") from error
        decoded, _ = decode_spans(table, range(table.span_count), 0, data)
        small = table.size <= 1 << 24
        if small and written != b"".join(gather(table, 0, table.size, decoded)):
            raise AssertionError("another device than its spans give")
        if header.tar_size != len(tar):
            raise AssertionError("a tar of another size")

    each(index)


TARGETS: Final = {
    "cachefiles": Target(run_cachefiles, seeds.cachefiles),
    "fanotify": Target(run_fanotify, seeds.fanotify),
    "config": Target(run_config, seeds.config),
    "decompress": Target(run_decompress, seeds.compressed),
    "device-table": Target(run_device_table, seeds.device_tables),
    "documents": Target(run_documents, seeds.documents),
    "containerd-configuration": Target(
        run_containerd_configuration, seeds.containerd_configurations
    ),
    "credentials": Target(registry_targets.run_credentials, seeds.credentials),
    "erofs": Target(run_erofs, seeds.erofs),
    "erofs-parts": Target(run_erofs_parts, seeds.erofs_parts),
    "fuse": Target(run_fuse, seeds.fuse),
    "headers": Target(registry_targets.run_headers, seeds.headers),
    "hosts": Target(registry_targets.run_hosts, seeds.hosts),
    "image-pull": Target(run_image_pull, seeds.image_pulls),
    "labels": Target(run_labels, seeds.labels),
    "layout": Target(registry_targets.run_layout, seeds.layouts),
    "messages": Target(run_messages, seeds.messages),
    "mount-table": Target(run_mount_table, seeds.mount_tables),
    "nydus-bootstrap": Target(nydus_targets.run_bootstrap, nydus_targets.bootstraps),
    "nydus-context": Target(nydus_targets.run_context, nydus_targets.contexts),
    "nydus-layer": Target(nydus_targets.run_layer, nydus_targets.layers),
    "nydus-toc": Target(nydus_targets.run_toc, nydus_targets.tocs),
    "proxies": Target(registry_targets.run_proxies, seeds.proxies),
    "records": Target(run_records, seeds.records),
    "references": Target(run_references, seeds.references),
    "indexer": Target(run_indexer, seeds.compressed),
    "spans": Target(run_spans, seeds.spans),
    "stargz-location": Target(run_stargz_location, seeds.stargz_locations),
    "stargz-toc": Target(run_stargz_toc, seeds.stargz_tocs),
    "soci": Target(run_soci, seeds.ztocs),
    "stream-index": Target(run_stream_index, seeds.stream_indexes),
    "tar": Target(run_tar, seeds.tars),
    "tar-parts": Target(run_tar_parts, seeds.tar_parts),
    "tokens": Target(registry_targets.run_tokens, seeds.tokens),
    "toc": Target(run_toc, seeds.tocs),
    "toc-location": Target(run_toc_location, seeds.toc_locations),
    "zstd-frames": Target(run_zstd_frames, seeds.frames),
}
