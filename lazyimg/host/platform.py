"""This machine as a platform, in the words of the image specification."""

from __future__ import annotations

import platform

from lazyimg_formats.oci.platform import Platform, normalize_platform


def local_platform() -> Platform:
    """Give os/arch[/variant] of the running kernel, normalized."""
    return normalize_platform(Platform(platform.system().lower(), platform.machine()))
