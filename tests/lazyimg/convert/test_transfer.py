"""How layers come into the target, each once."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from zstandard import ZstdDecompressor

from lazyimg.convert.ports import Outcome, Silence
from lazyimg.convert.transfer import (
    PARAMETERS,
    SOURCE_DIGEST,
    LayerTransfer,
    Options,
    copy_blob,
    find_toc,
)
from lazyimg.errors import CorruptError, LazyimgError, NotLazyError
from lazyimg.registry.oci_layout import OciLayout, create_layout
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    DOCKER_LAYER_ZSTD,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
)
from lazyimg_formats.zstd_chunked.location import (
    CHECKSUM,
    LAZYIMG_DIGEST,
    OLD_CHECKSUM,
    OLD_POSITION,
    POSITION,
    parse_annotations,
)
from tests.fakes.gzip_layer import make_tar
from tests.fakes.layout_image import add_blob, add_layer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from concurrent.futures import Executor
    from pathlib import Path

FILES = {"etc/name": b"lazyimg\n", "bin/tool": bytes(range(256)) * 2000}


class Told(Silence):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.read = self.written = 0
        self.ended: list[Outcome] = []
        self.whole = ""

    def advance(self, layer: Descriptor, read: int, written: int) -> None:
        self.read += read
        self.written += written

    def end(self, layer: Descriptor, outcome: Outcome, whole: str = "") -> None:
        self.ended.append(outcome)
        self.whole = whole


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.fixture
async def source(tmp_path: Path) -> OciLayout:
    return await create_layout(tmp_path / "source")


@pytest.fixture
async def target(tmp_path: Path) -> OciLayout:
    return await create_layout(tmp_path / "target")


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def begin(
    source: OciLayout, target: OciLayout, executor: Executor, told: Told
) -> Callable[..., LayerTransfer]:
    def make(known: Mapping[str, Descriptor] | None = None, **options: int) -> LayerTransfer:
        return LayerTransfer(
            source,
            target,
            known=known or {},
            options=Options(**options),
            executor=executor,
            progress=told,
        )

    return make


async def read(layout: OciLayout, blob: Descriptor) -> bytes:
    return b"".join([piece async for piece in layout.stream_blob(blob)])


async def test_convert(
    source: OciLayout, target: OciLayout, begin: Callable[..., LayerTransfer], told: Told
) -> None:
    layer, diff_id = await add_layer(source, FILES)
    made = await begin().transfer(layer, diff_id)
    assert made.media_type == OCI_LAYER_ZSTD
    assert made.annotations[SOURCE_DIGEST] == str(layer.digest)
    assert made.annotations[PARAMETERS] == "cutting=3,level=3"
    assert parse_annotations(made.annotations, made.size) is not None
    blob = await read(target, made)
    with ZstdDecompressor().stream_reader(blob, read_across_frames=True) as reader:
        assert reader.read() == make_tar(FILES)
    assert (told.read, told.written) == (layer.size, made.size)
    assert told.ended == [Outcome.CONVERTED]
    assert told.whole == ""


async def test_why_there_is_no_tar_split_data_is_told(
    source: OciLayout, begin: Callable[..., LayerTransfer], told: Told
) -> None:
    made = await begin().transfer(*await add_layer(source, {"a": b"x", "./a": b"y"}))
    location = parse_annotations(made.annotations, made.size)
    assert location is not None
    assert location.tar_split is None
    assert told.whole == "two members are b'./a'"


async def test_what_spoke_of_the_old_bytes_is_left_out(
    source: OciLayout, begin: Callable[..., LayerTransfer]
) -> None:
    layer, diff_id = await add_layer(
        source,
        FILES,
        annotations={
            "kept": "1",
            "containerd.io/snapshot/stargz/toc.digest": "sha256:1",
            "io.containers.estargz.uncompressed-size": "1",
            LAZYIMG_DIGEST: "stale",
            OLD_CHECKSUM: "stale",
        },
        extra={"kept": 1, "data": "YQ==", "urls": ["https://example.com"]},
    )
    made = await begin().transfer(layer, diff_id)
    assert made.extra == {"kept": 1}
    assert made.annotations["kept"] == "1"
    assert not any("stargz" in name or "stale" in text for name, text in made.annotations.items())


async def test_the_same_layer_twice_is_converted_once(
    source: OciLayout, begin: Callable[..., LayerTransfer], told: Told
) -> None:
    layer, diff_id = await add_layer(source, FILES)
    transfer = begin()
    named = replace(layer, annotations={"name": "second"})
    first, second = await asyncio.gather(
        transfer.transfer(layer, diff_id), transfer.transfer(named, diff_id)
    )
    assert told.ended == [Outcome.CONVERTED]
    assert second == replace(first, annotations={"name": "second", **first.annotations})


async def test_a_known_layer_is_not_converted_again(
    source: OciLayout, target: OciLayout, begin: Callable[..., LayerTransfer], told: Told
) -> None:
    layer, diff_id = await add_layer(source, FILES)
    made = await begin().transfer(layer, diff_id)
    again = await begin({str(layer.digest): made}).transfer(layer, diff_id)
    assert again == made
    assert told.ended == [Outcome.CONVERTED, Outcome.PRESENT]


async def test_a_known_layer_whose_blob_is_gone_is_converted_again(
    source: OciLayout, begin: Callable[..., LayerTransfer], told: Told
) -> None:
    layer, diff_id = await add_layer(source, FILES)
    gone = replace(layer, digest=Digest.of(b"gone"))
    made = await begin({str(layer.digest): gone}).transfer(layer, diff_id)
    assert made.digest != gone.digest
    assert told.ended == [Outcome.CONVERTED]


@pytest.mark.parametrize("names", [(POSITION, CHECKSUM), (OLD_POSITION, OLD_CHECKSUM)])
@pytest.mark.parametrize("media_type", [OCI_LAYER_ZSTD, DOCKER_LAYER_ZSTD])
async def test_a_lazy_layer_is_copied(
    source: OciLayout,
    target: OciLayout,
    begin: Callable[..., LayerTransfer],
    told: Told,
    media_type: str,
    names: tuple[str, str],
) -> None:
    data = b"z" * 5000
    layer = replace(
        await add_blob(source, data, media_type),
        annotations={
            names[0]: "1000:200:3000:1",
            names[1]: str(Digest.of(b"toc")),
            SOURCE_DIGEST: "sha256:origin",
        },
    )
    made = await begin().transfer(layer, Digest.of(b"tar"))
    assert (made.media_type, made.digest, made.size) == (OCI_LAYER_ZSTD, layer.digest, 5000)
    assert made.annotations[names[0]] == "1000:200:3000:1"
    assert made.annotations[names[1]] == str(Digest.of(b"toc"))
    assert made.annotations.keys() & {POSITION, OLD_POSITION} == {names[0]}
    assert made.annotations[SOURCE_DIGEST] == "sha256:origin"
    assert await read(target, made) == data
    assert (told.read, told.written) == (5000, 5000)
    await begin().transfer(layer, Digest.of(b"tar"))
    assert told.ended == [Outcome.COPIED, Outcome.PRESENT]
    assert told.read == 5000


async def test_a_lazy_layer_with_wrong_annotations(
    source: OciLayout, begin: Callable[..., LayerTransfer]
) -> None:
    layer = replace(await add_blob(source, b"z", OCI_LAYER_ZSTD), annotations={POSITION: "1:2:3:1"})
    with pytest.raises(CorruptError, match=r"@sha256:\w+: zstd:chunked annotations: the TOC's dig"):
        await begin().transfer(layer, Digest.of(b""))


@pytest.mark.parametrize(
    ("media_type", "problem"),
    [
        (
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "its owner does not allow copies: it is a foreign layer",
        ),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "its owner does not allow copies: it is a foreign layer",
        ),
        (
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "cannot convert a 'application/vnd.oci.image.layer.v1.tar+gzip+encrypted'",
        ),
    ],
)
async def test_layers_that_cannot_be_converted(
    source: OciLayout, begin: Callable[..., LayerTransfer], media_type: str, problem: str
) -> None:
    layer, diff_id = await add_layer(source, FILES, media_type=media_type)
    with pytest.raises(NotLazyError) as raised:
        await begin().transfer(layer, diff_id)
    assert str(raised.value) == f"{source.name}@{layer.digest}: {problem}"


async def test_another_diff_id_leaves_nothing_behind(
    source: OciLayout, target: OciLayout, begin: Callable[..., LayerTransfer], tmp_path: Path
) -> None:
    layer, _ = await add_layer(source, FILES)
    with pytest.raises(CorruptError, match=r"layer: its tar has sha256:\w+, not sha256:\w+$"):
        await begin().transfer(layer, Digest.of(b"other"))
    assert not [path for path in (tmp_path / "target" / "blobs").rglob("*") if path.is_file()]


async def test_layers_at_once_are_bounded(
    source: OciLayout, begin: Callable[..., LayerTransfer], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = most = 0
    stream = source.stream_blob

    async def counted(descriptor: Descriptor) -> AsyncIterator[bytes]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        async for piece in stream(descriptor):
            yield piece
        running -= 1

    layers = [await add_layer(source, {"f": b"%d" % number}) for number in range(6)]
    monkeypatch.setattr(source, "stream_blob", counted)
    transfer = begin(layers=2)
    await asyncio.gather(*(transfer.transfer(*layer) for layer in layers))
    assert most == 2


async def test_stop_ends_what_is_under_way(
    source: OciLayout,
    target: OciLayout,
    begin: Callable[..., LayerTransfer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    layer, diff_id = await add_layer(source, FILES)
    started, closed = asyncio.Event(), asyncio.Event()

    async def hang(descriptor: Descriptor) -> AsyncIterator[bytes]:
        try:
            started.set()
            yield b"x"
            await asyncio.Event().wait()
        finally:
            closed.set()

    monkeypatch.setattr(source, "stream_blob", hang)
    transfer = begin()
    waiting = asyncio.create_task(transfer.transfer(layer, diff_id))
    await started.wait()
    await transfer.stop()
    assert closed.is_set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not [path for path in (tmp_path / "target" / "blobs").rglob("*") if path.is_file()]


async def test_a_source_that_is_no_generator(
    source: OciLayout,
    target: OciLayout,
    begin: Callable[..., LayerTransfer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, diff_id = await add_layer(source, FILES)
    stream = source.stream_blob

    class Pieces:
        def __init__(self, descriptor: Descriptor) -> None:
            self._pieces = stream(descriptor)

        def __aiter__(self) -> Pieces:
            return self

        async def __anext__(self) -> bytes:
            return await anext(self._pieces)

    monkeypatch.setattr(source, "stream_blob", Pieces)
    made = await begin().transfer(layer, diff_id)
    assert await target.has_blob(made.digest)


async def test_copy_of_a_blob_that_is_broken(
    source: OciLayout, target: OciLayout, tmp_path: Path
) -> None:
    blob = await add_blob(source, b"data", OCI_LAYER_GZIP)
    (tmp_path / "source" / "blobs" / "sha256" / blob.digest.hex).write_bytes(b"dbta")
    with pytest.raises(LazyimgError, match="digest"):
        await copy_blob(source, target, blob, Silence())
    assert not await target.has_blob(blob.digest)


def test_find_toc() -> None:
    annotations = {POSITION: "1000:200:3000:1", CHECKSUM: str(Digest.of(b""))}
    layer = Descriptor(
        media_type=OCI_LAYER_ZSTD, digest=Digest.of(b""), size=5000, annotations=annotations
    )
    assert find_toc(layer) is not None
    assert find_toc(replace(layer, media_type=OCI_LAYER_GZIP)) is None
    assert find_toc(replace(layer, annotations={})) is None
