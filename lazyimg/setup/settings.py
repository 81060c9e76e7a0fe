"""What containerd's configuration must say for its containers to be loaded lazily.

Sources, in containerd's repository: docs/PLUGINS.md and docs/cri/config.md (the versions of the
configuration), services/server/config/config.go and cmd/containerd/server/config/config.go
(proxy_plugins), core/transfer/local/pull.go and plugins/transfer/plugin.go (the transfer service).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lazyimg.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTAINERD_FILE: Final = Path("/etc/containerd/config.toml")
"""Where containerd has its configuration."""

NAME: Final = "lazyimg"
"""What containerd calls the snapshotter."""

EXPORTS_SINCE: Final = (1, 7, 16)
"""containerd that knows `exports` of a proxy plugin."""

REMAP_SINCE: Final = (1, 7, 23)
"""containerd that knows `capabilities` of a proxy plugin: what follows is one."""

REMAP: Final = "remap-ids"
"""The snapshotter shows files with other owners, so containerd need not copy them for that."""

UNPACK_SINCE: Final = (2, 0, 0)
"""containerd whose clients pull through the transfer service, unless they are told not to."""

TRANSFER_SINCE: Final = (2, 1, 0)
"""containerd whose transfer service tells a snapshotter what is pulled."""

NEWEST_CONFIGURATION: Final = 4

_CRI: Final = {
    1: ("plugins", "cri", "containerd"),
    2: ("plugins", "io.containerd.grpc.v1.cri", "containerd"),
}
_CRI_IMAGES: Final = ("plugins", "io.containerd.cri.v1.images")
"""CRI's table since version 3."""

_UNPACK: Final = ("plugins", "io.containerd.transfer.v1.local", "unpack_config")
_VERSION: Final = re.compile(r"containerd \S+ v?([0-9]{1,6})\.([0-9]{1,6})(?:\.([0-9]{1,6}))?")

Version = tuple[int, int, int]


Value = str | bool | list[str]


@dataclass(frozen=True, slots=True)
class Table:
    """Keys that a table must have.

    Attributes:
        path: the table's name, one part after the other.
        values: by key.
    """

    path: tuple[str, ...]
    values: Mapping[str, Value]

    def missing(self, document: Mapping[str, Any]) -> list[str]:
        """Give each line that is not in a document, with its table's name."""
        table = find(document, self.path)
        return [
            f"[{show_path(self.path)}] {key} = {show_value(value)}"
            for key, value in self.values.items()
            if not isinstance(table, dict) or table.get(key) != value
        ]

    def parts(self) -> tuple[Table, ...]:
        """Give a setting for each line."""
        return tuple(Table(self.path, {key: value}) for key, value in self.values.items())


