"""`lazyimg inspect`: what it takes its argument for, whom it asks, and what it prints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lazyimg.api.messages import InspectRequest
from tests.fakes.daemon import DIGEST, FSID, IMAGE, MIB, PLAIN, FakeDaemon
from tests.fakes.gzip_layer import make_layer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fakes.registry import FakeRegistry
    from tests.lazyimg.cli.conftest import Result

LOCAL = ("--platform", "linux/amd64")


@pytest.mark.usefixtures("daemon")
def test_image_with_a_daemon(run: Callable[..., Result]) -> None:
    assert run("inspect", IMAGE).out.splitlines() == [
        f"image    {IMAGE}",
        f"digest   {DIGEST}",
        "platform linux/amd64",
        "layers   1, 41.9 MB compressed",
        f"fsid     {FSID}",
        "metadata 1.0 MB",
        "files    104.9 MB, 25 % local",
        "",
        "LAYER                FORMAT           SIZE  INDEX            FILES  LOCAL",
        "sha256:dddddddddddd  zstd:chunked  41.9 MB  in the layer  104.9 MB   25 %",
    ]
    reply = json.loads(run("inspect", IMAGE, "--json").out)
    assert reply["layers"][0]["present"] == 25 * MIB


@pytest.mark.usefixtures("daemon")
def test_image_that_is_not_lazy(run: Callable[..., Result]) -> None:
    assert run("inspect", PLAIN).out.splitlines() == [
        f"image    {PLAIN}",
        f"digest   {DIGEST}",
        "platform linux/amd64",
        "layers   1, 1.0 MB compressed",
        "",
        "LAYER                FORMAT    SIZE  INDEX  FILES  LOCAL",
        "sha256:dddddddddddd  gzip    1.0 MB  none       -      -",
    ]


def test_directory_is_asked_of_the_daemon(
    run: Callable[..., Result],
    daemon: FakeDaemon,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mnt").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("inspect", "mnt").code == 0
    assert daemon.requests == [InspectRequest(directory=str(tmp_path / "mnt"))]


def test_image_without_a_daemon(run: Callable[..., Result], registry: FakeRegistry) -> None:
    layer = make_layer()
    image = registry.add_image("app", "1", layer)
    reference = f"{registry.host}/app:1"
    result = run("inspect", reference, *LOCAL)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[:3] == [
        f"image    {reference}",
        f"digest   {image.digest}",
        "platform linux/amd64",
    ]
    assert lines[4] == "local    not known: no daemon was asked"
    assert lines[-1].split()[-2:] == ["-", "-"]
    reply = json.loads(run("inspect", reference, "--json", *LOCAL).out)
    assert "fsid" not in reply
    (described,) = reply["layers"]
    assert set(described) == {"digest", "media_type", "format", "size"}
    assert described["size"] == len(next(iter(layer)))


def test_raw_is_the_manifest_byte_for_byte(
    run: Callable[..., Result], registry: FakeRegistry
) -> None:
    registry.add_image("app", "1", make_layer())
    result = run("inspect", "--raw", f"{registry.host}/app:1")
    assert result.out.encode() == registry.manifests["app"]["1"][1]


@pytest.mark.usefixtures("registry")
def test_layout(run: Callable[..., Result], registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add_image("app", "1", make_layer())
    path = tmp_path / "layout"
    digest = run("convert", f"{registry.host}/app:1", f"oci:{path}:1", "-q", *LOCAL).out.strip()
    described = json.loads(run("inspect", str(path), "--json", *LOCAL).out)
    assert described["digest"] == digest
    assert [layer["format"] for layer in described["layers"]] == ["zstd:chunked"]
    assert json.loads(run("inspect", str(path), "--raw").out)["schemaVersion"] == 2
    assert json.loads(run("inspect", f"oci:{path}:1", "--json", *LOCAL).out) == described | {
        "reference": f"oci:{path}:1"
    }


def test_file(run: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps({"schemaVersion": 2, "manifests": [], "mediaType": "application/x"}))
    result = run("inspect", str(file))
    assert result.out.splitlines()[0] == "kind   image index"
    assert result.out.splitlines()[-1] == "no manifests"
    assert json.loads(run("inspect", str(file), "--json").out)["kind"] == "image index"


def test_file_with_a_table(run: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": DIGEST,
        "size": 5,
    }
    file.write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    lines = run("inspect", str(file)).out.splitlines()
    assert lines[-2].split() == ["DIGEST", "PLATFORM"]
    assert lines[-1].split() == ["sha256:dddddddddddd", "-"]


def test_path_that_is_not_there(run: Callable[..., Result]) -> None:
    assert run("inspect", "./nothing") == (
        2,
        "",
        "lazyimg: ./nothing: there is no such file or directory\n",
    )


def test_raw_of_a_file(run: Callable[..., Result], tmp_path: Path) -> None:
    assert run("inspect", "--raw", str(tmp_path)) == (
        64,
        "",
        f"lazyimg: {tmp_path}: only an image's manifest can be printed raw; give a REF\n",
    )


@pytest.mark.usefixtures("daemon")
def test_failure_of_the_daemon_is_not_hidden_by_asking_the_registry(
    run: Callable[..., Result],
) -> None:
    assert run("inspect", "other").err == "lazyimg: other: the registry has no such image\n"
