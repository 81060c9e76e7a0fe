"""SOCI indexes: which zTOC is of which layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    serialize_document,
)
from lazyimg_formats.soci.manifest import (
    LAYER_DIGEST,
    SOCI_V1,
    SOCI_V2,
    ZTOC_TYPE,
    parse_soci_index,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGE = describe(b"image", OCI_MANIFEST)
LAYERS = [Digest.of(b"layer"), Digest.of(b"another")]


def ztoc(layer: Digest | None, data: bytes = b"ztoc", **changes: object) -> Descriptor:
    annotations = {} if layer is None else {LAYER_DIGEST: str(layer)}
    made = replace(describe(data, ZTOC_TYPE), annotations=annotations)
    return replace(made, **changes)  # type: ignore[arg-type]


def index(
    layers: Sequence[Descriptor], kind: str = SOCI_V2, subject: Descriptor | None = None
) -> bytes:
    return serialize_document(
        Manifest(config=describe(b"{}", kind), layers=tuple(layers), subject=subject)
    )


def problem(data: bytes, subject: Digest | None = None) -> str:
    with pytest.raises(FormatError) as caught:
        parse_soci_index(data, subject)
    return str(caught.value)


@pytest.mark.parametrize("kind", [SOCI_V1, SOCI_V2])
def test_ztocs_by_layer(kind: str) -> None:
    first, second = ztoc(LAYERS[0]), ztoc(LAYERS[1], b"other")
    prefetch = ztoc(LAYERS[1], b"p", media_type="application/vnd.amazon.soci.prefetch.v1+json")
    data = index([first, prefetch, second, second, ztoc(None)], kind, IMAGE)
    assert parse_soci_index(data, IMAGE.digest) == dict(zip(LAYERS, (first, second), strict=True))
    assert parse_soci_index(index([])) == {}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (index([], OCI_CONFIG), "SOCI index: it is another document"),
        (serialize_document(Index(manifests=())), "SOCI index: it is another document"),
        (index([ztoc(LAYERS[0], size=0)]), "SOCI index: a zTOC of 0 bytes, the limit is 268435456"),
        (
            index([ztoc(LAYERS[0], size=1 << 40)]),
            f"SOCI index: a zTOC of {1 << 40} bytes, the limit is 268435456",
        ),
        (
            index([ztoc(LAYERS[0]), ztoc(LAYERS[0], b"other")]),
            f"SOCI index: two zTOCs of layer {LAYERS[0]}",
        ),
    ],
)
def test_indexes_that_lie(data: bytes, expected: str) -> None:
    assert problem(data) == expected


def test_layer_without_a_digest() -> None:
    data = index([ztoc(None, annotations={LAYER_DIGEST: "latest"})])
    assert "latest" in problem(data)


def test_index_of_another_image() -> None:
    other = Digest.of(b"other")
    assert problem(index([], subject=IMAGE), other) == (
        f"SOCI index: it refers to {IMAGE.digest}, expected {other}"
    )
    assert problem(index([]), other) == f"SOCI index: it refers to nothing, expected {other}"
