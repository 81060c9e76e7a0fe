"""The first use of an image whose layers have no index: each byte is fetched once.

Over any transport: `tests/kernel` and `tests/transports` run these.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lazyimg.errors import LazyimgError
from tests.real.docker_registry import running_registry
from tests.real.eventually import eventually
from tests.real.lazyimg_process import worker_of
from tests.real.plain_image import PlainImage, make_plain_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from lazyimg.api.messages import MountReply
    from tests.real.docker_registry import Registry
    from tests.real.lazyimg_process import Lazyimg

    Compare = Callable[[Path, Path], None]

SIZE = 6 << 20
WAIT = 120.0
"""Seconds for what ends soon, on a busy machine."""


@contextmanager
def ordinary_image(directory: Path) -> Iterator[tuple[Registry, str, PlainImage]]:
    """Give a registry that has an image of two gzip layers, and its reference there."""
    with running_registry(directory) as registry:
        image = make_plain_image(directory, "app", seed=11, size=SIZE)
        reference = f"{registry.address}/app:1"
        command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
        subprocess.run(
            [*command, image.reference, f"docker://{reference}"], check=True, timeout=WAIT
        )
        registry.counts.exchanges.clear()
        yield registry, reference, image


def sizes(lazyimg: Lazyimg, target: Path) -> tuple[int, int, int]:
    """Give the bytes of an image's blobs and devices, and those of its devices that are local."""
    (mount,) = [one for one in lazyimg.status()["mounts"] if one["directory"] == str(target)]
    return mount["size"], mount["present"], len(lazyimg.client.indexes().layers)


def staged(lazyimg: Lazyimg) -> list[Path]:
    """Give what devices are made in, as far as it is left."""
    places = [*lazyimg.root.glob("devices/.new-*"), *lazyimg.root.glob("cache/staging/*")]
    return [*places, *lazyimg.root.glob("content/.*")]


def check_each_byte_once(lazyimg: Lazyimg, directory: Path, target: Path, compare: Compare) -> None:
    """Mount, read everything, mount again after a restart: each blob was sent once."""
    with ordinary_image(directory) as (registry, reference, image):
        with lazyimg.serving():
            said = mount_and_say(lazyimg, reference, target)
            assert "were downloaded first, of layers without an index" in said
            size, present, indexes = sizes(lazyimg, target)
            assert present == size > SIZE
            assert indexes == 2
            blobs = {one.path.rpartition("/")[2] for one in registry.counts.blob_reads()}
            assert len(blobs) == 3  # the config, and two layers
            sent = registry.counts.sent()
            whole = sum(registry.blob_path(blob).stat().st_size for blob in blobs)
            assert sent == whole
            compare(image.files, target)
            lazyimg.unmount(target)
            assert staged(lazyimg) == []
        with lazyimg.serving():
            assert mount_and_say(lazyimg, reference, target) == ""
            compare(image.files, target)
            assert registry.counts.sent() == sent
            lazyimg.unmount(target)


def mount_and_say(lazyimg: Lazyimg, reference: str, target: Path) -> str:
    """Mount an image as users do; give what is said besides the result."""
    mounting = lazyimg.start_verb("mount", reference, target)
    output, errors = mounting.communicate(timeout=WAIT)
    assert mounting.returncode == 0, errors
    assert output.endswith(f" {target}\n")
    return errors


def check_kill_in_the_middle(
    lazyimg: Lazyimg, directory: Path, target: Path, compare: Compare
) -> None:
    """A worker that is killed leaves nothing behind; the next one begins anew."""
    with ordinary_image(directory) as (registry, reference, image), lazyimg.serving() as daemon:
        lazyimg.verb("inspect", reference)  # the config is here from now on
        registry.counts.held = True
        mounting = lazyimg.start_mounting(reference, target)
        eventually(lambda: len(lazyimg.status()["streams"]) == 2)
        worker = worker_of(daemon)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        assert ended_with_an_error(mounting)
        registry.counts.held = False
        eventually(lambda: worker_of(daemon) not in {None, worker})
        eventually(lambda: staged(lazyimg) == [])
        assert lazyimg.client.indexes().layers == []
        lazyimg.mount(reference, target)
        compare(image.files, target)
        size, present, indexes = sizes(lazyimg, target)
        assert present == size
        assert indexes == 2
        lazyimg.unmount(target)


def ended_with_an_error(mounting: Future[MountReply]) -> bool:
    try:
        mounting.result(timeout=WAIT)
    except LazyimgError:
        return True
    return False
