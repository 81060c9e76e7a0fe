"""`lazyimg index`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lazyimg.api.messages import ImageRequest
from tests.fakes.daemon import DIGEST, IMAGE, FakeDaemon

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lazyimg.cli.conftest import Result


def test_indexes_are_made(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    result = run("index", "create", IMAGE, "--local", "--platform", "linux/arm64")
    assert (result.code, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines()]
    assert lines == [
        ["LAYER", "FORMAT", "SIZE", "INDEX"],
        [DIGEST[:19], "gzip", "41.9", "MB", "1.0", "MB,", "made"],
        [DIGEST[:19], "gzip", "41.9", "MB", "1.0", "MB,", "was", "here"],
        [DIGEST[:19], "zstd:chunked", "1.0", "MB", "its", "own"],
    ]
    assert daemon.requests == [ImageRequest(reference=IMAGE, platform="linux/arm64")]


@pytest.mark.usefixtures("daemon")
def test_indexes_are_made_as_json(run: Callable[..., Result]) -> None:
    reply = json.loads(run("index", "create", IMAGE, "--local", "--json").out)
    assert reply["reference"] == IMAGE
    assert [layer["made"] for layer in reply["layers"]] == [True, False, False]


@pytest.mark.usefixtures("daemon")
def test_image_that_is_not_there(run: Callable[..., Result]) -> None:
    result = run("index", "create", "other", "--local")
    assert result == (2, "", "lazyimg: other: the registry has no such image\n")


def test_place_must_be_said(run: Callable[..., Result]) -> None:
    result = run("index", "create", IMAGE)
    assert result.code == 64
    assert result.err == (
        "lazyimg: index: where are the indexes to be kept?; on this node: --local\n"
    )


@pytest.mark.usefixtures("daemon")
def test_list(run: Callable[..., Result]) -> None:
    lines = [line.split() for line in run("index", "ls").out.splitlines()]
    assert lines == [["LAYER", "SIZE", "INDEX"], [DIGEST, "41.9", "MB", "1.0", "MB"]]
    assert json.loads(run("index", "ls", "--json").out)[0]["layer"] == DIGEST


@pytest.mark.parametrize("reference", [IMAGE, DIGEST])
def test_remove(run: Callable[..., Result], daemon: FakeDaemon, reference: str) -> None:
    assert run("index", "rm", reference) == (0, f"{DIGEST}\n", "")
    assert daemon.requests == [ImageRequest(reference=reference)]
