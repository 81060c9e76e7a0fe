"""Layers that lie: refused, soon and in bounded memory, by the real process that builds images."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import resource
import time
from base64 import b64encode
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import pytest
import zstandard

from lazyimg.errors import CorruptError, LazyimgError
from lazyimg.images.build import BuildRequest, LayerSource, build_image
from lazyimg.layers.locate import IndexLocation
from lazyimg_formats.erofs.reader import Image
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.zstd_chunked.entries import MAX_TOC

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.images.build import BuildReply

MEMORY: Final = 512 << 20  # bytes, of any process
SECONDS: Final = 400.0
HUGE: Final = 1 << 40
LARGE: Final = b64encode(bytes(65_537)).decode()
ALLOWED: Final = b64encode(bytes(65_535)).decode()
FILE: Final = {"type": "reg", "mode": 0o644, "digest": "sha256:" + "0" * 64}


async def build(directory: Path, toc: bytes, *, decoded_length: int | None = None) -> BuildReply:
    """Build an image of one layer, whose index is these bytes; check what that took."""
    stored = zstandard.ZstdCompressor(level=1).compress(toc)
    index, bootstraps = directory / "index", directory / "bootstraps"
    index.write_bytes(stored)
    bootstraps.mkdir(exist_ok=True)
    length = len(toc) if decoded_length is None else decoded_length
    location = IndexLocation("zstd:chunked", HUGE, len(stored), length, str(Digest.of(stored)))
    layer = LayerSource("layer", location, str(index), str(directory / "table"))
    request = BuildRequest([layer], str(bootstraps))
    begun = time.monotonic()
    # In a process of its own: what its children took at most is what the building process took.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        reply, taken = await asyncio.get_running_loop().run_in_executor(pool, measure, request)
    assert time.monotonic() - begun < SECONDS
    assert 0 < taken < MEMORY
    if isinstance(reply, LazyimgError):
        raise reply
    return reply


def measure(request: BuildRequest) -> tuple[BuildReply | LazyimgError, int]:
    """Build; give the reply or failure, and the bytes of memory that it took."""
    try:
        reply: BuildReply | LazyimgError = asyncio.run(build_image("image", request))
    except LazyimgError as error:
        reply = error
    return reply, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10


def document(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"version": 1, "entries": entries}).encode()


def chunked(name: str, size: int, *chunks: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Give a file whose chunks are (offset in the file, bytes, offset in the blob)."""
    entries = [{**FILE, "name": name, "size": size, "endOffset": 1000}]
    entries += [{"type": "chunk", "name": name} for _ in chunks[1:]]
    for entry, (file_offset, length, offset) in zip(entries, chunks, strict=True):
        entry |= {"chunkOffset": file_offset, "chunkSize": length, "offset": offset}
        entry |= {"chunkDigest": FILE["digest"]}
    return entries


