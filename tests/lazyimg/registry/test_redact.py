"""What of a URL may be shown."""

from __future__ import annotations

import pytest

from lazyimg.registry.redact import printable, redact_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.example/v2/x?X-Amz-Signature=s#f", "https://a.example/v2/x"),
        ("http://user:pass@[::1]:5000/", "http://[::1]:5000/"),
        ("https://user@a@b/", "https://b/"),
        ("http://[oops/", "an impossible URL"),
    ],
)
def test_secrets_of_a_url_are_left_out(url: str, shown: str) -> None:
    assert redact_url(url) == shown


def test_foreign_text_is_one_short_line() -> None:
    assert printable("a\x1b[31m\n b\u202e") == "a [31m b"
    assert printable("x" * 500) == "x" * 200
