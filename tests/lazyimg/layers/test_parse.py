"""A layer's index, as it was fetched, to a LayerIndex."""

from __future__ import annotations

import msgspec
import pytest

from lazyimg.fill.decode import decode_spans
from lazyimg.layers import parse
from lazyimg.layers.locate import IndexLocation, locate_index
from lazyimg.layers.parse import check_index, check_names, parse_index
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Kind
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.stream_index import parse_stream_index
from tests.fakes.gzip_layer import make_tar
from tests.fakes.lazy_image import LazyLayer, make_lazy_layer
from tests.fakes.soci_layer import SociLayer
from tests.fakes.stargz_layer import StargzLayer
from tests.fakes.stream_layers import make_stream_index


@pytest.fixture
async def layer() -> LazyLayer:
    return await make_lazy_layer({"etc/name": b"lazyimg\n", "etc/.wh.gone": b""})


async def test_what_the_layer_holds(layer: LazyLayer) -> None:
    index = parse_index(locate_index(layer.descriptor, "layer"), layer.index)
    assert [(entry.path, entry.kind) for entry in index.entries] == [
        (b"etc/name", Kind.REGULAR),
        (b"etc/gone", Kind.WHITEOUT),
    ]
    assert index.table.size == 4096
    assert index.table.blob_end() <= layer.toc.data_end


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"digest": "sha256:" + "0" * 64}, "zstd:chunked TOC: expected sha256:000"),
        ({"length": 10}, "zstd:chunked TOC: expected 10 bytes, got "),
        ({"decoded_length": 1 << 20}, "zstd:chunked TOC: expected 1048576 decoded bytes"),
        ({"decoded_length": 10}, ""),
        ({"offset": 12}, "TOC: 'etc/name': a chunk at "),
        ({"offset": 0}, "zstd:chunked TOC: impossible position 0"),
        ({"digest": "md5:00"}, "digest: unknown algorithm 'md5'"),
    ],
)
async def test_location_of_something_else(
    layer: LazyLayer, changes: dict[str, object], problem: str
) -> None:
    good: IndexLocation = locate_index(layer.descriptor, "layer")
    with pytest.raises(FormatError) as caught:
        parse_index(msgspec.structs.replace(good, **changes), layer.index)
    assert str(caught.value).startswith(problem)


FILES = {"etc/name": b"lazyimg\n", "bin/tool": bytes(range(256)) * 40, "etc/.wh.gone": b""}


def located(layer: StargzLayer) -> tuple[IndexLocation, bytes]:
    location = locate_index(layer.descriptor, "layer")
    if not location.length:
        length = len(layer.blob) - layer.toc_offset
        location = msgspec.structs.replace(location, offset=layer.toc_offset, length=length)
    return location, layer.blob[location.offset :][: location.length]


@pytest.mark.parametrize("zstd", [False, True])
@pytest.mark.parametrize("joined", [1, 3])
def test_layers_of_stargz_snapshotter(joined: int, *, zstd: bool) -> None:
    """What the index says of a blob decodes to the files' bytes."""
    layer = StargzLayer(FILES, zstd=zstd, chunk=4096, joined=joined)
    location, data = located(layer)
    check_index(location, data)
    index = parse_index(location, data)
    assert [entry.path for entry in index.entries] == [b"etc/name", b"bin/tool", b"etc/gone"]
    table = index.table
    decoded, bad = decode_spans(table, range(table.span_count), 0, layer.blob)
    assert bad == {}
    assert b"".join(decoded.values()) == FILES["etc/name"] + FILES["bin/tool"]
    assert table.blob_end() <= layer.toc_offset
    assert table.has_parts == (joined > 1)


def test_devices_of_all_formats_are_the_same() -> None:
    layers = [StargzLayer(FILES, zstd=zstd, joined=n) for zstd in (False, True) for n in (1, 9)]
    assert len({parse_index(*located(layer)).table.name for layer in layers}) == 1


@pytest.mark.parametrize("zstd", [False, True])
def test_digest_that_is_another(*, zstd: bool) -> None:
    location, data = located(StargzLayer(FILES, zstd=zstd))
    wrong = msgspec.structs.replace(location, digest="sha256:" + "0" * 64)
    for call in (check_index, parse_index):
        with pytest.raises(FormatError, match="expected sha256:000"):
            call(wrong, data)


def test_digest_of_the_stored_bytes(layer: LazyLayer) -> None:
    location = locate_index(layer.descriptor, "layer")
    check_index(location, layer.index)
    with pytest.raises(FormatError, match=f"^index: expected {location.digest}, got sha256:"):
        check_index(location, layer.index + b"x")


@pytest.mark.parametrize("zstd", [False, True])
def test_index_that_has_lost_a_name(monkeypatch: pytest.MonkeyPatch, *, zstd: bool) -> None:
    check_names(*located(StargzLayer(FILES, zstd=zstd)))
    location, data = located(StargzLayer({"a\ufffd": b"1"}, zstd=zstd))
    for call in (check_names, parse_index):
        with pytest.raises(FormatError, match=r"^TOC: a name is not UTF-8, which this format"):
            call(location, data)
    monkeypatch.setattr(parse, "CHECKED", 10)
    if zstd:
        check_names(location, data)


def test_other_indexes_lose_no_names(layer: LazyLayer) -> None:
    check_names(locate_index(layer.descriptor, "layer"), b"")


@pytest.mark.parametrize("kind", ["gzip", "zstd", "tar"])
def test_index_that_the_node_made(kind: str) -> None:
    data = make_stream_index(make_tar(FILES), 1000)
    location = IndexLocation(kind, 0, len(data), len(data), str(Digest.of(data)))
    assert parse_index(location, data).table.name == parse_stream_index(data).table.name
    with pytest.raises(FormatError, match="index: expected sha256:"):
        parse_index(location, data + b"x")


def test_ztoc() -> None:
    ztoc = SociLayer().ztoc
    location = IndexLocation("soci", 0, len(ztoc), len(ztoc), str(Digest.of(ztoc)))
    assert [entry.path for entry in parse_index(location, ztoc).entries] == [
        b"etc/name", b"bin/tool", b"bin/other",
    ]  # fmt: skip
    with pytest.raises(FormatError, match=r"^index: expected sha256:"):
        parse_index(location, ztoc + b"x")
