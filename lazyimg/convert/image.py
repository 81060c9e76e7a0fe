"""An image to a lazily loadable one: its index, its manifests, its layers."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lazyimg.convert.ports import Silence
from lazyimg.convert.transfer import (
    PARAMETERS,
    SOURCE_DIGEST,
    LayerTransfer,
    Options,
    copy_blob,
    find_toc,
)
from lazyimg.errors import AccessDeniedError, CorruptError, NotFoundError, NotLazyError
from lazyimg.registry.ports import ImageSource
from lazyimg.registry.resolve import MAX_INDEX_DEPTH, resolve_image
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.documents import (
    CONFIG_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_CONFIG,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    parse_config,
    parse_document,
    serialize_document,
)
from lazyimg_formats.zstd_chunked.location import serialize_annotations

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence
    from typing import Any

    from lazyimg.convert.ports import Progress
    from lazyimg.registry.ports import ImageTarget
    from lazyimg.registry.resolve import ResolvedImage
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.platform import Platform

_REFERENCE_TYPE: Final = "vnd.docker.reference.type"
_MAX_KNOWN_MANIFESTS: Final = 64


async def convert_image(
    source: ImageSource,
    reference: Digest | str,
    target: ImageTarget,
    tag: str,
    *,
    platforms: Sequence[Platform] = (),
    options: Options | None = None,
    progress: Progress | None = None,
) -> Descriptor:
    """Convert the image that `reference` names in `source`, and name the result in `target`.

    Args:
        source: where the image is.
        reference: its tag or digest there.
        target: where the converted one goes; where it can be read as well, layers that its tag
            already has are not converted again.
        tag: what to call it there; "" for no name.
        platforms: convert the images for these only: one becomes a manifest, several an index.
        options: how to convert.
        progress: is told of every layer.

    Returns:
        What `tag` names now: an index, or a manifest.

    Raises:
        NotFoundError: the image does not exist.
        NoPlatformError: not for one of the platforms.
        NotLazyError: it is no container image, or has a layer that cannot be converted.
        CorruptError: a digest, diff ID or document is wrong.
        LazyimgError: whatever source and target raise.
    """
    options = options or Options()
    progress = progress or Silence()
    known = await _find_known(target, tag, options.parameters)
    with ThreadPoolExecutor(options.threads, "convert") as executor:
        transfer = LayerTransfer(
            source, target, known=known, options=options, executor=executor, progress=progress
        )
        conversion = _ImageConversion(source, target, transfer, progress)
        try:
            if not platforms:
                return await conversion.convert(reference, tag)
            images = [await resolve_image(source, reference, each) for each in platforms]
            return await conversion.convert_images(images, tag)
        finally:
            await transfer.stop()


class _ImageConversion:
    """Walks one image."""

    def __init__(
        self,
        source: ImageSource,
        target: ImageTarget,
        transfer: LayerTransfer,
        progress: Progress,
    ) -> None:
        self._source = source
        self._target = target
        self._transfer = transfer
        self._progress = progress

    async def convert(self, reference: Digest | str, tag: str | None, depth: int = 0) -> Descriptor:
        descriptor, data = await self._source.fetch_manifest(reference)
        what = f"{self._source.name}@{descriptor.digest}"
        try:
            document = parse_document(data, descriptor.media_type)
        except FormatError as error:
            raise CorruptError(what, str(error)) from error
        if isinstance(document, Manifest):
            return await self.convert_manifest(descriptor, document, tag)
        if depth >= MAX_INDEX_DEPTH:
            raise CorruptError(what, f"over {MAX_INDEX_DEPTH} indexes inside each other")
        return await self._convert_index(what, document, tag, depth)

    async def _convert_index(
        self, what: str, index: Index, tag: str | None, depth: int
    ) -> Descriptor:
        images = [entry for entry in index.manifests if _is_image(entry)]
        if not images:
            raise NotLazyError(what, "an index without a container image")
        made = await _gather(self._convert_entry(entry, depth) for entry in images)
        document = replace(index, media_type=OCI_INDEX, manifests=tuple(made))
        return await self._target.push_manifest(serialize_document(document), OCI_INDEX, tag)

    async def convert_images(self, images: Sequence[ResolvedImage], tag: str) -> Descriptor:
        """Convert images for different platforms of one reference."""
        by_digest = {image.descriptor.digest: image for image in images}
        if len(by_digest) == 1:
            image = images[0]
            return await self.convert_manifest(image.descriptor, image.manifest, tag)
        made = await _gather(self._convert_resolved(image) for image in by_digest.values())
        document = Index(manifests=tuple(made))
        return await self._target.push_manifest(serialize_document(document), OCI_INDEX, tag)

    async def _convert_resolved(self, image: ResolvedImage) -> Descriptor:
        made = await self.convert_manifest(image.descriptor, image.manifest, None)
        return replace(made, platform=image.config.platform)

    async def _convert_entry(self, entry: Descriptor, depth: int) -> Descriptor:
        made = await self.convert(entry.digest, None, depth + 1)
        extra = {name: value for name, value in entry.extra.items() if name != "data"}
        return replace(
            entry, media_type=made.media_type, digest=made.digest, size=made.size, extra=extra
        )

    async def convert_manifest(
        self, descriptor: Descriptor, manifest: Manifest, tag: str | None
    ) -> Descriptor:
        what = f"{self._source.name}@{descriptor.digest}"
        config = await self._read_config(what, manifest)
        await copy_blob(self._source, self._target, manifest.config, Silence())
        layers = await _gather(
            self._transfer.transfer(layer, diff_id)
            for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
        )
        made = replace(
            manifest,
            media_type=OCI_MANIFEST,
            config=replace(manifest.config, media_type=OCI_CONFIG),
            layers=tuple(layers),
        )
        return await self._target.push_manifest(serialize_document(made), OCI_MANIFEST, tag)

    async def _read_config(self, what: str, manifest: Manifest) -> ImageConfig:
        if manifest.config.media_type not in CONFIG_TYPES:
            kind = manifest.artifact_type or manifest.config.media_type
            raise NotLazyError(what, f"is {kind[:80]!r}, no container image")
        if manifest.config.size > MAX_CONFIG:
            raise CorruptError(
                what, f"its config has {manifest.config.size} bytes, at most {MAX_CONFIG} allowed"
            )
        stream = self._source.stream_blob(manifest.config)
        data = b"".join([piece async for piece in stream])
        try:
            config = parse_config(data)
        except FormatError as error:
            raise CorruptError(what, str(error)) from error
        if len(config.diff_ids) != len(manifest.layers):
            raise CorruptError(
                what, f"{len(manifest.layers)} layers, but {len(config.diff_ids)} in its config"
            )
        return config


def _is_image(entry: Descriptor) -> bool:
    """Tell whether an index's entry may be an image: it is no attestation or other artifact."""
    return (
        entry.media_type in {*MANIFEST_TYPES, *INDEX_TYPES}
        and not entry.artifact_type
        and _REFERENCE_TYPE not in entry.annotations
        and not (entry.platform is not None and entry.platform.is_unknown)
    )


