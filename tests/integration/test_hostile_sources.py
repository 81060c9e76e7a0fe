"""Manifests, indexes and tars that are made to take memory or time: what real processes take."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import random
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import pytest

from lazyimg.convert.layer import LayerConversion
from lazyimg.errors import CorruptError
from lazyimg.layers.fetch import fetch_index
from lazyimg.layers.locate import IndexLocation
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.ports import Access
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    MAX_CONFIG,
    MAX_DOCUMENT,
    OCI_LAYER_ZSTD,
    Descriptor,
    parse_config,
    parse_document,
)
from lazyimg_formats.oci.reference import parse_reference
from lazyimg_formats.tar.pax import serialize_records
from lazyimg_formats.tar.sparse import MAX_MAP_SIZE, MAX_REGIONS
from lazyimg_formats.tar.writer import END, padding
from lazyimg_formats.zstd_chunked.entries import MAX_TOC
from tests.fakes.registry import name_mirrors, run_registry
from tests.formats.tar.test_header import block
from tests.formats.tar.test_scanner import octal
from tests.real.measured import run_measured

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from lazyimg.convert.layer import ConvertedLayer

MEMORY: Final = 512 << 20  # bytes of any process
SECONDS: Final = 30  # of the processor
MIB: Final = 1 << 20
FILE: Final = 640 << 20  # bytes of a bomb's file: more than a process may take


def fill(kind: bytes, limit: int) -> bytes:
    """Give a field of a document that holds as many of these values as its limit allows."""
    return b'"x":[' + kind * ((limit - 200) // len(kind)) + b"0]"


@pytest.mark.parametrize("kind", [b"{},", b"[],", b'"",', b"1e1,", b"[[[[]]]],"])
async def test_documents_of_many_values(kind: bytes) -> None:
    """A daemon has some 70 MiB besides."""
    index = b'{"schemaVersion":2,"manifests":[],' + fill(kind, MAX_DOCUMENT) + b"}"
    config = b'{"os":"a","rootfs":{"diff_ids":[]},' + fill(kind, MAX_CONFIG) + b"}"
    for parse, document in ((parse_document, index), (parse_config, config)):
        taken = await run_measured(parse, document, seconds=SECONDS)
        assert taken.result is not None, taken.error
        assert taken.peak - taken.before < MEMORY - 100 * MIB


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (b"[", b"]", "nested too deeply"),
        (b'{"a":', b"}", "nested too deeply"),
        (b'{"schemaVersion":2,"manifests":[{"x":', b"}]}", "nested too deeply"),
    ],
)
async def test_documents_as_deep_as_their_bytes_allow(start: bytes, end: bytes, said: str) -> None:
    depth = MAX_DOCUMENT // (len(start) + len(end)) - 1
    taken = await run_measured(parse_document, start * depth + b"0" + end * depth, seconds=SECONDS)
    assert isinstance(taken.error, FormatError)
    assert said in str(taken.error)
    assert taken.peak < MEMORY


@pytest.mark.parametrize("field", ["layers", "manifests"])
async def test_documents_of_as_many_descriptors(field: str) -> None:
    one = {"mediaType": "m", "digest": "sha256:" + "a" * 64, "size": 1}
    count = (MAX_DOCUMENT - 1000) // len(json.dumps(one, separators=(",", ":")) + ",")
    document = {"schemaVersion": 2, field: [one] * count}
    if field == "layers":
        document["config"] = one
    data = json.dumps(document, separators=(",", ":")).encode()
    taken = await run_measured(parse_document, data, seconds=SECONDS)
    assert taken.peak < MEMORY
    if field == "layers":
        assert "layers has" in str(taken.error)
    else:
        assert taken.result is not None


def fetch(host: str, directory: Path, layer: Descriptor, location: IndexLocation) -> bool:
    async def run() -> bool:
        access = Access(hosts_dir=directory / "hosts")
        async with RegistryClient(environ={}) as client:
            source = client.repository(parse_reference(f"{host}/team/app"), access)
            path = await fetch_index(source, layer, location, directory)
        return path.stat().st_size == location.length

    return asyncio.run(run())


async def test_index_as_large_as_can_be_from_a_mirror_that_is_wrong(tmp_path: Path) -> None:
    """It is held once, and once more while its pieces are put together."""
    data = random.Random(1).randbytes(MAX_TOC)  # noqa: S311 - the same in every run
    async with run_registry() as registry, run_registry() as mirror:
        layer = registry.add_blob("team/app", data, OCI_LAYER_ZSTD)
        mirror.blobs["team/app"] = {str(layer.digest): data[:-1] + bytes([data[-1] ^ 1])}
        name_mirrors(tmp_path / "hosts", registry.host, mirror.host)
        location = IndexLocation("zstd:chunked", 0, MAX_TOC, MAX_TOC, str(layer.digest))
        taken = await run_measured(fetch, registry.host, tmp_path, layer, location)
        assert mirror.sent() >= MAX_TOC
    assert taken.result, taken.error
    assert taken.peak - taken.before < 2.5 * MAX_TOC


def head(name: str = "f", size: int = 0, flag: bytes = b"0") -> bytes:
    return block(name=name.encode(), size=octal(size), flag=flag)


def extended(*records: tuple[bytes, bytes]) -> bytes:
    data = serialize_records(records)
    return head("x", len(data), b"x") + data + padding(len(data))


def one_file_of_zeros() -> Iterator[bytes]:
    yield head(size=FILE)
    for _ in range(FILE // MIB):
        yield bytes(MIB)
    yield END


def gzip_of_zeros() -> Iterator[bytes]:
    packer = zlib.compressobj(9, wbits=31)
    for piece in one_file_of_zeros():
        yield packer.compress(piece)
    yield packer.flush()


def zstd_of_zeros() -> Iterator[bytes]:
    """Every 128 KiB of them are four bytes: a block that repeats one byte."""
    repeated = ((1 << 17 << 3) | 2).to_bytes(3, "little") + b"\0"
    raw = head(size=FILE)
    yield b"\x28\xb5\x2f\xfd\0\x58" + (len(raw) << 3).to_bytes(3, "little") + raw
    yield repeated * (FILE >> 17)
    yield ((len(END) << 3) | 1).to_bytes(3, "little") + END


def zstd_of_a_large_window() -> Iterator[bytes]:
    yield b"\x28\xb5\x2f\xfd\0\xa8" + (8 << 3 | 1).to_bytes(3, "little") + bytes(8)


def empty_gzip_members() -> Iterator[bytes]:
    yield gzip.compress(b"".join(one_file("f", b"x")), mtime=0)
    yield gzip.compress(b"", mtime=0) * (MIB // 20)


def one_file(name: str, data: bytes) -> Iterator[bytes]:
    yield head(name, len(data)) + data + padding(len(data))
    yield END


def headers_full_of_noise() -> Iterator[bytes]:
    noise = random.Random(1)  # noqa: S311 - the same in every run
    for number in range(300):
        yield extended((b"comment", noise.randbytes(MIB - 100))) + head(f"f{number}")
    yield END


def map_that_never_ends() -> Iterator[bytes]:
    text = b"%d\n" % MAX_REGIONS + b"0\n" * (2 * MAX_REGIONS - 1)
    text = text.ljust(MAX_MAP_SIZE, b"0")
    yield extended(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"n"),
        (b"GNU.sparse.realsize", b"0"),
    )
    yield head(size=2 * len(text)) + text
    for _ in range(20):
        yield bytes(MIB)


def as_many_members_as_a_toc_takes() -> Iterator[bytes]:
    """Half of each name is noise that does not compress, and cannot be said in plain JSON."""
    noise = random.Random(1)  # noqa: S311 - the same in every run
    for first in range(0, 360_000, 1000):
        yield b"".join(
            head_of(noise.randbytes(70).replace(b"\0", b"x").replace(b"/", b"y") + b"%07d" % number)
            for number in range(first, first + 1000)
        )
    yield END


def head_of(name: bytes, blank: bytes = block(name=b"", size=octal(0))) -> bytes:
    """Give an empty file's header, faster than `block` does."""
    checksum = int(blank[148:154], 8) + sum(name)
    return name + blank[len(name) : 148] + b"%06o\0 " % checksum + blank[156:]


