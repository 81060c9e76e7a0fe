"""SOCI indexes of an image go to its repository, for the soci snapshotter and for lazyimg.

Each layer is read once; a child makes its zTOC (`indexing`). The index of version 1 refers to the
image's manifest. For the one of version 2 the manifest is written anew, with the index's digest,
and an image index with both, which gets a tag: config and layers stay what they are. The tag is set
last, when everything is there. Layers of which there can be no zTOC are left out: that is said.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg.errors import NotLazyError, UsageError
from lazyimg.images.indexing import IndexMaker, IndexRequest
from lazyimg.layers.locate import PLAIN, name_format
from lazyimg.registry.ports import ReferrerTarget
from lazyimg_formats.index_artifact import StoredIndex
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    parse_document,
    serialize_document,
)
from lazyimg_formats.soci.manifest import (
    EMPTY,
    INDEX_DIGEST,
    MANIFEST_DIGEST,
    SOCI_V2,
    make_soci_index,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lazyimg.limits import BuildLimits
    from lazyimg.registry.ports import ImageSource, ImageTarget
    from lazyimg.registry.resolve import ResolvedImage

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class SociLayer:
    """A layer, and its zTOC; or why it has none."""

    layer: Descriptor
    ztoc: StoredIndex | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class SociPublished:
    """What is in the repository now.

    Attributes:
        layers: of the image, lowest first.
        referring: digest of the index that refers to the image's manifest; "" in an image layout,
            where nothing could find it.
        image: digest of what the tag names; "" where none was asked for.
    """

    layers: list[SociLayer]
    referring: str
    image: str


class SociPublisher:
    """Makes SOCI indexes of one repository's images and pushes them.

    Args:
        source: the repository, to read.
        target: the same, to write.
        limits: of the process that makes a zTOC.
    """

    def __init__(self, source: ImageSource, target: ImageTarget, limits: BuildLimits) -> None:
        self._source = source
        self._target = target
        self._limits = limits

    async def publish(self, what: str, resolved: ResolvedImage, tag: str) -> SociPublished:
        """Make the indexes of an image, and push them.

        Args:
            what: what an error calls the image.
            resolved: what the registry says of it.
            tag: what to call the image that names its index; "": there is to be none.

        Raises:
            NotLazyError: no layer can have a zTOC.
            UsageError: an image layout without a tag.
            LazyimgError: the registry, the image or the disk fails.
        """
        target = self._target
        if not isinstance(target, ReferrerTarget) and not tag:
            raise UsageError(what, "nothing would find what refers to it", "name a tag: --embed")
        with tempfile.TemporaryDirectory(prefix="lazyimg-soci-") as directory:
            layers = [
                await self._make_ztoc(what, resolved, number, Path(directory))
                for number in range(len(resolved.manifest.layers))
            ]
        ztocs = [(one.layer, one.ztoc) for one in layers if one.ztoc is not None]
        if not ztocs:
            problems = "; ".join(dict.fromkeys(one.problem for one in layers))
            raise NotLazyError(what, f"no layer can have a zTOC: {problems or 'it has none'}")
        await _push(target, EMPTY)
        referring = image = ""
        if isinstance(target, ReferrerTarget):
            document = serialize_document(make_soci_index(ztocs, resolved.descriptor))
            referring = str((await target.push_referrer(document, OCI_MANIFEST)).digest)
        if tag:
            document = serialize_document(make_soci_index(ztocs, None))
            index = await target.push_manifest(document, OCI_MANIFEST)
            image = str((await _push_image(target, resolved, index, tag)).digest)
        return SociPublished(layers, referring, image)

    async def _make_ztoc(
        self, what: str, resolved: ResolvedImage, number: int, directory: Path
    ) -> SociLayer:
        layer, diff_id = resolved.manifest.layers[number], resolved.config.diff_ids[number]
        kind = name_format(layer)
        if kind not in PLAIN:
            return SociLayer(layer, None, f"a layer of format {kind}")
        request = IndexRequest(
            str(layer.digest), layer.size, str(diff_id), str(directory / "index"),
            self._limits.memory, self._limits.processor_time, ztoc=str(directory / "ztoc"),
        )  # fmt: skip
        named = f"{what}: layer {number + 1} of {len(resolved.manifest.layers)}"
        maker = IndexMaker()  # which survives no failure
        try:
            await maker.make(named, request, self._source.stream_blob(layer))
        except NotLazyError as error:
            return SociLayer(layer, None, error.problem)
        finally:
            await maker.close()
        return SociLayer(layer, await _push_file(self._target, Path(request.ztoc)))


async def _push_file(target: ImageTarget, path: Path) -> StoredIndex:
    data = await asyncio.to_thread(path.read_bytes)
    await _push(target, data)
    return StoredIndex(Digest.of(data), len(data))


async def _push(target: ImageTarget, data: bytes) -> None:
    digest = Digest.of(data)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), _PIECE):
            yield data[at : at + _PIECE]

    if not await target.has_blob(digest):
        await target.push_blob(pieces(), lambda: digest)


async def _push_image(
    target: ImageTarget, resolved: ResolvedImage, index: Descriptor, tag: str
) -> Descriptor:
    """Push a manifest that names its index, and an image index with both."""
    old = resolved.manifest
    annotations = {**old.annotations, INDEX_DIGEST: str(index.digest)}
    manifest = replace(
        old,
        media_type=OCI_MANIFEST,
        config=replace(old.config, media_type=OCI_CONFIG),
        annotations=annotations,
    )
    made = await target.push_manifest(serialize_document(manifest), OCI_MANIFEST)
    platform = resolved.config.platform
    entries = [
        replace(made, platform=platform, annotations=annotations),
        replace(
            index,
            platform=platform,
            artifact_type=SOCI_V2,
            annotations={MANIFEST_DIGEST: str(made.digest)},
        ),
    ]
    document = Index(manifests=tuple(entries))
    if resolved.indexes:
        document = _replace_entry(resolved, entries)
    return await target.push_manifest(serialize_document(document), OCI_INDEX, tag)


def _replace_entry(resolved: ResolvedImage, entries: list[Descriptor]) -> Index:
    """Give the innermost image index with the new manifest in the place of the old one."""
    descriptor, data = resolved.indexes[-1]
    index = parse_document(data, descriptor.media_type)
    assert isinstance(index, Index)  # noqa: S101 - it has led to the manifest
    old = resolved.descriptor.digest
    kept: list[Descriptor] = []
    for entry in index.manifests:
        if entry.digest == old:
            kept.append(replace(entries[0], platform=entry.platform or entries[0].platform))
        elif entry.annotations.get(MANIFEST_DIGEST) != str(old):
            kept.append(entry)
    return replace(index, media_type=OCI_INDEX, manifests=(*kept, entries[1]))
