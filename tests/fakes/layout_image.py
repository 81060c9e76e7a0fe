"""Images in an OCI layout, to convert."""

from __future__ import annotations

import gzip
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    Descriptor,
    Manifest,
    describe,
    serialize_document,
)
from tests.fakes.gzip_layer import make_tar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from lazyimg.registry.oci_layout import OciLayout


async def add_blob(layout: OciLayout, data: bytes, media_type: str) -> Descriptor:
    """Put a blob into a layout."""

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    await layout.push_blob(pieces(), lambda: Digest.of(data))
    return describe(data, media_type)


async def add_layer(
    layout: OciLayout, files: dict[str, bytes], **changes: Any
) -> tuple[Descriptor, Digest]:
    """Put a gzip layer into a layout; gives its descriptor and its diff ID."""
    tar = make_tar(files)
    descriptor = await add_blob(layout, gzip.compress(tar, mtime=0), OCI_LAYER_GZIP)
    return replace(descriptor, **changes), Digest.of(tar)


async def add_image(
    layout: OciLayout,
    tag: str | None,
    layers: Sequence[tuple[Descriptor, Digest]],
    *,
    architecture: str = "amd64",
    config_type: str = OCI_CONFIG,
    **changes: Any,
) -> Descriptor:
    """Put an image into a layout; `changes` are fields of its manifest."""
    config = {
        "os": "linux",
        "architecture": architecture,
        "rootfs": {"type": "layers", "diff_ids": [str(diff_id) for _, diff_id in layers]},
    }
    document = Manifest(
        config=await add_blob(layout, msgspec.json.encode(config), config_type),
        layers=tuple(layer for layer, _ in layers),
    )
    document = replace(document, **changes)
    return await layout.push_manifest(serialize_document(document), document.media_type, tag)
