"""Write OCI image layouts from layers that were made in the test, whatever they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.real.oci_layout import LayoutWriter, StoredLayer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.fakes.lazy_image import LazyLayer
    from tests.fakes.stargz_layer import StargzLayer


def write_layout(directory: Path, images: Mapping[str, Sequence[LazyLayer | StargzLayer]]) -> Path:
    """Write a layout that has these images, under their names as tags."""
    writer = LayoutWriter(directory)
    for name, layers in images.items():
        stored = []
        for layer in layers:
            descriptor = layer.descriptor
            (directory / "blobs/sha256" / descriptor.digest.hex).write_bytes(layer.blob)
            described: dict[str, Any] = {
                "mediaType": descriptor.media_type,
                "digest": str(descriptor.digest),
                "size": descriptor.size,
                "annotations": dict(descriptor.annotations),
            }
            stored.append(StoredLayer(described, str(layer.diff_id)))
        writer.add_image(name, stored, ["/none"])
    return directory
