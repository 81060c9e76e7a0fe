"""Containers of lazily loaded servers, below the real containerd, beside its own overlayfs.

The same image is pulled lazily and run, then pulled and unpacked as usual and run: what is printed,
and what the servers answer, must be equal. By default for python and nginx; for redis and java as
well with LAZYIMG_TEST_SCALE=1.
"""

from __future__ import annotations

import io
import json
import socket
import tarfile
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from lazyimg_formats.zstd_chunked.location import POSITION
from tests.real.commit import commit
from tests.real.debian_images import debian_images
from tests.real.docker_registry import Registry, running_registry
from tests.real.eventually import eventually
from tests.real.lazy_node import LAZY, Node, running_node
from tests.real.lazyimg_process import Lazyimg, mounts_below
from tests.real.scale import scaled
from tests.real.server_images import SERVERS, server_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TAGS: Final = ["python", "nginx", *SERVERS][: scaled(4, least=2)]
ORDINARY: Final = "overlayfs"

PYTHON: Final = """
import asyncio, http.client, json, os, sqlite3, ssl, sys, zoneinfo
async def answer():
    await asyncio.sleep(0)
    return {"ssl": ssl.OPENSSL_VERSION, "sqlite": sqlite3.sqlite_version, "python": sys.version}
print(json.dumps(asyncio.run(answer())), http.client.responses[418])
print(sum(path.endswith(".py") for path in sorted(os.listdir(os.path.dirname(os.__file__)))))
"""
NGINX: Final = (  # not all kernels have IPv6
    "sed -i '/listen \\[::\\]/d' /etc/nginx/sites-enabled/default && nginx -t"
    " && exec nginx -g 'daemon off; error_log stderr notice;'"
)
JAVA: Final = (
    "java -XshowSettings:all -version && echo",
    "keytool -list -cacerts -storepass changeit",
)


@pytest.fixture(scope="module")
def registry(disk: Path) -> Iterator[Registry]:
    """A registry that has the images, converted."""
    layouts = {tag: server_images() if tag in SERVERS else debian_images().layout for tag in TAGS}
    with (
        tempfile.TemporaryDirectory(dir=disk) as directory,
        running_registry(Path(directory)) as running,
    ):
        lazyimg = Lazyimg(disk / "nowhere")
        for tag, layout in layouts.items():
            lazyimg.verb("convert", f"oci:{layout}:{tag}", f"{running.address}/{tag}")
        yield running


@pytest.fixture
def node(disk: Path) -> Iterator[Node]:
    """A node without images, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        with running_node(Path(directory)) as running:
            yield running
        assert mounts_below(Path(directory)) == []


def image_of(registry: Registry, tag: str) -> str:
    return f"{registry.address}/{tag}:latest"


def compressed_size(node: Node, image: str) -> int:
    layers = json.loads(node.lazyimg.verb("inspect", "--raw", image))["layers"]
    return sum(layer["size"] for layer in layers)


def index_size(node: Node, image: str) -> int:
    """Give the bytes of the layers' indexes, which a pull fetches so that a start need not."""
    layers = json.loads(node.lazyimg.verb("inspect", "--raw", image))["layers"]
    positions = [layer["annotations"][POSITION] for layer in layers]
    return sum(int(position.split(":")[1]) for position in positions)


def use_python(node: Node, image: str, snapshotter: str) -> str:
    return node.run(image, "python3", "-c", PYTHON, snapshotter=snapshotter)


def use_java(node: Node, image: str, snapshotter: str) -> str:
    return node.run(image, "sh", "-c", " && ".join(JAVA), snapshotter=snapshotter)


def use_nginx(node: Node, image: str, snapshotter: str) -> str:
    """Give what its test of the configuration says, and its answer to a request, but the date."""
    with serving(node, image, snapshotter, "start worker process ", "sh", "-c", NGINX) as said:
        with urllib.request.urlopen("http://127.0.0.1/", timeout=30) as answer:
            headers = {name: value for name, value in answer.headers.items() if name != "Date"}
            page = answer.read().decode()
        tested = [line for line in said if line.startswith("nginx: ")]
    return f"{tested}\n{answer.status} {headers}\n{page}"


def use_redis(node: Node, image: str, snapshotter: str) -> str:
    """Give its answers, one for each command."""
    command = ["redis-server", "--bind", "127.0.0.1", "--dir", "/tmp", "--save", ""]  # noqa: S108
    with (
        serving(node, image, snapshotter, "Ready to accept connections", *command),
        socket.create_connection(("127.0.0.1", 6379), 30) as connection,
        connection.makefile("rb") as answers,
    ):
        connection.sendall(b"PING\r\nSET key value\r\nGET key\r\nSAVE\r\nDBSIZE\r\nLOLWUT\r\n")
        lines = [answers.readline().decode() for _ in range(6)]
        size = int(lines.pop().split("$")[-1]) if lines[-1].startswith("$") else 0
        return "".join(lines) + answers.read(size).decode()


@contextmanager
def serving(
    node: Node, image: str, snapshotter: str, ready: str, *command: str
) -> Iterator[list[str]]:
    """Run a server in this machine's network until the block ends; give the lines up to `ready`."""
    options = ("--rm", "--net-host")
    with node.start(image, *command, snapshotter=snapshotter, options=options) as process:
        assert process.stdout is not None
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            if ready in line:
                break
        else:
            pytest.fail("".join(said))
        yield said
        node.containerd.ctr("task", "kill", "--signal", "SIGTERM", "test")
        process.communicate(timeout=60)


USES: Final[dict[str, Callable[[Node, str, str], str]]] = {
    "python": use_python, "nginx": use_nginx, "redis": use_redis, "java": use_java,
}  # fmt: skip


