"""Where the blocks of a deflate stream begin."""

from __future__ import annotations

import ctypes
import gzip
import random
import zlib
from typing import Any

import pytest

from lazyimg.errors import LazyimgError
from lazyimg.layers import inflate
from lazyimg.layers.inflate import Inflater, Step, load_library
from lazyimg_formats.errors import FormatError
from lazyimg_formats.gzip_spans import serialize_entry

CONTENT = b"".join(b"%d %d\n" % (i, i * i) for i in range(20_000))


def test_each_boundary_can_be_entered() -> None:
    stream = zlib.compressobj(1, zlib.DEFLATED, 31, 1)  # little memory: small blocks
    data = stream.compress(CONTENT) + stream.flush()
    inflater = Inflater(1 << 16)
    at, output, entered, bits = 0, b"", 0, set()
    while True:
        step = inflater.step(data, at, 1 << 16, stop=True)
        at += step.taken
        output += step.output
        if step.ended:
            break
        if step.boundary is None:
            continue
        start, bit = at - bool(step.boundary), -step.boundary % 8
        bits.add(bit)
        window = inflater.window()
        assert window == output[-32768:]
        decoder = zlib.decompressobj(-15, zdict=window)
        rest = decoder.decompress(serialize_entry(data[start], bit))
        rest += decoder.decompress(data[start + 1 :])
        assert rest == CONTENT[len(output) :]
        entered += 1
    assert output == CONTENT
    assert at == len(data)
    assert entered > 50
    assert bits == set(range(8))


def run(inflater: Inflater, data: bytes, most: int, *, stop: bool = False) -> list[Step]:
    at = 0
    steps: list[Step] = []
    while not steps or not steps[-1].ended:
        step = inflater.step(data, at, most, stop=stop)
        at += step.taken
        steps.append(Step(memoryview(bytes(step.output)), *step[1:]))
    return steps


@pytest.mark.parametrize("most", [1, 100, 1 << 20])
def test_output_is_bounded(most: int) -> None:
    data = gzip.compress(CONTENT[:5000])
    steps = run(Inflater(1000), data, most)
    assert b"".join(step.output for step in steps) == CONTENT[:5000]
    assert max(len(step.output) for step in steps) == min(most, 1000)
    assert all(step.boundary is None for step in steps)


def test_one_member_after_the_other() -> None:
    inflater = Inflater(1 << 20)
    for content in (b"one", b"", b"two"):
        assert b"".join(s.output for s in run(inflater, gzip.compress(content), 10)) == content
        assert inflater.window() == b""


def test_damaged() -> None:
    data = bytearray(gzip.compress(CONTENT))
    data[-6] ^= 1
    with pytest.raises(FormatError, match=r"^gzip: incorrect data check$"):
        run(Inflater(1 << 20), bytes(data), 1 << 20)
    with pytest.raises(FormatError, match=r"^gzip: incorrect header check$"):
        Inflater(10).step(random.Random(1).randbytes(20), 0, 10, stop=False)  # noqa: S311


def test_cut_short_makes_no_progress() -> None:
    step = Inflater(10).step(b"", 0, 10, stop=False)
    assert (bytes(step.output), step.taken, step.boundary, step.ended) == (b"", 0, None, False)


def test_machine_without_libz(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    load_library.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", refuse)
        with pytest.raises(LazyimgError) as caught:
            Inflater(10)
    assert str(caught.value) == (
        "libz.so.1: cannot be used: libz.so.1: cannot open shared object file; "
        "install zlib, 1.2.8 or later (Debian: zlib1g)"
    )
    assert isinstance(inflate.load_library(), ctypes.CDLL)


def test_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflate, "_VERSION", b"9")
    with pytest.raises(FormatError, match="gzip: zlib's error -6"):
        Inflater(10)
