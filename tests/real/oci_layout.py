"""Write OCI image layouts, as the image specification has them, from uncompressed layers."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

PIECE: Final = 1 << 20
GZIP: Final = zlib.MAX_WBITS | 16  # with gzip's header, which then has no time
MEDIA_TYPE: Final = "application/vnd.oci.image"


@dataclass(frozen=True)
class StoredLayer:
    """A compressed layer in a layout."""

    descriptor: dict[str, Any]
    diff_id: str


@dataclass
class LayoutWriter:
    """A layout under construction. Equal layers, and equal blobs, are stored once."""

    directory: Path
    _manifests: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.directory / "blobs/sha256").mkdir(parents=True)
        (self.directory / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))

    def add_layer(self, tar: Path) -> StoredLayer:
        """Compress a layer with gzip."""
        aside = self.directory / "layer"
        diff_id, digest, size = hashlib.sha256(), hashlib.sha256(), 0
        compressor = zlib.compressobj(wbits=GZIP)
        with tar.open("rb") as source, aside.open("wb") as target:
            while piece := source.read(PIECE):
                diff_id.update(piece)
                packed = compressor.compress(piece)
                digest.update(packed)
                size += target.write(packed)
            packed = compressor.flush()
            digest.update(packed)
            size += target.write(packed)
        aside.rename(self.directory / "blobs/sha256" / digest.hexdigest())
        descriptor = describe(f"{MEDIA_TYPE}.layer.v1.tar+gzip", digest.hexdigest(), size)
        return StoredLayer(descriptor, f"sha256:{diff_id.hexdigest()}")

    def add_image(self, tag: str, layers: list[StoredLayer], command: list[str]) -> None:
        """Add an image for amd64 with these layers, lowest first."""
        diff_ids = [layer.diff_id for layer in layers]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": command, "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": f"layer {number}"} for number, _ in enumerate(layers, 1)],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{MEDIA_TYPE}.manifest.v1+json",
            "config": self._add_json(f"{MEDIA_TYPE}.config.v1+json", config),
            "layers": [layer.descriptor for layer in layers],
        }
        descriptor = self._add_json(f"{MEDIA_TYPE}.manifest.v1+json", manifest)
        descriptor["annotations"] = {"org.opencontainers.image.ref.name": tag}
        self._manifests.append(descriptor)
        index = {"schemaVersion": 2, "manifests": self._manifests}
        (self.directory / "index.json").write_text(json.dumps(index))

    def _add_json(self, media_type: str, document: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(document).encode()
        digest = hashlib.sha256(data).hexdigest()
        (self.directory / "blobs/sha256" / digest).write_bytes(data)
        return describe(media_type, digest, len(data))


def describe(media_type: str, hexadecimal: str, size: int) -> dict[str, Any]:
    """Return a descriptor."""
    return {"mediaType": media_type, "digest": f"sha256:{hexadecimal}", "size": size}
