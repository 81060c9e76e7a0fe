"""Each containerd that is in use, with lazyimg's snapshotter set up by `lazyimg setup`.

What is lazy is said by a service that takes every layer whose image it is told for lazy, and mounts
nothing: what a client says, and what containerd downloads then, is the real thing. Needs root, the
Debian packages containerd, runc and docker-registry, and later ones (tests.real.debian_packages).
"""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from lazyimg.setup.edit import show_changes
from lazyimg_formats.containerd.labels import LAYER, ImageLabels, parse_image_labels
from lazyimg_formats.oci.digest import Digest
from tests.fakes.containerd_configurations import DOCKER, KUBERNETES_1_6
from tests.real.containerd_versions import (
    INSTALLED,
    SUITES,
    Containerd,
    path_with,
    programs_of,
    running_version,
    version_of,
)
from tests.real.debian_packages import unpacked
from tests.real.docker_registry import Registry, running_registry
from tests.real.lazyimg_process import COMMAND, Lazyimg
from tests.real.plain_image import make_plain_image
from tests.real.recording_snapshotter import recording_snapshotter
from tests.real.snapshotter_process import running_snapshotter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALL: Final = (INSTALLED, *SUITES)
LAYERS: Final = 3
CRI: Final = {
    1: ("plugins", "io.containerd.grpc.v1.cri", "containerd"),
    2: ("plugins", "io.containerd.cri.v1.images"),
}
"""The tables of CRI that say which snapshotter it uses, for containerd 1 and 2."""


class Images(NamedTuple):
    """A registry with an image that was converted, and one that was not, with the same files."""

    registry: Registry
    files: Path

    @property
    def converted(self) -> str:
        return f"{self.registry.address}/team/converted:1"

    @property
    def ordinary(self) -> str:
        return f"{self.registry.address}/ordinary:1"

    def manifest(self, reference: str) -> tuple[Digest, dict[str, Any]]:
        raw = Lazyimg(self.files / "nowhere").verb("inspect", "--raw", reference)
        return Digest.of(raw.encode()), json.loads(raw)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    directory = tmp_path_factory.mktemp("images")
    image = make_plain_image(directory, "plain", seed=1, size=4 << 20, layers=LAYERS)
    (directory / "registry").mkdir()
    with running_registry(directory / "registry") as registry:
        made = Images(registry, image.files)
        Lazyimg(directory / "nowhere").verb("convert", image.reference, made.converted)
        target = f"docker://{made.ordinary}"
        copy = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", image.reference, target]
        subprocess.run(copy, check=True)
        yield made


@contextmanager
def containerd_over(suite: str, directory: Path, socket: Path) -> Iterator[Containerd]:
    """Run a containerd with the lines that `lazyimg setup containerd --print` gives for it."""
    lines = set_up(suite, "--file", directory / "none", "--print", socket=socket)
    with running_version(suite, directory / "containerd", lines) as containerd:
        yield containerd


def set_up(suite: str, *arguments: str | Path, socket: Path) -> str:
    """Run `lazyimg setup containerd`, where a suite's containerd is installed."""
    ended = lazyimg(suite, ["setup", "containerd", *arguments], socket)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def lazyimg(
    suite: str, arguments: list[str | Path], socket: Path
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": path_with(suite),
        "LAZYIMG_CONFIG": "/dev/null",
        "LAZYIMG_SNAPSHOTTER_ADDRESS": str(socket),
    }
    return subprocess.run(
        [COMMAND, *arguments], env=environment, capture_output=True, text=True, check=False
    )


# Images that are unpacked as usual.


@pytest.mark.parametrize("reference", ["converted", "ordinary"])
@pytest.mark.parametrize("suite", ALL)
def test_pull_that_does_not_name_the_image(
    suite: str, reference: str, images: Images, tmp_path: Path
) -> None:
    local = ["--local"] if version_of(suite) >= (1, 7) else []
    image = getattr(images, reference)
    pull_eagerly(suite, images, image, tmp_path, *local)


@pytest.mark.parametrize("suite", ["sid"])
def test_transfer_service_with_an_image_that_is_not_lazy(
    suite: str, images: Images, tmp_path: Path
) -> None:
    pull_eagerly(suite, images, images.ordinary, tmp_path)


