"""How one layer comes into the target: converted, copied, or taken over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from lazyimg.convert.layer import LayerConversion
from lazyimg.convert.ports import Outcome, Silence
from lazyimg.errors import CorruptError, NotLazyError
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.documents import (
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
)
from lazyimg_formats.zstd_chunked.location import (
    ANNOTATIONS,
    TocLocation,
    parse_annotations,
    serialize_annotations,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from concurrent.futures import Executor

    from lazyimg.convert.ports import Progress
    from lazyimg.registry.ports import ImageSource, ImageTarget
    from lazyimg_formats.oci.digest import Digest

SOURCE_DIGEST: Final = "containerd.io/snapshot/lazyimg.source-digest"
"""Annotation of a converted layer: the digest of the layer that it was made from."""

PARAMETERS: Final = "containerd.io/snapshot/lazyimg.parameters"
"""Annotation of a converted layer: how it was made."""

_CUTTING: Final = 3  # goes up whenever the same tar gives another blob
_TYPES: Final = frozenset(
    {
        OCI_LAYER,
        OCI_LAYER_GZIP,
        OCI_LAYER_ZSTD,
        DOCKER_LAYER,
        DOCKER_LAYER_GZIP,
        DOCKER_LAYER_ZSTD,
    }
)
_FOREIGN: Final = ("nondistributable", "foreign")
_OF_THE_BYTES: Final = frozenset({"data", "urls"})
_OTHER_FORMATS: Final = ("containerd.io/snapshot/stargz/", "io.containers.estargz.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to convert.

    Attributes:
        level: of zstd, 1 to 22.
        layers: layers that are worked on at once.
        threads: that compress, and so on.
    """

    level: int = 3
    layers: int = 3
    threads: int = field(default_factory=lambda: (os.cpu_count() or 1) + 1)

    @property
    def parameters(self) -> str:
        """What a layer's bytes depend on besides its tar: the text of `PARAMETERS`."""
        return f"cutting={_CUTTING},level={self.level}"


def find_toc(layer: Descriptor) -> TocLocation | None:
    """Give where the TOC of a layer is; None when it is not zstd:chunked.

    Raises:
        FormatError: its annotations are wrong.
    """
    if layer.media_type not in {OCI_LAYER_ZSTD, DOCKER_LAYER_ZSTD}:
        return None
    return parse_annotations(layer.annotations, layer.size)


