"""Chain IDs."""

from __future__ import annotations

import hashlib

from lazyimg_formats.oci.chain import chain_ids
from lazyimg_formats.oci.digest import Digest

ONE, TWO, THREE = (Digest.of(text) for text in (b"1", b"2", b"3"))


def test_no_layer() -> None:
    assert chain_ids([]) == []


def test_each_layer_commits_to_those_below() -> None:
    second = "sha256:" + hashlib.sha256(f"{ONE} {TWO}".encode()).hexdigest()
    third = "sha256:" + hashlib.sha256(f"{second} {THREE}".encode()).hexdigest()
    assert list(map(str, chain_ids([ONE, TWO, THREE]))) == [str(ONE), second, third]


def test_order_matters() -> None:
    assert chain_ids([ONE, TWO])[-1] != chain_ids([TWO, ONE])[-1]