@dataclass(frozen=True, slots=True)
class Entries:
    """Tables that an array must have; there is one for each snapshotter.

    Attributes:
        path: the array's name, one part after the other.
        values: of the table that is added.
        others: tables that stand in front where there is no array, and its default is replaced.
    """

    path: tuple[str, ...]
    values: Mapping[str, str]
    others: tuple[Mapping[str, str], ...]

    def missing(self, document: Mapping[str, Any]) -> list[str]:
        """Give the line that says for which snapshotter it is, if it is not in a document."""
        array = find(document, self.path)
        wanted = self.values["snapshotter"]
        if isinstance(array, list) and any(
            isinstance(entry, dict) and entry.get("snapshotter") == wanted for entry in array
        ):
            return []
        return [f"[[{show_path(self.path)}]] snapshotter = {show_value(wanted)}"]

    def parts(self) -> tuple[Entries]:
        """Give itself: it is put in as a whole."""
        return (self,)

    def added_to(self, document: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
        """Give the tables that are missing in a document that lacks one."""
        present = find(document, self.path) is not None
        return (self.values,) if present else (*self.others, self.values)


Settings = tuple[Table | Entries, ...]


def find(document: Any, path: tuple[str, ...]) -> Any:
    """Give what a document has by this name, or None."""
    for part in path:
        document = document.get(part) if isinstance(document, dict) else None
    return document


def show_path(path: tuple[str, ...]) -> str:
    """Give a name as TOML has it."""
    return ".".join(part if re.fullmatch("[A-Za-z0-9_-]+", part) else f'"{part}"' for part in path)


def show_value(value: Value) -> str:
    """Give a value as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(show_value, value))}]"
    text = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\u{ord(match[0]):04x}", text) + '"'


def parse_version(text: str) -> Version:
    """Read what ``containerd --version`` prints.

    Raises:
        ConfigurationError: it is something else.
    """
    match = _VERSION.match(text)
    if match is None:
        raise ConfigurationError("containerd --version", f"prints no version: {text[:80]!r}")
    return (int(match[1]), int(match[2]), int(match[3] or 0))


def configuration_version(document: Mapping[str, Any], containerd: Version | None) -> int:
    """Give the version in which a configuration is written, or is to be, if it is empty.

    Args:
        document: the configuration.
        containerd: the version of the program that reads it; None: not known.

    Raises:
        ConfigurationError: a version that is not known, here or to that containerd.
    """
    known = 2 if containerd and containerd < (2, 0, 0) else NEWEST_CONFIGURATION
    version = document.get("version")
    if version is None:
        return 1 if document else min(known, 3)
    if type(version) is not int or not 0 <= version <= known:
        raise ConfigurationError("version", f"expected 1 to {known}, got {version!r}")
    return version or 1


def settings_for(
    configuration: int, containerd: Version | None, *, address: str, root: str
) -> Settings:
    """Give what a configuration must have.

    Args:
        configuration: the version in which it is written.
        containerd: the version of the program that reads it; None: not known, and then what an
            older one does not know is there all the same: it passes over it.
        address: the snapshotter's socket.
        root: the directory below which the snapshotter keeps what it unpacks.
    """
    assumed = containerd or ((2, 1, 0) if configuration > 2 else REMAP_SINCE)
    plugin = ("proxy_plugins", NAME)
    ours: dict[str, Value] = {"type": "snapshot", "address": address}
    if assumed >= REMAP_SINCE:
        ours["capabilities"] = [REMAP]
    found: list[Table | Entries] = [Table(plugin, ours)]
    if assumed >= EXPORTS_SINCE:
        exports: dict[str, Value] = {"root": root}
        if assumed >= TRANSFER_SINCE:
            exports["enable_remote_snapshot_annotations"] = "true"
        found.append(Table((*plugin, "exports"), exports))
    cri: dict[str, Value] = {"snapshotter": NAME, "disable_snapshot_annotations": False}
    found.extend(Table(path, cri) for path in _cri_tables(configuration, containerd))
    if assumed >= UNPACK_SINCE:
        entry, default = (
            {"platform": "linux", "snapshotter": name, "differ": "walking"}
            for name in (NAME, "overlayfs")
        )
        found.append(Entries(_UNPACK, entry, (default,)))
    return tuple(found)


def _cri_tables(configuration: int, containerd: Version | None) -> list[tuple[str, ...]]:
    """Give the tables in which CRI finds its snapshotter.

    containerd 2 takes over the names of version 1 literally. Of version 2 it moves the lines to the
    newer table, and only if the older one has runtimes of its own; so they stand in both.
    """
    if configuration > 2:
        return [_CRI_IMAGES]
    new = containerd is None or containerd >= (2, 0, 0)
    if configuration == 1:
        return [_CRI_IMAGES if containerd and new else _CRI[1]]
    return [_CRI[2], _CRI_IMAGES] if new else [_CRI[2]]


def missing_lines(document: Mapping[str, Any], settings: Settings) -> list[str]:
    """Give each line that a configuration lacks; a plugin that is disabled needs none."""
    disabled = document.get("disabled_plugins", [])
    return [
        line
        for each in settings
        if not _is_disabled(each.path, disabled)
        for line in each.missing(document)
    ]


def _is_disabled(path: tuple[str, ...], disabled: Any) -> bool:
    if path[0] != "plugins" or not isinstance(disabled, list):
        return False
    return path[1] in disabled or (path[1].endswith(".cri") and "cri" in disabled)
