"""`lazyimg validate`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lazyimg.api.messages import ImageRequest
from tests.fakes.daemon import DIGEST, IMAGE, PLAIN, FakeDaemon
from tests.fakes.gzip_layer import make_layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fakes.registry import FakeRegistry
    from tests.lazyimg.cli.conftest import Result

SAID = f"lazyimg: {IMAGE}: 1 of 2 layers are not what the image says; see above\n"


def test_image_that_is_what_it_says(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    result = run("validate", PLAIN, "-q", "--platform", "linux/amd64")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "LAYER                FORMAT          SIZE  INDEX                FOUND",
        "sha256:dddddddddddd  zstd:chunked  1.0 MB  sha256:dddddddddddd  right",
    ]
    assert daemon.requests == [ImageRequest(reference=PLAIN, platform="linux/amd64")]


@pytest.mark.usefixtures("daemon")
def test_layer_that_lies(run: Callable[..., Result]) -> None:
    result = run("validate", IMAGE, "-q")
    assert (result.code, result.err) == (68, SAID)
    assert result.out.splitlines()[1:] == [
        "sha256:dddddddddddd  zstd:chunked  1.0 MB  sha256:dddddddddddd  right",
        "sha256:bbbbbbbbbbbb  gzip          1.0 MB  none                 wrong",
        f"layer 2 of 2, sha256:{'b' * 64}: lies",
    ]


@pytest.mark.usefixtures("daemon")
def test_json(run: Callable[..., Result]) -> None:
    result = run("validate", IMAGE, "--json", "-q")
    assert (result.code, result.err) == (68, SAID)
    printed = json.loads(result.out)
    assert (printed["reference"], printed["digest"]) == (IMAGE, DIGEST)
    assert [layer["problem"] for layer in printed["layers"]] == ["", "lies"]


@pytest.mark.usefixtures("daemon")
def test_image_that_is_not_there(run: Callable[..., Result]) -> None:
    result = run("validate", "registry.test/none:1", "-q")
    assert result == (2, "", "lazyimg: registry.test/none:1: the registry has no such image\n")


@pytest.mark.usefixtures("daemon")
def test_progress(run: Callable[..., Result]) -> None:
    result = run("validate", PLAIN, "--progress", "plain")
    assert result.err == f"{PLAIN}: 1.0 MB of 2.1 MB (50 %), done\n"


def test_without_a_daemon(run: Callable[..., Result], registry: FakeRegistry) -> None:
    registry.add_image("app", "1", make_layer())
    result = run("validate", f"{registry.host}/app:1", "--json", "-q")
    assert (result.code, result.err) == (0, "")
    (layer,) = json.loads(result.out)["layers"]
    assert (layer["format"], layer["index"], layer["problem"]) == ("tar", "", "")
