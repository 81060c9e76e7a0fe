"""The steps of a pull; see the package's documentation."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lazyimg.containerd.labels import (
    SNAPSHOT_REF,
    UNCOMPRESSED,
    child_labels,
    snapshot_labels,
    source_labels,
)
from lazyimg.containerd.ports import Outcome
from lazyimg.errors import CorruptError, LazyimgError
from lazyimg.registry.resolve import resolve_image
from lazyimg_formats.containerd.labels import serialize_image_labels
from lazyimg_formats.oci.chain import chain_ids
from lazyimg_formats.oci.documents import parse_document

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lazyimg.containerd.client import Client
    from lazyimg.containerd.ports import Progress
    from lazyimg.registry.ports import ImageSource
    from lazyimg.registry.resolve import ResolvedImage
    from lazyimg_formats.oci.documents import Descriptor
    from lazyimg_formats.oci.platform import Platform
    from lazyimg_formats.oci.reference import Reference

DOWNLOADS: Final = 3
"""Layers that are downloaded at once, as containerd does it."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image that containerd knows.

    Attributes:
        name: its record's.
        target: what the record refers to: an index or a manifest.
        chain: the uppermost layer's snapshot; "" for an image without layers.
    """

    name: str
    target: Descriptor
    chain: str


async def pull_image(
    client: Client,
    source: ImageSource,
    reference: Reference,
    platform: Platform,
    progress: Progress,
) -> Pulled:
    """Have containerd know an image; download only the layers that cannot be lazy.

    Args:
        client: of containerd.
        source: the image's repository.
        reference: the image; in full it is its name in containerd.
        platform: which of the image's manifests.
        progress: is told of every layer.

    Raises:
        LazyimgError: whatever registry and containerd say; CorruptError: a layer that was
            unpacked is not what the config says.
    """
    image = await resolve_image(source, reference.target, platform)
    chains = [str(chain) for chain in chain_ids(image.config.diff_ids)]
    top = chains[-1] if chains else ""
    async with client.lease():
        await _write_documents(client, image, reference, top)
        layers = _Layers(client, source, reference, image, progress)
        try:
            for number, chain in enumerate(chains):
                await layers.make(number, chain, chains[number - 1] if number else "")
        finally:
            await layers.stop()
        await client.put_image(str(reference), image.top)
    return Pulled(str(reference), image.top, top)


async def _write_documents(
    client: Client, image: ResolvedImage, reference: Reference, top: str
) -> None:
    source = source_labels(reference)
    for descriptor, data in (*image.indexes, (image.descriptor, image.manifest_bytes)):
        labels = source | child_labels(parse_document(data, descriptor.media_type))
        await client.write_content(descriptor, _pieces(data), labels)
    labels = source | (snapshot_labels(client.snapshotter, top) if top else {})
    await client.write_content(image.manifest.config, _pieces(image.config_bytes), labels)


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


class _Layers:
    """The layers of one image, made from the lowest upwards."""

    def __init__(
        self,
        client: Client,
        source: ImageSource,
        reference: Reference,
        image: ResolvedImage,
        progress: Progress,
    ) -> None:
        self._client = client
        self._source = source
        self._reference = reference
        self._image = image
        self._progress = progress
        self._room = asyncio.Semaphore(DOWNLOADS)
        self._downloads: dict[int, asyncio.Task[None]] = {}

    async def make(self, number: int, chain: str, parent: str) -> None:
        """See to it that containerd has a layer; those below it are there."""
        layer = self._image.manifest.layers[number]
        labels = serialize_image_labels(
            str(self._reference), self._image.descriptor.digest, layer.digest
        )
        present = await self._client.has_snapshot(chain)
        active = await self._client.prepare(chain, parent, {**labels, SNAPSHOT_REF: chain})
        if active is None:
            if not (present or await self._client.has_snapshot(chain)):
                raise LazyimgError(
                    f"snapshotter {self._client.snapshotter!r}",
                    f"says that {chain} exists, but does not have it",
                    "try again",
                )
            self._progress.end(layer, Outcome.PRESENT if present else Outcome.LAZY)
            return
        await self._fetched(number)
        applied = await self._client.apply(layer, active)
        expected = str(self._image.config.diff_ids[number])
        if applied != expected:
            raise CorruptError(
                f"{self._reference.name}@{layer.digest}",
                f"its tar has {applied}, the image's config says {expected}",
            )
        await self._client.commit(chain, active)
        await self._client.label_content(str(layer.digest), {UNCOMPRESSED: applied})
        self._progress.end(layer, Outcome.UNPACKED)

    async def _fetched(self, number: int) -> None:
        """Wait for a layer's download; the first one begins those of all layers above as well."""
        for each in range(number, len(self._image.manifest.layers)):
            if each not in self._downloads:
                self._downloads[each] = asyncio.create_task(self._fetch(each))
        await self._downloads[number]

    async def _fetch(self, number: int) -> None:
        layer = self._image.manifest.layers[number]
        async with self._room:
            await self._client.write_content(
                layer,
                self._source.stream_blob(layer),
                source_labels(self._reference),
                lambda done: self._progress.advance(layer, done),
            )

    async def stop(self) -> None:
        """End the downloads that nobody waits for any more."""
        for task in self._downloads.values():
            task.cancel()
        await asyncio.gather(*self._downloads.values(), return_exceptions=True)
