"""What runs inside of kernel-vm before and after a reboot, below the real containerd.

`python -m tests.real.reboot_guest SHARE`: SHARE is a directory of the host with the storage of a
registry that has the image `app:1`, and `expected.json`, what reading all of its data prints. At
first the image is pulled, and containers run. Lines on standard output, as they come true:

    synced     a container has read everything, another one runs, and the disk has it all

After the power was cut, without a registry:

    started    daemon and containerd run again
    ran        a new container has read everything
    removed    nothing is left of the image
    done
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.real.containerd import Containerd, running_containerd
from tests.real.docker_registry import running_registry
from tests.real.lazyimg_process import Lazyimg, mounts_below

PORT: Final = 5000  # of the registry; nobody else is in the kernel
IMAGE: Final = f"127.0.0.1:{PORT}/app:1"
READ: Final = ("sh", "-c", "sha256sum /data/*")
WAIT: Final = ("sh", "-c", "while :; do sleep 1; done")
OPTIONS: Final = ("--cgroup", "", "--snapshotter", "lazyimg")


def main() -> None:
    """Pull and run, or see what is left."""
    share, disk = Path(sys.argv[1]), Path(os.environ["LAZYIMG_VM_DISK"])
    expected = json.loads((share / "expected.json").read_text())
    state, directory = disk / "state", disk / "containerd"
    lazyimg = Lazyimg(state, {"LAZYIMG_SNAPSHOTTER_ADDRESS": "/run/snapshotter.sock"})
    plugin = '[proxy_plugins.lazyimg]\ntype = "snapshot"\naddress = "/run/snapshotter.sock"\n'
    pulled = state.exists()
    if pulled:
        shutil.rmtree(directory / "state")  # which is on a tmpfs otherwise
        with lazyimg.serving(), running_containerd(directory, plugin) as containerd:
            say("started")
            look(lazyimg, containerd, expected)
        say("done")
    else:
        with (
            running_registry(share, port=PORT),
            lazyimg.serving(),
            running_containerd(directory, plugin) as containerd,
        ):
            begin(lazyimg, containerd, expected)
            signal.pause()
    signal.pause()


def say(word: str) -> None:
    """Write a line that the host sees at once."""
    print(word, flush=True)  # noqa: T201 - for the host


def begin(lazyimg: Lazyimg, containerd: Containerd, expected: str) -> None:
    """Pull the image, read it in one container, and leave another one running."""
    lazyimg.verb("pull", "--containerd", containerd.directory / "socket", IMAGE)
    assert containerd.ctr("run", "--rm", *OPTIONS, IMAGE, "reads", *READ) == expected
    subprocess.run(
        ["ctr", "--address", containerd.directory / "socket", "run", "--detach", *OPTIONS,
         IMAGE, "waits", *WAIT],
        check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    os.sync()
    say("synced")


def look(lazyimg: Lazyimg, containerd: Containerd, expected: str) -> None:
    """Run a new container of what was pulled, and remove it all."""
    assert containerd.ctr("run", "--rm", *OPTIONS, IMAGE, "again", *READ) == expected
    say("ran")
    containerd.ctr("container", "rm", "waits")
    containerd.ctr("image", "rm", "--sync", IMAGE)
    assert containerd.ctr("snapshots", "--snapshotter", "lazyimg", "ls").splitlines()[1:] == []
    assert mounts_below(lazyimg.root / "mnt") == []
    assert list((lazyimg.root / "snapshotter/snapshots").iterdir()) == []
    say("removed")


if __name__ == "__main__":
    main()