class LayerTransfer:
    """Brings layers from one source into one target, each only once.

    Args:
        source: where the layers are.
        target: where they go.
        known: layers that the target has, by the text of the digest that they were made from.
        options: how to convert.
        executor: threads for the work.
        progress: is told of every layer.
    """

    def __init__(
        self,
        source: ImageSource,
        target: ImageTarget,
        *,
        known: Mapping[str, Descriptor],
        options: Options,
        executor: Executor,
        progress: Progress | None = None,
    ) -> None:
        self._source = source
        self._target = target
        self._known = known
        self._options = options
        self._executor = executor
        self._progress: Progress = progress or Silence()
        self._slots = asyncio.Semaphore(options.layers)
        self._tasks: dict[tuple[Digest, Digest], asyncio.Task[Descriptor]] = {}

    async def transfer(self, layer: Descriptor, diff_id: Digest) -> Descriptor:
        """Bring a layer into the target; gives its descriptor there.

        Args:
            layer: as the source's manifest has it.
            diff_id: of its tar, as the image's config has it.

        Raises:
            NotLazyError: it is no layer that can be converted.
            CorruptError: its bytes are not what its digest, or its diff ID, promise.
            LazyimgError: whatever source and target raise.
        """
        key = (layer.digest, diff_id)
        task = self._tasks.get(key)
        if task is None:
            self._check_type(layer)
            task = self._tasks[key] = asyncio.create_task(self._run(layer, diff_id))
        made = await task
        annotations = {
            name: text
            for name, text in layer.annotations.items()
            if name not in ANNOTATIONS and not name.startswith(_OTHER_FORMATS)
        }
        extra = {name: value for name, value in layer.extra.items() if name not in _OF_THE_BYTES}
        annotations |= made.annotations
        return replace(made, annotations=dict(sorted(annotations.items())), extra=extra)

    async def stop(self) -> None:
        """End all transfers and wait until they are over. After a failure nothing goes on."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _check_type(self, layer: Descriptor) -> None:
        if layer.media_type in _TYPES:
            return
        if any(word in layer.media_type for word in _FOREIGN):
            raise NotLazyError(
                self._name(layer), "its owner does not allow copies: it is a foreign layer"
            )
        raise NotLazyError(self._name(layer), f"cannot convert a {layer.media_type[:100]!r}")

    def _name(self, layer: Descriptor) -> str:
        return f"{self._source.name}@{layer.digest}"

    async def _run(self, layer: Descriptor, diff_id: Digest) -> Descriptor:
        async with self._slots:
            self._progress.begin(layer)
            made, outcome, whole = await self._bring(layer, diff_id)
            self._progress.end(layer, outcome, whole)
            return made

    async def _bring(self, layer: Descriptor, diff_id: Digest) -> tuple[Descriptor, Outcome, str]:
        try:
            location = find_toc(layer)
        except FormatError as error:
            raise CorruptError(self._name(layer), str(error)) from error
        if location is not None:
            return await self._copy(layer, location)
        known = self._known.get(str(layer.digest))
        if known is not None and await self._target.has_blob(known.digest):
            return known, Outcome.PRESENT, ""
        return await self._convert(layer, diff_id)

    async def _copy(
        self, layer: Descriptor, location: TocLocation
    ) -> tuple[Descriptor, Outcome, str]:
        kept = Descriptor(
            media_type=OCI_LAYER_ZSTD,
            digest=layer.digest,
            size=layer.size,
            annotations=serialize_annotations(location),
        )
        if await copy_blob(self._source, self._target, layer, self._progress):
            return kept, Outcome.COPIED, ""
        return kept, Outcome.PRESENT, ""

    async def _convert(self, layer: Descriptor, diff_id: Digest) -> tuple[Descriptor, Outcome, str]:
        conversion = LayerConversion(
            self._name(layer),
            diff_id,
            level=self._options.level,
            executor=self._executor,
            depth=self._options.threads,
        )
        async with aclosing(self._convert_pieces(layer, conversion)) as pieces:
            size = await self._target.push_blob(pieces, lambda: conversion.result.digest)
        made = conversion.result
        annotations = serialize_annotations(made.toc) | {
            SOURCE_DIGEST: str(layer.digest),
            PARAMETERS: self._options.parameters,
        }
        descriptor = Descriptor(
            media_type=OCI_LAYER_ZSTD, digest=made.digest, size=size, annotations=annotations
        )
        return descriptor, Outcome.CONVERTED, made.problem

    async def _convert_pieces(
        self, layer: Descriptor, conversion: LayerConversion
    ) -> AsyncGenerator[bytes]:
        read = 0
        stream = self._source.stream_blob(layer)
        try:
            async with aclosing(conversion.convert(stream)) as pieces:
                async for piece in pieces:
                    self._progress.advance(layer, conversion.read - read, len(piece))
                    read = conversion.read
                    yield piece
        finally:
            await _close(stream)


async def copy_blob(
    source: ImageSource, target: ImageTarget, blob: Descriptor, progress: Progress
) -> bool:
    """Bring a blob into the target as it is; tells whether its bytes had to be moved.

    Raises:
        LazyimgError: whatever source and target raise.
    """
    if await target.has_blob(blob.digest) or await target.mount_blob_from(source, blob):
        return False
    stream = source.stream_blob(blob)

    async def report() -> AsyncGenerator[bytes]:
        async for piece in stream:
            progress.advance(blob, len(piece), len(piece))
            yield piece

    try:
        async with aclosing(report()) as pieces:
            await target.push_blob(pieces, lambda: blob.digest)
    finally:
        await _close(stream)
    return True


async def _close(stream: AsyncIterator[bytes]) -> None:
    if isinstance(stream, AsyncGenerator):
        await stream.aclose()
