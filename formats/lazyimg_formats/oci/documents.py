"""The JSON documents of an image, and a registry's document of errors.

`parse_x` gives a frozen value or FormatError, `serialize_x` the bytes; the same value gives the
same bytes. Fields that are not known here are kept in `extra` and written again, behind the known
ones, so that a manifest whose layers were replaced keeps everything else.

A document that could be read both as a manifest and as an index is refused (CVE-2021-41190).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Mapping

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"

MANIFEST_TYPES: Final = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES: Final = (OCI_INDEX, DOCKER_INDEX)
CONFIG_TYPES: Final = (OCI_CONFIG, DOCKER_CONFIG)

REF_NAME: Final = "org.opencontainers.image.ref.name"
"""The annotation under which an image layout's index names an image."""

MAX_DOCUMENT: Final = 4 << 20
"""Bytes of a manifest or index: what registries are required to take."""

MAX_CONFIG: Final = 8 << 20
"""Bytes of an image config."""

MAX_LAYERS: Final = 4096
"""Layers of a manifest."""

MAX_MANIFESTS: Final = 65_536
"""Manifests of an index; an image layout's own index may list many."""

MAX_SIZE: Final = (1 << 63) - 1
"""Bytes that a descriptor may speak of: a signed 64-bit number."""

MAX_ERRORS: Final = 64
"""Errors of a registry that are read from one answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """Names a blob or document, with what it is and how long. Source: descriptor.md.

    Attributes:
        media_type: what it is.
        digest: of its bytes.
        size: bytes.
        annotations: free text by name.
        platform: of a manifest inside an index.
        artifact_type: of a manifest inside an index; may be empty.
        extra: further fields, as JSON values.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    artifact_type: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image for one platform. Source: manifest.md; Docker's schema 2 has the same fields.

    Attributes:
        media_type: the document's own; empty where it does not say.
        config: the image's config.
        layers: lowest first.
        artifact_type: what it is when it is no image; may be empty.
        subject: the manifest that this one speaks about.
        annotations: free text by name.
        extra: further fields, as JSON values.
    """

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = OCI_MANIFEST
    artifact_type: str = ""
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Images for several platforms. Source: image-index.md; attributes as in `Manifest`.

    Attributes:
        manifests: in the document's order; the first that fits a platform is the best.
    """

    manifests: tuple[Descriptor, ...]
    media_type: str = OCI_INDEX
    artifact_type: str = ""
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """How one layer came to be; `empty_layer` says that it has none."""

    created_by: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What of an image's config is needed here; it is never rewritten. Source: config.md.

    Attributes:
        platform: what the image runs on.
        diff_ids: digests of the uncompressed layers, lowest first.
        history: may be empty.
    """

    platform: Platform
    diff_ids: tuple[Digest, ...]
    history: tuple[HistoryEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class ErrorEntry:
    """One entry of a registry's errors: a code such as ``MANIFEST_UNKNOWN``, and text."""

    code: str
    message: str = ""


class _Fields:
    """A JSON object whose fields are taken out one by one, each with its type checked."""

    def __init__(self, what: str, value: object) -> None:
        if not isinstance(value, dict):
            raise FormatError(what, f"expected an object, got {_kind(value)}")
        self.what = what
        self.rest: dict[str, Any] = dict(value)

    def take(self, name: str, kind: type, default: object = None) -> Any:
        value = self.rest.pop(name, None)
        if value is None:  # Go writes null for what is absent
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.refuse(name, value)
        return value

    def need(self, name: str, kind: type) -> Any:
        value = self.take(name, kind)
        if value is None:
            raise FormatError(self.what, f"{name} is missing")
        return value

    def texts(self, name: str) -> dict[str, str]:
        value: dict[str, Any] = self.take(name, dict, {})
        for text in value.values():
            if not isinstance(text, str):
                raise self.refuse(name, text)
        return value

    def items(self, name: str, limit: int, *, required: bool = False) -> list[Any]:
        value: list[Any] | None = self.take(name, list)
        if value is None:
            if required:
                raise FormatError(self.what, f"{name} is missing")
            return []
        if len(value) > limit:
            raise FormatError(self.what, f"{name} has {len(value)} items, at most {limit} allowed")
        return value

    def refuse(self, name: str, value: object) -> FormatError:
        return FormatError(self.what, f"{name} cannot be {_kind(value)}")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    return repr(value)[:80]


def _parse_object(what: str, data: bytes, limit: int) -> _Fields:
    if len(data) > limit:
        raise FormatError(what, f"{len(data)} bytes, at most {limit} allowed")
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError) as error:
        raise FormatError(what, f"no JSON: {error}") from error
    except RecursionError as error:
        raise FormatError(what, "nested too deeply") from error
    return _Fields(what, value)


def parse_document(data: bytes, media_type: str = "") -> Manifest | Index:
    """Give the manifest or index in `data`.

    Args:
        data: the document.
        media_type: what its transport or descriptor calls it; "" when nobody says.

    Raises:
        FormatError: neither; another type than it was said to be; over `MAX_DOCUMENT` bytes.
    """
    fields = _parse_object("manifest", data, MAX_DOCUMENT)
    version = fields.take("schemaVersion", int)
    own_type: str = fields.take("mediaType", str, "")
    if version == 1 or "fsLayers" in fields.rest:
        raise FormatError("manifest", "Docker's schema 1, which no longer carries images")
    if version != 2:
        raise FormatError("manifest", f"expected schemaVersion 2, got {str(version)[:80]}")
    known = MANIFEST_TYPES + INDEX_TYPES
    if media_type in known and own_type and own_type != media_type:
        raise FormatError("manifest", f"calls itself {own_type[:80]!r}, was sent as {media_type!r}")
    is_index = "manifests" in fields.rest
    is_manifest = "config" in fields.rest or "layers" in fields.rest
    if is_index and is_manifest:
        raise FormatError("manifest", "has the fields of both a manifest and an index")
    effective = own_type or media_type
    if effective in (MANIFEST_TYPES if is_index else INDEX_TYPES):
        raise FormatError("manifest", f"is called {effective[:80]!r}, has fields of the other kind")
    if is_index:
        return _index(fields, own_type)
    return _manifest(fields, own_type)


