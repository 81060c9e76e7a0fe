"""Manifests, indexes, configs and errors: read, kept whole, and written the same each time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    DOCKER_INDEX,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    MAX_CONFIG,
    MAX_DOCUMENT,
    MAX_ERRORS,
    MAX_LAYERS,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Descriptor,
    ErrorEntry,
    HistoryEntry,
    ImageConfig,
    Index,
    Manifest,
    describe,
    parse_config,
    parse_document,
    parse_errors,
    serialize_document,
)
from lazyimg_formats.oci.platform import Platform

ONE, TWO = Digest.of(b"1"), Digest.of(b"2", "sha512")


def descriptor(digest: Digest = ONE, **more: Any) -> dict[str, Any]:
    return {"mediaType": DOCKER_LAYER_GZIP, "digest": str(digest), "size": 7, **more}


MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "artifactType": "application/x",
    "config": descriptor(data="e30=", urls=["https://x"]),
    "layers": [descriptor(TWO, annotations={"a": "b"}), descriptor()],
    "subject": descriptor(),
    "annotations": {"c": "d"},
    "com.example": {"deep": [1, None, 2.5]},
}
INDEX: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": OCI_INDEX,
    "artifactType": "application/x",
    "manifests": [
        descriptor(
            platform={
                "architecture": "arm",
                "os": "linux",
                "variant": "v7",
                "os.version": "1",
                "os.features": ["x"],
            },
            artifactType="application/y",
        ),
        descriptor(platform={"architecture": "amd64", "os": "linux"}),
        descriptor(),
    ],
    "subject": descriptor(),
    "annotations": {"c": "d"},
    "more": True,
}
CONFIG: dict[str, Any] = {
    "os": "linux",
    "architecture": "arm64",
    "variant": "v8",
    "rootfs": {"type": "layers", "diff_ids": [str(ONE), str(TWO)]},
    "history": [{"created_by": "RUN"}, {"empty_layer": True}, {"empty_layer": None}],
    "config": {"Env": []},
}
encode = msgspec.json.encode


class TestManifest:
    def test_every_field(self) -> None:
        manifest = parse_document(encode(MANIFEST))
        assert isinstance(manifest, Manifest)
        assert manifest.media_type == OCI_MANIFEST
        assert manifest.artifact_type == "application/x"
        assert manifest.config == Descriptor(
            media_type=DOCKER_LAYER_GZIP,
            digest=ONE,
            size=7,
            extra={"data": "e30=", "urls": ["https://x"]},
        )
        assert [layer.digest for layer in manifest.layers] == [TWO, ONE]
        assert manifest.layers[0].annotations == {"a": "b"}
        assert manifest.subject is not None
        assert manifest.annotations == {"c": "d"}
        assert manifest.extra == {"com.example": {"deep": [1, None, 2.5]}}

    @pytest.mark.parametrize("document", [MANIFEST, INDEX])
    def test_written_as_it_was_read(self, document: dict[str, Any]) -> None:
        data = encode(document)
        assert serialize_document(parse_document(data)) == data

    def test_new_layers_leave_the_rest(self) -> None:
        manifest = parse_document(encode(MANIFEST))
        assert isinstance(manifest, Manifest)
        layer = Descriptor(media_type=OCI_LAYER_ZSTD, digest=TWO, size=8, annotations={"n": "1"})
        data = serialize_document(replace(manifest, layers=(layer,)))
        assert msgspec.json.decode(data) == MANIFEST | {
            "layers": [
                {
                    "mediaType": OCI_LAYER_ZSTD,
                    "digest": str(TWO),
                    "size": 8,
                    "annotations": {"n": "1"},
                }
            ]
        }

    def test_least(self) -> None:
        least = {"schemaVersion": 2, "config": descriptor(), "layers": []}
        manifest = parse_document(encode(least), DOCKER_MANIFEST)
        assert manifest == Manifest(
            media_type="",
            config=Descriptor(media_type=DOCKER_LAYER_GZIP, digest=ONE, size=7),
            layers=(),
        )
        assert serialize_document(manifest) == encode(least)

    def test_nulls_are_nothing(self) -> None:
        data = encode(MANIFEST | {"annotations": None, "subject": None, "artifactType": None})
        manifest = parse_document(data)
        assert manifest.annotations == {}
        assert manifest.subject is None
        assert manifest.artifact_type == ""


class TestIndex:
    def test_every_field(self) -> None:
        index = parse_document(encode(INDEX))
        assert isinstance(index, Index)
        assert index.manifests[0].platform == Platform(
            "linux", "arm", "v7", "1", {"os.features": ["x"]}
        )
        assert index.manifests[0].artifact_type == "application/y"
        assert index.manifests[2].platform is None
        assert index.extra == {"more": True}

    def test_least(self) -> None:
        assert parse_document(b'{"schemaVersion":2,"manifests":[]}', DOCKER_INDEX) == Index(
            media_type="", manifests=()
        )
        assert parse_document(b'{"schemaVersion":2,"manifests":null}') == Index(
            media_type="", manifests=()
        )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schemaVersion": 1}, "manifest: Docker's schema 1, which no longer carries images"),
        ({"fsLayers": []}, "manifest: Docker's schema 1, which no longer carries images"),
        ({"schemaVersion": 3}, "manifest: expected schemaVersion 2, got 3"),
        ({"schemaVersion": None}, "manifest: expected schemaVersion 2, got None"),
        ({"schemaVersion": "2"}, "manifest: schemaVersion cannot be '2'"),
        ({"schemaVersion": True}, "manifest: schemaVersion cannot be True"),
        ({"manifests": []}, "manifest: has the fields of both a manifest and an index"),
        (
            {"mediaType": OCI_INDEX},
            f"manifest: is called {OCI_INDEX!r}, has fields of the other kind",
        ),
        ({"mediaType": 7}, "manifest: mediaType cannot be 7"),
        ({"config": None}, "manifest: config is missing"),
        ({"config": []}, "manifest: config cannot be an array"),
        ({"layers": None}, "manifest: layers is missing"),
        ({"layers": {}}, "manifest: layers cannot be an object"),
        ({"layers": [7]}, "descriptor: expected an object, got 7"),
        ({"layers": [None]}, "descriptor: expected an object, got null"),
        ({"layers": [[]]}, "descriptor: expected an object, got an array"),
        ({"annotations": {"a": 7}}, "manifest: annotations cannot be 7"),
        ({"annotations": {"a": None}}, "manifest: annotations cannot be null"),
        ({"config": descriptor(size=-1)}, "descriptor: size cannot be -1"),
        ({"config": descriptor(size=1 << 63)}, f"descriptor: size cannot be {1 << 63}"),
        ({"config": descriptor(size=1.5)}, "descriptor: size cannot be 1.5"),
        ({"config": descriptor(size=None)}, "descriptor: size is missing"),
        ({"config": descriptor(mediaType=None)}, "descriptor: mediaType is missing"),
        ({"config": descriptor() | {"digest": "x"}}, "digest: expected algorithm:hex, got 'x'"),
        ({"config": descriptor(platform=7)}, "descriptor: platform cannot be 7"),
        ({"config": descriptor(platform={"os": 7})}, "platform: os cannot be 7"),
        (
            {"layers": [7] * (MAX_LAYERS + 1)},
            f"manifest: layers has {MAX_LAYERS + 1} items, at most {MAX_LAYERS} allowed",
        ),
    ],
)
def test_bad_manifests(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_document(encode(MANIFEST | change))
    assert str(caught.value) == problem


def test_another_type_than_it_was_sent_as() -> None:
    with pytest.raises(FormatError) as caught:
        parse_document(encode(MANIFEST), DOCKER_MANIFEST)
    assert str(caught.value) == (
        f"manifest: calls itself {OCI_MANIFEST!r}, was sent as {DOCKER_MANIFEST!r}"
    )
    assert parse_document(encode(MANIFEST), "text/plain") == parse_document(encode(MANIFEST))


def test_index_sent_as_a_manifest() -> None:
    with pytest.raises(FormatError, match="has fields of the other kind"):
        parse_document(b'{"schemaVersion":2,"manifests":[]}', OCI_MANIFEST)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "manifest: no JSON: "),
        (b"{", "manifest: no JSON: "),
        (b"{}x", "manifest: no JSON: "),
        (b'{"a":"\xff"}', "manifest: no JSON: "),
        (b"[" * 100_000, "manifest: nested too deeply"),
        (b"7", "manifest: expected an object, got 7"),
        (bytes(MAX_DOCUMENT + 1), f"manifest: {MAX_DOCUMENT + 1} bytes, at most {MAX_DOCUMENT} al"),
    ],
)
def test_no_document_at_all(data: bytes, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_document(data)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize("document", [MANIFEST, INDEX])
def test_any_truncation_is_refused(document: dict[str, Any]) -> None:
    data = encode(document)
    for end in range(len(data)):
        with pytest.raises(FormatError):
            parse_document(data[:end])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({*MANIFEST, *INDEX, *CONFIG, "errors", "digest", "size", "platform"})


@given(
    st.sampled_from([MANIFEST, INDEX, CONFIG, {"errors": [{}]}]),
    st.dictionaries(st.sampled_from(FIELDS), json_values),
)
def test_any_fields_give_a_value_or_format_error(
    document: dict[str, Any], change: dict[str, Any]
) -> None:
    data = encode(document | change)
    for parse in (parse_document, parse_config, parse_errors):
        try:
            value = parse(data)
        except FormatError:
            continue
        if isinstance(value, Manifest | Index):
            assert parse_document(serialize_document(value)) == value


@given(st.binary())
def test_any_bytes_give_a_value_or_format_error(data: bytes) -> None:
    for parse in (parse_document, parse_config, parse_errors):
        with pytest.raises(FormatError):
            parse(data)


class TestConfig:
    def test_every_field(self) -> None:
        assert parse_config(encode(CONFIG)) == ImageConfig(
            Platform("linux", "arm64", "v8"),
            (ONE, TWO),
            (HistoryEntry("RUN"), HistoryEntry("", empty_layer=True), HistoryEntry()),
        )

    def test_least(self) -> None:
        assert parse_config(b'{"rootfs":{}}') == ImageConfig(Platform("", ""), ())

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"rootfs": None}, "image config: rootfs is missing"),
            ({"rootfs": {"diff_ids": [7]}}, "image config: diff_ids cannot be 7"),
            ({"rootfs": {"diff_ids": ["7"]}}, "digest: expected algorithm:hex, got '7'"),
            ({"history": [7]}, "image config: expected an object, got 7"),
            ({"history": [{"empty_layer": 7}]}, "image config: empty_layer cannot be 7"),
            ({"os": []}, "image config: os cannot be an array"),
        ],
    )
    def test_nonsense(self, change: dict[str, Any], problem: str) -> None:
        with pytest.raises(FormatError) as caught:
            parse_config(encode(CONFIG | change))
        assert str(caught.value) == problem

    def test_over_the_limit(self) -> None:
        with pytest.raises(FormatError, match=f"image config: {MAX_CONFIG + 1} bytes, at most"):
            parse_config(bytes(MAX_CONFIG + 1))


class TestErrors:
    def test_entries(self) -> None:
        data = b'{"errors":[{"code":"A","message":"b","detail":{}},{}]}'
        assert parse_errors(data) == (ErrorEntry("A", "b"), ErrorEntry(""))

    def test_many(self) -> None:
        assert len(parse_errors(encode({"errors": [{}] * 1000}))) == MAX_ERRORS

    @pytest.mark.parametrize(
        ("data", "problem"),
        [
            (b"{}", "registry errors: errors is missing"),
            (b'{"errors":[7]}', "registry errors: expected an object, got 7"),
            (b'{"errors":[{"code":7}]}', "registry errors: code cannot be 7"),
        ],
    )
    def test_nonsense(self, data: bytes, problem: str) -> None:
        with pytest.raises(FormatError) as caught:
            parse_errors(data)
        assert str(caught.value) == problem


def test_describe() -> None:
    assert describe(b"1", OCI_CONFIG) == Descriptor(media_type=OCI_CONFIG, digest=ONE, size=1)
    assert hash(describe(b"1", OCI_CONFIG)) == hash(describe(b"1", OCI_CONFIG))
