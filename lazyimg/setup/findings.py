"""What `lazyimg doctor` says of containerd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lazyimg.errors import LazyimgError
from lazyimg.host.preflight import Check
from lazyimg.setup.change import ConfigurationFile
from lazyimg.setup.program import find_containerd
from lazyimg.setup.settings import (
    CONTAINERD_FILE,
    configuration_version,
    missing_lines,
    settings_for,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lazyimg.setup.program import Containerd

_REMEDY: Final = "'lazyimg setup containerd --diff' shows them, --apply puts them in"


def check_containerd(*, address: str, root: str, file: Path = CONTAINERD_FILE) -> Check:
    """Say whether this machine's containerd calls lazyimg. Blocks: it is asked.

    Args:
        address: the snapshotter's socket; "": it is switched off.
        root: the directory below which the snapshotter keeps what it unpacks.
        file: its configuration, where it does not say itself what is in effect.
    """
    try:
        containerd = find_containerd()
        if containerd is None:
            return Check("containerd", ok=True, detail="not installed", needed=False)
        version = ".".join(map(str, containerd.version))
        if not address:
            return _finding(f"{version}; lazyimg's snapshotter is off", "set snapshotter.address")
        document, where = _read_effective(containerd, file)
        configuration = configuration_version(document, containerd.version)
    except LazyimgError as error:
        return _finding(f"{error.what}: {error.problem}", error.remedy or "repair it")
    settings = settings_for(configuration, containerd.version, address=address, root=root)
    lines = missing_lines(document, settings)
    if lines:
        return _finding(f"{version}; {where} lacks {', '.join(lines)}", _REMEDY)
    return Check("containerd", ok=True, detail=f"{version}; calls lazyimg", needed=False)


def _finding(detail: str, remedy: str) -> Check:
    return Check("containerd", ok=False, detail=detail, remedy=remedy, needed=False)


def _read_effective(containerd: Containerd, file: Path) -> tuple[Mapping[str, Any], str]:
    try:
        return containerd.effective(), "its configuration"
    except LazyimgError:
        from lazyimg.setup.edit import parse_configuration  # noqa: PLC0415  seldom needed

        text = ConfigurationFile(file).read().decode(errors="replace")
        return parse_configuration(text), str(file)
