"""What is fuzzed of Nydus's format: bootstraps up to the image that is written of them."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from lazyimg.images.nydus import build_tree
from lazyimg_formats.device_table import BLOCK_SIZE
from lazyimg_formats.erofs.tree import Device
from lazyimg_formats.erofs.writer import serialize_image
from lazyimg_formats.errors import FormatError
from lazyimg_formats.nydus.bootstrap import Bootstrap, parse_bootstrap
from lazyimg_formats.nydus.context import Context, decode_context, parse_context, split_context
from lazyimg_formats.nydus.image import parse_image
from lazyimg_formats.nydus.layer import parse_layer
from lazyimg_formats.nydus.layout import CONTEXT_HEADER
from lazyimg_formats.nydus.toc import parse_toc
from tests.fakes.nydus import blob_of, context_bytes, pack_layer, sample

_KINDS: Final = ("none", "batch-zstd", "zran")


def _write(bootstrap: Bootstrap, contexts: dict[int, Context]) -> None:
    index = parse_image(bootstrap, contexts)
    sizes = {table.name: table.size // BLOCK_SIZE for table in index.tables}
    serialize_image(build_tree(index), [Device(name, sizes[name]) for name in index.names])


def run_bootstrap(data: bytes) -> None:
    """Write the image of a bootstrap anew."""
    with suppress(FormatError):
        _write(parse_bootstrap(data), {})


def run_context(data: bytes) -> None:
    """The first byte says whose context it is; header and table follow, or what a blob has."""
    if not data:
        return
    bootstrap = parse_bootstrap(sample(f"{_KINDS[data[0] % 3]}.boot"))
    blob = bootstrap.blobs[0]
    header, table = data[1 : 1 + CONTEXT_HEADER], data[1 + CONTEXT_HEADER :]
    with suppress(FormatError):
        decode_context(blob, data[1:])
    with suppress(FormatError):
        split_context(blob, data[1:])
    with suppress(FormatError):
        _write(bootstrap, {0: parse_context(blob, table, header)})


def run_toc(data: bytes) -> None:
    """A blob's end."""
    with suppress(FormatError):
        for entry in parse_toc(data, 1 << 20).values():
            with suppress(FormatError):
                entry.decode(data[: entry.stored])


def run_layer(data: bytes) -> None:
    """A bootstrap layer."""
    with suppress(FormatError):
        run_bootstrap(parse_layer(data).bootstrap)


def bootstraps() -> list[bytes]:
    """Give some of the samples."""
    return [sample(f"{name}.boot") for name in ("none", "merged", "v5")]


def contexts() -> list[bytes]:
    """Give the samples' contexts."""
    found = []
    for number, name in enumerate(_KINDS):
        blob = blob_of(name)
        stored = context_bytes(blob, sample(f"{name}.blob"))
        table, header = decode_context(blob, stored)
        found += [bytes([number]) + header + table, bytes([number]) + stored]
    return found


def tocs() -> list[bytes]:
    """Give the ends of the samples."""
    return [sample(f"{name}.blob")[-1152:] for name in ("toc", "zran")]


def layers() -> list[bytes]:
    """Give a bootstrap layer."""
    files = {"image/image.boot": sample("none.boot"), f"{'a' * 64}.blob.meta": b"x"}
    return [pack_layer(files)]
