"""A mirror in front of a registry, which dies while its image is mounted and read."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fakes.registry import name_mirrors
from tests.real.docker_registry import running_registry
from tests.real.lazyimg_process import Lazyimg
from tests.real.nginx import REVERSE_PROXY, running_nginx
from tests.real.plain_image import make_plain_image

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def directory(disk: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=disk) as path:
        yield Path(path)


def test_reads_go_on_without_the_mirror(directory: Path) -> None:
    image = make_plain_image(directory, "app", seed=3, size=16 << 20)
    files = sorted(path for path in image.files.rglob("*") if path.is_file())
    target = directory / "mnt"
    for path in (target, directory / "mirror"):
        path.mkdir()
    with running_registry(directory) as registry, ExitStack() as mirrors:
        # Not a pull-through cache: those may send a whole layer when they are asked for a range.
        mirror = mirrors.enter_context(running_registry(directory / "mirror"))
        for address in (registry.address, mirror.address):
            Lazyimg(directory / "nowhere").verb("convert", image.reference, f"{address}/app")
        mirror.counts.clear()
        name_mirrors(directory / "hosts", registry.address, mirror.address)
        lazyimg = Lazyimg(
            directory / "state", {"LAZYIMG_REGISTRY_HOSTS_DIR": str(directory / "hosts")}
        )
        with lazyimg.serving():
            lazyimg.verb("mount", f"{registry.address}/app", target)
            assert mirror.counts.sent()
            read(files[:3], image.files, target)
            of_mirror = {one["host"]: one for one in lazyimg.status()["registries"]}
            assert of_mirror[mirror.address]["received"] > 0
            assert of_mirror[mirror.address]["failures"] == 0
            mirrors.close()
            registry.counts.clear()
            read(files[3:], image.files, target)
            assert registry.counts.sent() > 0
            counted = {one["host"]: one for one in lazyimg.status()["registries"]}
            assert counted[mirror.address]["failures"] > 0
            assert counted[registry.address]["failures"] == 0
            lazyimg.verb("umount", target)


def test_mirror_that_sends_whole_layers_sends_each_once(directory: Path) -> None:
    image = make_plain_image(directory, "app", seed=4, size=16 << 20)
    files = sorted(path for path in image.files.rglob("*") if path.is_file())
    target = directory / "mnt"
    target.mkdir()
    with running_registry(directory) as registry:
        Lazyimg(directory / "nowhere").verb("convert", image.reference, f"{registry.address}/app")
        server = REVERSE_PROXY.format(origin=registry.origin)
        with running_nginx(directory, server) as mirror:
            name_mirrors(directory / "hosts", registry.address, mirror.address)
            hosts = {"LAZYIMG_REGISTRY_HOSTS_DIR": str(directory / "hosts")}
            lazyimg = Lazyimg(directory / "state", hosts)
            registry.counts.clear()
            with lazyimg.serving():
                lazyimg.verb("mount", f"{registry.address}/app", target)
                read(files, image.files, target)
                lazyimg.verb("umount", target)
            answers = [one for one in mirror.answers() if one.method == "GET"]
        for one in answers:
            assert one.sent == registry.blob_path(one.path.rpartition("/")[2]).stat().st_size
    assert registry.counts.sent() == 0  # nobody went past the mirror
    assert {one.status for one in answers} == {200}
    assert len({one.path for one in answers}) == len(answers)
    assert max(one.sent for one in answers) > 1 << 20


def read(files: list[Path], expected: Path, mounted: Path) -> None:
    for path in files:
        assert (mounted / path.relative_to(expected)).read_bytes() == path.read_bytes()
