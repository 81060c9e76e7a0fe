"""What one of several users may hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg.registry.fairness import may_take, share_of


@pytest.mark.parametrize(
    ("limit", "others", "share"),
    [(16, 0, 12), (16, 12, 3), (16, 15, 1), (1, 0, 1), (2, 0, 2), (3, 0, 3), (4, 0, 3), (4, 4, 0)],
)
def test_share(limit: int, others: int, share: int) -> None:
    assert share_of(limit, others) == share


def test_first_one_is_not_bound_to_a_share() -> None:
    assert may_take(100, 100, 0, 0)
    assert may_take(10, 16, 0, 12)
    assert not may_take(1, 16, 12, 12)
    assert may_take(1, 16, 11, 11)
    assert not may_take(1, 16, 11, 14)


@given(st.integers(4, 1000), st.integers(1, 20))
def test_something_is_left_for_the_next_one_for_long(limit: int, users: int) -> None:
    held = 0
    for _ in range(users):
        own = 0
        while held < limit and may_take(1, limit, own, held):
            own, held = own + 1, held + 1
        if own <= 1:  # crumbs
            break
        assert held < limit or own <= 3
