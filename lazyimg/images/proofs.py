"""Who may use which layer: an image proves access to each blob before its device is used.

A device that another image has filled is local, and so is the index of its layer; to have the
manifest is not to be allowed its layers. So each blob of an image is asked for, in the image's own
repository and with its own credentials, before anything made from it is used. What was proven is
recorded for (repository, user, blob), and counts for `PROOF_LIFETIME`. While the registry is away
an older proof of the same user counts, too: a node must be able to go on with what it has. The
password cannot be checked then; the user is the name in the credential, "" without one.

Who is asked is who would be asked for the bytes: mirrors first, each with its own credentials. A
mirror that gives everybody everything therefore proves access for everybody. That is no more than
it gives away anyhow: containerd on the same node reads the same blobs from it, with the same
hosts.toml, which only root can write. But it is the mirror's word, not the registry's: a proof
counts only as long as the host that gave it is configured.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from lazyimg.errors import AccessDeniedError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from lazyimg.images.library import Library
    from lazyimg.registry.ports import ProvingSource
    from lazyimg_formats.oci.documents import Descriptor

PROOF_LIFETIME: Final = 3600.0
"""Seconds for which a proof counts without asking again."""

PROVE_DEADLINE: Final = 15.0
"""Seconds that the registry may take when there are older proofs."""

MAX_ASKED_AT_ONCE: Final = 8
"""Blobs asked for side by side."""

_log = logging.getLogger(__name__)


class Proofs:
    """Proves access and remembers it.

    Args:
        library: the records.
        clock: seconds since the epoch.
    """

    def __init__(self, library: Library, clock: Callable[[], float] = time.time) -> None:
        self._library = library
        self._clock = clock

    async def are_fresh(self, source: ProvingSource, blobs: Collection[str]) -> bool:
        """Tell whether all blobs (digests) were proven a short while ago.

        Raises:
            LazyimgError: the credential or the records cannot be read.
        """
        times = await self._times(source)
        now = self._clock()
        return all(0 <= now - times.get(blob, float("-inf")) < PROOF_LIFETIME for blob in blobs)

    async def require(self, source: ProvingSource, blobs: Collection[str]) -> None:
        """Check that all blobs were proven at some time, the registry being away.

        Raises:
            AccessDeniedError: one was not, by this user.
            LazyimgError: as `are_fresh`.
        """
        times = await self._times(source)
        if not times.keys() >= set(blobs):
            raise AccessDeniedError(
                source.name,
                "the registry does not answer, and this user has not been seen to read the image",
                "try again when the registry answers",
            )

    async def prove(self, source: ProvingSource, layers: Sequence[Descriptor]) -> None:
        """Ask for every blob that was not proven a short while ago.

        Raises:
            AccessDeniedError: one may not be read, or is not in this repository.
            LazyimgError: the registry fails, and there is no older proof.
        """
        blobs = {str(layer.digest): layer for layer in layers}
        times = await self._times(source)
        now = self._clock()
        stale = [
            layer
            for blob, layer in blobs.items()
            if not 0 <= now - times.get(blob, float("-inf")) < PROOF_LIFETIME
        ]
        known = all(str(layer.digest) in times for layer in stale)
        try:
            async with asyncio.timeout(PROVE_DEADLINE if known else None):
                proven = await _ask(source, stale)
        except (RegistryError, TimeoutError) as error:
            if not known:
                raise
            _log.warning(
                "%s: the registry does not say who may read it (%s); an older proof counts",
                source.name, error or "too slow",
            )  # fmt: skip
            return
        user = await source.user()
        await asyncio.to_thread(self._library.add_proofs, source.name, user, proven, now)

    async def _times(self, source: ProvingSource) -> dict[str, float]:
        user, hosts = await source.user(), await source.hosts()
        return await asyncio.to_thread(self._library.proofs, source.name, user, hosts)


async def _ask(source: ProvingSource, layers: Sequence[Descriptor]) -> dict[str, str]:
    """Ask for each layer; gives the host that has let it be read, by digest."""
    turns = asyncio.Semaphore(MAX_ASKED_AT_ONCE)
    proven: dict[str, str] = {}

    async def ask(layer: Descriptor) -> None:
        async with turns:
            proven[str(layer.digest)] = await source.prove_blob(layer)

    try:
        async with asyncio.TaskGroup() as group:
            for layer in layers:
                group.create_task(ask(layer))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return proven
