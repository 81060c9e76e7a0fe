"""tar-split data: the lines as vbatts/tar-split writes them, and the tar that they give again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zstandard import ZstdDecompressor

from lazyimg_formats import tar_split
from lazyimg_formats.layer import Entry, Kind
from lazyimg_formats.tar.scanner import TarScanner
from lazyimg_formats.tar.writer import END, padding, serialize_header
from lazyimg_formats.tar_split import MAX_SEGMENT, TarSplit, TarSplitWriter, checksum
from tests.fakes.tar_split import assemble, crc64, decode_lines
from tests.formats.tar.test_header import block
from tests.formats.tar.test_scanner import empty, leading, octal, old_sparse, pax


def write(tar: bytes) -> tuple[TarSplit | None, str]:
    """Write a tar's data from what the scanner says of it; a member's bytes are one piece."""
    scanner = TarScanner()
    writer = TarSplitWriter()
    at = 0
    for member in scanner.feed(tar):
        writer.add_raw(tar[at : member.data_offset])
        at = member.data_offset + member.data_size
        writer.add_member(member, checksum(tar[member.data_offset : at]))
    writer.add_raw(tar[at:])
    return writer.finish(), writer.problem


def file(path: bytes, data: bytes, **fields: tuple[tuple[bytes, bytes], ...]) -> bytes:
    entry = Entry(path, Kind.REGULAR, 0o644, size=len(data), **fields)  # type: ignore[arg-type]
    return serialize_header(entry) + data + padding(len(data))


def test_checksum_is_the_one_of_gos_library() -> None:
    assert checksum(b"foo").to_bytes(8, "big") == bytes([60, 60, 48, 48, 0, 0, 0, 0])
    assert checksum(b"123456789") == crc64(b"123456789") == 0xB90956C775A41001
    assert checksum(memoryview(b"456789"), checksum(b"123")) == 0xB90956C775A41001
    assert checksum(b"") == 0


def test_lines() -> None:
    contents = {b"./etc/a": b"foo", b"./etc/\xff": b"123456789"}
    directory = serialize_header(Entry(b"./etc/", Kind.DIRECTORY, 0o755))
    link = serialize_header(Entry(b"./l", Kind.SYMLINK, 0o777, target=b"etc/a"))
    tar = (
        directory
        + file(b"./etc/a", b"foo")
        + file(b"./etc/empty", b"")
        + file(b"./etc/\xff", b"123456789", xattrs=((b"user.a", b"1"),))
        + link
        + END
        + bytes(512)
    )
    data, _ = write(tar)
    assert data is not None
    lines = decode_lines(*data)
    assert [line for line in lines if line["type"] == 1] == [
        {"type": 1, "name": "./etc/", "payload": None},
        {"type": 1, "name": "./etc/a", "size": 3, "payload": b"<<00\0\0\0\0"},
        {"type": 1, "name": "./etc/empty", "payload": None},
        {
            "type": 1,
            "name_raw": b"./etc/\xff",
            "size": 9,
            "payload": bytes.fromhex("b90956c775a41001"),
        },
        {"type": 1, "name": "./l", "payload": None},
    ]
    segments = [line["payload"] for line in lines if line["type"] == 2]
    assert [len(segment) for segment in segments] == [512, 512, 509 + 512, 1536, 503 + 512, 1536]
    assert [line["type"] for line in lines] == [2, 1] * 5 + [2]
    assert assemble(lines, contents) == tar


def test_many_lines() -> None:
    names = [b"directory/file%d" % number for number in range(200)]
    tar = b"".join(file(name, name) for name in names) + END
    data, _ = write(tar)
    assert data is not None
    assert data.decoded_length > 64 << 10
    assert assemble(decode_lines(*data), {name: name for name in names}) == tar


@pytest.mark.parametrize(
    ("one", "other"), [(b"./a", b"a"), (b"a/./b", b"a/b"), (b"a//b", b"./a/b"), (b".", b"./")]
)
def test_names_of_one_path(one: bytes, other: bytes) -> None:
    members = [serialize_header(Entry(name, Kind.DIRECTORY, 0o755)) for name in (one, other)]
    assert write(b"".join(members) + END) == (None, f"two members are {other!r}")


def test_the_text_is_the_one_of_gos_library() -> None:
    data, _ = write(file(b"a", b"x") + END[:512])
    assert data is not None
    first, second, third = ZstdDecompressor().decompressobj().decompress(data.data).splitlines()
    assert first.startswith(b'{"type":2,"payload":"YQAAAA')
    assert first.endswith(b'","position":0}')
    assert second == b'{"type":1,"name":"a","size":1,"payload":"IxAAAAAAAAA=","position":1}'
    assert third.startswith(b'{"type":2,"payload":"AAAA')


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.text("ab<&é\u2028", min_size=1, max_size=5), st.binary(max_size=1500), max_size=5
    ),
    st.sampled_from([END[:512], END, END + bytes(9216)]),
)
def test_the_tar_comes_back(files: dict[str, bytes], end: bytes) -> None:
    contents = {name.encode(): data for name, data in files.items()}
    tar = b"".join(file(name, data) for name, data in contents.items()) + end
    data, problem = write(tar)
    assert data is not None, problem
    assert assemble(decode_lines(*data), contents) == tar
    assert write(tar) == (data, "")


def test_a_tar_without_bytes_has_no_data() -> None:
    assert write(b"") == (None, "")


def test_the_last_file_is_not_padded() -> None:
    data, _ = write(file(b"a", b"x")[:513])
    assert data is not None
    assert assemble(decode_lines(*data), {b"a": b"x"}) == file(b"a", b"x")[:513]


@pytest.mark.parametrize(
    ("tar", "problem"),
    [
        (file(b"a/b", b"") + file(b"./a//b", b"x") + END, "two members are b'./a//b'"),
        (old_sparse([(4096, 1)], 8192, b"x") + END, "b'etc/passwd' is sparse"),
        (leading(b"0\n", b"", 1 << 20, name=b"hole") + END, "b'hole' is sparse"),
        (pax((b"comment", b"x"), flag=b"g") + empty() + END, "it has a global extended header"),
        (
            pax((b"comment", b"x"), flag=b"g") + empty() + empty(b"g") + END,
            "it has a global extended header",
        ),
        (
            block(name=b"l", flag=b"1", size=octal(5), target=b"t") + END,
            "b'l' has a size, and no bytes",
        ),
        (file(b"a", b"x") + END + b"garbage", "something follows its end"),
        (file(b"a", b"x")[:-1], "something follows its end"),
        (
            pax((b"comment", b"x" * 1_000_000)) * 5
            + empty()
            + END,
            f"over {MAX_SEGMENT} bytes between two files",
        ),
    ],
    ids=[
        "repeated", "sparse", "hole", "global", "global-then-more", "sized-link", "garbage",
        "cut-padding", "many-extensions",
    ],
)  # fmt: skip
def test_tars_that_cannot_be_written(tar: bytes, problem: str) -> None:
    assert write(tar) == (None, problem)


@pytest.mark.parametrize("members", [3, 40])
def test_data_over_its_limit(members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extended headers may hold anything: what they say is data, too."""
    noise = random.Random(1)  # noqa: S311 - the same in every run
    tar = b"".join(
        pax((b"comment", noise.randbytes(10_000))) + empty(b"%d" % number)
        for number in range(members)
    )
    monkeypatch.setattr(tar_split, "MAX_DATA", 20_000)
    assert write(tar + END) == (None, "its tar-split data is over 20000 bytes")


def test_more_members_than_names_are_held_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_split, "MAX_MEMBERS", 2)
    members = [empty(b"a"), empty(b"b"), empty(b"c")]
    assert write(b"".join(members[:2]) + END)[1] == ""
    assert write(b"".join(members) + END) == (None, "over 2 members")


def test_zeros_that_follow_the_end_are_kept() -> None:
    tar = file(b"a", b"x") + END + bytes(1234)
    data, _ = write(tar)
    assert data is not None
    assert assemble(decode_lines(*data), {b"a": b"x"}) == tar
