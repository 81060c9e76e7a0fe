"""Programs of later Debians, beside those of this machine: packages unpacked, run as they are.

    containerd = unpacked("sid", "containerd") / "usr/bin/containerd"

Each is downloaded once, in some seconds, without what it depends on, and kept below
~/.cache/lazyimg/packages (or $XDG_CACHE_HOME). Take only programs that need no library but libc.

    python -m tests.real.debian_packages     downloads all that the tests take

Needs root, the network and the package mmdebstrap.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

PACKAGES: Final = (
    ("trixie", "containerd"),  # 1.7
    ("trixie", "soci-snapshotter"),
    ("trixie", "stargz-snapshotter"),
    ("sid", "containerd"),  # 2.1
)
OPTIONS: Final = (
    "--quiet",
    "--variant=custom",  # nothing is unpacked; only the lists are fetched
    "--format=null",
    # A mirror may be behind its time; its signatures are checked all the same.
    '--aptopt=Acquire::Check-Valid-Until "false"',
    '--aptopt=APT::Sandbox::User "root"',
)


def unpacked(suite: str, package: str) -> Path:
    """Return the directory in which a package lies as it would below ``/``."""
    assert (suite, package) in PACKAGES
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lazyimg/packages"
    found = cache / suite / package
    if not found.exists():
        found.parent.mkdir(parents=True, exist_ok=True)
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not found.exists():
                with tempfile.TemporaryDirectory(dir=cache) as aside:
                    download(suite, package, Path(aside)).rename(found)
    return found


def download(suite: str, package: str, directory: Path) -> Path:
    """Download and unpack a package; return where."""
    fetch = (
        f"cd {shlex.quote(str(directory))} &&"
        f' APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -qq download {package}'
    )
    run("mmdebstrap", *OPTIONS, f"--customize-hook={fetch}", suite, "/dev/null")
    (archive,) = directory.glob("*.deb")
    run("dpkg-deb", "--extract", archive, directory / "root")
    return directory / "root"


def run(*command: str | Path) -> None:
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, f"{command}: {ended.stderr}"


if __name__ == "__main__":
    for one in PACKAGES:
        print(unpacked(*one), file=sys.stderr)  # noqa: T201 - for whoever runs it
