"""Images that others converted, over FUSE and fanotify."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contracts.formats import (
    check_debian,
    check_debian_as_it_is,
    check_nasty_tree_as_it_is,
    check_nasty_tree_streamed,
    check_nydus,
    check_one_image_in_every_form,
    check_soci,
    check_sparse_soci,
)
from tests.real.eventually import eventually
from tests.real.scale import scaled
from tests.real.stargz_images import StargzImages, stargz_images

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.lazyimg_process import Lazyimg


@pytest.fixture(scope="module")
def images() -> StargzImages:
    return stargz_images()


@pytest.fixture(params=["fuse", "fanotify"][: scaled(2)])
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_one_image_in_every_form_at_once(
    images: StargzImages, lazyimg: Lazyimg, tmp_path: Path
) -> None:
    check_one_image_in_every_form(images, lazyimg, tmp_path)


@pytest.mark.parametrize("form", ["joined", "zstd", "estargz"][: scaled(3)])
def test_debian(images: StargzImages, lazyimg: Lazyimg, target: Path, form: str) -> None:
    check_debian(images, lazyimg, target, form)


def test_files_that_are_wanted_first(images: StargzImages, lazyimg: Lazyimg, target: Path) -> None:
    """They are there without anybody reading them."""
    with lazyimg.serving():
        lazyimg.mount(f"oci:{images.layout('nginx', 'estargz')}:estargz", target)
        eventually(lambda: lazyimg.status()["mounts"][0]["present"] > 0)
        lazyimg.unmount(target)


@pytest.mark.parametrize("tag", ["nginx", "python"][: scaled(2)])
def test_debian_as_it_is(lazyimg: Lazyimg, target: Path, tag: str) -> None:
    check_debian_as_it_is(lazyimg, target, tag)


def test_nasty_tree_as_it_is(lazyimg: Lazyimg, target: Path) -> None:
    check_nasty_tree_as_it_is(lazyimg, target)


@pytest.mark.parametrize("tag", ["nginx", "nasty"][: scaled(2)])
def test_soci(lazyimg: Lazyimg, target: Path, tag: str) -> None:
    check_soci(lazyimg, target, tag)


def test_nasty_tree_streamed(lazyimg: Lazyimg, target: Path) -> None:
    check_nasty_tree_streamed(lazyimg, target)


def test_nydus(lazyimg: Lazyimg, tmp_path: Path) -> None:
    check_nydus(lazyimg, tmp_path)


def test_sparse_soci(lazyimg: Lazyimg, target: Path) -> None:
    check_sparse_soci(lazyimg, target)
