"""The lazyimg command as its users run it: a daemon, and verbs that talk to it.

What a test repeats goes straight to the daemon's API: starting a verb takes far longer than most
of what it asks for.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from lazyimg.api.client import Client
from lazyimg.api.messages import MountReply, MountRequest, UnmountReply, UnmountRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

COMMAND: Final = str(Path(sys.executable).with_name("lazyimg"))
VERB_TIMEOUT: Final = 240.0


@dataclass
class Lazyimg:
    """A daemon's directory and socket; verbs run against it, whether or not it runs.

    It completes no images unless the settings say so: what is fetched is what tests look at.

    Attributes:
        root: the daemon's directory, on a file system that cachefiles takes.
        settings: further environment of every command.
    """

    root: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What tells every command where the daemon is."""
        return {
            **os.environ,
            "LAZYIMG_ROOT": str(self.root),
            "LAZYIMG_ADDRESS": str(self.root / "socket"),
            "LAZYIMG_CONFIG": "/dev/null",
            "LAZYIMG_COMPLETION_BYTES_PER_SECOND": "0",
            **self.settings,
        }

    def verb(self, *arguments: str | Path, status: int = 0) -> str:
        """Run a verb that must end with `status`; return what it prints."""
        ended = self.start_verb(*arguments)
        output, errors = ended.communicate(timeout=VERB_TIMEOUT)
        assert ended.returncode == status, f"{arguments}: {ended.returncode}: {errors}"
        return output

    def failure(self, *arguments: str | Path, status: int) -> str:
        """Run a verb that must fail with `status` and one line; return the line."""
        ended = self.start_verb(*arguments)
        output, errors = ended.communicate(timeout=VERB_TIMEOUT)
        assert ended.returncode == status, f"{arguments}: {ended.returncode}: {output}{errors}"
        assert errors.startswith("lazyimg: "), errors
        assert errors.count("\n") == 1, errors
        return errors

    def start_verb(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start a verb."""
        return subprocess.Popen(
            [COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def start_asking(self, question: Callable[[Client], T]) -> Future[T]:
        """Start to ask the daemon for something, in a thread."""
        pool = ThreadPoolExecutor(1)
        answer = pool.submit(question, self.client)
        pool.shutdown(wait=False)
        return answer

    @property
    def client(self) -> Client:
        """What asks the daemon."""
        return Client(self.environment["LAZYIMG_ADDRESS"])

    def start_mounting(
        self, reference: str, directory: Path, *, read_write: bool = False
    ) -> Future[MountReply]:
        """Start what `lazyimg mount` does."""
        request = MountRequest(reference=reference, directory=str(directory), read_write=read_write)
        return self.start_asking(lambda client: client.mount(request))

    def start_unmounting(self, directory: Path) -> Future[UnmountReply]:
        """Start what `lazyimg umount` does."""
        request = UnmountRequest(directory=str(directory))
        return self.start_asking(lambda client: client.unmount(request))

    def mount(self, reference: str, directory: Path, *, read_write: bool = False) -> None:
        """Mount an image; raises LazyimgError."""
        self.client.mount(
            MountRequest(reference=reference, directory=str(directory), read_write=read_write)
        )

    def unmount(self, directory: Path) -> None:
        """Unmount what `mount` mounted; raises LazyimgError."""
        self.client.unmount(UnmountRequest(directory=str(directory)))

    def status(self) -> dict[str, Any]:
        """Return the daemon's status."""
        described: dict[str, Any] = msgspec.to_builtins(self.client.status())
        return described

    @contextmanager
    def serving(
        self, *, ends: int = 0, under: Sequence[str] = ()
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run the daemon until the block ends; it must end with status `ends`.

        Args:
            ends: 0, or a signal's negative number.
            under: a command that becomes the daemon, such as setpriv.
        """
        self.root.mkdir(exist_ok=True)
        notify = self.root / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.bind(str(notify))
            channel.settimeout(60)
            daemon = subprocess.Popen(
                [*under, COMMAND, "serve"],
                stdin=subprocess.DEVNULL,
                env={**self.environment, "NOTIFY_SOCKET": str(notify)},
                start_new_session=True,
            )
            try:
                assert channel.recv(4096) == b"READY=1"
            except BaseException:
                kill_all(daemon)
                raise
            finally:
                notify.unlink()
        try:
            yield daemon
        finally:
            daemon.terminate()  # nothing, if it has ended
            try:
                status = daemon.wait(60)
            except subprocess.TimeoutExpired:
                kill_all(daemon)
                raise
        assert status == ends


def worker_of(daemon: subprocess.Popen[bytes]) -> int | None:
    """Return the process id of the daemon's worker; None while there is none.

    A worker that ended, and that the supervisor does not know of yet, is none.
    """
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[1]) == daemon.pid and fields[0] not in "ZX":
            return int(path.parent.name)
    return None


def kill_all(daemon: subprocess.Popen[bytes]) -> None:
    """Kill supervisor and worker, and wait until nothing is left of them."""
    worker = worker_of(daemon)
    with suppress(ProcessLookupError):
        os.killpg(daemon.pid, signal.SIGKILL)
    daemon.wait()
    while worker is not None and Path(f"/proc/{worker}").exists():
        time.sleep(0.01)


def mounts_below(directory: Path) -> list[str]:
    """Return what is mounted below a directory; of a daemon's root, not the tree of FUSE."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    tree = f"{directory}/fuse"
    return [point for point in points if point.startswith(f"{directory}/") and point != tree]
