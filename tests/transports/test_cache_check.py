"""Bytes of the cache that change on the disk: found, and fetched again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.contracts.transports import LONG, Setting, different_files, drop_caches

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.lazyimg_process import Lazyimg
    from tests.real.safety import SafetyNet


def spoil(lazyimg: Lazyimg) -> None:
    """Change a byte of the largest device, behind the daemon's back."""
    devices = (lazyimg.root / "devices").iterdir()
    path = max((each / "data" for each in devices), key=lambda path: path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


def test_spoiled_cache(net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path) -> None:
    reference, files = setting.reference("one"), setting.images.files("one")
    with lazyimg.serving():
        lazyimg.verb("prefetch", "-q", reference)
        said = lazyimg.verb("cache", "check", "-q")
        assert "are right" in said
        assert "WRONG" not in said
        spoil(lazyimg)
        assert "are wrong, in 1 of" in lazyimg.failure("cache", "check", "-q", status=68)
        lazyimg.verb("cache", "check", "-q", "--repair")
        lazyimg.verb("cache", "check", "-q")
        lazyimg.mount(reference, target)
        assert net.call(different_files, target, files, timeout=LONG) == []
        lazyimg.unmount(target)


def test_spoiled_cache_of_a_mounted_image(
    net: SafetyNet, setting: Setting, lazyimg: Lazyimg, target: Path
) -> None:
    reference, files = setting.reference("one"), setting.images.files("one")
    with lazyimg.serving():
        lazyimg.verb("prefetch", "-q", reference)
        lazyimg.mount(reference, target)
        spoil(lazyimg)
        checked = json.loads(lazyimg.verb("cache", "check", "-q", "--repair", "--json"))
        (wrong,) = [each for each in checked if each["wrong"]]
        assert wrong["repaired"] == wrong["wrong"]
        lazyimg.verb("cache", "check", "-q")
        drop_caches()
        assert net.call(different_files, target, files, timeout=LONG) == []
        lazyimg.unmount(target)