def pull_eagerly(suite: str, images: Images, image: str, tmp_path: Path, *options: str) -> None:
    socket = tmp_path / "socket"
    with (
        running_snapshotter(tmp_path / "snapshots", socket),
        containerd_over(suite, tmp_path, socket) as containerd,
    ):
        pull = ("image", "pull", "--plain-http", "--snapshotter", "lazyimg", *options)
        containerd.ctr(*pull, image)
        with containerd.mounted(image, "lazyimg") as root:
            subprocess.run(["diff", "--recursive", images.files, root], check=True)
        assert len(containerd.snapshots("lazyimg")) == LAYERS
        containerd.ctr("image", "rm", "--sync", image)
        assert containerd.snapshots("lazyimg") == []


# Clients that name the image.

WAYS: Final = {
    "ctr-remote": ("stargz-snapshotter", "ctr-remote", "images", "rpull"),
    "ctr-remote, other labels": (
        "stargz-snapshotter", "ctr-remote", "images", "rpull", "--use-containerd-labels",
    ),
    "soci": ("soci-snapshotter", "soci", "image", "rpull"),
}  # fmt: skip
"""Package, program and verb of each; the programs are of one suite."""

OF_STARGZ: Final = "containerd.io/snapshot/remote/stargz.digest"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("suite", ALL)
def test_client_of_another_snapshotter(
    suite: str, way: str, images: Images, tmp_path: Path
) -> None:
    package, program, *verb = WAYS[way]
    client = unpacked("trixie", package) / "usr/bin" / program
    labels = pull_lazily(suite, images, tmp_path, client, *verb)
    digest, manifest = images.manifest(images.converted)
    layers = [layer["digest"] for layer in manifest["layers"]]
    if way == "ctr-remote":  # it does not name the manifest
        assert {parse_image_labels(each) for each in labels} == {
            ImageLabels(images.converted, None)
        }
        assert [each[OF_STARGZ] for each in labels] == layers
    else:
        assert {parse_image_labels(each) for each in labels} == {
            ImageLabels(images.converted, digest)
        }
        assert [each[LAYER] for each in labels] == layers


@pytest.mark.parametrize("suite", ["sid"])
def test_transfer_service_names_the_image(suite: str, images: Images, tmp_path: Path) -> None:
    ctr = programs_of(suite) / "ctr"
    labels = pull_lazily(suite, images, tmp_path, ctr, "image", "pull")
    digest, manifest = images.manifest(images.converted)
    assert {parse_image_labels(each) for each in labels} == {ImageLabels(images.converted, digest)}
    assert [each[LAYER] for each in labels] == [layer["digest"] for layer in manifest["layers"]]


def pull_lazily(
    suite: str, images: Images, tmp_path: Path, program: Path, *verb: str
) -> list[dict[str, str]]:
    """Pull the converted image; give the labels of its layers, of which none was downloaded."""
    with (
        recording_snapshotter(tmp_path / "snapshotter") as snapshotter,
        containerd_over(suite, tmp_path, snapshotter.socket) as containerd,
    ):
        _, manifest = images.manifest(images.converted)
        images.registry.counts.clear()
        options = ("--plain-http", "--snapshotter", "lazyimg", images.converted)
        containerd.run(program, *verb, *options)
        reads = images.registry.counts.blob_reads()
        assert [one.path.rpartition("/")[2] for one in reads] == [manifest["config"]["digest"]]
        assert len(containerd.snapshots("lazyimg")) == LAYERS
        containerd.ctr("image", "rm", "--sync", images.converted)
        assert containerd.snapshots("lazyimg") == []
    return snapshotter.labels


