"""Labels that name an image."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.containerd.labels import (
    ImageLabels,
    parse_image_labels,
    serialize_image_labels,
)
from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest

MANIFEST, LAYER = Digest.of(b"manifest"), Digest.of(b"layer")
PREFIX = "containerd.io/snapshot/"


@pytest.mark.parametrize(
    ("labels", "manifest"),
    [
        ({"cri.image-ref": "r", "cri.manifest-digest": str(MANIFEST)}, MANIFEST),
        ({"remote/soci.reference": "r", "remote/image.manifest.digest": str(MANIFEST)}, MANIFEST),
        ({"remote/stargz.reference": "r", "remote/stargz.digest": str(LAYER)}, None),
        ({"cri.image-ref": "r", "cri.image-layers": "sha256:cut"}, None),
        ({"cri.image-ref": "", "remote/stargz.reference": "r"}, None),
    ],
)
def test_image(labels: dict[str, str], manifest: Digest | None) -> None:
    found = parse_image_labels({PREFIX + name: value for name, value in labels.items()})
    assert found == ImageLabels("r", manifest)


def test_image_that_calls_itself_something_else() -> None:
    """Annotations of a layer become labels, beside those of who pulls it."""
    labels = {PREFIX + "remote/stargz.reference": "pulled", PREFIX + "cri.image-ref": "other"}
    with pytest.raises(FormatError, match=r"^labels of a snapshot: they name two images$"):
        parse_image_labels(labels)
    assert parse_image_labels(dict.fromkeys(labels, "pulled")) == ImageLabels("pulled", None)


@pytest.mark.parametrize("labels", [{}, {"other": "label"}, {PREFIX + "cri.layer-digest": "x"}])
def test_no_image(labels: dict[str, str]) -> None:
    assert parse_image_labels(labels) is None


def test_manifest_is_no_digest() -> None:
    with pytest.raises(FormatError, match=r"^labels of a snapshot: digest: expected algorithm:hex"):
        parse_image_labels({PREFIX + "cri.image-ref": "r", PREFIX + "cri.manifest-digest": "x"})


def test_labels_come_back() -> None:
    labels = serialize_image_labels("r", MANIFEST, LAYER)
    assert parse_image_labels(labels) == ImageLabels("r", MANIFEST)
    assert labels[PREFIX + "cri.layer-digest"] == str(LAYER)


@given(
    st.dictionaries(
        st.sampled_from(["cri.image-ref", "cri.manifest-digest", "remote/soci.reference", "x"]).map(
            PREFIX.__add__
        ),
        st.text(max_size=90),
    )
)
def test_any_labels(labels: dict[str, str]) -> None:
    try:
        parse_image_labels(labels)
    except FormatError:
        return
