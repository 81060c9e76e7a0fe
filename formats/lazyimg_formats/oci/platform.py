"""Which machine an image is for. Source: image-spec, image-index.md; names as Go and containerd."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

_PART: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)

_DIGITS: Final = frozenset("123456789")

_SYSTEMS: Final = frozenset(
    {"aix", "android", "darwin", "dragonfly", "freebsd", "illumos", "ios", "js", "linux"}
    | {"nacl", "netbsd", "openbsd", "plan9", "solaris", "wasip1", "windows", "zos"}
)

_SYSTEM_NAMES: Final = {"macos": "darwin"}

_ARCHITECTURE_NAMES: Final = {
    ("x86_64", ""): ("amd64", ""),
    ("x86-64", ""): ("amd64", ""),
    ("amd64", "v1"): ("amd64", ""),
    ("i386", ""): ("386", ""),
    ("i686", ""): ("386", ""),
    ("aarch64", ""): ("arm64", ""),
    ("aarch64", "v8"): ("arm64", ""),
    ("aarch64", "8"): ("arm64", ""),
    ("arm64", "v8"): ("arm64", ""),
    ("arm64", "8"): ("arm64", ""),
    ("armhf", ""): ("arm", "v7"),
    ("armel", ""): ("arm", "v6"),
    ("armv7l", ""): ("arm", "v7"),
    ("armv6l", ""): ("arm", "v6"),
    ("arm", ""): ("arm", "v7"),
    ("arm", "5"): ("arm", "v5"),
    ("arm", "6"): ("arm", "v6"),
    ("arm", "7"): ("arm", "v7"),
    ("arm", "8"): ("arm", "v8"),
}
"""(name, variant) as written -> (architecture, variant) as compared; others stay as they are."""


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image needs to run, as its document says it; compare with `rank_platform`.

    Attributes:
        os: operating system, in Go's words.
        architecture: in Go's words.
        variant: of the architecture, such as ``v7``; may be empty.
        os_version: may be empty.
        extra: the document's further fields, as JSON values.
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        text = f"{self.os}/{self.architecture}"
        return f"{text}/{self.variant}" if self.variant else text

    @property
    def is_unknown(self) -> bool:
        """Whether it marks something that is no image to run, such as an attestation."""
        return self.os == "unknown" and self.architecture == "unknown"


def normalize_platform(platform: Platform) -> Platform:
    """Give the platform under the names that are compared: ``aarch64`` becomes ``arm64``."""
    system = platform.os.lower()
    written = (platform.architecture.lower(), platform.variant.lower())
    architecture, variant = _ARCHITECTURE_NAMES.get(written, written)
    return Platform(
        _SYSTEM_NAMES.get(system, system),
        architecture,
        variant,
        platform.os_version,
        platform.extra,
    )


def parse_platform(text: str, local: Platform) -> Platform:
    """Give the platform that a user wrote: ``os/arch[/variant]``, ``arch``, ``os``, ``local``.

    Args:
        text: what was written; "" means `local`.
        local: this machine; gives the half that was not written.

    Raises:
        FormatError: something else.
    """
    if text in {"", "local"}:
        return normalize_platform(local)
    parts = text.split("/")
    if len(parts) > 3 or any(_PART.fullmatch(part) is None for part in parts):
        raise FormatError("platform", f"expected os/arch[/variant], got {text[:80]!r}")
    if len(parts) > 1:
        return normalize_platform(Platform(parts[0], parts[1], "".join(parts[2:])))
    if _SYSTEM_NAMES.get(text.lower(), text.lower()) in _SYSTEMS:
        return normalize_platform(Platform(text, local.architecture, local.variant))
    return normalize_platform(Platform(local.os, text))


def rank_platform(wanted: Platform, offered: Platform) -> int | None:
    """Tell how well `offered` serves `wanted`: 0 is best, None not at all.

    The architecture must be the same. A machine also runs images of its architecture's lower
    variants: arm v8, v7, v6, v5; amd64 v3, v2 and none; arm64 v9, v8 (written as none).
    """
    wanted, offered = normalize_platform(wanted), normalize_platform(offered)
    if (wanted.os, wanted.architecture) != (offered.os, offered.architecture):
        return None
    if wanted.variant == offered.variant:
        return 0
    lowest = {"amd64": 1, "arm64": 8, "arm": 5}.get(wanted.architecture)
    if lowest is None:
        return 1 if not offered.variant else None
    ours, theirs = (_level(variant, lowest) for variant in (wanted.variant, offered.variant))
    return ours - theirs if ours is not None and theirs is not None and theirs <= ours else None


def _level(variant: str, lowest: int) -> int | None:
    """Give the number in ``v7``; None for anything that is no such variant."""
    if not variant:
        return lowest
    digits = variant.removeprefix("v").split(".")[0]
    if not variant.startswith("v") or digits not in _DIGITS:
        return None
    level = int(digits)
    return level if level >= lowest else None
