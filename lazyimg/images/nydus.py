"""A Nydus image's bootstrap -> its tree and its devices' tables; files are read and written.

It runs in the process that builds images. What it needs and does not have, parts of blobs that only
the bootstrap names, it asks for: then nothing is built.
"""

from __future__ import annotations

import hashlib
import stat
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lazyimg.host.files import write_file
from lazyimg.images.merge import merge_layers
from lazyimg_formats.device_table import BLOCK_SIZE, DeviceColumns, DeviceTable
from lazyimg_formats.erofs.tree import Device, FlatData
from lazyimg_formats.layer import LayerIndex
from lazyimg_formats.nydus.bootstrap import parse_bootstrap
from lazyimg_formats.nydus.context import decode_context, parse_context, split_context
from lazyimg_formats.nydus.image import parse_image
from lazyimg_formats.nydus.layer import parse_layer
from lazyimg_formats.nydus.layout import CONTEXT_HEADER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazyimg_formats.erofs.tree import Node
    from lazyimg_formats.nydus.bootstrap import Blob, Bootstrap
    from lazyimg_formats.nydus.context import Context
    from lazyimg_formats.nydus.image import ImageIndex, PlacedFile


class NydusSource(msgspec.Struct, frozen=True):
    """A Nydus image to build.

    Attributes:
        layer: path of its bootstrap layer, as it was fetched.
        name: what files made from it are called.
        tables: path of the directory for device tables.
        contexts: paths of contexts as blobs have them, by blob.
    """

    layer: str
    name: str
    tables: str
    contexts: dict[str, str] = {}


class MissingContext(msgspec.Struct, frozen=True):
    """A context that is needed.

    Attributes:
        blob: its blob: 64 digits of a sha256.
        separate: whether it is in another blob.
        offset: where it is.
        length: its bytes, with its header.
    """

    blob: str
    separate: bool
    offset: int
    length: int


class BuiltBlob(msgspec.Struct, frozen=True):
    """A blob with chunks.

    Attributes:
        blob: 64 digits of its sha256.
        blob_size: bytes, as the bootstrap says.
        table: name of the file of its device table.
        device: the device's name.
        size: the device's bytes.
        first: bytes at the device's start that are wanted first.
    """

    blob: str
    blob_size: int
    table: str
    device: str
    size: int
    first: int


class BuiltNydus(msgspec.Struct, frozen=True):
    """What became of an image: its tree, its devices and its blobs; or what is missing."""

    root: Node | None = None
    devices: list[Device] = []
    blobs: list[BuiltBlob] = []
    missing: list[MissingContext] = []


def build_nydus(source: NydusSource) -> BuiltNydus:
    """Make the tree of an image, and write the tables of its devices.

    Raises:
        UnsupportedError: the image is of a kind that is not read here.
        FormatError: it breaks its format.
        OSError: a file cannot be read or written.
    """
    layer = parse_layer(Path(source.layer).read_bytes())
    bootstrap = parse_bootstrap(layer.bootstrap)
    contexts: dict[int, Context] = {}
    missing: list[MissingContext] = []
    for number, blob in enumerate(bootstrap.blobs):
        holder = blob.meta_digest.hex() if blob.separate else blob.id
        if blob.chunk_count and holder in layer.contexts:
            parts = split_context(blob, layer.contexts[holder])
        elif blob.id in source.contexts:
            parts = decode_context(blob, Path(source.contexts[blob.id]).read_bytes())
        else:
            if blob.needs_context:
                missing.append(_missing(blob))
            continue
        contexts[number] = parse_context(blob, *parts)
    if missing:
        return BuiltNydus(missing=missing)
    index = parse_image(bootstrap, contexts)
    sizes = {table.name: table.size for table in index.tables}
    devices = [Device(name, sizes[name] // BLOCK_SIZE) for name in index.names]
    return BuiltNydus(build_tree(index), devices, list(_write_tables(source, bootstrap, index)))


def _missing(blob: Blob) -> MissingContext:
    return MissingContext(
        blob.id, blob.separate, blob.context_offset, blob.context_size + CONTEXT_HEADER
    )


def _write_tables(
    source: NydusSource, bootstrap: Bootstrap, index: ImageIndex
) -> Iterator[BuiltBlob]:
    tables = Path(source.tables)
    write_file(tables / source.name, empty_table().data)
    first = measure_first(index)
    for blob, table in zip(bootstrap.blobs, index.tables, strict=True):
        if table.size:
            name = hashlib.sha256(f"{blob.id} of {source.name}".encode()).hexdigest()
            write_file(tables / name, table.data)
            wanted = min(table.size, first[index.names.index(table.name)])
            yield BuiltBlob(blob.id, blob.compressed_size, name, table.name, table.size, wanted)


def empty_table() -> DeviceTable:
    """Give the device of a layer without file data."""
    return DeviceTable(DeviceColumns().serialize(0))


def build_tree(index: ImageIndex) -> Node:
    """Give the root of an image's tree; its files lie on the devices of `index.names`.

    What hides files in a layer (names that begin with ``.wh.``, character devices 0/0) is not in
    it: there is nothing below an image.

    Raises:
        FormatError: entries that contradict each other.
    """
    (root,) = merge_layers([(LayerIndex(index.entries, empty_table()), 0)])
    for file in index.files:
        node: Node | None = root
        for part in file.path.split(b"/"):
            node = node.children.get(part) if node is not None and node.children else None
        if node is not None and stat.S_ISREG(node.mode):
            node.size, node.data = file.size, file.data
    return root


def measure_first(index: ImageIndex) -> Counter[int]:
    """Give the bytes at each device's start that the prefetch hints name, up to what they do not.

    The builder lays files first that hints name: what else they name is not worth the trouble.
    """
    hints = frozenset(index.prefetch)
    wanted: list[tuple[int, int, int]] = []
    other: dict[int, int] = {}  # by device, the first block that no hint names
    for file in index.files if hints else ():
        named = _is_below(file.path, hints)
        for device, start, stop in _blocks_of(file):
            if named:
                wanted.append((device, start, stop))
            else:
                other[device] = min(start, other.get(device, start))
    first: Counter[int] = Counter()
    for device, start, stop in wanted:
        limit = other.get(device, stop)
        if start < limit:
            first[device] = max(first[device], min(stop, limit) * BLOCK_SIZE)
    return first


def _is_below(path: bytes, hints: frozenset[bytes]) -> bool:
    while path and path not in hints:
        path = path.rpartition(b"/")[0]
    return path in hints


def _blocks_of(file: PlacedFile) -> Iterator[tuple[int, int, int]]:
    data, left = file.data, file.size
    if isinstance(data, FlatData):
        yield data.device, data.block, data.block - -left // BLOCK_SIZE
        return
    devices = data.devices or [data.device] * len(data.blocks)
    for device, block in zip(devices, data.blocks, strict=True):
        length = min(left, 1 << data.bits)
        yield device, block, block - -length // BLOCK_SIZE
        left -= length
