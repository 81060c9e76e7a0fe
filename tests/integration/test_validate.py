"""`lazyimg validate` of images in a real registry, without a daemon.

Needs the Debian packages docker-registry and skopeo.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.fakes.lazy_image import LazyLayer, lying_layer, make_lazy_layer
from tests.fakes.stargz_layer import StargzLayer
from tests.real.lazy_layers import write_layout
from tests.real.lazyimg_process import Lazyimg

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.docker_registry import Registry

NOISE: Final = random.Random(7).randbytes(300_000)  # noqa: S311 - any bytes that stay
HONEST: Final = {"etc/name": b"honest\n", "bin/tool": NOISE, "lib/text": b"text " * 100_000}
PLANTED: Final = {**HONEST, "etc/name": b"planted"}


@pytest.fixture(scope="module")
def honest() -> LazyLayer:
    return asyncio.run(make_lazy_layer(HONEST))


def push(registry: Registry, directory: Path, layers: list[LazyLayer | StargzLayer]) -> str:
    """Put an image into the registry as it is; gives its reference."""
    layout = write_layout(directory / "layout", {"app": layers})
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
    image = f"{registry.address}/app:1"
    subprocess.run(
        [*command, "--preserve-digests", f"oci:{layout}:app", f"docker://{image}"],
        check=True,
        timeout=120,
    )
    return image


def validate(directory: Path, image: str, status: int) -> list[dict[str, Any]]:
    """Give what is found of each layer; the verb must end with `status`."""
    found = Lazyimg(directory / "nowhere").verb("validate", image, "--json", "-q", status=status)
    layers: list[dict[str, Any]] = json.loads(found)["layers"]
    return layers


def test_layers_that_are_what_their_image_says(
    registry: Registry, tmp_path: Path, honest: LazyLayer
) -> None:
    layers: list[LazyLayer | StargzLayer] = [
        honest,
        StargzLayer(HONEST, joined=2),
        StargzLayer(HONEST, zstd=True, chunk=65_536),
    ]
    found = validate(tmp_path, push(registry, tmp_path, layers), 0)
    assert [(layer["format"], layer["problem"]) for layer in found] == [
        ("zstd:chunked", ""),
        ("estargz", ""),
        ("zstd:chunked (stargz)", ""),
    ]
    assert [layer["digest"] for layer in found] == [str(each.descriptor.digest) for each in layers]


def test_layers_that_lie(registry: Registry, tmp_path: Path, honest: LazyLayer) -> None:
    """Each is named, and those behind it are looked at all the same."""
    planted = asyncio.run(make_lazy_layer(PLANTED))
    layers: list[LazyLayer | StargzLayer] = [
        lying_layer(honest, planted),
        StargzLayer(HONEST, chunk=100_000, shifted=True),
        honest,
        StargzLayer(HONEST, zstd=True, shifted=True),
    ]
    problems = [
        layer["problem"] for layer in validate(tmp_path, push(registry, tmp_path, layers), 68)
    ]
    assert problems[0] == "index: b'etc/name', before byte 7: not the bytes of its tar"
    assert problems[1].startswith("index: span 8 of 9, of b'lib/text': bytes ")
    assert problems[2] == ""
    assert problems[3].startswith("index: span 2 of 3, of b'lib/text': bytes ")


def test_blob_that_the_registry_has_damaged(
    registry: Registry, tmp_path: Path, honest: LazyLayer
) -> None:
    image = push(registry, tmp_path, [honest])
    path = registry.blob_path(str(honest.descriptor.digest))
    path.write_bytes(honest.blob[:50] + bytes([honest.blob[50] ^ 1]) + honest.blob[51:])
    (layer,) = validate(tmp_path, image, 68)
    assert "digest" in layer["problem"]