@pytest.mark.parametrize(
    ("toc", "said"),
    [
        (document({**FILE, "name": "a/../../etc/passwd"}), r"contains '\.\.'"),
        (document({"type": "hardlink", "name": "a", "linkName": "../b"}), r"contains '\.\.'"),
        (document({**FILE, "name": "a\0b"}), "NUL"),
        (document({**FILE, "name": "n" * 256}), "over 255 bytes"),
        (document({**FILE, "name": "d/" * 3000}), "over 4,095 bytes"),
        (document({**FILE, "name": "a", "size": 1 << 61, "endOffset": 9}), "impossible position"),
        (document({**FILE, "name": "a", "size": -1}), ">= 0"),
        (document({**FILE, "name": "a", "size": 10, "offset": HUGE + 5, "endOffset": HUGE + 9}),
         "expected between"),
        (document({**FILE, "name": "a", "size": 10, "offset": 9, "endOffset": 5}),
         "expected between"),
        (document({**FILE, "name": "a", "size": 10, "offset": 5, "endOffset": 9, "digest": "x"}),
         "expected a sha256 digest"),
        (document(*chunked("a", 10, (0, 5, 0), (6, 4, 10))), "out of order"),
        (document(*chunked("a", 10, (0, 5, 0), (5, 4, 10))), "has 10 bytes, its chunks 9"),
        (document(*chunked("a", 10, (0, 5, 20), (5, 5, 10))), "expected between"),
        (document(*chunked("a", 10, (0, 5, 0), (3, 7, 10))), "out of order"),
        (document(*chunked("a", 10, (0, 5, 0), (0, 5, 10))), "out of order"),
        (document({**FILE, "name": "a", "size": 10, "offset": 0, "endOffset": HUGE}),
         "expected between"),
        (document({**FILE, "name": "a", "size": 10, "offset": 0, "endOffset": 9},
                  {**FILE, "name": "b", "size": 10, "offset": 5, "endOffset": 12}),
         "expected between"),
        (document({"type": "chunk", "name": "a"}), "without its file"),
        (document({"type": "hardlink", "name": "a", "linkName": "b"}), "which is"),
        (document({"type": "hardlink", "name": "a", "linkName": "a"}), "which is no file"),
        (document({"type": "hardlink", "name": "a", "linkName": "b"},
                  {"type": "hardlink", "name": "b", "linkName": "a"}), "which is no file"),
        (document({**FILE, "name": "a"}, {"type": "hardlink", "name": "a", "linkName": "a"}),
         "hard link to itself"),
        (document({"type": "dir", "name": "d"},
                  {"type": "hardlink", "name": "d/a", "linkName": "d"}), "hard link to directory"),
        (document({"type": "hardlink", "name": "a", "linkName": "/"}), "hard link .* to the root"),
        (document({"type": "symlink", "name": "a", "linkName": "a"}, {**FILE, "name": "a/b"}),
         "too many symbolic links"),
        (document({"type": "symlink", "name": "a", "linkName": "x" * 4096}), "impossible target"),
        (document({**FILE, "name": "a"}, {**FILE, "name": "a/b"}), "but no directory"),
        (document({**FILE, "name": ".wh..."}), "names nothing"),
        (document({"type": "block", "name": "a", "devMajor": 1 << 40}), "out of range"),
        (document({**FILE, "name": "a", "uid": 1 << 32}), "uid"),
        (document({**FILE, "name": "a", "modtime": "9999999-01-01T00:00:00Z"}), "no time"),
        (document({**FILE, "name": "a", "xattrs": {"user.a": LARGE}}), "impossible attribute"),
        (document({**FILE, "name": "a", "xattrs": {f"user.{n}": ALLOWED for n in "abc"}}),
         "bytes of extended attributes"),
        (document({"type": "symlink", "name": "a", "linkName": "b"}, {**FILE, "name": "a/b/c"},
                  {"type": "symlink", "name": "b", "linkName": "a"}, {**FILE, "name": "b/c"}),
         "symbolic link"),
        (b'{"version":1,"entries":' + b"[" * 100_000, "JSON|nest|recursion|Expected"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value)[:20],
)  # fmt: skip
async def test_lies(toc: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=said):
        await build(tmp_path, toc)


async def test_absolute_names_stay_inside(tmp_path: Path) -> None:
    reply = await build(tmp_path, document({**FILE, "name": "//etc//./passwd"}))
    image = Image((tmp_path / "bootstraps" / reply.fsid).read_bytes())
    assert [path for path, _ in image.walk()] == [b"", b"etc", b"etc/passwd"]


@pytest.mark.parametrize("link", ["/", "..", "../../../..", "/../etc/../..", "a/../.."])
async def test_links_out_of_the_image_stay_inside(tmp_path: Path, link: str) -> None:
    escape = {"type": "symlink", "name": "a/out", "linkName": link}
    reply = await build(tmp_path, document(escape, {**FILE, "name": "a/out/etc/passwd"}))
    image = Image((tmp_path / "bootstraps" / reply.fsid).read_bytes())
    made = [path for path, _ in image.walk() if path.endswith(b"passwd")]
    assert made in ([b"etc/passwd"], [b"a/etc/passwd"])


async def test_as_many_attributes_as_the_bytes_allow(tmp_path: Path) -> None:
    """Each file has as much of them as there may be; the bootstrap holds all."""
    xattrs = {"user.a": ALLOWED, "user.b": b64encode(bytes(65_000)).decode()}
    entries = [{**FILE, "name": f"f{number}", "xattrs": xattrs} for number in range(850)]
    reply = await build(tmp_path, document(*entries[:100]))
    image = Image((tmp_path / "bootstraps" / reply.fsid).read_bytes())
    assert all(len(image.xattrs(inode)) == 2 for path, inode in image.walk() if path)
    with pytest.raises(CorruptError, match="takes over 448 MiB of memory to build"):
        await build(tmp_path, document(*entries))


async def test_bomb_of_zeros(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="malformed"):
        await build(tmp_path, bytes(MAX_TOC))


async def test_bomb_that_says_less(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=f"holds {MAX_TOC} bytes, at most 1000 expected"):
        await build(tmp_path, bytes(MAX_TOC), decoded_length=1000)


async def test_as_many_entries_as_the_bytes_allow(tmp_path: Path) -> None:
    """10**9 of them take more bytes than an index may have."""
    entry = b'{"type":"dir","name":"a"},'
    toc = b'{"version":1,"entries":[' + entry * ((MAX_TOC - 100) // len(entry))
    with pytest.raises(CorruptError, match="takes over 448 MiB of memory to build"):
        await build(tmp_path, toc[:-1] + b"]}")


async def test_deep_directories_that_nobody_named(tmp_path: Path) -> None:
    """Each short entry makes two thousand directories."""
    entries = [{"type": "dir", "name": f"{number:x}/" + "d/" * 2000} for number in range(30_000)]
    with pytest.raises(CorruptError, match="takes over 448 MiB of memory to build"):
        await build(tmp_path, document(*entries))


async def test_sparse_files_as_large_as_can_be(tmp_path: Path) -> None:
    """What is all zeros takes one chunk of zeros, however much there is."""
    entries = [
        {**FILE, "name": f"f{number}", "size": 1 << 43, "chunkType": "zeros"}
        for number in range(64)
    ]
    reply = await build(tmp_path, document(*entries))
    assert reply.layers[0].size == 1 << 27
    with pytest.raises(CorruptError, match="chunks of sparse files"):
        await build(tmp_path, document(*entries, {**entries[0], "name": "one-more"}))
