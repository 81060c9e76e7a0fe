"""From what a user typed to one image: place, platform, manifest, config."""

from __future__ import annotations

import platform as machine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lazyimg.errors import (
    BadReferenceError,
    CorruptError,
    NoPlatformError,
    NotLazyError,
    UsageError,
)
from lazyimg.registry.oci_archive import open_archive
from lazyimg.registry.oci_layout import create_layout, open_layout
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci import platform as platforms
from lazyimg_formats.oci.documents import (
    CONFIG_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_CONFIG,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    parse_config,
    parse_document,
)
from lazyimg_formats.oci.platform import Platform, normalize_platform, rank_platform
from lazyimg_formats.oci.reference import (
    ArchiveLocation,
    ContainerdLocation,
    LayoutLocation,
    Location,
    RegistryLocation,
)
from lazyimg_formats.oci.reference import parse_location as parse

if TYPE_CHECKING:
    from lazyimg.registry.client import RegistryClient
    from lazyimg.registry.ports import Access, ImageSource, ImageTarget
    from lazyimg_formats.oci.digest import Digest

MAX_INDEX_DEPTH: Final = 4
"""Indexes inside indexes."""

_DOCUMENT_TYPES: Final = frozenset({*MANIFEST_TYPES, *INDEX_TYPES})
_ANY_PLATFORM: Final = 1 << 16

NYDUS_MANIFEST: Final = "application/vnd.nydus.image.manifest.v1+json"
"""Artifact type of an image's Nydus twin in its index (nydus-snapshotter, constant.go)."""

NYDUS_FEATURE: Final = "nydus.remoteimage.v1"
"""What `os.features` of an older one says."""

NYDUS_CONFIG: Final = "application/vnd.nydus.image.config.v1+json"
"""Media type of a twin's config, so that nobody else takes it for an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedImage:
    """One image for one platform.

    Attributes:
        top: what the reference names: an index, or the manifest itself.
        descriptor: the manifest's.
        manifest_bytes: the manifest as it is.
        manifest: the same, parsed.
        config_bytes: the config as it is, verified.
        config: the same, parsed.
        indexes: what leads from the reference to the manifest, the outermost first.
    """

    top: Descriptor
    descriptor: Descriptor
    manifest_bytes: bytes
    manifest: Manifest
    config_bytes: bytes
    config: ImageConfig
    indexes: tuple[tuple[Descriptor, bytes], ...] = ()


def parse_location(text: str) -> Location:
    """Give the place and image that a user named; raises BadReferenceError."""
    try:
        return parse(text)
    except FormatError as error:
        raise BadReferenceError(text[:200], error.problem) from error


def local_platform() -> Platform:
    """Give this machine's platform."""
    return normalize_platform(Platform(machine.system().lower(), machine.machine()))


def parse_platform(text: str) -> Platform:
    """Give the platform that a user named, this machine's for ""; raises UsageError."""
    try:
        return platforms.parse_platform(text, local_platform())
    except FormatError as error:
        raise UsageError(text[:80], error.problem) from error


async def open_source(
    location: Location, client: RegistryClient, access: Access
) -> tuple[ImageSource, Digest | str]:
    """Give where a location's image is, and what to ask there for.

    Raises:
        LazyimgError: a local place that does not exist or is none.
    """
    match location:
        case RegistryLocation(reference):
            return client.repository(reference, access), reference.target
        case LayoutLocation(path, tag, digest):
            return await open_layout(Path(path)), digest or tag
        case ArchiveLocation(path, tag, digest):
            return await open_archive(Path(path)), digest or tag
        case ContainerdLocation():
            raise UsageError(str(location), "images cannot be read from containerd")


async def open_target(
    location: Location, client: RegistryClient, access: Access
) -> tuple[ImageTarget, str]:
    """Give where a location's image goes to, and what to call it there.

    Raises:
        LazyimgError: a place that cannot be written.
    """
    match location:
        case RegistryLocation(reference) if reference.digest is None:
            return client.repository(reference, access), reference.tag
        case LayoutLocation(path, tag, None):
            return await create_layout(Path(path)), tag
        case RegistryLocation() | LayoutLocation():
            raise UsageError(str(location), "a digest cannot be chosen", "name a tag instead")
        case _:
            raise UsageError(
                str(location), "cannot be written to", "name a registry or oci:DIRECTORY"
            )


