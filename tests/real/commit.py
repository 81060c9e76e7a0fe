"""A container's changes made an image, by containerd's services, as nerdctl does it.

layer = await commit(node, "container", base, "127.0.0.1:5000/changed:latest")
"""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

from lazyimg.containerd.client import open_client
from lazyimg.containerd.labels import child_labels, snapshot_labels, source_labels
from lazyimg_formats.oci.chain import chain_ids
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import Descriptor, parse_document
from lazyimg_formats.oci.reference import parse_reference
from tests.real.lazy_node import LAZY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.real.lazy_node import Node

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


async def commit(node: Node, container: str, base: str, name: str) -> bytes:
    """Make an image of another one and what a container of it has written; give the layer."""
    layer = node.difference(container)
    diff_id = Digest.of(gzip.decompress(layer))
    manifest = json.loads(read(node, digest_of(node, base)))
    config = json.loads(read(node, manifest["config"]["digest"]))
    below = [Digest.parse(text) for text in config["rootfs"]["diff_ids"]]
    *_, parent, chain = map(str, chain_ids([*below, diff_id]))
    config["rootfs"]["diff_ids"].append(str(diff_id))
    config["history"].append({"created_by": "commit"})
    config_bytes = json.dumps(config).encode()
    described = describe(layer, LAYER_TYPE)
    config_described = describe(config_bytes, manifest["config"]["mediaType"])
    manifest["config"] = as_json(config_described)
    manifest["layers"].append(as_json(described))
    manifest_bytes = json.dumps(manifest).encode()
    target = describe(manifest_bytes, manifest["mediaType"])
    source = source_labels(parse_reference(name))
    socket = str(node.containerd.directory / "socket")
    async with open_client(socket, "default", LAZY) as client, client.lease():
        await client.write_content(described, pieces(layer), source)
        active = await client.prepare(chain, parent, {})
        assert active is not None
        assert await client.apply(described, active) == str(diff_id)
        await client.commit(chain, active)
        labels = source | snapshot_labels(LAZY, chain)
        await client.write_content(config_described, pieces(config_bytes), labels)
        labels = source | child_labels(parse_document(manifest_bytes, manifest["mediaType"]))
        await client.write_content(target, pieces(manifest_bytes), labels)
        await client.put_image(name, target)
    return layer


def digest_of(node: Node, image: str) -> str:
    """Return what an image's record refers to."""
    lines = node.containerd.ctr("image", "ls", f"name=={image}").splitlines()
    return lines[1].split()[2]


def read(node: Node, digest: str) -> str:
    return node.containerd.ctr("content", "get", digest)


def describe(data: bytes, media_type: str) -> Descriptor:
    return Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data))


def as_json(descriptor: Descriptor) -> dict[str, Any]:
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data
