"""Bootstrap layers."""

from __future__ import annotations

import gzip
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.nydus import layer
from lazyimg_formats.nydus.layer import BootstrapLayer, parse_layer
from tests.fakes.nydus import pack_layer, patch

NAME = "ab" * 32
FILES = {
    "image/image.boot": b"bootstrap",
    f"{NAME}.blob.meta": b"a context",
    f"image/{NAME[::-1]}.blob.meta": b"another",
    "else": b"x" * 600,
}
LAYER = pack_layer(FILES)


def test_bootstrap_and_contexts() -> None:
    contexts = {NAME: b"a context", NAME[::-1]: b"another"}
    assert parse_layer(LAYER) == BootstrapLayer(b"bootstrap", contexts)


def test_names_with_a_dot_before_them() -> None:
    assert parse_layer(pack_layer({"./image/image.boot": b"x"})) == BootstrapLayer(b"x", {})


def test_name_that_is_no_text() -> None:
    found = parse_layer(pack_layer({"image/image.boot": b"x", "\u00e9.blob.meta": b"y"}))
    assert found.contexts == {}


def test_no_bootstrap() -> None:
    for files in ({}, {"image.boot": b"x"}):
        with pytest.raises(FormatError, match=r"bootstrap layer: it has no image/image.boot"):
            parse_layer(pack_layer(files))


def test_no_gzip() -> None:
    with pytest.raises(FormatError, match="bootstrap layer: no gzip"):
        parse_layer(gzip.decompress(LAYER))


def test_cut_short() -> None:
    for end in range(20, len(LAYER)):
        with pytest.raises(FormatError, match="bootstrap layer: cut short"):
            parse_layer(LAYER[:end])


def test_file_that_ends_behind_its_tar() -> None:
    tar = gzip.decompress(LAYER)
    header = bytearray(tar[512:1024])
    header[124:136] = b"00000777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(FormatError, match=r"b'image/image.boot' ends behind its tar"):
        parse_layer(gzip.compress(tar[:512] + bytes(header) + tar[1024:]))


def test_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "MAX_BOOTSTRAP", 1 << 20)
    with pytest.raises(FormatError, match="bootstrap layer: over 1 MiB"):
        parse_layer(gzip.compress(bytes(64 << 20)))


def test_end_without_blocks_of_zeros() -> None:
    tar = gzip.decompress(pack_layer({"image/image.boot": b"x"}))
    assert parse_layer(gzip.compress(tar[:1536])).bootstrap == b"x"


@settings(max_examples=50)
@given(st.integers(0, 2000), st.integers(0, 255))
def test_any_damage(offset: int, value: int) -> None:
    tar = gzip.decompress(LAYER)
    with suppress(FormatError):
        parse_layer(gzip.compress(patch(tar, offset, "B", value), 1))
