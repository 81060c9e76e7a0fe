"""A zTOC's parts, and zTOCs that say something impossible."""

from __future__ import annotations

import struct

import pytest

from lazyimg_formats.device_table import MAX_WINDOW
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Entry, Kind
from lazyimg_formats.soci import ztoc as ztoc_module
from lazyimg_formats.soci.writer import WrittenPoint, serialize_points, serialize_ztoc
from lazyimg_formats.soci.ztoc import GZIP, PLAIN, Ztoc

DIGEST = bytes(range(32))
ENTRIES = [
    (Entry(b"dir/", Kind.DIRECTORY, 0o755, mtime=-5), 512),
    (
        Entry(
            b"dir/\xff file", Kind.REGULAR, 0o4644, 4_000_000_000, 7, 1_600_000_000, 5_000, 600,
            xattrs=((b"user.a", b"\0\xff"), (b"user.b", b"")),
        ),
        1024,
    ),
    (Entry(b"link", Kind.HARDLINK, target=b"dir/file"), 3072),
    (Entry(b"null", Kind.CHARACTER, major=1, minor=3), 3584),
]  # fmt: skip
POINTS = [WrittenPoint(10, 0, 0, b""), WrittenPoint(500, 3, 2000, b"w" * MAX_WINDOW)]


def make(
    entries: list[tuple[Entry, int]] | None = None,
    points: bytes | None = None,
    *,
    algorithm: int = GZIP,
    digests: int = 2,
    blob_size: int = 900,
    tar_size: int = 5120,
) -> bytes:
    return serialize_ztoc(
        blob_size,
        tar_size,
        ENTRIES if entries is None else entries,
        algorithm,
        serialize_points(POINTS, 4096) if points is None else points,
        [DIGEST] * digests,
    )


GOOD = make()


def problem(data: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        list(Ztoc(data).members())
    return str(caught.value)


def changed(old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)
    assert GOOD.count(old) >= 1
    return GOOD.replace(old, new)


def test_what_it_says() -> None:
    ztoc = Ztoc(GOOD)
    assert (ztoc.algorithm, ztoc.blob_size, ztoc.tar_size) == (GZIP, 900, 5120)
    assert ztoc.digests == [DIGEST] * 2
    first, second = ztoc.points
    assert (first.offset, first.bit, first.first, first.position) == (10, 0, 10, 0)
    assert bytes(first.window) == bytes(MAX_WINDOW)
    assert (second.offset, second.bit, second.first, second.position) == (500, 3, 501, 2000)
    assert bytes(second.window) == b"w" * MAX_WINDOW
    assert list(ztoc.members()) == ENTRIES


def test_compression_that_is_left_out_is_gzip() -> None:
    assert Ztoc(make(algorithm=0)).algorithm == GZIP


def test_old_one_leaves_out_the_first_point() -> None:
    points = serialize_points(POINTS[1:], 4096)
    points = struct.pack("<i", 2) + points[4:]
    ztoc = Ztoc(make(points=points))
    assert [(point.offset, point.position) for point in ztoc.points] == [(10, 0), (500, 2000)]
    assert bytes(ztoc.points[0].window) == bytes(MAX_WINDOW)


def test_tar_that_is_not_compressed() -> None:
    points = plain_points(256, 900)
    ztoc = Ztoc(make(points=points, algorithm=PLAIN, digests=4, tar_size=900))
    assert [point.position for point in ztoc.points] == [0, 256, 512, 768]
    assert {bytes(point.window) for point in ztoc.points} == {b""}


def plain_points(step: int, size: int) -> bytes:
    vtable = struct.pack("<5H", 10, 24, 4, 8, 16) + bytes(2)
    return struct.pack("<I", 20) + bytes(4) + vtable + struct.pack("<iiqq", 12, 2, step, size)


@pytest.mark.parametrize(
    ("points", "digests", "expected"),
    [
        (b"", 4, "zTOC: byte 0 of 0 is referred to"),
        (plain_points(0, 900), 4, "zTOC: 4 spans of 0 bytes in 900"),
        (plain_points(-1, 900), 4, "zTOC: 4 spans of -1 bytes in 900"),
        (plain_points(256, 0), 4, "zTOC: 4 spans of 256 bytes in 0"),
        (plain_points(1, 1 << 62), 4, f"zTOC: 4 spans of 1 bytes in {1 << 62}"),
        (plain_points(256, 900), 3, "zTOC: 3 spans of 256 bytes in 900"),
        (plain_points(1000, 3000), 3, "zTOC: byte 1000 of the tar at byte 1000 of 900, behind 0"),
    ],
)
def test_points_of_a_plain_tar_that_lie(points: bytes, digests: int, expected: str) -> None:
    assert problem(make(points=points, algorithm=PLAIN, digests=digests)).startswith(expected)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], "zTOC: 0 points of entry in 12 bytes, expected 2"),
        ([*POINTS, *POINTS], "zTOC: 4 points of entry in "),
        (
            [POINTS[0], WrittenPoint(10, 0, 2000, b"")],
            "zTOC: byte 2000 of the tar at byte 10 of 900, behind 0 at 10",
        ),
        (
            [POINTS[0], WrittenPoint(500, 0, 0, b"")],
            "zTOC: byte 0 of the tar at byte 500 of 900, behind 0 at 10",
        ),
        (
            [POINTS[0], WrittenPoint(900, 1, 3000, b"")],
            "zTOC: byte 3000 of the tar at byte 901 of 900, behind 0 at 10",
        ),
        ([WrittenPoint(10, 0, 1, b""), POINTS[1]], "zTOC: it begins at byte 1 of the tar"),
        ([WrittenPoint(-10, 0, 0, b""), POINTS[1]], "zTOC: byte 0 of the tar at byte -10 of 900"),
    ],
)
def test_points_that_lie(points: list[WrittenPoint], expected: str) -> None:
    assert problem(make(points=serialize_points(points, 4096))).startswith(expected)


