"""The decoded spans of the last moments."""

from __future__ import annotations

from lazyimg.fill.recent import RecentSpans


def test_least_recently_used_goes_first() -> None:
    recent = RecentSpans(40)
    for span in range(4):
        recent.put("d", span, bytes(10))
    assert recent.get("d", 0) == bytes(10)
    recent.put("d", 4, bytes(10))
    assert [span for span in range(5) if recent.get("d", span) is not None] == [0, 2, 3, 4]
    assert recent.size == 40


def test_large_span_is_not_kept() -> None:
    recent = RecentSpans(40)
    recent.put("d", 0, bytes(11))
    assert recent.get("d", 0) is None
    assert recent.size == 0


def test_span_put_twice_counts_once() -> None:
    recent = RecentSpans(40)
    recent.put("d", 0, bytes(10))
    recent.put("d", 0, b"x" * 5)
    assert recent.get("d", 0) == b"x" * 5
    assert recent.size == 5


def test_dropped_device() -> None:
    recent = RecentSpans(40)
    recent.put("d", 0, b"1")
    recent.put("e", 0, b"2")
    recent.drop_device("d")
    assert (recent.get("d", 0), recent.get("e", 0), recent.size) == (None, b"2", 1)
