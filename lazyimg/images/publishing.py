"""Indexes that this node has made go to the image's repository, for other nodes.

They become blobs there, and an artifact that refers to the image's manifest keeps them. To have an
image commit to them, its manifest is written anew, with the digest of each index at its layer, and
so are the image indexes that lead to it; config and layers stay what they are. The tag is set last,
when everything is there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from lazyimg.errors import BadReferenceError, NotFoundError, StorageError, UsageError
from lazyimg.images.artifacts import list_artifacts
from lazyimg.layers.locate import PLAIN, name_format
from lazyimg.registry.ports import ReferrerTarget
from lazyimg_formats.errors import FormatError
from lazyimg_formats.index_artifact import (
    EMPTY,
    StoredIndex,
    embed_index,
    make_artifact,
    parse_embedded,
)
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_MANIFEST,
    Descriptor,
    Index,
    parse_document,
    serialize_document,
)
from lazyimg_formats.oci.reference import parse_reference

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from lazyimg.images.library import Library, OwnIndex
    from lazyimg.images.service import Images
    from lazyimg.registry.ports import Access
    from lazyimg.registry.resolve import ResolvedImage
    from lazyimg_formats.oci.documents import Manifest

_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Published:
    """What is in the repository now.

    Attributes:
        reference: of the image, with the tag or digest asked for.
        tagged: of the image that commits to its indexes; "" where none was asked for.
        digest: of the manifest that the artifact refers to.
        artifact: its digest; "": each layer has an index itself, and nothing was pushed.
        layers: digests of the layers whose indexes are in it, and of the indexes.
    """

    reference: str
    tagged: str
    digest: str
    artifact: str
    layers: dict[Digest, StoredIndex]


class LayerIndexes(NamedTuple):
    """Where there are indexes of a layer.

    Attributes:
        layer: its blob.
        format: in the words of `lazyimg.layers`.
        own: the one that this node has made.
        committed: the digest of the one that the manifest commits to; "" for none.
        pushed: digests of the artifacts that have one.
    """

    layer: Descriptor
    format: str
    own: OwnIndex | None
    committed: str
    pushed: tuple[str, ...]


class Publisher:
    """Pushes indexes, lists and removes what was pushed.

    Args:
        root: the daemon's directory.
        library: the records.
        images: resolves references.
    """

    def __init__(self, root: Path, library: Library, images: Images) -> None:
        self._directory = root / "content"
        self._library = library
        self._images = images

    async def push(self, text: str, platform_text: str, access: Access, tag: str = "") -> Published:
        """Push the indexes that this node has of an image's layers.

        Args:
            text: the reference as the user wrote it.
            platform_text: os/arch[/variant], ``local`` or "" for this machine's.
            access: how to reach the registry.
            tag: what to call an image that commits to them; "": there is to be none.

        Raises:
            NotFoundError: this node lacks the index of a layer.
            UsageError: the image is in no registry.
            BadReferenceError: there can be no such tag.
            LazyimgError: the registry, the image or the disk fails.
        """
        name, target, resolved = await self._resolve(text, platform_text, access)
        tagged = _name_tag(target.name, tag) if tag else ""
        indexes = await asyncio.to_thread(self._own_indexes, name, resolved)
        for index in indexes.values():
            await _push_blob(target, index.digest, _read_pieces(self._directory / index.digest.hex))
        document = serialize_document(_commit(resolved, indexes)) if tag else b""
        subject = resolved.descriptor
        if tag:
            subject = await target.push_manifest(document, resolved.descriptor.media_type)
        artifact = await _push_artifact(target, subject, indexes) if indexes else None
        if tag:
            await _set_tag(target, resolved, document, tag)
        return Published(
            name, tagged, str(subject.digest), str(artifact.digest) if artifact else "", indexes
        )

    async def find(
        self, text: str, platform_text: str, access: Access
    ) -> tuple[str, list[LayerIndexes]]:
        """Give the image's canonical reference, and where there are indexes of its layers.

        Args and Raises: as `push`.
        """
        name, target, resolved = await self._resolve(text, platform_text, access)
        artifacts = await list_artifacts(target, resolved.descriptor.digest)
        layers = []
        for layer, diff_id in zip(resolved.manifest.layers, resolved.config.diff_ids, strict=True):
            own = await asyncio.to_thread(
                self._library.find_own_index, str(layer.digest), str(diff_id)
            )
            pushed = [str(one) for one, indexes in artifacts.items() if layer.digest in indexes]
            committed = _committed(layer)
            layers.append(
                LayerIndexes(
                    layer,
                    name_format(layer),
                    own,
                    str(committed.digest) if committed else "",
                    tuple(pushed),
                )
            )
        return name, layers

    async def remove(
        self, text: str, platform_text: str, access: Access
    ) -> tuple[list[str], list[str]]:
        """Remove the artifacts that refer to an image, as far as the registry allows it.

        Args and Raises: as `push`, and
            NotFoundError: there are none.

        Returns:
            Their digests, and what the registry says of those that are still there.
        """
        name, target, resolved = await self._resolve(text, platform_text, access)
        subject = resolved.descriptor.digest
        artifacts = await list_artifacts(target, subject)
        if not artifacts:
            raise NotFoundError(name, "no index that was pushed refers to it")
        said = [await target.remove_referrer(subject, one) for one in artifacts]
        return [str(one) for one in artifacts], [one for one in said if one]

    async def _resolve(
        self, text: str, platform_text: str, access: Access
    ) -> tuple[str, ReferrerTarget, ResolvedImage]:
        name, source, resolved = await self._images.resolve_in(text, platform_text, access)
        if not isinstance(source, ReferrerTarget):
            raise UsageError(name, "indexes are pushed to registries only")
        return name, source, resolved

    def _own_indexes(self, name: str, resolved: ResolvedImage) -> dict[Digest, StoredIndex]:
        """Give the indexes that this node has made, of all layers that need one."""
        found: dict[Digest, StoredIndex] = {}
        layers = resolved.manifest.layers
        for number, (layer, diff_id) in enumerate(
            zip(layers, resolved.config.diff_ids, strict=True), 1
        ):
            if name_format(layer) not in PLAIN:
                continue
            own = self._library.find_own_index(str(layer.digest), str(diff_id))
            if own is None:
                raise NotFoundError(
                    f"{name}: layer {number} of {len(layers)}",
                    "this node has made no index of it",
                    "make it: lazyimg index create REF",
                )
            found[layer.digest] = StoredIndex(Digest.parse(own.digest), own.size)
        return found


def _name_tag(repository: str, tag: str) -> str:
    try:
        return str(parse_reference(f"{repository}:{tag}"))
    except FormatError as error:
        raise BadReferenceError(f"{repository}:{tag[:200]}", error.problem) from error


def _committed(layer: Descriptor) -> StoredIndex | None:
    try:
        return parse_embedded(layer)
    except FormatError:  # it commits to nothing; whoever uses the image says so
        return None


def _commit(resolved: ResolvedImage, indexes: Mapping[Digest, StoredIndex]) -> Manifest:
    layers = tuple(
        embed_index(layer, indexes[layer.digest]) if layer.digest in indexes else layer
        for layer in resolved.manifest.layers
    )
    return replace(resolved.manifest, layers=layers)


async def _push_artifact(
    target: ReferrerTarget, subject: Descriptor, indexes: Mapping[Digest, StoredIndex]
) -> Descriptor:
    await _push_blob(target, Digest.of(EMPTY), _give(EMPTY))
    return await target.push_referrer(
        serialize_document(make_artifact(subject, indexes)), OCI_MANIFEST
    )


async def _set_tag(
    target: ReferrerTarget, resolved: ResolvedImage, document: bytes, tag: str
) -> None:
    """Have a tag name a manifest instead of the one that was resolved, by the same way."""
    old, data = resolved.descriptor, document
    for descriptor, known in reversed(resolved.indexes):
        made = await target.push_manifest(data, old.media_type)
        index = parse_document(known, descriptor.media_type)
        assert isinstance(index, Index)  # noqa: S101 - it has led to the manifest
        entries = tuple(
            _point_to(entry, made) if entry.digest == old.digest else entry
            for entry in index.manifests
        )
        old, data = descriptor, serialize_document(replace(index, manifests=entries))
    await target.push_manifest(data, old.media_type, tag)


def _point_to(entry: Descriptor, made: Descriptor) -> Descriptor:
    extra = {name: value for name, value in entry.extra.items() if name != "data"}
    return replace(entry, digest=made.digest, size=made.size, extra=extra)


async def _push_blob(target: ReferrerTarget, digest: Digest, pieces: AsyncIterator[bytes]) -> None:
    if not await target.has_blob(digest):
        await target.push_blob(pieces, lambda: digest)


async def _give(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _read_pieces(path: Path) -> AsyncIterator[bytes]:
    try:
        file = await asyncio.to_thread(path.open, "rb")
        with file:
            while data := await asyncio.to_thread(file.read, _PIECE):
                yield data
    except OSError as error:
        raise StorageError(str(path), f"cannot be read: {error.strerror}") from error