async def resolve_image(
    source: ImageSource, reference: Digest | str, platform: Platform
) -> ResolvedImage:
    """Give the image under `reference` for `platform`.

    Raises:
        NotFoundError: it is not there.
        NoPlatformError: not for this platform; says for which ones it is.
        NotLazyError: it is something else than a container image.
        CorruptError: a digest or a document is wrong.
        LazyimgError: whatever the source raises.
    """
    top, data = await source.fetch_manifest(reference)
    descriptor, document = top, _parse(source, top, data)
    indexes: list[tuple[Descriptor, bytes]] = []
    for _ in range(MAX_INDEX_DEPTH + 1):
        if isinstance(document, Manifest):
            image = await _complete(source, top, descriptor, (document, data), platform)
            return replace(image, indexes=tuple(indexes))
        indexes.append((descriptor, data))
        chosen = choose_manifest(_name(source, descriptor), document, platform)
        descriptor, data = await source.fetch_manifest(chosen.digest)
        document = _parse(source, descriptor, data)
    raise CorruptError(_name(source, top), f"over {MAX_INDEX_DEPTH} indexes inside each other")


def choose_manifest(what: str, index: Index, platform: Platform) -> Descriptor:
    """Give the entry of an index that serves `platform` best, the first of equals.

    The Nydus twin of an image, which is for the same platform, is taken if there is no other.
    An entry that says nothing of its platform is taken if no other fits; one for an unknown
    platform, such as an attestation, never.

    Raises:
        NoPlatformError: there is none; `what` is named.
    """
    best: Descriptor | None = None
    best_rank = (False, -1)
    offered = [entry for entry in index.manifests if entry.media_type in _DOCUMENT_TYPES]
    for entry in offered:
        if entry.platform is None:
            rank: int | None = _ANY_PLATFORM
        else:
            rank = None if entry.platform.is_unknown else rank_platform(platform, entry.platform)
        if rank is not None and (best is None or (_is_twin(entry), rank) < best_rank):
            best, best_rank = entry, (_is_twin(entry), rank)
    if best is None:
        names = [str(entry.platform) for entry in offered if not _is_unknown(entry)]
        raise _no_platform(what, platform, names)
    return best


def _is_twin(entry: Descriptor) -> bool:
    """Whether it is the Nydus form of another image of its index."""
    features = entry.platform.extra.get("os.features") if entry.platform is not None else None
    return entry.artifact_type == NYDUS_MANIFEST or (
        isinstance(features, list) and NYDUS_FEATURE in features
    )


def _is_unknown(entry: Descriptor) -> bool:
    return entry.platform is None or entry.platform.is_unknown


def _no_platform(what: str, platform: Platform, names: list[str]) -> NoPlatformError:
    known = ", ".join(dict.fromkeys(names)) or "none"
    return NoPlatformError(
        what, f"there is no image for {platform}", f"choose one that is there: {known[:400]}"
    )


async def _complete(
    source: ImageSource,
    top: Descriptor,
    descriptor: Descriptor,
    found: tuple[Manifest, bytes],
    platform: Platform,
) -> ResolvedImage:
    manifest, data = found
    what = _name(source, descriptor)
    if manifest.config.media_type not in {*CONFIG_TYPES, NYDUS_CONFIG}:
        kind = manifest.artifact_type or manifest.config.media_type
        raise NotLazyError(what, f"is {kind[:80]!r}, no container image")
    if manifest.config.size > MAX_CONFIG:
        raise CorruptError(
            what, f"its config has {manifest.config.size} bytes, at most {MAX_CONFIG} allowed"
        )
    config_bytes = b"".join([piece async for piece in source.stream_blob(manifest.config)])
    try:
        config = parse_config(config_bytes)
    except FormatError as error:
        raise CorruptError(_name(source, manifest.config), str(error)) from error
    if len(config.diff_ids) != len(manifest.layers):
        raise CorruptError(
            what, f"{len(manifest.layers)} layers, but {len(config.diff_ids)} in its config"
        )
    theirs = config.platform
    if theirs.os and theirs.architecture and rank_platform(platform, theirs) is None:
        raise _no_platform(what, platform, [str(normalize_platform(theirs))])
    return ResolvedImage(
        top=top,
        descriptor=descriptor,
        manifest_bytes=data,
        manifest=manifest,
        config_bytes=config_bytes,
        config=config,
    )


def _parse(source: ImageSource, descriptor: Descriptor, data: bytes) -> Manifest | Index:
    try:
        return parse_document(data, descriptor.media_type)
    except FormatError as error:
        raise CorruptError(_name(source, descriptor), str(error)) from error


def _name(source: ImageSource, descriptor: Descriptor) -> str:
    return f"{source.name}@{descriptor.digest}"
