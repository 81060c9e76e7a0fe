"""Counting requests: those that fail, those that are cancelled, those under way."""

from __future__ import annotations

import asyncio

import pytest

from lazyimg.registry.traffic import Traffic


def test_requests_are_counted() -> None:
    traffic = Traffic()
    with traffic.request():
        assert traffic == Traffic(requests=1, active=1)
    assert traffic == Traffic(requests=1)


def test_failures_are_counted_but_not_what_was_cancelled() -> None:
    traffic = Traffic()
    with pytest.raises(OSError, match="x"), traffic.request():
        raise OSError("x")
    with pytest.raises(asyncio.CancelledError), traffic.request():
        raise asyncio.CancelledError
    assert traffic == Traffic(requests=2, failures=1)