@pytest.mark.parametrize("tag", TAGS)
def test_server_says_what_it_says_on_overlayfs(registry: Registry, node: Node, tag: str) -> None:
    image = image_of(registry, tag)
    size, indexes = compressed_size(node, image), index_size(node, image)
    before = registry.counts.sent()
    assert node.pull(image).keys() == {"lazy"}
    assert registry.counts.sent() - before < indexes + 100_000
    lazily = USES[tag](node, image, LAZY)
    fetched = registry.counts.sent() - before
    assert fetched < size / 4
    assert USES[tag](node, image, LAZY) == lazily
    assert registry.counts.sent() - before - fetched < size / 50  # no two runs read quite the same
    node.containerd.ctr("image", "pull", "--plain-http", "--snapshotter", ORDINARY, image)
    assert USES[tag](node, image, ORDINARY) == lazily
    print(f"{tag}: {fetched / 1e6:.1f} of {size / 1e6:.1f} MB")  # noqa: T201 - with -s


CHANGES: Final = """
set -e
echo new > /etc/written
echo more >> /etc/bash.bashrc
rm /etc/debian_version
rm -r /usr/share/doc/bash
mkdir -p /opt/a/b && ln -s ../b /opt/a/b/link && chmod 2750 /opt/a/b && chown 12:34 /opt/a/b
ln /etc/written /opt/hard && chown 5:6 /usr/bin/id
"""
STATE: Final = """
set -e
cd / && cat etc/written && tail -n 2 etc/bash.bashrc
ls -l --time-style=+ opt/a/b usr/bin/id opt etc/written
stat -c '%a %u %g' opt/a/b && test ! -e etc/debian_version && test ! -e usr/share/doc/bash
test opt/hard -ef etc/written && /usr/bin/id -u && find usr/share | sort | md5sum
"""


async def test_changes_of_a_container_become_an_image(registry: Registry, node: Node) -> None:
    image, changed = image_of(registry, "python"), f"{registry.address}/changed:latest"
    size = compressed_size(node, image)
    node.pull(image)
    node.run(image, "sh", "-c", CHANGES, name="changing", options=())
    state = node.run(image, "sh", "-c", CHANGES + STATE)
    before = registry.counts.sent()
    layer = await commit(node, "changing", image, changed)
    assert registry.counts.sent() - before < 10_000  # no byte of a layer
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        names = {name for name in tar.getnames() if not tar.getmember(name).isdir()}
    assert names == {
        "etc/written", "etc/bash.bashrc", "etc/.wh.debian_version", "opt/a/b/link", "opt/hard",
        "usr/bin/id", "usr/share/doc/.wh.bash",
    }  # fmt: skip
    assert node.run(changed, "sh", "-c", STATE) == state
    ctr = node.containerd.ctr
    ctr("content", "fetch", "--plain-http", image)  # to push takes all layers
    ctr("image", "push", "--plain-http", changed)
    ctr("container", "rm", "changing")
    ctr("image", "rm", "--sync", changed, image)
    assert ctr("snapshots", "--snapshotter", LAZY, "ls").splitlines()[1:] == []
    before = registry.counts.sent()
    assert node.pull(changed) == {"lazy": 2, "unpacked": 1}
    assert registry.counts.sent() - before < len(layer) + 100_000
    assert node.run(changed, "sh", "-c", STATE) == state
    assert registry.counts.sent() - before < size / 4


OWNERS: Final = """
id -u && id -g && cat /proc/self/uid_map && stat -c '%u %g %n' / /etc/shadow /usr/bin/python3 /tmp
echo new > /etc/new && chown 7:8 /etc/new && stat -c '%u %g' /etc/new && rm /etc/hostname
echo more >> /etc/bash.bashrc && stat -c '%u %g' /etc/bash.bashrc && python3 -c 'print("runs")'
"""
MAPPED: Final = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", "--remap-labels")


def test_container_with_a_user_namespace(registry: Registry, node: Node) -> None:
    image = image_of(registry, "python")
    size = compressed_size(node, image)
    before = registry.counts.sent()
    node.pull(image)
    plain = node.run(image, "sh", "-c", OWNERS)
    ran = node.run(image, "sh", "-c", OWNERS, options=MAPPED)
    ids, mapped = ran.splitlines()[2].split(), ran.splitlines()
    assert ids == ["0", "100000", "65536"]
    expected = plain.splitlines()
    assert expected[-1] == "runs"
    assert mapped[:2] + mapped[3:] == expected[:2] + expected[3:]
    assert registry.counts.sent() - before < size / 4
    root = node.lazyimg.root / "snapshotter"
    # What the first container has written is removed behind its end.
    eventually(lambda: len(list(root.glob("snapshots/*/fs/etc/new"))) == 1)
    (upper,) = (path.parent.parent for path in root.glob("snapshots/*/fs/etc/new"))
    owned = [upper, upper / "etc/new", upper / "etc/bash.bashrc"]
    assert [(path.stat().st_uid, path.stat().st_gid) for path in owned] == [
        (100_000, 200_000), (100_007, 200_008), (100_000, 200_000)
    ]  # fmt: skip
    assert len(mounts_below(root)) == 1
    node.containerd.ctr("container", "rm", "test")
    node.containerd.ctr("image", "rm", "--sync", image)
    assert mounts_below(root) == []


def test_user_namespace_that_makes_no_sense(registry: Registry, node: Node) -> None:
    image = image_of(registry, "python")
    node.pull(image)
    labels = ("--snapshotter-label", "containerd.io/snapshot/uidmapping=0:1000:0")
    with node.start(image, "true", options=("--rm", *labels)) as process:
        printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "'0:1000:0' is not CONTAINER:HOST:COUNT" in printed