async def _gather(coroutines: Iterable[Coroutine[Any, Any, Descriptor]]) -> list[Descriptor]:
    """Run them side by side; the first failure ends the others, and is raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _find_known(target: ImageTarget, tag: str, parameters: str) -> dict[str, Descriptor]:
    """Give the layers under the target's tag that were made in the same way, by their source."""
    if not tag or not isinstance(target, ImageSource):
        return {}
    known: dict[str, Descriptor] = {}
    references: list[Digest | str] = [tag]
    for _ in range(_MAX_KNOWN_MANIFESTS):
        if not references:
            break
        document = await _read_existing(target, references.pop())
        if isinstance(document, Index):
            references += [entry.digest for entry in document.manifests if _is_image(entry)]
        elif document is not None:
            known |= _made_alike(document, parameters)
    return known


async def _read_existing(target: ImageSource, reference: Digest | str) -> Manifest | Index | None:
    """Give what the target has under a reference; None where that is nothing of use."""
    try:
        descriptor, data = await target.fetch_manifest(reference)
        return parse_document(data, descriptor.media_type)
    except (NotFoundError, AccessDeniedError, CorruptError, FormatError):
        return None  # not there (some registries deny access instead), or about to be replaced


def _made_alike(manifest: Manifest, parameters: str) -> dict[str, Descriptor]:
    found = {}
    for layer in manifest.layers:
        origin = layer.annotations.get(SOURCE_DIGEST)
        if origin is None or layer.annotations.get(PARAMETERS) != parameters:
            continue
        try:
            location = find_toc(layer)
        except FormatError:
            continue
        if location is not None:
            ours = {name: layer.annotations[name] for name in (SOURCE_DIGEST, PARAMETERS)}
            annotations = serialize_annotations(location) | ours
            found[origin] = replace(layer, annotations=annotations)
    return found
