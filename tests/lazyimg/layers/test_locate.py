"""Which format a layer is in, and where its index lies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lazyimg.errors import CorruptError, NotLazyError
from lazyimg.layers.locate import LAZY, IndexLocation, locate_index, name_format
from lazyimg_formats.oci import documents
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import Descriptor
from lazyimg_formats.zstd_chunked.location import (
    CHECKSUM,
    LAZYIMG_DIGEST,
    LAZYIMG_POSITION,
    OLD_CHECKSUM,
    OLD_POSITION,
    POSITION,
    TocLocation,
    serialize_annotations,
)

TOC = TocLocation(1000, 50, 700, Digest("sha256", "ab" * 32))
CHUNKED = serialize_annotations(TOC)
OLD = {OLD_POSITION: CHUNKED[POSITION], OLD_CHECKSUM: CHUNKED[CHECKSUM]}
STARGZ = {"containerd.io/snapshot/stargz/toc.digest": "sha256:" + "cd" * 32}


def layer(media_type: str, annotations: dict[str, str], size: int = 5000) -> Descriptor:
    return Descriptor(
        media_type=media_type, digest=Digest.of(b""), size=size, annotations=annotations
    )


@pytest.mark.parametrize(
    ("media_type", "annotations", "expected"),
    [
        (documents.OCI_LAYER, {}, "tar"),
        (documents.DOCKER_LAYER, {}, "tar"),
        (documents.OCI_LAYER_GZIP, {}, "gzip"),
        (documents.DOCKER_LAYER_GZIP, {}, "gzip"),
        (documents.DOCKER_LAYER_GZIP, STARGZ, "estargz"),
        (documents.OCI_LAYER_GZIP, CHUNKED, "gzip"),
        (documents.OCI_LAYER_ZSTD, {}, "zstd"),
        (documents.OCI_LAYER_ZSTD, STARGZ, "zstd"),
        (documents.OCI_LAYER_ZSTD, CHUNKED, "zstd:chunked"),
        (documents.DOCKER_LAYER_ZSTD, CHUNKED, "zstd:chunked"),
        (documents.OCI_LAYER_ZSTD, CHUNKED | OLD, "zstd:chunked"),
        (documents.OCI_LAYER_ZSTD, STARGZ | OLD, "zstd:chunked (stargz)"),
        (documents.OCI_LAYER_ZSTD, {POSITION: "nonsense"}, "zstd:chunked"),
        ("application/vnd.oci.image.layer.v1.tar+encrypted", CHUNKED, None),
        ("application/vnd.oci.image.layer.nydus.blob.v1", {}, "nydus"),
    ],
)
def test_format(media_type: str, annotations: dict[str, str], expected: str | None) -> None:
    found = name_format(layer(media_type, annotations))
    assert found == (expected or media_type)
    lazy = {"estargz", "zstd:chunked", "zstd:chunked (stargz)"}
    assert (found in LAZY) == (expected in lazy)
    assert lazy == LAZY


@pytest.mark.parametrize(
    "names", [(POSITION, CHECKSUM), (LAZYIMG_POSITION, LAZYIMG_DIGEST), tuple(CHUNKED)]
)
def test_index_under_either_name(names: tuple[str, ...]) -> None:
    annotations = {name: CHUNKED[name] for name in names}
    found = locate_index(layer(documents.OCI_LAYER_ZSTD, annotations), "image")
    assert found == IndexLocation("zstd:chunked", 1000, 50, 700, "sha256:" + "ab" * 32)
    assert found.name == "ab" * 32


def test_index_of_stargz_snapshotter_s_zstd_chunked() -> None:
    found = locate_index(layer(documents.OCI_LAYER_ZSTD, OLD | STARGZ), "image")
    assert found == IndexLocation("zstd:chunked (stargz)", 1000, 50, 700, "sha256:" + "ab" * 32)


def test_index_whose_place_the_blob_says() -> None:
    """What is made from it is called by both: the blob decides where its last member ends."""
    blob = layer(documents.OCI_LAYER_GZIP, STARGZ)
    found = locate_index(blob, "image")
    digest = STARGZ["containerd.io/snapshot/stargz/toc.digest"]
    assert found == IndexLocation("estargz", 0, 0, 0, digest, str(blob.digest))
    other = replace(blob, digest=Digest.of(b"another"))
    names = {found.name, locate_index(other, "image").name, "cd" * 32}
    assert [len(name) for name in names] == [64] * 3


def test_digest_of_an_index_that_is_none() -> None:
    annotations = {"containerd.io/snapshot/stargz/toc.digest": "sha256:xyz"}
    with pytest.raises(CorruptError, match="image: digest: sha256 has 64 lower-case hex"):
        locate_index(layer(documents.OCI_LAYER_GZIP, annotations), "image")


def test_layer_that_is_not_lazy() -> None:
    with pytest.raises(NotLazyError) as caught:
        locate_index(layer(documents.OCI_LAYER_GZIP, {}), "reg/app:1: layer 2 of 3")
    assert str(caught.value) == (
        "reg/app:1: layer 2 of 3: a layer of format gzip cannot be loaded lazily, only"
        " estargz, zstd:chunked, zstd:chunked (stargz); convert the image: lazyimg convert SRC DST,"
        " or: lazyimg index create REF --local"
    )
    with pytest.raises(NotLazyError) as caught:
        locate_index(layer("application/vnd.example.layer", {}), "image")
    assert str(caught.value).endswith("lazyimg convert SRC DST")


@pytest.mark.parametrize(
    ("annotations", "problem"),
    [
        ({POSITION: CHUNKED[POSITION]}, "the TOC's digest is missing"),
        ({CHECKSUM: CHUNKED[CHECKSUM]}, "the TOC's position is missing"),
        (CHUNKED | {LAZYIMG_POSITION: "1001:50:700:1"}, "they contradict each other"),
        (CHUNKED | {CHECKSUM: "sha256:xyz"}, "digest: sha256 has 64 lower-case hex characters"),
    ],
)
def test_annotations_that_are_wrong(annotations: dict[str, str], problem: str) -> None:
    with pytest.raises(CorruptError) as caught:
        locate_index(layer(documents.OCI_LAYER_ZSTD, annotations), "reg/app:1: layer 1 of 1")
    assert str(caught.value).startswith("reg/app:1: layer 1 of 1: ")
    assert problem in str(caught.value)
    assert caught.value.remedy == "convert the image again"


@pytest.mark.parametrize(("size", "good"), [(1050, True), (1049, False)])
def test_index_at_the_very_end_of_the_blob(size: int, *, good: bool) -> None:
    blob = layer(documents.OCI_LAYER_ZSTD, CHUNKED, size)
    if good:
        assert locate_index(blob, "image").offset == 1000
    else:
        with pytest.raises(CorruptError, match="the TOC lies behind the blob's 1049 bytes"):
            locate_index(blob, "image")


@pytest.mark.parametrize(
    ("kind", "artifact", "place"),
    [
        ("zstd:chunked", "", "layer"),
        ("estargz", "", "layer"),
        ("gzip", "", "node"),
        ("gzip", "sha256:1", "repository"),
    ],
)
def test_places_of_indexes(kind: str, artifact: str, place: str) -> None:
    assert IndexLocation(kind, 0, 1, 1, "sha256:0", artifact=artifact).place == place
