"""A tar, and stream indexes that describe it, or lie about it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.stream_comparison import StreamComparison
from lazyimg_formats.stream_index import (
    HEADER_SIZE,
    StreamSpan,
    iterate_spans,
    parse_header,
    serialize_header,
)
from tests.fakes.gzip_layer import make_tar
from tests.fakes.stream_layers import make_stream_index

FILES = {
    "etc/name": b"lazyimg\n",
    "bin/tool": bytes(range(256)) * 20,
    "etc/.wh.old": b"whiteouts have no bytes, even if they have",
    "bin/other": b"other" * 300,
}
TAR = make_tar(FILES)
SIZE = 1000
INDEX = make_stream_index(TAR, SIZE)
SPANS = list(iterate_spans(INDEX))


def compare(index: bytes, tar: bytes = TAR, step: int = 700) -> None:
    header = parse_header(index)
    comparison = StreamComparison(index, header.blob, header.diff_id)
    for at in range(0, len(tar), step):
        comparison.feed(tar[at : at + step])
    comparison.finish()


def finding(index: bytes, tar: bytes = TAR) -> str:
    with pytest.raises(FormatError) as caught:
        compare(index, tar)
    return str(caught.value)


@pytest.mark.parametrize("step", [1, 512, 1 << 20])
@pytest.mark.parametrize("size", [100, SIZE, 1 << 20])
def test_index_of_this_tar(size: int, step: int) -> None:
    compare(make_stream_index(TAR, size), step=step)


def test_index_of_another_layer() -> None:
    other = Digest.of(b"other")
    with pytest.raises(FormatError, match=rf"^index: is of blob {Digest.of(TAR)} with the diff ID"):
        StreamComparison(INDEX, other, Digest.of(TAR))
    with pytest.raises(FormatError, match=r"^index: is of blob sha256:\w+ with the diff ID sha256"):
        StreamComparison(INDEX, Digest.of(TAR), other)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            FILES | {"bin/tool": bytes(5120)},
            "span 1, bytes 1000 to 2000 of the tar, from b'etc/name' on: not the bytes of its tar",
        ),
        (
            FILES | {"bin/other": b"OTHER" * 300},
            "span 8, bytes 8000 to 9000 of the tar, from b'bin/other' on: not the bytes of its tar",
        ),
        (FILES | {"bin/tool": bytes(5121)}, "entry 2, b'bin/tool': size 5120, in its tar 5121"),
        (
            {"etc/name": b"name" * 100, **dict(list(FILES.items())[1:])},
            "entry 1, b'etc/name': size 8, in its tar 400",
        ),
        (FILES | {"more": b""}, "does not have b'more' of its tar"),
    ],
)
def test_index_of_another_tar(files: dict[str, bytes], said: str) -> None:
    assert finding(INDEX, make_tar(files)) == f"index: {said}"


def test_index_with_a_member_more() -> None:
    index = make_stream_index(TAR, 1 << 20)
    tar = make_tar(dict(list(FILES.items())[:-1]))
    assert finding(index, tar) == "index: has b'bin/other', which its tar does not have"


def test_member_at_another_place() -> None:
    """Its headers are the same, but for the bytes of the file before it."""
    moved = make_tar({"a": b"", "b": b"1"})
    assert finding(make_stream_index(make_tar({"a": b"x", "b": b"1"}), SIZE), moved) == (
        "index: entry 1, b'a': size 1, in its tar 0"
    )


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        (SPANS[:-1], f"its spans end at byte {SIZE * (len(SPANS) - 1)} of its tar"),
        ([*SPANS, SPANS[-1]], f"is of a tar of {len(TAR)} bytes or more, its tar has {len(TAR)}"),
        ([*SPANS[:3], StreamSpan(0, 1, 0, bytes(32)), *SPANS[3:]], "span 3 is empty"),
    ],
)
def test_spans_that_are_not_the_tars(spans: list[StreamSpan], said: str) -> None:
    assert finding(make_stream_index(TAR, SIZE, spans=spans)) == f"index: {said}"


def test_span_that_reaches_past_the_tar() -> None:
    spans = [*SPANS[:-1], SPANS[-1]._replace(length=SIZE)]
    assert finding(make_stream_index(TAR, SIZE, spans=spans)) == (
        f"index: is of a tar of {len(TAR)} bytes or more, its tar has {len(TAR)}"
    )


def test_another_size_of_the_tar() -> None:
    header = parse_header(INDEX)
    index = serialize_header(header._replace(tar_size=len(TAR) + 512)) + INDEX[HEADER_SIZE:]
    assert finding(index) == (
        f"index: is of a tar of {len(TAR) + 512} bytes or more, its tar has {len(TAR)}"
    )


def test_tar_that_is_cut_short() -> None:
    assert finding(INDEX, TAR[:1100]) == "tar: cut short after 1100 bytes"


@given(st.binary(max_size=3000), st.integers(1, 5000))
def test_any_tar(data: bytes, step: int) -> None:
    with contextlib.suppress(FormatError):
        compare(INDEX, data, step)
    with contextlib.suppress(FormatError):
        compare(INDEX, TAR[:2000] + data, step)


@given(st.integers(HEADER_SIZE, len(INDEX) - 1), st.integers(1, 255))
def test_any_change_of_an_index_is_found(at: int, change: int) -> None:
    """But for where spans lie in the blob, and with which window they are entered."""
    index = INDEX[:at] + bytes([INDEX[at] ^ change]) + INDEX[at + 1 :]
    try:
        compare(index)
    except FormatError:
        return
    places = [(one.length, one.digest) for one in iterate_spans(index)]
    assert places == [(one.length, one.digest) for one in SPANS]
