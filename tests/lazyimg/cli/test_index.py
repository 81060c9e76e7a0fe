"""`lazyimg index`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lazyimg.api.messages import ImageRequest, PushIndexRequest
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


def test_what_is_made_is_pushed(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    result = run("index", "create", IMAGE)
    assert result.out.splitlines()[-1] == f"pushed sha256:2, which refers to {DIGEST}"
    assert daemon.requests == [ImageRequest(reference=IMAGE), PushIndexRequest(reference=IMAGE)]
    reply = json.loads(run("index", "create", IMAGE, "--json", "--embed", "2").out)
    assert reply["reference"] == IMAGE
    assert reply["push"]["tagged"] == "registry.example/app:2"


def test_nothing_is_embedded_locally(run: Callable[..., Result]) -> None:
    result = run("index", "create", IMAGE, "--local", "--embed", "2")
    assert result == (
        64, "", "lazyimg: index: --local pushes nothing, so nothing can be embedded\n"
    )  # fmt: skip


def test_push(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    result = run("index", "push", IMAGE, "--embed", "2", "--platform", "linux/arm64")
    assert result == (
        0, f"pushed sha256:2, which refers to {DIGEST}\ntagged registry.example/app:2\n", ""
    )  # fmt: skip
    assert daemon.requests == [PushIndexRequest(reference=IMAGE, platform="linux/arm64", tag="2")]
    daemon.artifact = ""
    result = run("index", "push", IMAGE)
    assert result == (0, "nothing to push: each layer has an index itself\n", "")
    assert json.loads(run("index", "push", IMAGE, "--json").out)["artifact"] == ""


@pytest.mark.usefixtures("daemon")
def test_list(run: Callable[..., Result]) -> None:
    lines = [line.split() for line in run("index", "ls").out.splitlines()]
    assert lines == [["LAYER", "SIZE", "INDEX"], [DIGEST, "41.9", "MB", "1.0", "MB"]]
    assert json.loads(run("index", "ls", "--json").out)[0]["layer"] == DIGEST


@pytest.mark.parametrize("reference", [IMAGE, DIGEST])
def test_remove(run: Callable[..., Result], daemon: FakeDaemon, reference: str) -> None:
    assert run("index", "rm", reference) == (0, f"{DIGEST}\n", "")
    assert daemon.requests == [ImageRequest(reference=reference)]


@pytest.mark.usefixtures("daemon")
def test_list_of_an_image(run: Callable[..., Result]) -> None:
    lines = [line.split() for line in run("index", "ls", IMAGE).out.splitlines()]
    assert lines == [
        ["LAYER", "FORMAT", "NODE", "MANIFEST", "PUSHED"],
        [DIGEST[:19], "gzip", "1.0", "MB", "yes", "sha256:2,", "sha256:3"],
        [DIGEST[:19], "gzip", "-", "-", "-"],
    ]
    found = json.loads(run("index", "ls", IMAGE, "--json").out)
    assert [layer["pushed"] for layer in found] == [["sha256:2", "sha256:3"], []]


def test_remove_what_was_pushed(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    assert run("index", "rm", IMAGE, "--pushed") == (
        0,
        "sha256:2\nsha256:3\n",
        "not listed any more, but still there: the registry answers 405\n",
    )
    assert daemon.requests == [ImageRequest(reference=IMAGE)]
