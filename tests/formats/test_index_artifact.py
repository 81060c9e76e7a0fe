"""Indexes of layers as a registry has them, and what names them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.index_artifact import (
    ARTIFACT,
    INDEX_DIGEST,
    INDEX_SIZE,
    LAYER_DIGEST,
    LAYER_INDEX,
    MAX_INDEX,
    StoredIndex,
    embed_index,
    make_artifact,
    parse_artifact,
    parse_embedded,
)
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    parse_document,
    serialize_document,
)

SUBJECT = describe(b"image", OCI_MANIFEST)
LAYERS = [Digest.of(bytes([number])) for number in range(3)]
INDEXES = {layer: StoredIndex(Digest.of(str(layer).encode()), 1000) for layer in LAYERS}
LAYER = Descriptor(
    media_type=OCI_LAYER_GZIP, digest=LAYERS[0], size=99, annotations={"kept": "yes"}
)


def test_artifact_is_read_as_it_was_made() -> None:
    data = serialize_document(make_artifact(SUBJECT, INDEXES))
    assert data == serialize_document(make_artifact(SUBJECT, dict(INDEXES)))
    found = parse_document(data, OCI_MANIFEST)
    assert isinstance(found, Manifest)
    assert found.artifact_type == ARTIFACT == "application/vnd.lazyimg.index.v1"
    assert found.subject == SUBJECT
    assert str(found.config.digest) == (
        "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    )
    assert {layer.media_type for layer in found.layers} == {LAYER_INDEX}
    assert parse_artifact(found, SUBJECT.digest) == INDEXES


def test_subject_is_named_by_nothing_but_what_it_is() -> None:
    told = replace(SUBJECT, annotations={"a": "b"}, artifact_type="x")
    assert make_artifact(told, INDEXES).subject == SUBJECT


def test_layers_that_are_something_else_are_passed_over() -> None:
    artifact = make_artifact(SUBJECT, INDEXES)
    more = replace(artifact, layers=(*artifact.layers, LAYER))
    assert parse_artifact(more, SUBJECT.digest) == INDEXES


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"artifact_type": "chart"}, "index artifact: is 'chart'"),
        ({"subject": None}, "index artifact: refers to another image"),
        ({"subject": describe(b"other", OCI_MANIFEST)}, "index artifact: refers to another image"),
    ],
)
def test_manifest_that_is_no_such_artifact(changes: dict[str, object], problem: str) -> None:
    artifact = replace(make_artifact(SUBJECT, INDEXES), **changes)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match=problem):
        parse_artifact(artifact, SUBJECT.digest)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"annotations": {}}, "digest: expected algorithm:hex"),
        ({"annotations": {LAYER_DIGEST: "sha256:0"}}, "digest: sha256 has 64"),
        ({"size": 327}, "index: 327 bytes, 328 to 536870912 allowed"),
        ({"size": MAX_INDEX + 1}, "index: 536870913 bytes, 328 to 536870912 allowed"),
        ({"annotations": {LAYER_DIGEST: str(LAYERS[1])}}, "has two indexes of sha256:"),
    ],
)
def test_layer_of_an_artifact_that_lies(changes: dict[str, object], problem: str) -> None:
    artifact = make_artifact(SUBJECT, INDEXES)
    first = replace(artifact.layers[0], **changes)  # type: ignore[arg-type]
    lying = replace(artifact, layers=(first, *artifact.layers[1:]))
    with pytest.raises(FormatError, match=problem):
        parse_artifact(lying, SUBJECT.digest)


def test_image_index_is_no_artifact() -> None:
    with pytest.raises(FormatError, match="index artifact: is ''"):
        parse_artifact(Index(manifests=()), SUBJECT.digest)


def test_layer_that_commits_to_its_index() -> None:
    index = INDEXES[LAYERS[0]]
    committed = embed_index(LAYER, index)
    assert parse_embedded(committed) == index
    assert committed == replace(LAYER, annotations=committed.annotations)
    assert committed.annotations["kept"] == "yes"
    assert parse_embedded(LAYER) is None
    another = StoredIndex(Digest.of(b"another"), 2000)
    assert parse_embedded(embed_index(committed, another)) == another


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (INDEX_DIGEST, "", "digest: expected algorithm:hex"),
        (INDEX_DIGEST, "md5:00", "digest: unknown algorithm 'md5'"),
        (INDEX_SIZE, "", "index: cannot have a size of ''"),
        (INDEX_SIZE, "-1", "index: cannot have a size of '-1'"),
        (INDEX_SIZE, "²", "index: cannot have a size of"),
        (INDEX_SIZE, "10000000000", "index: cannot have a size of '10000000000'"),
        (INDEX_SIZE, "9999999999", "index: 9999999999 bytes, 328 to 536870912 allowed"),
        (INDEX_SIZE, "0", "index: 0 bytes, 328 to 536870912 allowed"),
    ],
)
def test_annotations_that_say_nothing(name: str, text: str, problem: str) -> None:
    committed = embed_index(LAYER, INDEXES[LAYERS[0]])
    with pytest.raises(FormatError, match=problem):
        parse_embedded(replace(committed, annotations={**committed.annotations, name: text}))


def test_size_that_is_not_said() -> None:
    committed = embed_index(LAYER, INDEXES[LAYERS[0]])
    annotations = {INDEX_DIGEST: committed.annotations[INDEX_DIGEST]}
    with pytest.raises(FormatError, match="cannot have a size of ''"):
        parse_embedded(replace(committed, annotations=annotations))


@given(st.text(max_size=80), st.text(max_size=20))
def test_any_annotations(digest: str, size: str) -> None:
    layer = replace(LAYER, annotations={INDEX_DIGEST: digest, INDEX_SIZE: size})
    with pytest.raises(FormatError):
        parse_embedded(layer)
