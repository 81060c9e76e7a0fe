"""Images that commit to their indexes, and what refers to images, as other programs see them.

The registry is Debian's, which keeps no lists of referrers. Needs root and the Debian packages
containerd, docker-registry, podman and skopeo.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from lazyimg.errors import NotLazyError
from lazyimg.images.service import Images
from lazyimg.registry.ports import Access
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.referrers import referrers_tag
from tests.fakes.node import Node, run_node
from tests.real.containerd import running_containerd
from tests.real.docker_registry import Registry, running_registry
from tests.real.plain_image import PlainImage, make_plain_image
from tests.real.podman import Podman
from tests.real.tree_manifest import read_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from lazyimg.images.publishing import Published

ACCESS = Access()
LAYERS = 2
LIMIT = 300


class Pushed(NamedTuple):
    """An image in the registry, under tag 1, and under tag 2 one that commits to its indexes."""

    registry: Registry
    image: PlainImage
    node: Node
    published: Published
    directory: Path

    @property
    def repository(self) -> str:
        return f"{self.registry.address}/app"


def run(*command: str | Path) -> str:
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, timeout=LIMIT,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def skopeo(*arguments: str) -> str:
    return run("skopeo", "--insecure-policy", *arguments)


@pytest.fixture
async def pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pushed]:
    directory, state = tmp_path / "registry", tmp_path / "state"
    for each in (directory, state):
        each.mkdir()
    image = make_plain_image(tmp_path, "plain", seed=1, size=6 << 20, layers=LAYERS)
    with running_registry(directory) as registry:
        reference = f"{registry.address}/app:1"
        skopeo("copy", "--dest-tls-verify=false", image.reference, f"docker://{reference}")
        async with run_node(state, monkeypatch) as node:
            await node.indexes.create(reference, "", ACCESS)
            await node.publisher.push(reference, "", ACCESS)
            published = await node.publisher.push(reference, "", ACCESS, "2")
            yield Pushed(registry, image, node, published, directory)


def forget(node: Node) -> None:
    """Be a node that has made nothing."""
    for own in node.library.own_indexes():
        node.library.remove_own_index(own)
    for path in (node.root / "content").iterdir():
        path.unlink()


def inspect(reference: str, *options: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(
        skopeo("inspect", "--tls-verify=false", *options, f"docker://{reference}")
    )
    return found


async def test_the_list_is_under_a_tag(pushed: Pushed) -> None:
    tag = referrers_tag(Digest.parse(pushed.published.digest))
    listed = inspect(f"{pushed.repository}:{tag}", "--raw")
    assert [entry["digest"] for entry in listed["manifests"]] == [pushed.published.artifact]  # type: ignore[attr-defined]
    _, layers = await pushed.node.publisher.find(pushed.published.tagged, "", ACCESS)
    assert [one.pushed for one in layers] == [(pushed.published.artifact,)] * LAYERS
    removed, said = await pushed.node.publisher.remove(pushed.published.tagged, "", ACCESS)
    assert (removed, said) == ([pushed.published.artifact], [])
    _, layers = await pushed.node.publisher.find(pushed.published.tagged, "", ACCESS)
    assert [one.pushed for one in layers] == [()] * LAYERS


async def test_another_node_loads_it_lazily(pushed: Pushed) -> None:
    forget(pushed.node)
    node = pushed.node
    pushed.registry.counts.clear()
    image = await node.images.open(pushed.published.tagged, "", ACCESS)
    assert [layer.format for layer in image.chain.layers] == ["gzip"] * LAYERS
    assert pushed.registry.counts.sent() < 200_000
    trusting = Images(
        node.root, node.library, node.catalog, node.open_source, referrers="same-repository"
    )
    same = await trusting.open(f"{pushed.repository}:1", "", ACCESS)
    assert same.chain == image.chain


async def test_collector_of_the_registry_leaves_the_indexes(pushed: Pushed) -> None:
    run("docker-registry", "garbage-collect", pushed.directory / "registry.yml")
    for index in pushed.published.layers.values():
        assert pushed.registry.blob_path(str(index.digest)).stat().st_size == index.size


async def test_layers_and_config_stay_what_they_are(pushed: Pushed) -> None:
    old, new = (inspect(f"{pushed.repository}:{tag}", "--raw") for tag in "12")
    assert old["config"] == new["config"]
    for one, other in zip(old["layers"], new["layers"], strict=True):  # type: ignore[call-overload]
        assert len(other.pop("annotations")) == 2
        assert one == other


async def test_skopeo_copies_it_as_it_is(pushed: Pushed, tmp_path: Path) -> None:
    source = f"docker://{pushed.published.tagged}"
    skopeo("copy", "--src-tls-verify=false", source, f"oci:{tmp_path}/copy:2")
    index = json.loads((tmp_path / "copy/index.json").read_text())
    assert [entry["digest"] for entry in index["manifests"]] == [pushed.published.digest]
    target = f"{pushed.registry.address}/other:2"
    skopeo(
        "copy", "--src-tls-verify=false", "--dest-tls-verify=false", source, f"docker://{target}"
    )
    forget(pushed.node)
    assert inspect(target)["Digest"] == pushed.published.digest
    with pytest.raises(NotLazyError):  # its indexes were left behind
        await pushed.node.images.open(target, "", ACCESS)


async def test_podman_pulls_it(pushed: Pushed, tmp_path: Path) -> None:
    podman = Podman(tmp_path / "podman", pushed.registry.address)
    assert podman.pull(pushed.published.tagged)[0]
    assert set(podman.tree(pushed.published.tagged)) == set(read_tree(pushed.image.files))


async def test_containerd_pulls_it(pushed: Pushed, tmp_path: Path) -> None:
    with running_containerd(tmp_path / "containerd") as containerd:
        containerd.ctr("image", "pull", "--plain-http", pushed.published.tagged)
        with containerd.mounted(pushed.published.tagged) as root:
            run("diff", "--recursive", pushed.image.files, root)
