"""Chain IDs, the names of layers on top of each other. Source: image-spec, "Layer ChainID".

The lowest layer's is its diff ID; each further one's is the digest of the text
"<chain ID below> <diff ID>". So it names what the layers unpack to, whatever they are compressed
with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazyimg_formats.oci.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Iterable


def chain_ids(diff_ids: Iterable[Digest]) -> list[Digest]:
    """Give the chain ID of each layer and those below it; the lowest layer comes first."""
    chains: list[Digest] = []
    for diff_id in diff_ids:
        chains.append(Digest.of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains
