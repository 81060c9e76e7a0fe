"""Labels by which containerd's collector knows what belongs together.

Sources: containerd, docs/garbage-collection.md, core/images/mediatypes.go (ChildGCLabels),
core/remotes/docker/handler.go (AppendDistributionSourceLabel).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from lazyimg_formats.oci.documents import MANIFEST_TYPES, Index

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lazyimg_formats.oci.documents import Manifest
    from lazyimg_formats.oci.reference import Reference

EXPIRES: Final = "containerd.io/gc.expire"
"""On a lease: when it ends (RFC 3339)."""

SNAPSHOT_REF: Final = "containerd.io/snapshot.ref"
"""On a snapshot to be made: the chain ID that it is for."""

UNCOMPRESSED: Final = "containerd.io/uncompressed"
"""On a layer's content: its diff ID."""

_SOURCE: Final = "containerd.io/distribution.source."
_CONTENT: Final = "containerd.io/gc.ref.content."
_SNAPSHOT: Final = "containerd.io/gc.ref.snapshot."

MAX_LABEL: Final = 4096
"""Bytes of a label's name and value together."""


def child_labels(document: Manifest | Index) -> dict[str, str]:
    """Give the labels that let a document keep what it names."""
    counts: Counter[str] = Counter()
    labels = {}
    if isinstance(document, Index):
        for entry in document.manifests:
            prefix = f"{_CONTENT}m." if entry.media_type in MANIFEST_TYPES else _CONTENT
            labels[f"{prefix}{counts[prefix]}"] = str(entry.digest)
            counts[prefix] += 1
        return labels
    labels[f"{_CONTENT}config"] = str(document.config.digest)
    for number, layer in enumerate(document.layers):
        labels[f"{_CONTENT}l.{number}"] = str(layer.digest)
    return labels


def snapshot_labels(snapshotter: str, chain: str) -> dict[str, str]:
    """Give the label that lets a config keep the uppermost layer's snapshot."""
    return {f"{_SNAPSHOT}{snapshotter}": chain}


def source_labels(reference: Reference) -> dict[str, str]:
    """Give the label that says from which repository content came."""
    bare = reference.registry.removeprefix("[")
    host = bare.partition("]" if bare != reference.registry else ":")[0]
    return {f"{_SOURCE}{host}": reference.repository}


def missing_labels(present: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Give what must be set so that content that has some labels has the wanted ones as well.

    Repositories are added to those that are there, as far as there is room.
    """
    missing = {}
    for name, value in wanted.items():
        if name.startswith(_SOURCE) and name in present:
            value = ",".join(sorted({value, *present[name].split(",")} - {""}))  # noqa: PLW2901
            if len(name) + len(value) > MAX_LABEL:
                continue
        if present.get(name) != value:
            missing[name] = value
    return missing
