"""The unit with which systemd runs lazyimg."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from lazyimg.errors import ConfigurationError

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
ExecStartPre=-/sbin/modprobe --all cachefiles erofs fuse loop overlay
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

_UNSAFE: Final = re.compile(r"""[\x00-\x1f\x7f"'\\]""")


def serialize_unit(command: Sequence[str]) -> str:
    """Give lazyimg.service.

    Args:
        command: what runs the daemon; the program's path is absolute.

    Raises:
        ConfigurationError: systemd takes no program of this path.
    """
    program, *arguments = command
    if _UNSAFE.search(program):
        raise ConfigurationError(
            repr(program),
            "systemd takes no program whose path has quotes, backslashes or control characters",
            "install lazyimg elsewhere",
        )
    words = [_quote(program), *(_quote(word.replace("$", "$$")) for word in arguments)]
    return _UNIT.format(command=" ".join(words))


def _quote(word: str) -> str:
    """Give a word as systemd.service(5) reads it; in the program's path $ means nothing."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return escaped if re.fullmatch(r"[^\s'\";]+", word) else f'"{escaped}"'
