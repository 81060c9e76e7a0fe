"""Lists of what refers to a manifest, and the tags that stand for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci import referrers
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    serialize_document,
)
from lazyimg_formats.oci.referrers import (
    add_referrer,
    describe_referrer,
    parse_referrers,
    referrers_tag,
    remove_referrer,
)

ONE, TWO = (describe(data, OCI_MANIFEST) for data in (b"one", b"two"))
CONFIG = Descriptor(media_type=OCI_CONFIG, digest=Digest.of(b"{}"), size=2)


def test_tag_of_a_digest() -> None:
    assert referrers_tag(Digest("sha256", "ab" * 32)) == f"sha256-{'ab' * 32}"
    assert referrers_tag(Digest("sha512", "ab" * 64)) == f"sha512-{'ab' * 32}"


def test_list_that_is_begun_and_grows() -> None:
    first = add_referrer(None, ONE)
    assert first == Index(manifests=(ONE,))
    both = add_referrer(first, TWO)
    assert both.manifests == (ONE, TWO)
    again = replace(ONE, annotations={"a": "b"})
    assert add_referrer(both, again).manifests == (TWO, again)
    assert remove_referrer(both, ONE.digest).manifests == (TWO,)
    assert remove_referrer(first, TWO.digest) == first
    assert parse_referrers(serialize_document(both), OCI_INDEX) == both


def test_entry_says_what_the_manifest_is() -> None:
    manifest = Manifest(config=CONFIG, layers=(), artifact_type="index", annotations={"a": "b"})
    entry = describe_referrer(ONE, manifest)
    assert entry == replace(ONE, artifact_type="index", annotations={"a": "b"})
    assert describe_referrer(ONE, replace(manifest, artifact_type="")).artifact_type == OCI_CONFIG


def test_document_that_is_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FormatError, match="list of referrers: is a manifest"):
        parse_referrers(serialize_document(Manifest(config=CONFIG, layers=())))
    monkeypatch.setattr(referrers, "MAX_REFERRERS", 1)
    with pytest.raises(FormatError, match="list of referrers: has over 1 entries"):
        parse_referrers(serialize_document(Index(manifests=(ONE, TWO))))


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_referrers(data)
