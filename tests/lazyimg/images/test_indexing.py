"""Making a layer's index: in this process, and in a child."""

from __future__ import annotations

import gzip
import io
import signal
import sys
from contextlib import aclosing
from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec
import pytest

from lazyimg.errors import CorruptError, LazyimgError, NotLazyError, StorageError
from lazyimg.images import indexing as module
from lazyimg.images.indexing import IndexMaker, IndexReply, IndexRequest, index
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.soci.toc import parse_ztoc
from lazyimg_formats.stream_index import parse_stream_index
from tests.fakes.gzip_layer import make_tar
from tests.lazyimg.images.test_build import stand_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


class _Closing(IndexMaker):
    async def aclose(self) -> None:
        await self.close()


TAR = make_tar({"etc/name": b"lazyimg\n", "bin/tool": bytes(range(256)) * 2000})
BLOB = gzip.compress(TAR, mtime=0)


def request_of(directory: Path, **changes: object) -> IndexRequest:
    request = IndexRequest(
        str(Digest.of(BLOB)), len(BLOB), str(Digest.of(TAR)), str(directory / "index")
    )
    return msgspec.structs.replace(request, **changes)


async def ask(request: IndexRequest, blob: bytes = BLOB, times: int = 1) -> IndexReply:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(times):
            yield blob

    async with aclosing(_Closing()) as maker:
        return await maker.make("layer", request, pieces())


async def test_child_makes_the_same(tmp_path: Path) -> None:
    here = index(request_of(tmp_path), iter([BLOB]))
    data = (tmp_path / "index").read_bytes()
    assert here == IndexReply(str(Digest.of(data)), len(data))
    assert len(parse_stream_index(data).entries) == 2
    (tmp_path / "index").unlink()
    assert await ask(request_of(tmp_path)) == here
    assert (tmp_path / "index").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


async def test_device_is_made_with_it(tmp_path: Path) -> None:
    request = request_of(tmp_path, device=str(tmp_path / "device"))
    reply = await ask(request)
    data = (tmp_path / "index").read_bytes()
    table = parse_stream_index(data).table
    assert reply == IndexReply(str(Digest.of(data)), len(data), table.name, table.size)
    device = (tmp_path / "device").read_bytes()
    assert device[:8] == b"lazyimg\n"
    assert device[4096:] == bytes(range(256)) * 2000
    with pytest.raises(StorageError, match="No space left on device"):
        await ask(msgspec.structs.replace(request, reserve=1 << 60))


async def test_child_that_gives_up_is_not_fed_on(tmp_path: Path) -> None:
    """What nobody would take need not be fetched."""
    taken = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(200):
            taken += 1
            yield bytes(1 << 20)

    request = request_of(tmp_path / "none", size=200 << 20)
    async with aclosing(_Closing()) as maker:
        with pytest.raises(StorageError, match="No such file or directory"):
            await maker.make("layer", request, pieces())
    assert taken < 100


async def test_child_says_what_is_wrong(tmp_path: Path) -> None:
    for blob in (BLOB[:1000], BLOB + b"x"):
        with pytest.raises(CorruptError, match=r"^layer: came as \d+ bytes or more, expected"):
            await ask(request_of(tmp_path), blob)
    with pytest.raises(CorruptError, match=r"^layer: blob sha256:\w+: came as \d+ bytes with the"):
        await ask(request_of(tmp_path), BLOB[:-1] + b"x")
    with pytest.raises(NotLazyError) as caught:
        await ask(request_of(tmp_path, diff_id=str(Digest.of(b""))))
    assert str(caught.value) == (
        f"layer: no index can be made of it: diff ID: its tar has {Digest.of(TAR)}, its image says"
        f" {Digest.of(b'')}; convert the image: lazyimg convert SRC DST"
    )
    with pytest.raises(StorageError, match=r"^layer: .*/none/index: No such file or directory$"):
        await ask(request_of(tmp_path / "none"))


async def test_child_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, "echo 'no more' >&2; exit 3"))
    with pytest.raises(LazyimgError, match=r"^layer: its indexing ended with 3: no more$"):
        await ask(request_of(tmp_path, size=4 << 20), bytes(1 << 20), 4)


async def test_child_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"read line; ulimit -c 0; kill -{signal.SIGXCPU} $$"
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, script))
    with pytest.raises(NotLazyError, match=r"takes over 7 s of a processor to index \(build\.pro"):
        await ask(request_of(tmp_path, processor_time=7))


async def test_blob_that_ends_early_ends_the_child(tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield BLOB[:1000]
        raise LazyimgError("registry", "is gone")

    async with aclosing(_Closing()) as maker:
        with pytest.raises(LazyimgError, match="registry: is gone"):
            await maker.make("layer", request_of(tmp_path), pieces())


async def test_one_child_makes_several(tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield BLOB

    replies = []
    async with aclosing(_Closing()) as maker:
        for number in range(3):
            path = str(tmp_path / str(number))
            replies.append(await maker.make("layer", request_of(tmp_path, path=path), pieces()))
    assert len(set(replies)) == 1
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def answer(
    request: IndexRequest,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException | None = None,
) -> IndexReply:
    """Run what the child runs, here."""
    output = io.BytesIO()
    given = SimpleNamespace(buffer=io.BytesIO(msgspec.json.encode(request) + b"\n" + BLOB))

    def fail(_request: IndexRequest, _pieces: Iterator[bytes]) -> IndexReply:
        assert failure is not None
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(module, "lower_limit", lambda _kind, _most: None)  # of this process
        patch.setattr(module, "_allow", lambda _seconds: None)
        patch.setattr(sys, "stdin", given)
        patch.setattr(sys, "stdout", SimpleNamespace(buffer=output))
        if failure is not None:
            patch.setattr(module, "index", fail)
        module.main()
    return msgspec.json.decode(output.getvalue(), type=IndexReply)


def test_answers_of_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_of(tmp_path)
    reply = answer(request, monkeypatch)
    assert reply.size == (tmp_path / "index").stat().st_size
    failure = LazyimgError("libz.so.1", "cannot be used")
    assert answer(request, monkeypatch, failure) == IndexReply(failure="libz.so.1: cannot be used")
    assert answer(request, monkeypatch, MemoryError()) == IndexReply(out_of_memory=True)


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (IndexReply(out_of_memory=True), NotLazyError, "takes over 448 MiB of memory to index"),
        (IndexReply(failure="no libz"), LazyimgError, "layer: no libz"),
    ],
)
def test_replies(reply: IndexReply, kind: type[LazyimgError], said: str, tmp_path: Path) -> None:
    output = msgspec.json.encode(reply)
    with pytest.raises(kind, match=said):
        module._read_reply("layer", request_of(tmp_path), output)


def test_processor_time_grows_with_the_blob(tmp_path: Path) -> None:
    assert request_of(tmp_path, size=100 << 20, processor_time=10).seconds == 60


def test_ztoc(tmp_path: Path) -> None:
    request = request_of(tmp_path, ztoc=str(tmp_path / "ztoc"))
    index(request, iter([BLOB[:1000], BLOB[1000:]]))
    made = parse_stream_index((tmp_path / "index").read_bytes())
    ztoc = parse_ztoc((tmp_path / "ztoc").read_bytes())
    assert ztoc.layer.entries == made.entries
    assert ztoc.layer.table.span_count == made.table.span_count
