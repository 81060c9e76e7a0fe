"""Limits that would stop every fill are refused."""

from __future__ import annotations

from typing import Any

import pytest

from lazyimg.limits import FillLimits


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"memory": 0}, "memory is 0, expected more than 0"),
        ({"background_memory": -1}, "background_memory is -1, expected more than 0"),
        ({"fetches": 0}, "fetches is 0, expected more than 0"),
        ({"background_fetches": 0}, "background_fetches is 0, expected more than 0"),
        ({"max_fetch": 0}, "max_fetch is 0, expected more than 0"),
        ({"max_decode": 0}, "max_decode is 0, expected more than 0"),
        ({"decode_workers": 0}, "decode_workers is 0, expected more than 0"),
        ({"prefetch_piece": 0}, "prefetch_piece is 0, expected more than 0"),
        ({"prefetch_pieces": 0}, "prefetch_pieces is 0, expected more than 0"),
        ({"merge_gap": -1}, "merge_gap is -1, expected 0 or more"),
        ({"min_fetch": -1}, "min_fetch is -1, expected 0 or more"),
        ({"recent": -1}, "recent is -1, expected 0 or more"),
        ({"read_deadline": 0}, "read_deadline is 0, expected more than 0 seconds"),
        ({"read_deadline": float("nan")}, "read_deadline is nan, expected more than 0 seconds"),
    ],
)
def test_impossible_limit(setting: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{problem}$"):
        FillLimits(**setting)


def test_no_deadline_and_no_widening_are_allowed() -> None:
    limits = FillLimits(read_deadline=None, min_fetch=0, merge_gap=0, recent=0)
    assert limits.read_deadline is None
    assert FillLimits().read_deadline == 60