TARS: Final[dict[str, tuple[Callable[[], Iterator[bytes]], str]]] = {
    "gzip of zeros": (gzip_of_zeros, ""),
    "zstd of zeros": (zstd_of_zeros, ""),
    "zstd of a large window": (zstd_of_a_large_window, "too much memory"),
    "empty gzip members": (empty_gzip_members, ""),
    "headers full of noise": (headers_full_of_noise, ""),
    "map that never ends": (map_that_never_ends, "its map does not end"),
    "as many members as a TOC takes": (as_many_members_as_a_toc_takes, ""),
}


def convert(name: str, digest: str) -> ConvertedLayer:
    """Convert one of `TARS`; the digest is its tar's."""

    async def source() -> AsyncIterator[bytes]:
        for piece in TARS[name][0]():
            yield piece

    async def run() -> ConvertedLayer:
        with ThreadPoolExecutor(2) as executor:
            conversion = LayerConversion(
                "layer", Digest.parse(digest), level=1, executor=executor, depth=2
            )
            async for _ in conversion.convert(source()):
                pass
        return conversion.result

    return asyncio.run(run())


def digest_of(name: str) -> str:
    plain = {"gzip of zeros": one_file_of_zeros, "zstd of zeros": one_file_of_zeros}
    pieces = plain.get(name, TARS[name][0])()
    if name == "empty gzip members":
        pieces = one_file("f", b"x")
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return f"sha256:{found.hexdigest()}"


@pytest.mark.parametrize("name", TARS)
async def test_tars_that_are_converted(name: str) -> None:
    said = TARS[name][1]
    digest = await asyncio.to_thread(digest_of, name)
    taken = await run_measured(convert, name, digest, seconds=SECONDS)
    assert taken.peak < MEMORY
    if said:
        assert isinstance(taken.error, CorruptError)
        assert said in str(taken.error)
    else:
        assert taken.result is not None, taken.error
