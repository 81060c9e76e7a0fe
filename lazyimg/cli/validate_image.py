"""An image read whole and checked in this process: without a daemon, and without its records."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from lazyimg.api.messages import ValidateReply
from lazyimg.cli.reference import registry_access
from lazyimg.images.library import Library
from lazyimg.images.validation import Validator
from lazyimg.registry.resolve import open_source
from lazyimg.registry.settings import apply_settings, make_client

if TYPE_CHECKING:
    from collections.abc import Callable

    from lazyimg.api import messages
    from lazyimg.config import RegistrySettings
    from lazyimg.limits import BuildLimits
    from lazyimg.registry.ports import Access, ImageSource
    from lazyimg_formats.oci.digest import Digest
    from lazyimg_formats.oci.reference import Location


async def validate_image(  # noqa: PLR0917 - two of them are settings
    location: Location,
    platform: str,
    access: messages.Access,
    settings: RegistrySettings,
    limits: BuildLimits,
    progress: Callable[[int, int], None],
) -> ValidateReply:
    """Read an image whole, and check it; see `lazyimg.images.validation`.

    Raises:
        LazyimgError: it is not there, not for this platform, or cannot be read or checked.
    """

    async def open_image(wanted: Location, chosen: Access) -> tuple[ImageSource, Digest | str]:
        return await open_source(wanted, client, apply_settings(chosen, wanted, settings))

    with tempfile.TemporaryDirectory(prefix="lazyimg-") as directory:
        root = Path(directory)
        for name in ("content", "tables", "bootstraps"):
            (root / name).mkdir()
        async with make_client(settings) as client:
            with closing(Library(root / "library.sqlite")) as library:
                validator = Validator(root, library, open_image, limits)
                found = await validator.validate(
                    str(location), platform, registry_access(access), progress
                )
    return ValidateReply.of(found)
