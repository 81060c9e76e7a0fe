"""What `lazyimg doctor` says of the image service that the kubelet is to call."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lazyimg.host.preflight import Check

if TYPE_CHECKING:
    from collections.abc import Sequence

FILES: Final = (
    Path("/var/lib/kubelet/config.yaml"),
    Path("/var/lib/kubelet/kubeadm-flags.env"),
    Path("/etc/default/kubelet"),
    Path("/etc/sysconfig/kubelet"),
    Path("/etc/rancher/k3s/config.yaml"),
    Path("/etc/rancher/rke2/config.yaml"),
)
"""Where kubeadm's nodes, and those of k3s, say which image service the kubelet calls."""

MAX_FILE: Final = 1 << 20
"""Bytes that are read of one."""

CONNECT_TIMEOUT: Final = 2.0
"""Seconds for a socket of this machine."""


def check_image_service(*, address: str, containerd: str, files: Sequence[Path] = FILES) -> Check:
    """Say whether pulls go through lazyimg. Blocks.

    Args:
        address: lazyimg's image service.
        containerd: what it passes calls on to.
        files: of the kubelet's configuration.
    """
    if not _answers(containerd):
        return _finding(
            f"containerd does not answer at {containerd}",
            "start it, or name its socket in image_service.containerd",
        )
    if not _answers(address):
        return _finding(f"nobody answers at {address}", "run lazyimg serve")
    found = [path for path in files if path.exists()]
    if found and not any(_names(path, address) for path in found):
        return _finding(
            f"the kubelet does not call it: {', '.join(map(str, found))}",
            f"there: imageServiceEndpoint: unix://{address}, or"
            f" --image-service-endpoint=unix://{address}",
        )
    detail = f"{address}, before {containerd}"
    return Check("image service", ok=True, detail=detail, needed=False)


def _finding(detail: str, remedy: str) -> Check:
    return Check("image service", ok=False, detail=detail, remedy=remedy, needed=False)


def _answers(address: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT)
        try:
            probe.connect(address)
        except OSError:
            return False
    return True


def _names(path: Path, address: str) -> bool:
    try:
        with path.open("rb") as file:
            return address.encode() in file.read(MAX_FILE)
    except OSError:
        return False
