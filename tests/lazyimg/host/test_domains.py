"""Which domain images are mounted in."""

from __future__ import annotations

import pytest

from lazyimg.host.domains import choose_domain, is_domain_of


@pytest.mark.parametrize(
    ("haunted", "domain"),
    [
        ([], "images"),
        (["images-2", "other"], "images"),
        (["images"], "images-2"),
        (["images-2", "images", "images", "images-4"], "images-3"),
    ],
)
def test_first_domain_that_nothing_is_left_in(haunted: list[str], domain: str) -> None:
    assert choose_domain("images", haunted) == domain
    assert is_domain_of(domain, "images")


@pytest.mark.parametrize(
    "domain", [None, "", "image", "images-", "images-x", "images-02", "my.images"]
)
def test_domains_of_others(domain: str | None) -> None:
    assert not is_domain_of(domain, "images")


def test_name_is_no_pattern() -> None:
    assert not is_domain_of("xyz", "x.z")
