"""`lazyimg convert`: from and to a registry and a layout, with the flags of both sides."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import TYPE_CHECKING, Any

import msgspec

from lazyimg.registry.oci_layout import OciLayout
from lazyimg_formats.oci.documents import Index, parse_document
from tests.fakes.gzip_layer import make_layer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from tests.fakes.registry import FakeRegistry
    from tests.lazyimg.cli.conftest import Result

LOCAL = ("--platform", "linux/amd64")


def test_convert_prints_the_digest(run: Callable[..., Result], registry: FakeRegistry) -> None:
    registry.add_image("app", "1", make_layer())
    result = run("convert", f"{registry.host}/app:1", f"{registry.host}/lazy:1", *LOCAL)
    assert result.code == 0
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", result.out)
    assert result.out.strip() in registry.manifests["lazy"]
    assert re.match(r"layer [0-9a-f]{12}: .* of .* \(100 %\), .*done\n", result.err)


def test_layers_that_are_there_are_left_alone(
    run: Callable[..., Result], registry: FakeRegistry
) -> None:
    registry.add_image("app", "1", make_layer())
    arguments = ("convert", f"{registry.host}/app:1", f"{registry.host}/lazy:1", "--json", *LOCAL)
    first = json.loads(run(*arguments).out)
    second = run(*arguments)
    assert first["layers"] == {"converted": 1}
    assert json.loads(second.out) == first | {"layers": {"present": 1}}
    assert second.err.endswith("is there already\n")


def test_a_layer_without_tar_split_data(run: Callable[..., Result], registry: FakeRegistry) -> None:
    registry.add_image("app", "1", make_layer({"a": b"1", "./a": b"2"}))
    result = run("convert", f"{registry.host}/app:1", f"{registry.host}/lazy:1", *LOCAL)
    assert re.fullmatch(
        r"layer [0-9a-f]{12}: done, without tar-split data \(podman pulls it whole\): "
        r"two members are b'./a'\n",
        result.err,
    )


def test_a_failure_leaves_no_layout(
    run: Callable[..., Result], registry: FakeRegistry, tmp_path: Path
) -> None:
    ((layer, _),) = make_layer().items()
    registry.add_image("app", "1", {layer: b"another tar"})
    failed = run("convert", f"{registry.host}/app:1", f"oci:{tmp_path}/new/layout:1", *LOCAL)
    assert failed.code == 68
    assert "its tar has sha256:" in failed.err
    assert not (tmp_path / "new").exists()


def test_an_interruption_leaves_no_layout(
    run: Callable[..., Result],
    registry: FakeRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.add_image("app", "1", make_layer())
    pushed = OciLayout.push_blob

    async def interrupt(self: OciLayout, *arguments: Any) -> int:
        size = await pushed(self, *arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return size

    monkeypatch.setattr(OciLayout, "push_blob", interrupt)
    result = run("convert", f"{registry.host}/app:1", f"oci:{tmp_path}/layout:1", "-q", *LOCAL)
    assert result.code == 130
    assert not (tmp_path / "layout").exists()


def test_to_a_layout_and_back(
    run: Callable[..., Result], registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add_image("app", "1", make_layer())
    layout = f"oci:{tmp_path}/layout:1"
    first = run("convert", f"{registry.host}/app:1", layout, "-q", *LOCAL)
    second = run("convert", layout, f"{registry.host}/back:1", "-q", "--json", *LOCAL)
    assert first.err == ""
    assert json.loads(second.out)["digest"] in registry.manifests["back"]
    assert json.loads(second.out)["layers"] == {"copied": 1}


def test_platforms(run: Callable[..., Result], registry: FakeRegistry, tmp_path: Path) -> None:
    entries = []
    for architecture in ("amd64", "arm64", "s390x"):
        layer = make_layer({"arch": architecture.encode()})
        image = registry.add_image("app", architecture, layer, architecture)
        entries.append(
            msgspec.to_builtins(
                {
                    "mediaType": image.media_type,
                    "digest": str(image.digest),
                    "size": image.size,
                    "platform": {"os": "linux", "architecture": architecture},
                }
            )
        )
    index = parse_document(msgspec.json.encode({"schemaVersion": 2, "manifests": entries}))
    assert isinstance(index, Index)
    registry.add_manifest("app", "1", index)

    def convert(*flags: str) -> list[str]:
        result = run("convert", f"{registry.host}/app:1", f"{registry.host}/lazy:1", "-q", *flags)
        assert result.code == 0, result.err
        made = parse_document(registry.manifests["lazy"]["1"][1])
        return [str(m.platform) for m in made.manifests] if isinstance(made, Index) else []

    assert convert("--platform", "linux/s390x") == []
    assert convert("--platform", "arm64,linux/s390x") == ["linux/arm64", "linux/s390x"]
    assert convert("--platform", "amd64", "--platform", "arm64") == ["linux/amd64", "linux/arm64"]
    assert convert("--all-platforms") == ["linux/amd64", "linux/arm64", "linux/s390x"]

    layout = f"oci:{tmp_path}/layout:1"
    missing = run("convert", f"{registry.host}/app:1", layout, "--platform", "linux/386", "-q")
    assert missing.code == 66
    assert missing.err.endswith("choose one that is there: linux/amd64, linux/arm64, linux/s390x\n")


def test_credentials_of_each_side(
    run: Callable[..., Result], registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add_image("app", "1", make_layer())
    registry.auth = "basic"
    registry.users = {"user": "pass"}
    arguments = ("convert", f"{registry.host}/app:1", f"oci:{tmp_path}/layout:1", "-q", *LOCAL)
    assert run(*arguments).code == 76
    assert run(*arguments, "--dest-creds", "user:pass").code == 76
    assert run(*arguments, "--src-creds", "user:pass").code == 0
    assert run(*arguments, "--creds", "user:pass").code == 0
    assert run(*arguments, "--creds", "user:pass", "--src-creds", "user:wrong").code == 76


def test_flags_that_exclude_each_other(run: Callable[..., Result]) -> None:
    assert run("convert", "a", "b", "--all-platforms", *LOCAL) == (
        64,
        "",
        "lazyimg: convert: --platform and --all-platforms exclude each other\n",
    )


def test_image_that_is_not_there(run: Callable[..., Result], registry: FakeRegistry) -> None:
    result = run("convert", f"{registry.host}/none:1", "oci:/nowhere/at/all:1", "-q")
    assert result.code in {2, 74}
    assert result.err.count("\n") == 1


def test_bad_reference(run: Callable[..., Result]) -> None:
    assert run("convert", "a/B", "b").code == 65
    assert run("convert", "a", "b/C").code == 65
    assert run("convert", "a", "ftp://b").code == 65
