"""Labels for containerd's collector."""

from __future__ import annotations

import pytest

from lazyimg.containerd.labels import (
    MAX_LABEL,
    child_labels,
    missing_labels,
    snapshot_labels,
    source_labels,
)
from lazyimg_formats.oci.documents import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Index,
    Manifest,
    describe,
)
from lazyimg_formats.oci.reference import parse_reference

SOURCE = "containerd.io/distribution.source.reg.example"


def test_manifest_keeps_config_and_layers() -> None:
    config, one, two = (
        describe(data, kind)
        for data, kind in ((b"c", OCI_CONFIG), (b"1", OCI_LAYER_ZSTD), (b"2", OCI_LAYER_ZSTD))
    )
    assert child_labels(Manifest(config=config, layers=(one, two))) == {
        "containerd.io/gc.ref.content.config": str(config.digest),
        "containerd.io/gc.ref.content.l.0": str(one.digest),
        "containerd.io/gc.ref.content.l.1": str(two.digest),
    }


def test_index_numbers_manifests_and_indexes_apart() -> None:
    entries = (
        describe(b"1", OCI_MANIFEST),
        describe(b"2", OCI_INDEX),
        describe(b"3", OCI_MANIFEST),
    )
    assert child_labels(Index(manifests=entries)) == {
        "containerd.io/gc.ref.content.m.0": str(entries[0].digest),
        "containerd.io/gc.ref.content.0": str(entries[1].digest),
        "containerd.io/gc.ref.content.m.1": str(entries[2].digest),
    }


def test_config_keeps_the_snapshot() -> None:
    assert snapshot_labels("lazyimg", "sha256:aa") == {
        "containerd.io/gc.ref.snapshot.lazyimg": "sha256:aa"
    }


@pytest.mark.parametrize(
    ("text", "host", "repository"),
    [
        ("debian", "docker.io", "library/debian"),
        ("reg.example/a/b:1", "reg.example", "a/b"),
        ("127.0.0.1:5000/a", "127.0.0.1", "a"),  # containerd leaves out the port
        ("[::1]:5000/a", "::1", "a"),
    ],
)
def test_source_is_host_and_repository(text: str, host: str, repository: str) -> None:
    assert source_labels(parse_reference(text)) == {
        f"containerd.io/distribution.source.{host}": repository
    }


def test_only_what_is_not_there_is_missing() -> None:
    assert missing_labels({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9", "d": "4"}) == {
        "b": "9",
        "d": "4",
    }


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ({}, {SOURCE: "m"}),
        ({SOURCE: ""}, {SOURCE: "m"}),
        ({SOURCE: "m"}, {}),
        ({SOURCE: "a,m,z"}, {}),
        ({SOURCE: "z,a"}, {SOURCE: "a,m,z"}),
        ({SOURCE: "x" * (MAX_LABEL - len(SOURCE) - 1)}, {}),  # no room
        (
            {SOURCE: "x" * (MAX_LABEL - len(SOURCE) - 2)},
            {SOURCE: "m," + "x" * (MAX_LABEL - len(SOURCE) - 2)},
        ),
    ],
)
def test_repositories_are_added(present: dict[str, str], missing: dict[str, str]) -> None:
    assert missing_labels(present, {SOURCE: "m"}) == missing
