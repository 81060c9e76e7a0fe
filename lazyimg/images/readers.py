"""Whose credentials are spent on a device: those of the images that are mounted now.

Images of several repositories may share a device, and the kernel does not say for which of them it
reads. So a device is filled from the repositories of those images that are mounted and have it:
each has proven access with its own credentials. Other repositories, from which the device could
be filled as well, belong to somebody who does not read: they are not asked, though this means that
a read fails. Of a device that no image has which was mounted here (somebody mounted it by hand),
it is not known who reads; then all are asked.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from lazyimg.fill.ports import NotAskedError
from lazyimg_formats.oci.reference import Location, RegistryLocation, parse_location

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lazyimg.fill.ports import BlobReader
    from lazyimg.images.library import ChainRecord


def repository_of(location: Location) -> str:
    """Give the name under which the sources of an image are recorded."""
    return location.reference.name if isinstance(location, RegistryLocation) else str(location)


class Readers:
    """The repositories of the images that are mounted, for each device.

    Args:
        unused: is told of each device that no mounted image has any more.
    """

    def __init__(self, unused: Callable[[str], None] = lambda _device: None) -> None:
        self._unused = unused
        self._devices: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def begin(self, reference: str, chain: ChainRecord) -> None:
        """Note that an image (canonical reference) is mounted once more."""
        repository = repository_of(parse_location(reference))
        for device in _devices_of(chain):
            self._devices[device][repository] += 1

    def end(self, reference: str, chain: ChainRecord) -> None:
        """Take one `begin` back."""
        repository = repository_of(parse_location(reference))
        for device in _devices_of(chain):
            counts = self._devices[device]
            counts[repository] -= 1
            if counts[repository] <= 0:
                del counts[repository]
            if not counts:
                del self._devices[device]
                self._unused(device)

    def replace(self, images: Iterable[tuple[str, ChainRecord]]) -> None:
        """Take `images`, each as for `begin`, for all that are mounted."""
        before = list(self._devices)
        self._devices.clear()
        for reference, chain in images:
            self.begin(reference, chain)
        for device in before:
            if device not in self._devices:
                self._unused(device)

    def has(self, device: str) -> bool:
        """Tell whether an image that is mounted has a device."""
        return device in self._devices

    def may_use(self, device: str, repository: str) -> bool:
        """Tell whether a device may be filled from a repository now."""
        counts = self._devices.get(device)
        return not counts or repository in counts


def _devices_of(chain: ChainRecord) -> set[str]:
    return {layer.device for layer in chain.layers if layer.device_size}


class ReadersBlob:
    """A blob that is read for those only who may; implements `lazyimg.fill.ports.BlobReader`.

    Args:
        blob: to be read.
        readers: know who reads.
        device: which is filled from the blob.
        repository: where the blob is.
    """

    def __init__(self, blob: BlobReader, readers: Readers, device: str, repository: str) -> None:
        self._blob = blob
        self._readers = readers
        self._device = device
        self._repository = repository

    async def read(self, offset: int, length: int) -> bytes:
        """Give exactly `length` bytes at `offset`; raises LazyimgError."""
        if not self._readers.may_use(self._device, self._repository):
            raise NotAskedError(self._repository, "is not asked for images of other repositories")
        return await self._blob.read(offset, length)

    def peek(self, offset: int, length: int) -> bytes | memoryview | None:
        """Give the bytes if they are at hand."""
        if not self._readers.may_use(self._device, self._repository):
            return None
        return self._blob.peek(offset, length)

    def release(self) -> None:
        """Nobody reads the blob for now."""
        self._blob.release()

    def distrust(self, offset: int, length: int) -> bool:
        """Note that what `read` gave is wrong; gives whether reading again may give better."""
        return self._blob.distrust(offset, length)
