"""eStargz layers that lie: refused as other layers are, soon and in bounded memory."""

from __future__ import annotations

import asyncio
import gzip
import io
import multiprocessing
import tarfile
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import pytest

from lazyimg.errors import CorruptError, LazyimgError
from lazyimg.images.build import BuildRequest, LayerSource
from lazyimg.layers.locate import IndexLocation
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.zstd_chunked.entries import MAX_TOC
from tests.integration.test_hostile_layers import MEMORY, SECONDS, document, measure

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.images.build import BuildReply

FILE: Final = {"type": "reg", "size": 10, "offset": 100, "chunkDigest": "sha256:" + "0" * 64}


async def build(directory: Path, toc: bytes, *, behind: int = 0) -> BuildReply:
    """Build an image of one layer, whose table is this; check what that took."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("stargz.index.json")
        member.size = len(toc)
        archive.addfile(member, io.BytesIO(toc))
    index, bootstraps = directory / "index", directory / "bootstraps"
    index.write_bytes(gzip.compress(buffer.getvalue() + bytes(behind), compresslevel=1))
    bootstraps.mkdir(exist_ok=True)
    location = IndexLocation("estargz", 1000, index.stat().st_size, 0, str(Digest.of(toc)), "blob")
    layer = LayerSource("layer", location, str(index), str(directory / "table"))
    request = BuildRequest([layer], str(bootstraps))
    begun = time.monotonic()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        reply, taken = await asyncio.get_running_loop().run_in_executor(pool, measure, request)
    assert time.monotonic() - begun < SECONDS
    assert 0 < taken < MEMORY
    if isinstance(reply, LazyimgError):
        raise reply
    return reply


def file(name: str, **fields: Any) -> dict[str, Any]:
    return FILE | {"name": name} | fields


@pytest.mark.parametrize(
    ("toc", "said"),
    [
        (document(file("a/../../etc/passwd")), r"contains '\.\.'"),
        (document(file("a", offset=1000)), "a chunk at 1000, expected before 1000"),
        (document(file("a"), file("b", offset=99)), "a chunk at 99, expected behind 100"),
        (document(file("a"), file("b", innerOffset=9)), "a chunk at 9 inside a member"),
        (document(file("a", innerOffset=1 << 40), file("b", offset=200)), "decoded bytes before"),
        (document(file("a", size=1 << 40), file("b", offset=200)), "or length 1099511627776"),
        (document({"type": "hardlink", "name": "a", "linkName": "a"}), "which is no file"),
    ],
)
async def test_lies(toc: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=said):
        await build(tmp_path, toc)


async def test_bomb_of_zeros(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=r"malformed|takes over 448 MiB of memory"):
        await build(tmp_path, bytes(MAX_TOC))


async def test_bomb_behind_the_table(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="its tar is over 157351936 bytes"):
        await build(tmp_path, document(file("a")), behind=1 << 30)


async def test_as_many_entries_as_the_bytes_allow(tmp_path: Path) -> None:
    entry = b'{"type":"dir","name":"a"},'
    toc = b'{"version":1,"entries":[' + entry * ((MAX_TOC - 100) // len(entry))
    with pytest.raises(CorruptError, match="takes over 448 MiB of memory to build"):
        await build(tmp_path, toc[:-1] + b"]}")
