"""The unit with which systemd runs lazyimg."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

# The supervisor stops its worker itself, and a worker that has lost its supervisor serves on: so
# only the main process is signalled, and a start that finds that worker is tried again until it
# ends. containerd only wants the unit: without lazyimg it runs all that is not loaded lazily.
_UNIT: Final = """\
[Unit]
Description=Container images that are fetched as they are read
Wants=network-online.target
After=network-online.target
Before=containerd.service
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStartPre=-/sbin/modprobe --all cachefiles erofs overlay
ExecStart={command}
KillMode=process
Restart=always
RestartSec=1
LimitNOFILE=1048576
OOMScoreAdjust=-999
FileDescriptorStoreMax=64

[Install]
WantedBy=multi-user.target containerd.service
"""


def serialize_unit(command: Sequence[str]) -> str:
    """Give lazyimg.service.

    Args:
        command: what runs the daemon; the program's path is absolute.
    """
    return _UNIT.format(command=" ".join(map(_quote, command)))


def _quote(word: str) -> str:
    """Give a word as systemd.service(5) reads it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[^\s'\";]+", word) else f'"{escaped}"'
