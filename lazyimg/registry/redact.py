"""What of a URL may be shown: never its query (signatures) nor its user (passwords)."""

from __future__ import annotations

from urllib.parse import urlsplit


def redact_url(url: object) -> str:
    """Give scheme, host, port and path of `url` (anything whose `str` is one)."""
    try:
        parts = urlsplit(str(url))
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an impossible URL"
    return f"{parts.scheme}://{host}{parts.path}"


def printable(text: str, limit: int = 200) -> str:
    """Give foreign text fit for one line: printable, at most `limit` characters."""
    line = "".join(character if character.isprintable() else " " for character in text[:limit])
    return " ".join(line.split())
