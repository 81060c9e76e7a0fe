"""The real podman, Debian's of this machine or a later one, with all that it keeps in a directory.

    podman = Podman(directory, registry.address)
    podman.pull(f"{registry.address}/name")
    podman.tree(f"{registry.address}/name")

`later_root()` is the root of a Debian that has a podman which fetches parts of layers; it is made
once, in half a minute, and kept below ~/.cache/lazyimg/podman. Needs root, the packages podman and
runc, and for `later_root` mmdebstrap and the network.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.real.tree_manifest import load_tree

if TYPE_CHECKING:
    from tests.real.tree_manifest import Tree

SUITE: Final = "trixie"
STORAGE: Final = """\
[storage]
driver = "overlay"
graphroot = "{directory}/graph"
runroot = "{directory}/run"
[storage.options.pull_options]
enable_partial_images = "true"
"""
REGISTRIES: Final = """\
[[registry]]
location = "{address}"
insecure = true
"""
POLICY: Final = {"default": [{"type": "insecureAcceptAnything"}]}
ENTER: Final = """
set -eu
root=$1 work=$2
shift 2
if [ "$root" != / ]; then
  mount --bind "$root" "$root"  # podman remounts it, where it unpacks a whole layer
  mount --rbind /dev "$root/dev"
  mount --rbind /sys "$root/sys"
  mount -t proc proc "$root/proc"
  mount -t tmpfs tmpfs "$root/run"
  mount -t tmpfs tmpfs "$root/tmp"
  mkdir -p "$root$work"
  mount --bind "$work" "$root$work"
fi
exec "$@"
"""
READ_TREE: Final = """
import pathlib, subprocess, sys
from tests.real.tree_manifest import dump_tree, read_tree
root, target, *command = sys.argv[1:]
mounted = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
dump_tree(read_tree(pathlib.Path(root + mounted)), pathlib.Path(target))
"""


@dataclass
class Podman:
    """A podman that keeps everything below one directory.

    Attributes:
        directory: where; on a file system on which overlayfs can have its upper directories.
        address: of the registry that it may ask without TLS.
        root: of the system that has this podman.
    """

    directory: Path
    address: str
    root: Path = Path("/")

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        (self.directory / "storage.conf").write_text(STORAGE.format(directory=self.directory))
        (self.directory / "registries.conf").write_text(REGISTRIES.format(address=self.address))
        (self.directory / "policy.json").write_text(json.dumps(POLICY))

    def pull(self, reference: str) -> tuple[str, str]:
        """Pull an image; return its ID, and everything that podman says to its log."""
        policy = f"--signature-policy={self.directory}/policy.json"
        command = self._podman("--log-level=debug", "pull", policy, reference)
        ended = self._run(command)
        return ended.stdout.strip(), ended.stderr

    def run(self, reference: str, *command: str) -> str:
        """Run a command in a container; return what it prints."""
        limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"]
        options = ["--rm", "--network=none", *limits]
        return self._run(
            self._podman(
                "--cgroup-manager=cgroupfs", "--runtime=runc", "run", *options, reference, *command
            )
        ).stdout

    def tree(self, reference: str) -> Tree:
        """Return the tree of an image that was pulled."""
        target = self.directory / "tree.json"
        mount = self._podman("image", "mount", reference)
        root = "" if self.root == Path("/") else str(self.root)
        self._run([sys.executable, "-c", READ_TREE, root, str(target), *mount])
        return load_tree(target)

    def _podman(self, *arguments: str) -> list[str]:
        settings = ("storage", "registries")
        environment = [
            f"CONTAINERS_{name.upper()}_CONF={self.directory}/{name}.conf" for name in settings
        ]
        path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
        return ["env", path, *environment, "chroot", str(self.root), "podman", *arguments]

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command where the root is complete, and what it mounts is gone afterwards."""
        enter = ["unshare", "--mount", "sh", "-c", ENTER, "enter"]
        ended = subprocess.run(
            [*enter, str(self.root), str(self.directory), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        return ended


def later_root() -> Path:
    """Return the root of a later Debian with podman, which is made where the cache lacks it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lazyimg/podman"
    root = cache / SUITE
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            with tempfile.TemporaryDirectory(dir=cache) as aside:
                make_root(Path(aside, "root")).rename(root)
    return root


def make_root(root: Path) -> Path:
    """Unpack podman and what it needs; nothing in it is configured, nor has to be."""
    command = ["mmdebstrap", "--quiet", "--variant=extract", "--include=podman", SUITE]
    ended = subprocess.run([*command, str(root)], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    root.chmod(0o755)
    for name in ("bin", "sbin", "lib", "lib64"):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    for name in ("dev", "proc", "run", "sys", "tmp", "var/tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("doc", "locale", "man"):
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    (root / "etc/resolv.conf").touch()
    return root
