"""The writer, read back by the scanner and by Python's tarfile."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.layer import Entry, Kind
from lazyimg_formats.tar.scanner import TarScanner
from lazyimg_formats.tar.writer import END, padding, serialize_header

KINDS = [kind for kind in Kind if kind not in {Kind.WHITEOUT, Kind.OPAQUE}]
NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name)
XATTRS = st.dictionaries(
    st.text("abc.", min_size=1).map(str.encode), st.binary(min_size=1, max_size=50), max_size=3
)


def read(data: bytes) -> Entry:
    scanner = TarScanner()
    (member,) = scanner.feed(data + END)
    scanner.finish()
    return member.entry


@given(
    st.builds(
        Entry,
        NAMES,
        st.sampled_from([kind for kind in KINDS if kind is not Kind.REGULAR]),
        st.integers(0, 0o7777),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(-(2**60), 2**60),
        st.integers(0, 999_999_999),
        st.just(0),
        st.one_of(st.just(b""), NAMES),
        st.integers(0, 4095),
        st.integers(0, 2**20 - 1),
        XATTRS.map(lambda xattrs: tuple(sorted(xattrs.items()))),
    )
)
def test_round_trip(entry: Entry) -> None:
    assert read(serialize_header(entry)) == entry


@pytest.mark.parametrize("mtime", [-5, 0, 5, 1 << 40])
@pytest.mark.parametrize("mtime_ns", [0, 7])
def test_times(mtime: int, mtime_ns: int) -> None:
    entry = read(serialize_header(Entry(b"f", Kind.FIFO, mtime=mtime, mtime_ns=mtime_ns)))
    assert (entry.mtime, entry.mtime_ns) == (mtime, mtime_ns)


def test_long_target() -> None:
    entry = Entry(b"link", Kind.HARDLINK, target=b"t" * 101)
    assert read(serialize_header(entry)) == entry


def test_file_of_8_gib() -> None:
    entry = Entry(b"large", Kind.REGULAR, 0o644, size=8**11)
    scanner = TarScanner()
    (member,) = scanner.feed(serialize_header(entry))
    assert (member.entry, member.data_size) == (entry, 8**11)


def test_what_ustar_can_say_takes_one_block() -> None:
    entry = Entry(b"n" * 100, Kind.SYMLINK, 0o777, 2_097_151, 0, 8**11 - 1, target=b"t" * 100)
    assert len(serialize_header(entry)) == 512


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_padding(size: int) -> None:
    assert (size + len(padding(size))) % 512 == 0
    assert len(padding(size)) < 512


def test_archive_that_tarfile_reads() -> None:
    entries = [
        Entry(b"dir/", Kind.DIRECTORY, 0o755, mtime=1_700_000_000),
        Entry(b"dir/" + b"f" * 200, Kind.REGULAR, 0o600, 70_000, 3_000_000, 5, 250_000_000, 3),
        Entry(b"dir/link", Kind.SYMLINK, 0o777, target=b"../x"),
    ]
    data = b""
    for entry in entries:
        payload = b"abc"[: entry.size]
        data += serialize_header(entry) + payload + padding(len(payload))
    with tarfile.open(fileobj=io.BytesIO(data + END)) as archive:
        directory, file, link = archive.getmembers()
        content = archive.extractfile(file)
        assert content is not None
        assert content.read() == b"abc"
    assert (directory.name, directory.mode, directory.isdir()) == ("dir", 0o755, True)
    assert (file.uid, file.gid, file.mtime) == (70_000, 3_000_000, 5.25)
    assert file.name == "dir/" + "f" * 200
    assert (link.linkname, link.issym()) == ("../x", True)
