"""Times in a TOC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.zstd_chunked.entries import format_time, parse_time


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("1970-01-01T00:00:00Z", (0, 0)),
        ("2023-11-14T22:13:20Z", (1_700_000_000, 0)),
        ("2023-11-14T22:13:20.5Z", (1_700_000_000, 500_000_000)),
        ("2023-11-14T22:13:20.000000001Z", (1_700_000_000, 1)),
        ("2023-11-15T00:13:20+02:00", (1_700_000_000, 0)),
        ("2023-11-14T16:43:20.25-05:30", (1_700_000_000, 250_000_000)),
        ("1969-12-31T23:59:58.5Z", (-2, 500_000_000)),
        ("0001-01-01T00:00:00Z", (-62_135_596_800, 0)),
        ("9999-12-31T23:59:59.999999999Z", (253_402_300_799, 999_999_999)),
    ],
)
def test_time(text: str, time: tuple[int, int]) -> None:
    assert parse_time(text) == time
    if text.endswith("Z"):
        assert format_time(*time) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Z",
        "now",
        "2023-11-14",
        "2023-11-14T22:13:20",
        "2023-11-14 22:13:20Z",
        "2023-11-14T22:13Z",
        "2023-13-14T22:13:20Z",
        "2023-11-14T22:13:61Z",
        "2023-W46-2T22:13:20Z",
        "2023-11-14T221320.1Z",
        "2023-11-14T22:13:20.Z",
        "2023-11-14T22:13:20,5Z",
        "2023-11-14T22:13:20.-5Z",
        "2023-11-14T22:13:20.1234567890Z",
        "2023-11-14T22:13:20.\u0661Z",
        "2023-11-14T22:13:20+0200",
        "2023-11-14T22:13:20+02-00",
        "2023-11-14T22:13:20 02:00",
        "2023-11-14T22:13:20+0x:00",
        "0000-01-01T00:00:00Z",
        "12023-11-14T22:13:20Z",
    ],
)
def test_no_time(text: str) -> None:
    with pytest.raises(FormatError, match=r"^TOC: no time: "):
        parse_time(text)


@pytest.mark.parametrize("seconds", [-62_135_596_801, 253_402_300_800, 1 << 62])
def test_time_that_cannot_be_written(seconds: int) -> None:
    assert format_time(seconds, 0) is None


@given(st.integers(-62_135_596_800, 253_402_300_799), st.integers(0, 999_999_999))
def test_round_trip(seconds: int, nanoseconds: int) -> None:
    text = format_time(seconds, nanoseconds)
    assert text is not None
    assert parse_time(text) == (seconds, nanoseconds)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    assert text.startswith(moment.isoformat()[:19])


@given(st.text(max_size=40))
def test_noise(text: str) -> None:
    try:
        parse_time(text)
    except FormatError:
        return
    assert format_time(*parse_time(text)) is not None
