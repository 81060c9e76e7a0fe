"""Nydus images for tests: samples that Nydus's builder made, and patches to them."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import struct
import tarfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import zstandard

from lazyimg.layers.locate import BOOTSTRAP
from lazyimg.registry.resolve import local_platform
from lazyimg_formats.nydus.bootstrap import parse_bootstrap
from lazyimg_formats.nydus.context import decode_context, parse_context
from lazyimg_formats.nydus.layout import CONTEXT_HEADER
from lazyimg_formats.oci.documents import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    REF_NAME,
    Manifest,
)
from tests.fakes.registry import FakeRegistry

if TYPE_CHECKING:
    from lazyimg_formats.nydus.bootstrap import Blob
    from lazyimg_formats.nydus.context import Context

SAMPLES: Final = Path(__file__).parents[1] / "formats/nydus/samples"

WHOLE: Final = ("none", "lz4", "gzip", "zstd", "sha256")
"""Samples whose chunks are compressed one by one."""

BATCHES: Final = ("batch-none", "batch-lz4", "batch-gzip", "batch-zstd")

NYDUS_LAYER: Final = "application/vnd.oci.image.layer.nydus.blob.v1"
REF: Final = "containerd.io/snapshot/nydus-ref"

SUPER: Final = 1024
EXTENSION: Final = 1152
SLOTS: Final = 1408
BLOBS: Final = 4096


@cache
def sample(name: str) -> bytes:
    """Give a sample's bytes."""
    data = (SAMPLES / f"{name}.zst").read_bytes()
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 20)


def patch(data: bytes, offset: int, layout: str, *values: int | bytes) -> bytes:
    """Give data with other numbers at an offset."""
    changed = bytearray(data)
    struct.pack_into("<" + layout, changed, offset, *values)
    return bytes(changed)


def field(data: bytes, offset: int, layout: str = "Q") -> int:
    """Give the number at an offset."""
    return int(struct.unpack_from("<" + layout, data, offset)[0])


def context_bytes(blob: Blob, data: bytes) -> bytes:
    """Give the bytes of a context in the blob that has it."""
    return data[blob.context_offset :][: blob.context_size + CONTEXT_HEADER]


def context_of(blob: Blob, data: bytes) -> Context:
    """Give a context in the blob that has it."""
    return parse_context(blob, *decode_context(blob, context_bytes(blob, data)))


def context_file(blob: Blob, data: bytes) -> bytes:
    """Give a context as a bootstrap layer has it."""
    table, header = decode_context(blob, context_bytes(blob, data))
    return table + bytes(-len(table) % CONTEXT_HEADER) + header


def blob_of(name: str) -> Blob:
    """Give the first blob of a sample's bootstrap."""
    return parse_bootstrap(sample(f"{name}.boot")).blobs[0]


def pack_layer(files: dict[str, bytes]) -> bytes:
    """Give a tar.gz."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo("image")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(packed.getvalue(), mtime=0)


def digest(data: bytes) -> str:
    """Give the 64 digits of a sha256."""
    return hashlib.sha256(data).hexdigest()


@dataclass
class NydusImage:
    """An image to put into a registry.

    Attributes:
        boot: its bootstrap.
        blobs: data of its blobs, lowest first.
        originals: of those that are about gzip layers, by their numbers: that layer.
        files: what else is in the bootstrap layer.
        annotated: whether the manifest says which layer has the bootstrap.
        original_name: what the manifest calls a gzip layer, if not by its digest.
        config_type: media type of its config.
    """

    boot: bytes
    blobs: list[bytes]
    originals: dict[int, bytes] = dataclasses.field(default_factory=dict)
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    annotated: bool = True
    original_name: str = ""
    config_type: str = OCI_CONFIG

    @classmethod
    def of(cls, name: str, *, contexts: bool = False) -> NydusImage:
        """Give the image of a sample; `contexts`: its bootstrap layer has them."""
        if name == "merged":
            return cls(sample("merged.boot"), [sample("toc.blob"), sample("toc-upper.blob")])
        image = cls(sample(f"{name}.boot"), [sample(f"{name}.blob")])
        if name == "zran":
            image.originals[0] = sample("zran.original")
        if contexts:
            data = image.blobs[0]
            image.files[f"{digest(data)}.blob.meta"] = context_file(blob_of(name), data)
        return image

    def layer(self) -> bytes:
        """Give the bootstrap layer."""
        return pack_layer({"image/image.boot": self.boot, **self.files})

    def add(self, registry: FakeRegistry, tag: str = "1") -> None:
        """Put it into the repository ``app``."""
        layers = []
        for number, data in enumerate(self.blobs):
            annotations = {"containerd.io/snapshot/nydus-blob": "true"}
            if number in self.originals:
                original = registry.add_blob("app", self.originals[number])
                annotations[REF] = self.original_name or str(original.digest)
            layer = registry.add_blob("app", data, NYDUS_LAYER)
            layers.append(replace(layer, annotations=annotations))
        last = registry.add_blob("app", self.layer(), OCI_LAYER_GZIP)
        layers.append(replace(last, annotations={BOOTSTRAP: "true"} if self.annotated else {}))
        system, machine = local_platform().os, local_platform().architecture
        config = {
            "os": system,
            "architecture": machine,
            "rootfs": {"type": "layers", "diff_ids": [str(one.digest) for one in layers]},
        }
        described = registry.add_blob("app", json.dumps(config).encode(), self.config_type)
        registry.add_manifest("app", tag, Manifest(config=described, layers=tuple(layers)))

    def write(self, layout: Path) -> None:
        """Write a layout directory of it."""
        registry = FakeRegistry()
        self.add(registry)
        media_type, manifest = registry.manifests["app"]["1"]
        described = {
            "mediaType": media_type,
            "digest": f"sha256:{digest(manifest)}",
            "size": len(manifest),
            "annotations": {REF_NAME: "1"},
        }
        (layout / "blobs/sha256").mkdir(parents=True)
        for data in (manifest, *registry.blobs["app"].values()):
            (layout / "blobs/sha256" / digest(data)).write_bytes(data)
        (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [described]}
        (layout / "index.json").write_text(json.dumps(index))


def source_members() -> list[tarfile.TarInfo]:
    """Give what the layer has that the samples were made of."""
    with tarfile.open(fileobj=io.BytesIO(sample("zran.original"))) as archive:
        return archive.getmembers()


def source_files() -> dict[str, bytes]:
    """Give the regular files of the layer that the samples were made of."""
    return _files_of(gzip.decompress(sample("zran.original")))


def merged_files() -> dict[str, bytes]:
    """Give the regular files of the merged sample."""
    upper = _files_of(sample("upper.tar"))
    kept = {name: data for name, data in source_files().items() if not name.startswith("old/")}
    del kept["etc/gone"]
    return kept | {name: data for name, data in upper.items() if "/.wh." not in name}


def _files_of(tar: bytes) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            file = None if member.issym() else archive.extractfile(member)
            if file is not None:
                found[member.name] = file.read()
    return found
