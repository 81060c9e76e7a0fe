"""What manifests say of Nydus images."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lazyimg.errors import NotLazyError
from lazyimg.layers.locate import BOOTSTRAP, locate_index, name_format
from lazyimg.layers.nydus import is_nydus, sort_layers
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import OCI_LAYER_GZIP, Descriptor
from tests.fakes.nydus import NYDUS_LAYER, REF


def layer(name: str, media_type: str = NYDUS_LAYER, **annotations: str) -> Descriptor:
    known = {"ref": REF, "bootstrap": BOOTSTRAP}
    return Descriptor(
        media_type=media_type,
        digest=Digest.of(name.encode()),
        size=5,
        annotations={known[key]: value for key, value in annotations.items()},
    )


ORIGINAL = str(Digest.of(b"original"))
BOOT = layer("boot", OCI_LAYER_GZIP, bootstrap="true")
LAYERS = [layer("a"), layer("b", ref=ORIGINAL), BOOT]


def test_layers_by_what_they_are() -> None:
    found = sort_layers("app", LAYERS)
    assert found.bootstrap == BOOT
    assert list(found.blobs.values()) == LAYERS[:2]
    assert found.originals == {ORIGINAL: LAYERS[1]}


def test_which_images_are_of_nydus() -> None:
    assert is_nydus(LAYERS)
    assert is_nydus([BOOT])
    assert is_nydus(LAYERS[:1])
    assert not is_nydus([layer("x", OCI_LAYER_GZIP)])
    assert [name_format(one) for one in LAYERS] == ["nydus", "nydus", "nydus bootstrap"]


def test_no_bootstrap() -> None:
    for layers in (LAYERS[:2], [BOOT, LAYERS[0]]):
        with pytest.raises(NotLazyError) as caught:
            sort_layers("app", layers)
        assert str(caught.value) == (
            "app: a Nydus image whose last layer is no bootstrap; convert the image again"
        )


def test_encrypted_bootstrap() -> None:
    boot = replace(BOOT, media_type=f"{OCI_LAYER_GZIP}+encrypted")
    with pytest.raises(NotLazyError, match="app: an encrypted Nydus image; convert it without"):
        sort_layers("app", [boot])


@pytest.mark.parametrize("one", LAYERS)
def test_single_layer_has_no_index(one: Descriptor) -> None:
    with pytest.raises(NotLazyError) as caught:
        locate_index(one, "app: layer 1")
    assert str(caught.value) == (
        "app: layer 1: a part of a Nydus image: only all of it can be loaded lazily;"
        " mount the image"
    )
