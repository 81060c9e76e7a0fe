"""Digests of a blob's ranges."""

from __future__ import annotations

import gzip
import hashlib
import io
from contextlib import closing

import pytest

from lazyimg.layers.indexer import LayerIndexer
from lazyimg.layers.stored_digests import StoredDigests
from lazyimg_formats.oci.digest import Digest
from tests.fakes.soci_layer import SociLayer, stored_digests

LAYER = SociLayer()
HALF = len(LAYER.tar) // 2
MEMBERS = gzip.compress(LAYER.tar[:HALF]) + gzip.compress(b"") + gzip.compress(LAYER.tar[HALF:])


def test_ranges_that_share_a_byte() -> None:
    digests = StoredDigests()
    digests.feed(b"head0123")
    digests.begin(4, 0)
    digests.feed(b"456789")
    digests.begin(7, 3)
    digests.begin(9, 0)
    expected = [b"0123", b"34", b"56789"]
    assert digests.finish() == [hashlib.sha256(part).digest() for part in expected]


def test_blob_without_spans() -> None:
    digests = StoredDigests()
    digests.feed(b"bytes")
    assert digests.finish() == []


@pytest.mark.parametrize("blob", [LAYER.blob, MEMBERS])
@pytest.mark.parametrize("size", [100, 1 << 20])
def test_spans_of_a_layer(blob: bytes, size: int) -> None:
    file, digests = io.BytesIO(), StoredDigests()
    indexer = LayerIndexer(Digest.of(blob), LAYER.diff_id, file, LAYER.spacing, stored=digests)
    with closing(indexer):
        for at in range(0, len(blob), size):
            indexer.feed(blob[at : at + size])
        indexer.finish()
    found = digests.finish()
    assert found == stored_digests(blob, file.getvalue())
    assert len(found) > 1
