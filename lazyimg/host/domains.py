"""The domains of EROFS in which images are mounted: a first one, and others when it is haunted.

A mount whose daemon died never works again, and lasts for as long as a process is in it. Until then
the kernel refuses to mount its image again in its domain, and gives every image that is mounted
there the dead mount's devices. In another domain it does neither.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def is_domain_of(domain: str | None, first: str) -> bool:
    """Whether a domain is `first` or one that took its place."""
    return (
        domain is not None
        and re.fullmatch(re.escape(first) + r"(-[1-9][0-9]*)?", domain) is not None
    )


def choose_domain(first: str, haunted: Iterable[str]) -> str:
    """Give the first of `first`, `first`-2, `first`-3, ... that is not among `haunted`."""
    domain, number, left = first, 1, set(haunted)
    while domain in left:
        number += 1
        domain = f"{first}-{number}"
    return domain
