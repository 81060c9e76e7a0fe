"""Reading parts of local files."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg.errors import CorruptError, NotFoundError, StorageError
from lazyimg.registry.blob_files import (
    MAX_PEEK,
    Extract,
    LocalSource,
    OpenExtract,
    parse_index,
    parse_local,
    read_extract,
    unreadable,
)
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_MANIFEST,
    Index,
    Manifest,
    describe,
    serialize_document,
)

if TYPE_CHECKING:
    from pathlib import Path

DATA = bytes(range(200))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "file"
    path.write_bytes(DATA)
    return path


@given(start=st.integers(0, 210), offset=st.integers(0, 210), length=st.integers(0, 210))
def test_exactly_the_bytes_or_an_error(file: Path, start: int, offset: int, length: int) -> None:
    first = start + offset
    try:
        data = read_extract("it", Extract(file, start, 999), offset, length)
    except CorruptError as error:
        missing = first + length - max(first, min(len(DATA), first + length))
        assert missing > 0
        assert str(error) == f"it: its file ends {missing} bytes early"  # noqa: PT017 - its text
    else:
        assert data == DATA[first : first + length]
        assert len(data) == length


def test_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"^it: cannot be read: No such file or directory$"):
        read_extract("it", Extract(tmp_path / "x", 0, 1), 0, 1)


def test_errors_of_files() -> None:
    assert isinstance(unreadable("it", IsADirectoryError(21, "Is a directory")), NotFoundError)
    error = unreadable("it", OSError(5, "Input/output error"))
    assert isinstance(error, StorageError)
    assert str(error) == "it: cannot be read: Input/output error"


class OneFile:
    """Every digest is one file."""

    name = "place"

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_index(self) -> bytes:
        return serialize_document(Index(manifests=()))

    def locate(self, digest: Digest) -> Extract | None:
        assert digest.algorithm == "sha256"
        return Extract(self.path, 0, self.path.stat().st_size)


async def test_manifest_without_a_media_type(tmp_path: Path) -> None:
    manifest = Manifest(media_type="", config=describe(b"", ""), layers=())
    data = serialize_document(manifest)
    (tmp_path / "x").write_bytes(data)
    source = LocalSource(OneFile(tmp_path / "x"))
    assert await source.fetch_manifest(Digest.of(data)) == (describe(data, OCI_MANIFEST), data)


def test_documents() -> None:
    manifest = serialize_document(Manifest(config=describe(b"", ""), layers=()))
    assert isinstance(parse_local("it", manifest), Manifest)
    with pytest.raises(CorruptError, match=r"^it: its index.json is no image index$"):
        parse_index("it", manifest)
    with pytest.raises(CorruptError, match=r"^it: manifest: no JSON"):
        parse_index("it", b"")


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the flags of each preadv, which then reads without them: not every file system can."""
    preadv, seen = os.preadv, list[int]()

    def read(fd: int, into: list[memoryview], offset: int, flags: int) -> int:
        seen.append(flags)
        return preadv(fd, into, offset)

    monkeypatch.setattr(os, "preadv", read)
    return seen


def test_peek_gives_exactly_the_bytes_or_nothing(file: Path, flags: list[int]) -> None:
    extract = OpenExtract(Extract(file, 10, 300))
    assert bytes(extract.peek(5, 100) or b"") == DATA[15:115]
    assert bytes(extract.peek(150, 40) or b"") == DATA[160:]
    assert flags == [os.RWF_NOWAIT] * 2
    assert extract.peek(150, 41) is None  # the file ends before the extract
    assert extract.peek(250, 60) is None
    assert len(flags) == 3
    assert OpenExtract(Extract(file, 0, 1 << 40)).peek(0, MAX_PEEK + 1) is None


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EOPNOTSUPP, errno.EIO])
def test_peek_that_would_have_to_wait(
    file: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_arguments: object) -> int:
        raise OSError(number, "odd")

    extract = OpenExtract(Extract(file, 0, 200))
    monkeypatch.setattr(os, "preadv", fail)
    assert extract.peek(0, 1) is None


def test_file_is_closed_with_the_last_reference(file: Path) -> None:
    extract = OpenExtract(Extract(file, 0, 200))
    fd = extract._fd
    os.fstat(fd)
    del extract
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


async def test_blob_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"data")
    source = LocalSource(OneFile(path))
    wanted = describe(b"data", "type")
    await source.open_blob(wanted)
    with pytest.raises(CorruptError, match="expected 3 bytes, it has 4"):
        await source.open_blob(describe(b"dat", "type"))

    def fail(*_arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(
        StorageError, match=r"^place@sha256:\w+: cannot be read: Input/output error$"
    ):
        await source.open_blob(wanted)
