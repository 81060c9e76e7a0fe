"""How long a signed URL is good, in the words of each object store."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from lazyimg.registry import redirects
from lazyimg.registry.redirects import MAX_LIFETIME, RedirectCache, redirect_lifetime

NOW = 1_792_500_000.0  # 2026-10-20T12:40:00Z


@pytest.mark.parametrize(
    ("query", "lifetime"),
    [
        ({"X-Amz-Date": "20261020T124000Z", "X-Amz-Expires": "300"}, 285),
        ({"X-Goog-Date": "20261020T123900Z", "X-Goog-Expires": "300"}, 225),
        ({"X-Amz-Date": "20261020T123000Z", "X-Amz-Expires": "300"}, -315),
        ({"X-Amz-Date": "20261020T124000Z", "X-Amz-Expires": "604800"}, MAX_LIFETIME),
        ({"Expires": "1792500100"}, 85),
        ({"se": "2026-10-20T12:45:00Z", "sig": "x"}, 285),
        ({"se": "2026-10-20T12:45:00"}, 285),
        ({}, 60),
        ({"X-Amz-Expires": "300"}, 60),
        ({"X-Amz-Date": "20261020T124000Z", "X-Amz-Expires": "soon"}, 60),
        ({"Expires": "9" * 400}, 60),
    ],
)
def test_lifetime(query: dict[str, str], lifetime: float) -> None:
    assert redirect_lifetime(query, NOW) == lifetime


@given(
    st.dictionaries(st.sampled_from(["X-Amz-Date", "X-Amz-Expires", "Expires", "se"]), st.text())
)
def test_any_query_gives_a_lifetime(query: dict[str, str]) -> None:
    assert redirect_lifetime(query, NOW) <= MAX_LIFETIME


def test_cache_keeps_until_the_end() -> None:
    cache = RedirectCache()
    url = URL("https://store/x?Expires=1792500115")
    cache.keep("blob", url, NOW)
    assert cache.find("blob", NOW) == url
    assert cache.find("blob", NOW + 99.9) == url
    assert cache.find("other", NOW) is None
    assert cache.find("blob", NOW + 100) is None
    assert cache.find("blob", NOW) is None


def test_cache_does_not_keep_what_has_expired() -> None:
    cache = RedirectCache()
    cache.keep("blob", URL("https://store/x?Expires=1792500000"), NOW)
    assert cache.find("blob", NOW) is None


def test_cache_drops() -> None:
    cache = RedirectCache()
    cache.keep("blob", URL("https://store/x"), NOW)
    cache.drop("blob")
    cache.drop("blob")
    assert cache.find("blob", NOW) is None


def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redirects, "MAX_REDIRECTS_KEPT", 2)
    cache = RedirectCache()
    for blob in ("a", "b"):
        cache.keep(blob, URL("https://store/x"), NOW)
    cache.find("a", NOW)
    cache.keep("c", URL("https://store/x"), NOW)
    assert [blob for blob in "abc" if cache.find(blob, NOW)] == ["a", "c"]