def test_points_of_another_length() -> None:
    points = serialize_points(POINTS, 4096)
    assert problem(make(points=points[:11])) == "zTOC: 11 bytes of points of entry"
    for cut in (points[:-1], points + b"\0"):
        assert problem(make(points=cut)).startswith("zTOC: 2 points of entry in ")


def test_point_with_too_many_bits() -> None:
    points = bytearray(serialize_points(POINTS, 4096))
    points[12 + 16] = 8
    assert problem(make(points=bytes(points))) == "zTOC: a point of entry at 8 bits"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "zTOC: byte 0 of 0 is referred to"),
        (changed(b"\3\0\0\x000.9\0", b"\3\0\0\x001.0\0"), "zTOC: version b'1.0', expected b'0.9'"),
        (make(blob_size=-1), "zTOC: a blob of -1 bytes, 5120 of tar"),
        (make(blob_size=1 << 45), f"zTOC: a blob of {1 << 45} bytes, 5120 of tar"),
        (make(tar_size=-1), "zTOC: a blob of 900 bytes, -1 of tar"),
        (make(tar_size=1 << 62), f"zTOC: a blob of 900 bytes, {1 << 62} of tar"),
        (make(algorithm=3), "zTOC: unknown compression 3"),
        (make(digests=0), "zTOC: 0 digests of spans, the last span is -1"),
        (make(digests=3), "zTOC: 2 points of entry in 65582 bytes, expected 3"),
        (changed(b"sha256:0001", b"sha512:0001"), "zTOC: expected a sha256 digest, got b'sha512:"),
        (
            changed(b"sha256:0001", b"sha256:\xff\xff01"),
            "zTOC: expected a sha256 digest, got b'sha256:",
        ),
        (changed(b"\4\0\0\0char", b"\4\0\0\0ding"), "zTOC: b'null' is of an unknown kind"),
        (changed(b"1969-12-31", b"1969-13-31"), "zTOC: a time that it cannot say: b'1969-13-31"),
        (changed(b"1969-12-31", b"\xff969-12-31"), "zTOC: a time that it cannot say: b'\\xff"),
        (
            changed(b"SCHILY.xattr.user.a", b"GNU.sparse.realsize"),
            "zTOC: b'dir/\\xff file' is a sparse file, whose bytes it gives wrongly",
        ),
    ],
)
def test_parts_that_lie(data: bytes, expected: str) -> None:
    assert problem(data).startswith(expected)


def test_records_that_are_no_attributes() -> None:
    data = changed(b"SCHILY.xattr.user.a", b"LIBARCHIVE.creation")
    entry = [entry for entry, _ in Ztoc(data).members()][1]
    assert entry.xattrs == ((b"user.b", b""),)


