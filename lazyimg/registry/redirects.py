"""Signed URLs that a registry redirected a blob to, kept for as long as they are good.

Only the first read of a blob then costs a request at the registry. How long a URL is good is
written in it, under the names of each object store; nothing is kept to the last second.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from yarl import URL

DEFAULT_LIFETIME: Final = 60.0
"""Seconds for a URL that does not say."""

MAX_LIFETIME: Final = 3600.0
"""Seconds for any URL."""

MARGIN: Final = 15.0
"""Seconds before its end at which a URL is used no more."""

MAX_REDIRECTS_KEPT: Final = 4096
"""URLs kept at once; the longest unused goes first."""


def redirect_lifetime(query: Mapping[str, str], now: float) -> float:
    """Give the seconds for which a signed URL may be used again; 0 or less: not at all.

    Args:
        query: of the URL.
        now: seconds since the epoch.
    """
    end = _signed_until(query)
    left = DEFAULT_LIFETIME if end is None else end - now - MARGIN
    return min(left, MAX_LIFETIME)


def _signed_until(query: Mapping[str, str]) -> float | None:
    try:
        for prefix in ("X-Amz-", "X-Goog-"):
            if f"{prefix}Expires" in query:
                since = _parse_time(query.get(f"{prefix}Date", ""))
                return since + int(query[f"{prefix}Expires"])
        if "Expires" in query:  # CloudFront, S3 version 2
            return float(int(query["Expires"]))
        if "se" in query:  # Azure
            return _parse_time(query["se"])
    except (ValueError, OverflowError):
        return None
    return None


def _parse_time(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class RedirectCache:
    """Where each blob was last redirected to. Times are seconds of one clock, given by callers."""

    def __init__(self) -> None:
        self._urls: OrderedDict[str, tuple[URL, float]] = OrderedDict()

    def find(self, blob: str, now: float) -> URL | None:
        """Give the URL for `blob` (any name of it and who may read it) that is still good."""
        url, end = self._urls.get(blob, (None, 0.0))
        if url is None or now >= end:
            self._urls.pop(blob, None)
            return None
        self._urls.move_to_end(blob)
        return url

    def keep(self, blob: str, url: URL, now: float) -> None:
        """Remember the URL for `blob`, if it is good for longer than this moment."""
        lifetime = redirect_lifetime(url.query, now)
        if lifetime <= 0:
            return
        self._urls[blob] = (url, now + lifetime)
        self._urls.move_to_end(blob)
        if len(self._urls) > MAX_REDIRECTS_KEPT:
            self._urls.popitem(last=False)

    def drop(self, blob: str) -> None:
        """Forget the URL for `blob`."""
        self._urls.pop(blob, None)
