"""SOCI indexes as places of layers' indexes; see `lazyimg_formats.soci`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazyimg.errors import CorruptError, NotFoundError
from lazyimg.images.fetching import MissingIndexError
from lazyimg.layers.locate import PLAIN, SOCI, IndexLocation, name_format
from lazyimg_formats.errors import FormatError
from lazyimg_formats.index_artifact import StoredIndex
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.soci.manifest import INDEX_DIGEST, SOCI_V1, parse_soci_index

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lazyimg.images.artifacts import Gone
    from lazyimg.images.locating import Sought
    from lazyimg.registry.ports import ImageSource, ReferrerSource
    from lazyimg_formats.oci.documents import Descriptor


class NamedSoci:
    """The SOCI index (version 2) whose digest the image's manifest has.

    Args:
        gone: what the registry lacks.
    """

    def __init__(self, gone: Gone) -> None:
        self._gone = gone

    async def find(
        self, image: Sought, numbers: Sequence[int], source: ImageSource
    ) -> Mapping[int, IndexLocation]:
        """Give where the indexes are; see `lazyimg.images.locating.Place`."""
        named = image.annotations.get(INDEX_DIGEST)
        wanted = [number for number in numbers if name_format(image.layers[number]) in PLAIN]
        if named is None or not wanted or self._gone.knows(image, source, loose=False):
            return {}
        try:
            _, data = await source.fetch_manifest(Digest.parse(named))
            return _locate(image, wanted, parse_soci_index(data))
        except NotFoundError as error:  # who copied the image has left it behind
            self._gone.note(image, source, MissingIndexError(error, loose=False))
            return {}
        except FormatError as error:
            raise CorruptError(image.what, str(error), "make its SOCI index again") from error


def _locate(
    image: Sought, numbers: Sequence[int], ztocs: Mapping[Digest, Descriptor]
) -> dict[int, IndexLocation]:
    """Give where the zTOCs of layers are, of those that have one."""
    found = {}
    for number in numbers:
        ztoc = ztocs.get(image.layers[number].digest)
        if ztoc is not None:
            digest = str(ztoc.digest)
            found[number] = IndexLocation(SOCI, 0, ztoc.size, ztoc.size, digest, artifact=digest)
    return found


async def list_ztocs(source: ReferrerSource, subject: Digest) -> dict[Digest, StoredIndex]:
    """Give the zTOCs of the first SOCI index (version 1) that refers to an image.

    Args:
        source: the image's repository.
        subject: its manifest.

    Returns:
        The zTOCs by the layer's digest.

    Raises:
        CorruptError: the index is not what it should be.
        LazyimgError: the registry fails.
    """
    for entry in await source.referrers(subject):
        if entry.artifact_type == SOCI_V1:
            _, data = await source.fetch_manifest(entry.digest)
            try:
                ztocs = parse_soci_index(data, subject)
            except FormatError as error:
                raise CorruptError(f"{source.name}@{entry.digest}", str(error)) from error
            return {layer: StoredIndex(one.digest, one.size) for layer, one in ztocs.items()}
    return {}