@pytest.mark.parametrize("suite", ["sid"])
def test_content_is_fetched_later(suite: str, images: Images, tmp_path: Path) -> None:
    with (
        recording_snapshotter(tmp_path / "snapshotter") as snapshotter,
        containerd_over(suite, tmp_path, snapshotter.socket) as containerd,
    ):
        ctr, whole = containerd.ctr, LAYERS + 1  # and the config
        ctr("image", "pull", "--plain-http", "--snapshotter", "lazyimg", images.converted)
        assert f"incomplete (1/{whole})" in ctr("image", "check")
        ctr("content", "fetch", "--plain-http", images.converted)
        assert f"complete ({whole}/{whole})" in ctr("image", "check")
        ctr("image", "export", tmp_path / "image.tar", images.converted)
        assert len(containerd.snapshots("lazyimg")) == LAYERS


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("snapshotter", ["lazyimg", "overlayfs"])
def test_pull_by_lazyimg(suite: str, snapshotter: str, images: Images, tmp_path: Path) -> None:
    with (
        recording_snapshotter(tmp_path / "snapshotter") as recording,
        containerd_over(suite, tmp_path, recording.socket) as containerd,
    ):
        socket = str(containerd.socket)
        options = ["--json", "--containerd", socket, "--snapshotter", snapshotter]
        ended = lazyimg(suite, ["pull", *options, images.converted], recording.socket)
        assert ended.returncode == 0, ended.stderr
        printed = json.loads(ended.stdout)
        (line,) = containerd.ctr("image", "ls").splitlines()[1:]
        assert line.split()[:3] == [images.converted, printed["media_type"], printed["digest"]]
        if snapshotter == "overlayfs":
            assert printed["layers"] == {"unpacked": LAYERS}
            with containerd.mounted(images.converted, "overlayfs") as root:
                subprocess.run(["diff", "--recursive", images.files, root], check=True)
        else:
            assert printed["layers"] == {"lazy": LAYERS}
        containerd.ctr("image", "rm", "--sync", images.converted)
        assert containerd.snapshots(snapshotter) == []
        assert containerd.ctr("leases", "ls", "--quiet") == ""


# Setting up.


def configurations(suite: str) -> dict[str, str]:
    """Give configurations that are found beside a suite's containerd."""
    packaged = programs_of(suite).parents[1] / "etc/containerd/config.toml"
    found = {
        "packaged": packaged.read_text(),
        "default": containerd_says(suite, "config", "default"),
        "kubernetes": KUBERNETES_1_6,
        "docker": DOCKER,
        "empty": "",
    }
    if version_of(suite) >= (2, 0):
        found["version 3"] = "version = 3  # ours\nimports = []\n"
    return found


def containerd_says(suite: str, *arguments: str | Path) -> str:
    command = [programs_of(suite) / "containerd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def effective(suite: str, file: Path) -> dict[str, Any]:
    return tomllib.loads(containerd_says(suite, "--config", file, "config", "dump"))


KINDS: Final = ("packaged", "default", "kubernetes", "docker", "empty", "version 3")


@pytest.mark.parametrize(
    ("suite", "kind"),
    [(suite, kind) for suite in SUITES for kind in KINDS if (suite, kind) != ("trixie", KINDS[-1])],
)
def test_apply_and_undo(suite: str, kind: str, tmp_path: Path) -> None:
    file, socket = tmp_path / "config.toml", tmp_path / "lazyimg's socket"
    before = configurations(suite)[kind]
    file.write_text(before)
    was = effective(suite, file)
    difference = set_up(suite, "--file", file, "--diff", socket=socket)
    assert file.read_text() == before
    set_up(suite, "--file", file, "--apply", socket=socket)
    assert difference == show_changes(str(file), before, file.read_text())
    now = effective(suite, file)
    check_effective(suite, now, socket)
    assert without_ours(now) == without_ours(was)
    assert "nothing to change" in set_up(suite, "--file", file, "--apply", socket=socket)
    set_up(suite, "--file", file, "--undo", socket=socket)
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]


def check_effective(suite: str, document: dict[str, Any], socket: Path) -> None:
    version = version_of(suite)
    plugin = document["proxy_plugins"]["lazyimg"]
    assert (plugin["type"], plugin["address"]) == ("snapshot", str(socket))
    exports = {"root": "/var/lib/lazyimg/snapshotter", "address": str(socket)}
    if version >= (2, 1):
        exports["enable_remote_snapshot_annotations"] = "true"
        unpack = document["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"]
        assert [entry["snapshotter"] for entry in unpack] == ["overlayfs", "lazyimg"]
    assert plugin["exports"] == exports
    assert plugin["capabilities"] == ["remap-ids"]
    if "cri" not in document["disabled_plugins"]:
        cri = cri_of(suite, document)
        assert (cri["snapshotter"], cri["disable_snapshot_annotations"]) == ("lazyimg", False)


