"""Whether the containerd that runs has lazyimg's snapshotter: its configuration may be newer."""

from __future__ import annotations

from typing import Final

from lazyimg.containerd.client import open_client
from lazyimg.errors import LazyimgError

_RESTART: Final = "restart containerd (systemctl restart containerd; its containers run on)"


async def find_fault(address: str, snapshotter: str) -> LazyimgError | None:
    """Give what keeps a running containerd from calling a snapshotter; None when nothing does.

    Nothing does, either, if it does not run, or if one may not ask it.

    Args:
        address: containerd's socket.
        snapshotter: what containerd calls it.
    """
    try:
        async with open_client(address, "default", snapshotter) as client:
            try:
                await client.check_snapshotter(_RESTART)
            except LazyimgError as error:
                return error
    except LazyimgError:
        pass
    return None
