"""zTOCs that say what is so, and some that lie, consistently, about blob and tar."""

from __future__ import annotations

import gzip
import hashlib

import pytest

from lazyimg.images.ztoc_check import ZtocCheck
from lazyimg_formats.device_table import MAX_WINDOW
from lazyimg_formats.errors import FormatError
from lazyimg_formats.soci.toc import ZtocLayer, parse_ztoc
from lazyimg_formats.soci.writer import make_ztoc
from lazyimg_formats.soci.ztoc import Ztoc
from tests.fakes.gzip_layer import make_tar
from tests.fakes.soci_layer import FILES, SociLayer
from tests.fakes.stream_layers import make_stream_index

LAYER = SociLayer()


def check(ztoc: ZtocLayer, blob: bytes, tar: bytes, size: int = 1000) -> None:
    made = ZtocCheck(ztoc)
    for at in range(0, max(len(blob), len(tar)), size):
        made.feed(blob[at : at + size])
        made.tar.feed(tar[at : at + size])
    made.tar.finish()
    made.finish()


def problem(ztoc: ZtocLayer, blob: bytes = LAYER.blob, tar: bytes = LAYER.tar) -> str:
    with pytest.raises(FormatError) as caught:
        check(ztoc, blob, tar)
    return str(caught.value)


def lying(ztoc: bytes, at: int, value: int) -> ZtocLayer:
    lie = bytearray(ztoc)
    lie[at] ^= value
    return parse_ztoc(bytes(lie))


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_ztoc_that_is_true(size: int) -> None:
    check(parse_ztoc(LAYER.ztoc), LAYER.blob, LAYER.tar, size)


def test_several_gzip_members() -> None:
    half = len(LAYER.tar) // 2
    blob = gzip.compress(LAYER.tar[:half]) + gzip.compress(LAYER.tar[half:])
    check(parse_ztoc(SociLayer(LAYER.tar, blob).ztoc), blob, LAYER.tar)


def test_layer_that_is_not_compressed() -> None:
    ztoc = parse_ztoc(make_ztoc(make_stream_index(LAYER.tar, 4096), [], 4096))
    check(ztoc, LAYER.tar, LAYER.tar)
    planted = make_tar({**FILES, "etc/name": b"planted\n"})
    assert "expected digest" in problem(ztoc, planted, planted)


def test_window_that_was_changed() -> None:
    """The compressed bytes are the right ones, and decode without an error."""
    window = LAYER.point(1) + 17
    blank = bytearray(LAYER.ztoc)
    for at in range(window, window + MAX_WINDOW):
        blank[at] ^= 1
    assert problem(parse_ztoc(bytes(blank))) == (
        "index: span 1 decodes to other bytes than its tar has"
    )


def test_place_that_is_a_lie() -> None:
    """A span is said to begin a block later in the tar than it does, and its files, too."""
    lie = bytearray(LAYER.ztoc)
    place = slice(LAYER.point(1) + 8, LAYER.point(1) + 16)
    lie[place] = (int.from_bytes(lie[place], "little") + 1).to_bytes(8, "little")
    assert problem(parse_ztoc(bytes(lie))).startswith("index: ")


def test_entry_that_is_a_lie() -> None:
    """A file is said to be where another's bytes are."""
    entries = [entry for entry, _ in Ztoc(LAYER.ztoc).members()]
    assert entries[0].size == 8
    lie = LAYER.ztoc.replace((8).to_bytes(8, "little") + b"\xa4\1", b"\7" + bytes(7) + b"\xa4\1")
    assert lie != LAYER.ztoc
    assert problem(parse_ztoc(lie)) == "index: entry 1, b'etc/name': size 7, in its tar 8"


def test_other_blob() -> None:
    blob = bytearray(LAYER.blob)
    blob[1000] ^= 1
    found = problem(parse_ztoc(LAYER.ztoc), bytes(blob))
    assert found.startswith("index: bytes ")
    assert "not the bytes that its index is about" in found


def test_tar_with_another_entry() -> None:
    planted = make_tar({**FILES, "etc/more": b""})
    assert problem(parse_ztoc(LAYER.ztoc), tar=planted).startswith("index: does not have ")


def test_blob_that_is_shorter() -> None:
    found = problem(parse_ztoc(LAYER.ztoc), LAYER.blob[:-100])
    assert found == "index: a span reaches past the end of its tar, or of its blob"


def test_digest_of_bytes_that_are_not_there() -> None:
    """A digest in the zTOC is of other bytes than the blob has."""
    text = hashlib.sha256(b"").hexdigest().encode()
    at = LAYER.ztoc.index(b"sha256:") + 7
    lie = LAYER.ztoc[:at] + text + LAYER.ztoc[at + 64 :]
    assert "not the bytes that its index is about" in problem(parse_ztoc(lie))