def _manifest(fields: _Fields, media_type: str) -> Manifest:
    return Manifest(
        media_type=media_type,
        config=_descriptor(fields.need("config", dict)),
        layers=tuple(map(_descriptor, fields.items("layers", MAX_LAYERS, required=True))),
        artifact_type=fields.take("artifactType", str, ""),
        subject=_subject(fields),
        annotations=fields.texts("annotations"),
        extra=fields.rest,
    )


def _index(fields: _Fields, media_type: str) -> Index:
    return Index(
        media_type=media_type,
        manifests=tuple(map(_descriptor, fields.items("manifests", MAX_MANIFESTS))),
        artifact_type=fields.take("artifactType", str, ""),
        subject=_subject(fields),
        annotations=fields.texts("annotations"),
        extra=fields.rest,
    )


def _subject(fields: _Fields) -> Descriptor | None:
    subject = fields.take("subject", dict)
    return None if subject is None else _descriptor(subject)


def _descriptor(value: object) -> Descriptor:
    fields = _Fields("descriptor", value)
    media_type: str = fields.need("mediaType", str)
    size: int = fields.need("size", int)
    if not 0 <= size <= MAX_SIZE:
        raise FormatError("descriptor", f"size cannot be {str(size)[:80]}")
    platform = fields.take("platform", dict)
    return Descriptor(
        media_type=media_type,
        digest=Digest.parse(fields.need("digest", str)),
        size=size,
        annotations=fields.texts("annotations"),
        platform=None if platform is None else _platform(_Fields("platform", platform)),
        artifact_type=fields.take("artifactType", str, ""),
        extra=fields.rest,
    )


def _platform(fields: _Fields) -> Platform:
    return Platform(
        os=fields.take("os", str, ""),
        architecture=fields.take("architecture", str, ""),
        variant=fields.take("variant", str, ""),
        os_version=fields.take("os.version", str, ""),
        extra=fields.rest,
    )


def parse_config(data: bytes) -> ImageConfig:
    """Give what is needed of an image's config.

    Raises:
        FormatError: no config, no ``rootfs.diff_ids``, over `MAX_CONFIG` bytes.
    """
    fields = _parse_object("image config", data, MAX_CONFIG)
    rootfs = _Fields("image config", fields.need("rootfs", dict))
    diff_ids = []
    for text in rootfs.items("diff_ids", MAX_LAYERS):
        if not isinstance(text, str):
            raise rootfs.refuse("diff_ids", text)
        diff_ids.append(Digest.parse(text))
    history = []
    for value in fields.items("history", 16 * MAX_LAYERS):
        entry = _Fields("image config", value)
        history.append(
            HistoryEntry(entry.take("created_by", str, ""), entry.take("empty_layer", bool) is True)
        )
    platform = replace(_platform(fields), extra={})  # what the image runs on, not all of its config
    return ImageConfig(platform, tuple(diff_ids), tuple(history))


def parse_errors(data: bytes) -> tuple[ErrorEntry, ...]:
    """Give the entries of a registry's document of errors, the first `MAX_ERRORS` of them.

    Source: distribution-spec, "Error Codes".

    Raises:
        FormatError: no such document.
    """
    fields = _parse_object("registry errors", data, MAX_DOCUMENT)
    entries = []
    for value in fields.items("errors", MAX_DOCUMENT, required=True)[:MAX_ERRORS]:
        entry = _Fields("registry errors", value)
        entries.append(ErrorEntry(entry.take("code", str, ""), entry.take("message", str, "")))
    return tuple(entries)


def serialize_document(document: Manifest | Index) -> bytes:
    """Give the document's bytes: known fields in the specification's order, then `extra`."""
    value: dict[str, Any] = {"schemaVersion": 2}
    if document.media_type:
        value["mediaType"] = document.media_type
    if document.artifact_type:
        value["artifactType"] = document.artifact_type
    if isinstance(document, Manifest):
        value["config"] = _descriptor_value(document.config)
        value["layers"] = [_descriptor_value(layer) for layer in document.layers]
    else:
        value["manifests"] = [_descriptor_value(manifest) for manifest in document.manifests]
    if document.subject is not None:
        value["subject"] = _descriptor_value(document.subject)
    if document.annotations:
        value["annotations"] = dict(document.annotations)
    return msgspec.json.encode(value | dict(document.extra))


def _descriptor_value(descriptor: Descriptor) -> dict[str, Any]:
    value: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.annotations:
        value["annotations"] = dict(descriptor.annotations)
    if descriptor.platform is not None:
        value["platform"] = _platform_value(descriptor.platform)
    if descriptor.artifact_type:
        value["artifactType"] = descriptor.artifact_type
    return value | dict(descriptor.extra)


def _platform_value(platform: Platform) -> dict[str, Any]:
    value: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os}
    if platform.variant:
        value["variant"] = platform.variant
    if platform.os_version:
        value["os.version"] = platform.os_version
    return value | dict(platform.extra)


def describe(data: bytes, media_type: str) -> Descriptor:
    """Give the descriptor of a document's bytes."""
    return Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data))
