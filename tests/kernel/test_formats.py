"""Images that others converted, over cachefiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contracts.formats import (
    check_debian,
    check_debian_as_it_is,
    check_nydus,
    check_one_image_in_every_form,
    check_soci,
)
from tests.real.scale import scaled
from tests.real.stargz_images import StargzImages, stargz_images

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.lazyimg_process import Lazyimg


@pytest.fixture(scope="module")
def images() -> StargzImages:
    return stargz_images()


def test_one_image_in_every_form_at_once(
    images: StargzImages, lazyimg: Lazyimg, tmp_path: Path
) -> None:
    check_one_image_in_every_form(images, lazyimg, tmp_path)


@pytest.mark.parametrize("form", ["joined", "zstd", "estargz"][: scaled(3)])
def test_debian(images: StargzImages, lazyimg: Lazyimg, target: Path, form: str) -> None:
    check_debian(images, lazyimg, target, form)


@pytest.mark.parametrize("tag", ["nginx", "python"][: scaled(2)])
def test_debian_as_it_is(lazyimg: Lazyimg, target: Path, tag: str) -> None:
    check_debian_as_it_is(lazyimg, target, tag)


@pytest.mark.parametrize("tag", ["nginx", "nasty"][: scaled(2)])
def test_soci(lazyimg: Lazyimg, target: Path, tag: str) -> None:
    check_soci(lazyimg, target, tag)


def test_nydus(lazyimg: Lazyimg, tmp_path: Path) -> None:
    check_nydus(lazyimg, tmp_path)