def rooted(*places: int) -> bytes:
    """Give a root table that lacks fields, with a version."""
    vtable = struct.pack(f"<{2 + len(places)}H", 4 + 2 * len(places), 32, *places)
    head = struct.pack("<I", 4 + len(vtable)) + vtable
    table = struct.pack("<iIIqqI", len(vtable), 28, 0, 900, 5120, 24)
    return head + table + struct.pack("<I3sx", 3, b"0.9")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (rooted(4), "zTOC: it does not say how the layer is compressed"),
        (rooted(0), "zTOC: version b'', expected b'0.9'"),
    ],
)
def test_root_that_lacks_something(data: bytes, expected: str) -> None:
    assert problem(data) == expected


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ztoc_module, "MAX_ZTOC", len(GOOD) - 1)
    assert problem(GOOD) == f"zTOC: {len(GOOD)} bytes, the limit is {len(GOOD) - 1}"


def test_too_many_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ztoc_module, "MAX_ENTRIES", 3)
    assert problem(GOOD) == "zTOC: 4 entries, the limit is 3"


def test_vector_with_a_thousand_million_entries() -> None:
    at = GOOD.index(struct.pack("<I", len(ENTRIES)), 100)
    data = bytearray(GOOD)
    struct.pack_into("<I", data, at, 1_000_000_000)
    assert problem(bytes(data)).endswith(f" of {len(GOOD)} is referred to")


def test_same_strings_again_and_again() -> None:
    """Otherwise a small zTOC would be an image of any size."""
    count = 2000
    data = bytearray(make([(Entry(b"n" * 4000, Kind.FIFO), 512)] + [(ENTRIES[0])] * count))
    vector = data.index(struct.pack("<I", 1 + count), 100)
    target = vector + 4 + struct.unpack_from("<I", data, vector + 4)[0]
    for at in range(vector + 4, vector + 8 + 4 * count, 4):
        struct.pack_into("<I", data, at, target - at)
    assert len(data) < count * 4000
    assert problem(bytes(data)) == "zTOC: it has the same strings again and again"


def without(data: bytes, places: tuple[int, ...], number: int) -> bytes:
    """Give a zTOC in which a kind of tables lacks a field: the vtable with these places."""
    vtable = struct.pack(f"<{len(places)}H", *places)
    assert data.count(vtable) == 1
    lacking = [0 if at == number else place for at, place in enumerate(places)]
    return data.replace(vtable, struct.pack(f"<{len(places)}H", *lacking))


MEMBER = (4, 8, 32, 40, 12, 48, 24, 28, 0, 0, 16, 56, 64, 20)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, "zTOC: b'dir/' is of an unknown kind"),
        (10, "zTOC: a time that it cannot say: b''"),
    ],
)
def test_member_that_lacks_something(number: int, expected: str) -> None:
    assert problem(without(GOOD, MEMBER, number)) == expected


def test_member_without_what_it_may_lack() -> None:
    for number in (0, 4, 13):
        lacking = list(Ztoc(without(GOOD, MEMBER, number)).members())
        assert [offset for _, offset in lacking] == [offset for _, offset in ENTRIES]
    assert {entry.path for entry, _ in Ztoc(without(GOOD, MEMBER, 0)).members()} == {b""}


def test_attribute_without_a_name_or_a_value() -> None:
    pair = (8, 12, 4, 8)
    entries = [entry for entry, _ in Ztoc(without(GOOD, pair, 3)).members()]
    assert entries[1].xattrs == ((b"user.a", b""), (b"user.b", b""))
    assert not any(entry.xattrs for entry, _ in Ztoc(without(GOOD, pair, 2)).members())


def test_without_members() -> None:
    for places, number in (((6, 8, 4), 2), ((16, 40, 4, 8, 24, 32, 12, 16), 6)):
        assert list(Ztoc(without(GOOD, places, number)).members()) == []


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (4, "zTOC: 0 digests of spans, the last span is 1"),
        (5, "zTOC: 0 bytes of points of entry"),
    ],
)
def test_compression_that_lacks_something(number: int, expected: str) -> None:
    assert problem(without(GOOD, (12, 20, 16, 12, 4, 8), number)) == expected
