"""A layer's index, as it was fetched, to a LayerIndex."""

from __future__ import annotations

import msgspec
import pytest

from lazyimg.layers.locate import IndexLocation, locate_index
from lazyimg.layers.parse import parse_index
from lazyimg_formats.errors import FormatError
from lazyimg_formats.layer import Kind
from tests.fakes.lazy_image import LazyLayer, make_lazy_layer


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
