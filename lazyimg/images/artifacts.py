"""Indexes in registries: those that an image commits to, and those that refer to it.

What an image's manifest names by digest is as good as the manifest. It may be missing all the same:
registries and tools that copy images know nothing of it. Then the image is as if nothing had been
named, for a while, and that is said.

What refers to an image was put there by somebody who may write to its repository. Nothing commits
to it, so it is asked for only if the configuration says so, and what is made with it is used for
images of the same repository only (`IndexLocation.loose`).
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from lazyimg.errors import CorruptError, LazyimgError
from lazyimg.layers.locate import PLAIN, IndexLocation, name_format
from lazyimg.registry.ports import ReferrerSource
from lazyimg_formats.errors import FormatError
from lazyimg_formats.index_artifact import ARTIFACT, parse_artifact, parse_embedded
from lazyimg_formats.oci.documents import parse_document

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from lazyimg.images.fetching import MissingIndexError
    from lazyimg.images.locating import Sought
    from lazyimg.registry.ports import ImageSource
    from lazyimg_formats.index_artifact import StoredIndex
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.documents import Descriptor

    ReadIndexes = Callable[[ReferrerSource, Digest], Awaitable[dict[Digest, StoredIndex]]]

MAX_ARTIFACTS: Final = 8
"""Artifacts of one image that are looked at, the first of its list."""

LIFETIME: Final = 300.0
"""Seconds for which it is remembered what a registry has, or has not."""

_KEPT: Final = 256  # images

_log = logging.getLogger(__name__)


class Gone:
    """Images without the indexes that are said to be there; forgotten after `LIFETIME`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: OrderedDict[tuple[str, Digest, bool], float] = OrderedDict()

    def note(self, image: Sought, source: ImageSource, error: MissingIndexError) -> None:
        """Remember that an image's repository lacks an index, and so probably all of them."""
        _log.warning("%s: its indexes are not in its repository: %s", image.what, error)
        self._times[source.name, image.manifest.digest, error.loose] = self._clock()
        while len(self._times) > _KEPT:
            self._times.popitem(last=False)

    def knows(self, image: Sought, source: ImageSource, *, loose: bool) -> bool:
        """Tell whether an image was without its indexes a short while ago."""
        when = self._times.get((source.name, image.manifest.digest, loose), -LIFETIME)
        return self._clock() - when < LIFETIME


class Committed:
    """What the manifest commits to: a digest in the layer's annotations."""

    def __init__(self, gone: Gone) -> None:
        self._gone = gone

    async def find(
        self, image: Sought, numbers: Sequence[int], source: ImageSource
    ) -> Mapping[int, IndexLocation]:
        """Give where the indexes are; see `locating.Place`."""
        found: dict[int, IndexLocation] = {}
        if self._gone.knows(image, source, loose=False):
            return found
        for number in numbers:
            try:
                index = parse_embedded(image.layers[number])
            except FormatError as error:
                raise CorruptError(image.name_layer(number), str(error)) from error
            if index is not None:
                found |= _locate(image, number, index)
        return found


async def list_indexes(source: ReferrerSource, subject: Digest) -> dict[Digest, StoredIndex]:
    """Give the indexes that refer to an image, by the layer's digest; see `list_artifacts`."""
    indexes: dict[Digest, StoredIndex] = {}
    for entries in (await list_artifacts(source, subject)).values():
        indexes = entries | indexes
    return indexes


class Referring:
    """What refers to the image, in its own repository.

    Args:
        gone: what the registry lacks.
        clock: seconds.
        read: gives the indexes that refer to an image, by the layer's digest.
        form: of the indexes, as `IndexLocation` has it; "": the layer's.
    """

    def __init__(
        self,
        gone: Gone,
        clock: Callable[[], float] = time.monotonic,
        *,
        read: ReadIndexes = list_indexes,
        form: str = "",
    ) -> None:
        self._gone = gone
        self._clock = clock
        self._read = read
        self._form = form
        self._known: OrderedDict[tuple[str, Digest], tuple[float, dict[Digest, StoredIndex]]] = (
            OrderedDict()
        )

    async def find(
        self, image: Sought, numbers: Sequence[int], source: ImageSource
    ) -> Mapping[int, IndexLocation]:
        """Give where the indexes are; see `locating.Place`."""
        plain = [number for number in numbers if name_format(image.layers[number]) in PLAIN]
        if not plain or not isinstance(source, ReferrerSource):
            return {}
        if self._gone.knows(image, source, loose=True):
            return {}
        indexes = await self._indexes(image, source)
        found: dict[int, IndexLocation] = {}
        for number in plain:
            index = indexes.get(image.layers[number].digest)
            if index is not None:
                found |= _locate(image, number, index, self._form, loose=True)
        return found

    async def _indexes(self, image: Sought, source: ReferrerSource) -> dict[Digest, StoredIndex]:
        key = (source.name, image.manifest.digest)
        when, known = self._known.get(key, (-LIFETIME, {}))
        if self._clock() - when < LIFETIME:
            return known
        try:
            indexes = await self._read(source, image.manifest.digest)
        except LazyimgError as error:  # an image that nothing refers to is used all the same
            _log.warning("%s: what refers to it cannot be used: %s", image.what, error)
            indexes = {}
        self._known[key] = (self._clock(), indexes)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return indexes


async def list_artifacts(
    source: ReferrerSource, subject: Digest
) -> dict[Digest, dict[Digest, StoredIndex]]:
    """Give the artifacts that refer to an image, and their indexes, by the layer's digest.

    Args:
        source: the image's repository.
        subject: its manifest.

    Raises:
        CorruptError: an artifact is not what it should be.
        LazyimgError: the registry fails.
    """
    entries = [one for one in await source.referrers(subject) if one.artifact_type == ARTIFACT]
    return {
        one.digest: await _read_artifact(source, one, subject) for one in entries[:MAX_ARTIFACTS]
    }


async def _read_artifact(
    source: ReferrerSource, entry: Descriptor, subject: Digest
) -> dict[Digest, StoredIndex]:
    descriptor, data = await source.fetch_manifest(entry.digest)
    try:
        return parse_artifact(parse_document(data, descriptor.media_type), subject)
    except FormatError as error:
        raise CorruptError(f"{source.name}@{entry.digest}", str(error)) from error


def _locate(
    image: Sought, number: int, index: StoredIndex, form: str = "", *, loose: bool = False
) -> dict[int, IndexLocation]:
    """Give where the index of a layer is, if layers of its format have such indexes."""
    kind, digest = name_format(image.layers[number]), str(index.digest)
    if kind not in PLAIN:
        return {}
    size = index.size
    return {
        number: IndexLocation(form or kind, 0, size, size, digest, artifact=digest, loose=loose)
    }
