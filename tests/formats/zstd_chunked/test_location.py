"""Annotations and footers of zstd:chunked."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zstandard import ZstdCompressor

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.zstd_chunked.entries import MAX_TOC
from lazyimg_formats.zstd_chunked.location import (
    ANNOTATIONS,
    FOOTER_FRAME_SIZE,
    TarSplitLocation,
    TocLocation,
    parse_annotations,
    parse_footer,
    serialize_annotations,
    serialize_footer,
)

TOC = b'{"version":1,"entries":[]}'
DATA = ZstdCompressor(level=3).compress(TOC)
LOCATION = TocLocation(1000, len(DATA), len(TOC), Digest.of(DATA))

# As `skopeo copy --dest-compress-format zstd:chunked` wrote them.
DIGEST = "sha256:69605bff302e7e47232cc9292cd1a5f05a260b4fbe87db2d5d53a29fe07cc741"
PODMAN = {
    "io.github.containers.zstd-chunked.manifest-checksum": DIGEST,
    "io.github.containers.zstd-chunked.manifest-position": "1000:200:3000:1",
    "io.github.containers.zstd-chunked.tarsplit-position": "1208:100:200",
}
OLD = {name.replace("github.", ""): text for name, text in PODMAN.items()}
TAR_SPLIT = "io.github.containers.zstd-chunked.tarsplit-position"
SPLIT = TarSplitLocation(1208, 100, 200)
CONTAINERD = {
    "containerd.io/snapshot/lazyimg.toc-position": "1000:200:3000:1",
    "containerd.io/snapshot/lazyimg.toc-digest": DIGEST,
}


lengths = st.integers(1, MAX_TOC)
offsets = st.integers(8, 2**62)
locations = st.builds(
    TocLocation,
    offsets,
    lengths,
    lengths,
    st.just(Digest.parse(DIGEST)),
    st.none() | st.builds(TarSplitLocation, offsets, st.integers(1, 2**32 - 1), offsets),
)


@given(locations)
def test_any_location_comes_back(location: TocLocation) -> None:
    assert parse_annotations(serialize_annotations(location), 2**63) == location
    assert parse_footer(serialize_footer(location)) == replace(location, digest=None)


@pytest.mark.parametrize("annotations", [PODMAN, CONTAINERD, OLD, PODMAN | CONTAINERD | OLD])
def test_annotations(annotations: dict[str, str]) -> None:
    location = parse_annotations(annotations | {"other": "1"}, 1500)
    split = SPLIT if PODMAN.items() <= annotations.items() else None
    stargz = annotations == OLD
    assert location == TocLocation(1000, 200, 3000, Digest.parse(DIGEST), split, stargz)
    assert location.data_end == 992


def test_annotations_of_another_layer() -> None:
    assert parse_annotations({"other": "1"}, 1500) is None


def test_annotations_round_trip() -> None:
    annotations = serialize_annotations(LOCATION)
    assert parse_annotations(annotations, 2000) == LOCATION
    with_split = replace(LOCATION, tar_split=SPLIT)
    assert set(serialize_annotations(with_split)) - set(annotations) == {TAR_SPLIT}
    assert set(serialize_annotations(with_split)) == ANNOTATIONS - set(OLD)
    assert parse_annotations(serialize_annotations(with_split), 2000) == with_split


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"containerd.io/snapshot/lazyimg.toc-position": "1000:201:3000:1"},
            "zstd:chunked annotations: they contradict each other",
        ),
        (
            {"containerd.io/snapshot/lazyimg.toc-position": "1000:200:3000:2"},
            "zstd:chunked annotations: TOC of unknown type 2",
        ),
        (
            {"containerd.io/snapshot/lazyimg.toc-position": "1000:200:3000"},
            "zstd:chunked annotations: impossible position '1000:200:3000'",
        ),
        (
            {"containerd.io/snapshot/lazyimg.toc-position": "-1:200:3000:1"},
            "zstd:chunked annotations: impossible position '-1:200:3000:1'",
        ),
        (
            {"containerd.io/snapshot/lazyimg.toc-position": "7:200:3000:1"},
            "zstd:chunked TOC: impossible position 7",
        ),
        (
            {"containerd.io/snapshot/lazyimg.toc-position": f"8:{MAX_TOC + 1}:3000:1"},
            f"zstd:chunked TOC: {MAX_TOC + 1} bytes, 3000 decoded: the limit is {MAX_TOC}",
        ),
        (
            {"containerd.io/snapshot/lazyimg.toc-position": f"8:200:{MAX_TOC + 1}:1"},
            f"zstd:chunked TOC: 200 bytes, {MAX_TOC + 1} decoded: the limit is {MAX_TOC}",
        ),
        (
            {"containerd.io/snapshot/lazyimg.toc-position": "8:0:3000:1"},
            f"zstd:chunked TOC: 0 bytes, 3000 decoded: the limit is {MAX_TOC}",
        ),
        (
            {"containerd.io/snapshot/lazyimg.toc-position": "8:200:0:1"},
            f"zstd:chunked TOC: 200 bytes, 0 decoded: the limit is {MAX_TOC}",
        ),
        (
            {"containerd.io/snapshot/lazyimg.toc-position": f"{1 << 62}:200:3000:1"},
            "zstd:chunked annotations: they contradict each other",
        ),
        (
            {"containerd.io/snapshot/lazyimg.toc-digest": "md5:00"},
            "digest: unknown algorithm 'md5'",
        ),
        (
            {TAR_SPLIT: "1208:100"},
            "zstd:chunked annotations: impossible tar-split position '1208:100'",
        ),
        ({TAR_SPLIT: "7:1:1"}, "zstd:chunked tar-split data: impossible position 7:1:1"),
        ({TAR_SPLIT: "1208:0:1"}, "zstd:chunked tar-split data: impossible position 1208:0:1"),
        ({TAR_SPLIT: "1208:1:0"}, "zstd:chunked tar-split data: impossible position 1208:1:0"),
        (
            {TAR_SPLIT: f"{1 << 40}:1:1"},
            f"zstd:chunked annotations: the tar-split data lies behind the blob's {1 << 40} bytes",
        ),
    ],
)
def test_annotations_that_are_wrong(change: dict[str, str], problem: str) -> None:
    with pytest.raises(FormatError) as raised:
        parse_annotations(PODMAN | CONTAINERD | change, 1 << 40)
    assert str(raised.value) == problem


@pytest.mark.parametrize("name", CONTAINERD)
def test_annotations_of_which_one_is_missing(name: str) -> None:
    rest = {key: text for key, text in CONTAINERD.items() if key != name}
    with pytest.raises(FormatError, match=r"annotations: the TOC's (position|digest) is missing$"):
        parse_annotations(rest, 1500)


def test_annotations_that_point_behind_the_blob() -> None:
    assert parse_annotations(CONTAINERD, 1200) is not None
    with pytest.raises(FormatError, match="the TOC lies behind the blob's 1199 bytes"):
        parse_annotations(CONTAINERD, 1199)


def test_decode() -> None:
    assert LOCATION.decode(DATA) == TOC
    assert TocLocation(1000, len(DATA), len(TOC), None).decode(DATA) == TOC


def test_decode_with_another_length() -> None:
    with pytest.raises(FormatError, match=rf"TOC: expected {len(DATA)} bytes, got {len(DATA) - 1}"):
        LOCATION.decode(DATA[:-1])


def test_decode_with_another_digest() -> None:
    data = bytearray(DATA)
    data[-1] ^= 1
    with pytest.raises(FormatError, match=r"TOC: expected sha256:\w+, got sha256:"):
        LOCATION.decode(bytes(data))


def test_decode_to_another_length() -> None:
    location = TocLocation(1000, len(DATA), len(TOC) + 1, Digest.of(DATA))
    with pytest.raises(FormatError, match=r"TOC: expected 27 decoded bytes, got 26$"):
        location.decode(DATA)
    with pytest.raises(FormatError, match=r"holds 26 bytes, at most 25 expected"):
        TocLocation(1000, len(DATA), len(TOC) - 1, Digest.of(DATA)).decode(DATA)


def footer(*numbers: int, magic: bytes = b"GNUlInUx") -> bytes:
    payload = struct.pack("<7Q", *numbers) + magic
    return b"\x50\x2a\x4d\x18" + struct.pack("<I", len(payload)) + payload


def test_footer() -> None:
    expected = TocLocation(1000, 200, 3000, None, SPLIT)
    assert parse_footer(footer(1000, 200, 3000, 1, 1208, 100, 200)) == expected
    expected = TocLocation(1000, 200, 3000, None)
    assert parse_footer(footer(1000, 200, 3000, 1, 0, 0, 0)) == expected


def test_footer_of_the_older_dialect() -> None:
    payload = struct.pack("<4Q", 1000, 200, 3000, 1) + b"GnUlInUx"
    data = b"end of the TOC.........." + b"\x50\x2a\x4d\x18\x28\0\0\0" + payload
    assert parse_footer(data) == TocLocation(1000, 200, 3000, None, stargz=True)


def test_footer_as_it_is_written() -> None:
    data = serialize_footer(LOCATION)
    assert data == footer(1000, len(DATA), len(TOC), 1, 0, 0, 0)
    assert len(data) == FOOTER_FRAME_SIZE == 72
    data = serialize_footer(replace(LOCATION, tar_split=SPLIT))
    assert data == footer(1000, len(DATA), len(TOC), 1, 1208, 100, 200)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (footer(1000, 200, 3000, 2, 0, 0, 0), "zstd:chunked footer: TOC of unknown type 2"),
        (
            footer(1000, 200, 3000, 1, 0, 0, 0, magic=b"gnulinux"),
            "zstd:chunked footer: magic is b'gnulinux', expected b'GNUlInUx'",
        ),
        (footer(1000, 200, 3000, 1, 0, 0, 0, magic=b"GnUlInUx"), None),
        (footer(0, 200, 3000, 1, 0, 0, 0), "zstd:chunked TOC: impossible position 0"),
        (
            footer(1000, 200, 3000, 1, 0, 1, 0),
            "zstd:chunked tar-split data: impossible position 0:1:0",
        ),
        (b"\x51" + footer(1000, 200, 3000, 1, 0, 0, 0)[1:], None),
        (bytes(72), None),
        (bytes(71), "zstd:chunked footer: expected 72 bytes, got 71"),
    ],
)
def test_footer_that_is_wrong(data: bytes, problem: str | None) -> None:
    with pytest.raises(FormatError) as raised:
        parse_footer(data)
    assert str(raised.value) == (problem or "zstd:chunked footer: not in a skippable frame")


@given(st.dictionaries(st.sampled_from(sorted(ANNOTATIONS)), st.text()), st.integers(0, 1 << 50))
def test_noise_in_annotations(annotations: dict[str, str], size: int) -> None:
    try:
        location = parse_annotations(annotations, size)
    except FormatError:
        return
    assert location is None or location.offset + location.length <= size


@given(st.binary(min_size=72, max_size=72), st.booleans())
def test_noise_in_a_footer(data: bytes, framed: bool) -> None:  # noqa: FBT001
    if framed:
        data = b"\x50\x2a\x4d\x18\x40\0\0\0" + data[8:64] + b"GNUlInUx"
    try:
        parse_footer(data)
    except FormatError:
        return