def cri_of(suite: str, document: dict[str, Any]) -> dict[str, Any]:
    for part in CRI[version_of(suite)[0]]:
        document = document.setdefault(part, {})
    return document


def without_ours(document: dict[str, Any]) -> dict[str, Any]:
    """Give a configuration without what `lazyimg setup` is to change."""
    document = json.loads(json.dumps(document))
    document.setdefault("proxy_plugins", {}).pop("lazyimg", None)
    for suite in SUITES:
        cri = cri_of(suite, document)
        for key in ("snapshotter", "disable_snapshot_annotations"):
            cri.pop(key, None)
    transfer = document["plugins"].get("io.containerd.transfer.v1.local", {})
    transfer.pop("unpack_config", None)
    return {**document, "imports": None}


@pytest.mark.parametrize("suite", ALL)
def test_containerd_lists_the_plugin(suite: str, tmp_path: Path) -> None:
    with (
        recording_snapshotter(tmp_path / "snapshotter") as snapshotter,
        containerd_over(suite, tmp_path, snapshotter.socket) as containerd,
    ):
        plugins = [line.split() for line in containerd.ctr("plugins", "list").splitlines()]
    assert ["io.containerd.snapshotter.v1", "lazyimg", "ok"] in [
        [kind, name, last] for kind, name, *_, last in plugins
    ]


@pytest.mark.parametrize("suite", ALL)
def test_doctor(suite: str, tmp_path: Path) -> None:
    directory, socket = tmp_path / "etc", tmp_path / "socket"
    directory.mkdir()
    file = directory / "config.toml"
    file.write_text(configurations(suite)["packaged"])
    ok, detail, remedy = doctor(suite, directory, socket)
    version = ".".join(map(str, version_of(suite)))
    assert not ok
    assert detail.startswith(f"{version}.")
    assert '; its configuration lacks [proxy_plugins.lazyimg] type = "snapshot", ' in detail
    assert remedy == "'lazyimg setup containerd --diff' shows them, --apply puts them in"
    set_up(suite, "--file", file, "--apply", socket=socket)
    ok, detail, _ = doctor(suite, directory, socket)
    assert ok
    assert detail.endswith("; calls lazyimg")


@pytest.mark.parametrize("suite", ["sid"])
def test_doctor_beside_a_containerd_that_has_not_been_restarted(suite: str, tmp_path: Path) -> None:
    directory, socket = tmp_path / "etc", tmp_path / "socket"
    directory.mkdir()
    file = directory / "config.toml"
    file.write_text("")
    set_up(suite, "--file", file, "--apply", socket=socket)
    with running_version(suite, tmp_path / "run") as containerd:
        (tmp_path / "run/containerd.sock").symlink_to(containerd.socket)
        ok, detail, remedy = doctor(suite, directory, socket, run=tmp_path / "run")
    assert not ok
    assert detail == "containerd at /run/containerd/containerd.sock: has no snapshotter 'lazyimg'"
    assert remedy.startswith("restart containerd")
    lines = set_up(suite, "--file", tmp_path / "none", "--print", socket=socket)
    with running_version(suite, tmp_path / "run", lines):
        ok, detail, _ = doctor(suite, directory, socket, run=tmp_path / "run")
    assert ok, detail


def doctor(
    suite: str, directory: Path, socket: Path, run: Path | None = None
) -> tuple[bool, str, str]:
    """Ask what is said of containerd.

    Args:
        suite: of the containerd that is installed.
        directory: has its configuration.
        socket: of the snapshotter.
        run: what is /run/containerd; None: empty.
    """
    mount = f"mount --bind '{run}'" if run else "mount -t tmpfs none"
    script = (
        f"mount --bind '{directory}' /etc/containerd && mkdir -p /run/containerd"
        f" && {mount} /run/containerd && exec '{COMMAND}' doctor --json"
    )
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env={
            **os.environ,
            "PATH": path_with(suite),
            "LAZYIMG_CONFIG": "/dev/null",
            "LAZYIMG_SNAPSHOTTER_ADDRESS": str(socket),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    (found,) = (one for one in json.loads(ended.stdout) if one["name"] == "containerd")
    return found["ok"], found["detail"], found["remedy"]
