"""A part of a blob out of an answer, whatever the answer is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg.errors import RegistryError
from lazyimg.registry.ranges import ByteRange, plan_range, take_range

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WANTED = ByteRange(10, 20, 100)


@pytest.mark.parametrize("total", ["100", "*"])
def test_partial_answer(total: str) -> None:
    headers = {"Content-Range": f"bytes 10-19/{total}", "Content-Length": "10"}
    assert plan_range("blob", 206, headers, WANTED) == 0


def test_whole_answer() -> None:
    assert plan_range("blob", 200, {"Content-Length": "100"}, WANTED) == 10
    assert plan_range("blob", 200, {}, WANTED) == 10


def test_whole_blob() -> None:
    assert ByteRange(0, 5, 5).is_whole
    assert not ByteRange(0, 4, 5).is_whole


@pytest.mark.parametrize(
    ("status", "headers", "problem"),
    [
        (206, {}, "expected bytes 10-19, the answer's Content-Range is ''"),
        (206, {"Content-Range": "bytes 10-20/100"}, "Content-Range is 'bytes 10-20/100'"),
        (206, {"Content-Range": "bytes 0-19/100"}, "Content-Range is 'bytes 0-19/100'"),
        (206, {"Content-Range": "bytes 10-19/1\u0660"}, "Content-Range is 'bytes 10-19/1\u0660'"),
        (206, {"Content-Range": "bytes 10-19/99"}, "expected 100 bytes in all, the registry has 9"),
        (
            206,
            {"Content-Range": "bytes 10-19/100", "Content-Length": "9"},
            "expected an answer of 10 bytes, got one of 9",
        ),
        (200, {"Content-Length": "10"}, "expected an answer of 100 bytes, got one of 10"),
    ],
)
def test_another_answer(status: int, headers: dict[str, str], problem: str) -> None:
    with pytest.raises(RegistryError, match=problem):
        plan_range("blob", status, headers, WANTED)


async def cut(data: bytes, sizes: list[int]) -> AsyncIterator[bytes]:
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


@given(
    data=st.binary(max_size=60),
    sizes=st.lists(st.integers(0, 20), max_size=8),
    skip=st.integers(0, 60),
    length=st.integers(0, 60),
    last=st.booleans(),
)
async def test_exactly_the_range_or_an_error(
    data: bytes, sizes: list[int], skip: int, length: int, *, last: bool
) -> None:
    taken = take_range("blob", cut(data, sizes), skip, length, last=last)
    try:
        result = b"".join([piece async for piece in taken])
    except RegistryError:
        assert skip + length > len(data) or (last and skip + length < len(data))
    else:
        assert result == data[skip : skip + length]
        assert len(result) == length
        assert not last or len(data) <= max(skip + length, skip)


async def test_texts() -> None:
    with pytest.raises(RegistryError, match=r"^blob: the answer ends 4 bytes early$") as caught:
        [piece async for piece in take_range("blob", cut(b"abc", []), 2, 5, last=True)]
    assert caught.value.retryable
    with pytest.raises(RegistryError, match=r"^blob: the answer has over 1 bytes$"):
        [piece async for piece in take_range("blob", cut(b"abc", []), 1, 1, last=True)]
