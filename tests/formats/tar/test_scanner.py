"""The scanner. Python's tarfile, and GNU tar's bytes, say what is right."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Entry, Kind
from lazyimg_formats.tar.pax import serialize_records
from lazyimg_formats.tar.scanner import MAX_EXTENSION, Member, TarScanner
from tests.formats.tar.test_header import GNU, USTAR, block
from tests.formats.tar.test_sparse import old_block

if TYPE_CHECKING:
    from collections.abc import Iterable

END = bytes(1024)


def scan(data: bytes, step: int | None = None) -> list[Member]:
    scanner = TarScanner()
    members = []
    for at in range(0, len(data), step or max(len(data), 1)):
        members += scanner.feed(data[at : at + (step or len(data))])
    scanner.finish()
    assert scanner.position == len(data)
    return members


def scan_one(data: bytes) -> Member:
    (member,) = scan(data + END)
    return member


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def octal(size: int) -> bytes:
    return b"%011o\0" % size


def extension(payload: bytes, flag: bytes = b"x") -> bytes:
    return block(name=b"PaxHeaders/x", size=octal(len(payload)), flag=flag) + pad(payload)


def pax(*records: tuple[bytes, bytes], flag: bytes = b"x") -> bytes:
    return extension(serialize_records(records), flag)


def empty(name: bytes = b"f", **fields: Any) -> bytes:
    return block(name=name, size=octal(0), **fields)


def test_file_with_its_place() -> None:
    data = block(name=b"a", size=octal(5)) + pad(b"hello") + empty(b"b")
    first, second = scan(data + END)
    assert first.entry == Entry(b"a", Kind.REGULAR, 0o644, 1000, 100, 1_700_381_888, size=5)
    assert (first.header_offset, first.data_offset, first.data_size) == (0, 512, 5)
    assert (second.header_offset, second.data_offset, second.data_size) == (1024, 1536, 0)
    assert (first.has_data, second.has_data) == (True, False)


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        (b"0", Kind.REGULAR),
        (b"\0", Kind.REGULAR),
        (b"1", Kind.HARDLINK),
        (b"2", Kind.SYMLINK),
        (b"3", Kind.CHARACTER),
        (b"4", Kind.BLOCK),
        (b"5", Kind.DIRECTORY),
        (b"6", Kind.FIFO),
    ],
)
def test_kinds(flag: bytes, kind: Kind) -> None:
    assert scan_one(empty(flag=flag)).entry.kind is kind


def test_v7_directory_is_a_name_with_a_slash() -> None:
    assert scan_one(empty(b"d/", flag=b"\0")).entry.kind is Kind.DIRECTORY
    assert scan_one(empty(b"d/", flag=b"0")).entry.kind is Kind.REGULAR


@pytest.mark.parametrize("flag", [b"7", b"V", b"D", b"M", b"A"])
def test_unknown_kinds_are_refused(flag: bytes) -> None:
    with pytest.raises(
        FormatError, match=rf"^tar: member of unknown type b'{flag.decode()}' \(at byte 512\)$"
    ):
        scan(empty(flag=flag) + END)


def test_links_have_no_payload_whatever_their_size_says() -> None:
    first, second = scan(block(flag=b"1", size=octal(4096)) + empty() + END)
    assert (first.data_size, first.entry.size, second.header_offset) == (0, 4096, 512)


def test_negative_size() -> None:
    assert scan_one(block(flag=b"2", size=b"\xff" * 12)).entry.size == 0
    with pytest.raises(FormatError, match="impossible size -1"):
        scan(block(size=b"\xff" * 12))


def test_size_over_a_device() -> None:
    with pytest.raises(FormatError, match="impossible size 17592186044417"):
        scan(pax((b"size", b"%d" % ((1 << 44) + 1))) + block())


def test_local_records() -> None:
    member = scan_one(
        pax(
            (b"path", b"p" * 200),
            (b"linkpath", b"l" * 200),
            (b"uid", b"4000000000"),
            (b"gid", b"3000000000"),
            (b"mtime", b"-1.5"),
            (b"atime", b"7.25"),
            (b"ctime", b"8"),
            (b"SCHILY.xattr.user.b", b"\0\n=\xff"),
            (b"SCHILY.xattr.user.a", b""),
            (b"comment", b"nothing"),
        )
        + empty(flag=b"2", target=b"t")
    )
    entry = member.entry
    assert (entry.path, entry.target) == (b"p" * 200, b"l" * 200)
    assert (entry.uid, entry.gid) == (4_000_000_000, 3_000_000_000)
    assert (entry.mtime, entry.mtime_ns) == (-2, 500_000_000)
    assert (member.accessed, member.changed) == ((7, 250_000_000), (8, 0))
    assert entry.xattrs == ((b"user.a", b""), (b"user.b", b"\0\n=\xff"))


def test_local_records_hold_for_one_member() -> None:
    first, second = scan(pax((b"path", b"long")) + empty() + empty() + END)
    assert (first.entry.path, second.entry.path) == (b"long", b"f")
    assert (first.header_offset, second.header_offset) == (0, 1536)


def test_empty_records_are_as_if_not_there() -> None:
    records = (b"path", b"linkpath", b"uid", b"gid", b"size", b"mtime", b"atime", b"ctime")
    member = scan_one(pax(*((key, b"") for key in records)) + empty(target=b"t"))
    assert member.entry == Entry(b"f", Kind.REGULAR, 0o644, 1000, 100, 1_700_381_888, target=b"t")
    assert (member.accessed, member.changed) == (None, None)


def test_size_record() -> None:
    first, second = scan(pax((b"size", b"600")) + block() + pad(b"x" * 600) + empty() + END)
    assert (first.data_size, first.entry.size, second.header_offset) == (600, 600, 2560)


def test_a_second_extended_header_replaces_the_first() -> None:
    data = pax((b"path", b"first"), (b"uid", b"7")) + pax((b"path", b"second")) + empty()
    entry = scan_one(data).entry
    assert (entry.path, entry.uid) == (b"second", 1000)


def test_global_records_have_no_effect_and_end_local_ones() -> None:
    data = pax((b"path", b"local")) + pax((b"uid", b"7"), flag=b"g") + empty()
    member = scan_one(data)
    assert (member.entry.path, member.entry.uid, member.header_offset) == (b"f", 1000, 2048)


def test_which_member_has_global_records_before_it() -> None:
    data = empty() + pax((b"uid", b"7"), flag=b"g") + pax((b"gid", b"7")) + empty() + empty() + END
    assert [member.has_globals for member in scan(data)] == [False, True, False]


def test_global_records_are_checked() -> None:
    with pytest.raises(FormatError, match="PAX record"):
        scan(extension(b"x", b"g"))


def test_gnu_long_names() -> None:
    data = (
        extension(b"n" * 300 + b"\0", b"L")
        + extension(b"t" * 300 + b"\0", b"K")
        + empty(b"n" * 100, flag=b"2", magic=GNU)
        + empty(magic=GNU)
    )
    first, second = scan(data + END)
    assert (first.entry.path, first.entry.target) == (b"n" * 300, b"t" * 300)
    assert (second.entry.path, second.entry.target) == (b"f", b"")


def test_gnu_long_name_of_a_v7_directory() -> None:
    member = scan_one(extension(b"n" * 100 + b"/", b"L") + empty(flag=b"\0"))
    assert member.entry.kind is Kind.DIRECTORY


def test_gnu_long_name_goes_before_pax() -> None:
    data = extension(b"gnu", b"L") + pax((b"path", b"pax")) + empty()
    assert scan_one(data).entry.path == b"gnu"


def test_gnu_times() -> None:
    member = scan_one(empty(magic=GNU, prefix=b"00000000012\x0000000000013\0"))
    assert (member.accessed, member.changed) == ((10, 0), (11, 0))


def test_extension_without_bytes() -> None:
    assert scan_one(extension(b"") + empty()).entry.path == b"f"


def test_extension_at_the_limit() -> None:
    value = b"v" * (MAX_EXTENSION - len(b"1048576 SCHILY.xattr.u=\n"))
    member = scan_one(pax((b"SCHILY.xattr.u", value)) + empty())
    assert member.entry.xattrs == ((b"u", value),)


@pytest.mark.parametrize("size", [octal(MAX_EXTENSION + 1), b"\xff" * 12])
def test_extension_over_the_limit(size: bytes) -> None:
    with pytest.raises(FormatError, match=r"extended header of -?\d+ bytes, the limit is 1048576"):
        scan(block(flag=b"x", size=size))


@pytest.mark.parametrize(
    ("uid", "gid"), [(b"-1", b"0"), (b"0", b"-1"), (b"4294967296", b"0"), (b"0", b"4294967296")]
)
def test_owner_out_of_range(uid: bytes, gid: bytes) -> None:
    with pytest.raises(FormatError, match=r"owner -?\d+:-?\d+ is over 32 bits"):
        scan(pax((b"uid", uid), (b"gid", gid)) + empty())


@pytest.mark.parametrize(
    ("major", "minor"), [(b"0010000\0", b"0"), (b"0", b"4000000\0"), (b"\xff" * 8, b"0")]
)
def test_device_out_of_range(major: bytes, minor: bytes) -> None:
    for flag in (b"3", b"4"):
        with pytest.raises(FormatError, match="impossible device number"):
            scan(empty(flag=flag, major=major, minor=minor))
    assert scan_one(empty(major=major, minor=minor)).entry.kind is Kind.REGULAR


def test_device() -> None:
    entry = scan_one(empty(flag=b"4", major=b"0007777\0", minor=b"3777777\0")).entry
    assert (entry.kind, entry.major, entry.minor) == (Kind.BLOCK, 4095, 1_048_575)


def old_sparse(regions: list[tuple[int, int]], size: int, payload: bytes) -> bytes:
    entries = [(octal(offset), octal(length)) for offset, length in regions]
    in_header, rest = entries[:4], entries[4:]
    prefix = old_block(in_header, more=bool(rest), is_header=True)[345:500]
    prefix = prefix[:138] + octal(size) + prefix[150:]
    data = block(flag=b"S", magic=GNU, size=octal(len(payload)), prefix=prefix)
    while rest:
        part, rest = rest[:21], rest[21:]
        data += old_block(part, more=bool(rest), is_header=False)
    return data + pad(payload)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 25, 26, 60])
def test_old_sparse(count: int) -> None:
    regions = [(4096 * number, 10) for number in range(count)]
    data = old_sparse(regions, 1_000_000, b"x" * 10 * count)
    first, second = scan(data + empty() + END)
    assert first.regions == tuple(regions)
    assert (first.entry.size, first.data_size, first.has_data) == (1_000_000, 10 * count, True)
    assert first.data_offset + len(pad(b"x" * 10 * count)) == second.header_offset == len(data)


def test_old_sparse_in_another_format() -> None:
    with pytest.raises(FormatError, match="a sparse file that is not in the GNU format"):
        scan(block(flag=b"S", magic=USTAR))


def test_old_sparse_with_too_many_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyimg_formats.tar.scanner.MAX_REGIONS", 24)
    regions = [(number, 1) for number in range(25)]
    with pytest.raises(FormatError, match="sparse file: more than 24 regions"):
        scan(old_sparse(regions, 100, b"x" * 25))


def test_sparse_over_a_device() -> None:
    with pytest.raises(FormatError, match="sparse file: impossible size 18014398509481984"):
        scan(pax((b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"1"),
                 (b"GNU.sparse.size", b"%d" % (1 << 54)), (b"GNU.sparse.numblocks", b"0"))
             + empty())  # fmt: skip


MAP = (b"GNU.sparse.map", b"0,3,4096,2")
SIZES = ((b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.size", b"8192"))
PAIRS = (
    (b"GNU.sparse.offset", b"0"),
    (b"GNU.sparse.numbytes", b"3"),
    (b"GNU.sparse.offset", b"4096"),
    (b"GNU.sparse.numbytes", b"2"),
)


@pytest.mark.parametrize(
    "records",
    [
        (*SIZES, MAP),
        (*SIZES, *PAIRS),
        (*SIZES, MAP, (b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"1")),
        (*SIZES, MAP, (b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"0")),
        (SIZES[0], MAP, (b"GNU.sparse.realsize", b"8192")),
    ],
)
def test_pax_sparse_0(records: Iterable[tuple[bytes, bytes]]) -> None:
    data = pax(*records, (b"GNU.sparse.name", b"real")) + block(size=octal(5)) + pad(b"abcde")
    member = scan_one(data)
    assert (member.entry.path, member.entry.size, member.data_size) == (b"real", 8192, 5)
    assert member.regions == ((0, 3), (4096, 2))


@pytest.mark.parametrize(
    ("major", "minor"), [(b"2", b"0"), (b"1", b"1"), (b"0", b"2"), (b"", b"1"), (b"0", b"")]
)
def test_pax_sparse_of_an_unknown_version_is_a_plain_file(major: bytes, minor: bytes) -> None:
    records = ((b"GNU.sparse.major", major), (b"GNU.sparse.minor", minor), *SIZES, MAP)
    member = scan_one(pax(*records) + block(size=octal(5)) + pad(b"abcde"))
    assert (member.regions, member.entry.size, member.entry.path) == (None, 5, b"etc/passwd")


def leading(text: bytes, payload: bytes, size: int, *, name: bytes = b"real") -> bytes:
    content = pad(text) + payload
    return (
        pax(
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", name),
            (b"GNU.sparse.realsize", b"%d" % size),
        )
        + block(size=octal(len(content)))
        + pad(content)
    )


@pytest.mark.parametrize("count", [0, 1, 2, 60, 200])
def test_pax_sparse_1(count: int) -> None:
    regions = [(4096 * number, 3) for number in range(count)]
    text = b"%d\n" % count + b"".join(b"%d\n%d\n" % region for region in regions)
    data = leading(text, b"abc" * count, 1_000_000)
    member = scan_one(data)
    assert member.regions == tuple(regions)
    assert (member.entry.path, member.entry.size) == (b"real", 1_000_000)
    assert data[member.data_offset :][: member.data_size] == b"abc" * count


def test_pax_sparse_1_without_a_size_and_a_name() -> None:
    data = pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"path", b"p"))
    data += block(size=octal(512)) + pad(b"0\n")
    member = scan_one(data)
    assert (member.entry.path, member.entry.size, member.regions) == (b"p", 512, ())


@pytest.mark.parametrize(
    ("text", "payload"), [(b"9\n0\n", b""), (b"1\n0\n" + b"1" * 600, b""), (b"", b"")]
)
def test_pax_sparse_1_whose_map_does_not_end(text: bytes, payload: bytes) -> None:
    with pytest.raises(FormatError, match=r"sparse file: its map does not"):
        scan(leading(text, payload, 10) + bytes(8192))


def test_pax_sparse_1_with_too_long_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyimg_formats.tar.scanner.MAX_MAP_SIZE", 512)
    with pytest.raises(FormatError, match=r"sparse file: its map does not end"):
        scan(leading(b"9\n" + b"0" * 600, b"x" * 5000, 10))


def test_sparse_directory() -> None:
    with pytest.raises(FormatError, match="a sparse member that is no regular file"):
        scan(pax(*SIZES, MAP) + empty(flag=b"5"))


def test_sparse_whose_regions_are_not_its_payload() -> None:
    with pytest.raises(FormatError, match="its regions have 5 bytes, its data 6"):
        scan(pax(*SIZES, MAP) + block(size=octal(6)) + pad(b"abcdef"))


def test_end_is_two_blocks_of_zeros_and_what_follows_means_nothing() -> None:
    scanner = TarScanner()
    assert len(scanner.feed(empty() + END + b"garbage")) == 1
    assert scanner.ended
    assert scanner.feed(empty()) == []
    scanner.finish()


@pytest.mark.parametrize(
    "data", [b"", empty(), empty() + bytes(512), END, block(size=octal(5)) + b"hello", pax()]
)
def test_ends_that_are_allowed(data: bytes) -> None:
    scan(data)


def test_one_block_of_zeros_before_a_member() -> None:
    with pytest.raises(FormatError, match=r"one block of zeros is followed by something else"):
        scan(bytes(512) + empty())


def test_not_a_tar() -> None:
    with pytest.raises(FormatError, match=r"^tar header: checksum .* \(at byte 512\)$"):
        scan(b"\x7fELF" + bytes(1000))


EVERYTHING = (
    pax((b"path", b"p" * 200), (b"SCHILY.xattr.user.a", b"x" * 2000))
    + block(size=octal(700))
    + pad(b"x" * 700)
    + extension(b"n" * 700 + b"\0", b"L")
    + empty(flag=b"5")
    + old_sparse([(4096 * number, 10) for number in range(30)], 1 << 20, b"x" * 300)
    + leading(b"2\n0\n5\n4096\n6\n", b"hello world", 10_000)
    + END
    + b"trailing"
)


@pytest.mark.parametrize("step", [1, 3, 511, 512, 513, 1000, 4096])
def test_in_pieces(step: int) -> None:
    assert scan(EVERYTHING, step) == scan(EVERYTHING)


def test_cut_short_at_every_byte() -> None:
    whole = scan(EVERYTHING)
    for end in range(len(EVERYTHING)):
        scanner = TarScanner()
        found = scanner.feed(EVERYTHING[:end])
        assert found == whole[: len(found)]
        try:
            scanner.finish()
        except FormatError as error:
            assert str(error) == f"tar: cut short after {end} bytes"  # noqa: PT017 - one of many
        else:
            payload_end = found[-1].data_offset + found[-1].data_size if found else 0
            assert end >= payload_end


NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=120
).filter(lambda name: name.strip("/"))
INFOS = st.builds(
    lambda name, kind, size, mtime, uid, mode, link: (name, kind, size, mtime, uid, mode, link),
    NAMES,
    st.sampled_from(
        [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE]
    ),
    st.integers(0, 2000),
    st.integers(-(2**40), 2**40),
    st.integers(0, 2**32 - 1),
    st.integers(0, 0o7777),
    NAMES,
)
KINDS = {
    tarfile.REGTYPE: Kind.REGULAR,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.CHRTYPE: Kind.CHARACTER,
}


@settings(max_examples=60, deadline=None)
@given(st.lists(INFOS, max_size=6), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_as_tarfile_reads_it(
    infos: list[tuple[str, bytes, int, int, int, int, str]], archive_format: int
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=archive_format) as archive:
        for name, kind, size, mtime, uid, mode, link in infos:
            info = tarfile.TarInfo(name)
            info.type, info.mtime, info.uid, info.mode = kind, mtime, uid, mode
            if kind == tarfile.REGTYPE:
                info.size = size
            if kind in {tarfile.SYMTYPE, tarfile.LNKTYPE}:
                info.linkname = link
            archive.addfile(info, io.BytesIO(b"x" * size))
    data = buffer.getvalue()
    members = scan(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = archive.getmembers()
    assert len(members) == len(expected)
    for member, info in zip(members, expected, strict=True):
        entry = member.entry
        assert entry.path.rstrip(b"/") == info.name.encode().rstrip(b"/")
        assert entry.kind is KINDS[info.type]
        assert (entry.mode, entry.uid, entry.mtime) == (info.mode, info.uid, info.mtime)
        assert entry.target == info.linkname.encode()
        assert (entry.size, member.data_offset) == (info.size, info.offset_data)
        assert member.header_offset == info.offset


@settings(max_examples=200)
@given(st.data())
def test_damaged(data: st.DataObject) -> None:
    damaged = bytearray(EVERYTHING)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        scan(bytes(damaged))
    except FormatError:
        return


@pytest.mark.parametrize("step", [1, 511, 512, 513, 100_000])
def test_replay_of_what_was_taken(step: int) -> None:
    taken: list[bytes] = []
    scanner = TarScanner(taken.append)
    members = scanner.feed(EVERYTHING)
    headers = b"".join(taken)
    assert len(headers) < len(EVERYTHING)
    again = TarScanner()
    replayed = []
    for at in range(0, len(headers), step):
        replayed += again.replay(headers[at : at + step])
    assert replayed == members
    assert again.ended
    assert again.position == len(EVERYTHING) - len(b"trailing")
    again.finish()
    with pytest.raises(FormatError, match="tar: 1 bytes of headers behind its end"):
        again.replay(b"\0")
