"""A net below tests that read what a process serves: nobody stays stuck, and nothing is left.

    with guarded(directory) as guard:                  # once; everything is mounted below it
        with safety_net(guard, directory) as net:      # for each test
            net.run(["cat", path])                     # each reader is a process with a limit
            net.call(read_tree, mount)                 # or a function, in a process of its own
            with net.reading(mount, files, processes=8) as readers:
                ...

At the end of a test, however it ends, every reader is killed and must be gone. If one is not, the
FUSE connections are aborted and the daemons killed, which frees it, and the test has failed; so has
one that leaves a mount, and one that takes longer than LIMIT. A test itself opens no file of a
mount: it could not be killed. See `tests.real.guard` for what happens when it does.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

from tests.real import guard as freeing
from tests.real.readers import Readers, running_readers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

PROJECT: Final = Path(__file__).resolve().parents[2]
LIMIT: Final = 420.0
"""Seconds for one test, from its start until everything is gone."""

READING: Final = 60.0
"""Seconds for one reader, unless said otherwise."""

ENDING: Final = 10.0
"""Seconds within which a reader that was killed is gone."""

_CALL: Final = """
import pickle, sys
sys.path[:0] = ["", "formats"]
function, arguments = pickle.load(sys.stdin.buffer)
try:
    answer = function(*arguments), None
except Exception as error:
    answer = None, error
pickle.dump(answer, sys.stdout.buffer)
"""


class StuckError(Exception):
    """Something did not end by itself, or was left."""


class Guard:
    """The process that acts when the tests cannot; see `tests.real.guard`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def _channel(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def limit(self, seconds: float) -> None:
        """Let it act after so many seconds; 0: not."""
        print("limit", seconds, file=self._channel, flush=True)

    def tell_connection(self, number: int) -> None:
        """Let it know a FUSE connection."""
        print("fuse", number, file=self._channel, flush=True)

    def close(self) -> str:
        """End it; give what it did."""
        said, _ = self._process.communicate(timeout=4 * ENDING)
        return said


@contextmanager
def guarded(directory: Path) -> Iterator[Guard]:
    """Run a guard over a directory; it must have had nothing to do.

    Raises:
        StuckError: it had.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", freeing.__file__, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        start_new_session=True,
    )
    guard = Guard(process)
    try:
        yield guard
    finally:
        said = guard.close()
    if said:
        raise StuckError(said)


class SafetyNet:
    """One test's net.

    Attributes:
        directory: below which everything is mounted.
    """

    def __init__(self, guard: Guard, directory: Path) -> None:
        self.directory = directory
        self._guard = guard
        self._readers: list[subprocess.Popen[Any]] = []
        self._connections: set[int] = set()

    def start(self, command: list[str | Path], *, cwd: Path | str = "/") -> subprocess.Popen[bytes]:
        """Start a process that reads; what it says is kept for `communicate`."""
        self.watch()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            start_new_session=True,
        )
        self._readers.append(process)
        return process

    def run(self, command: list[str | Path], *, timeout: float = READING) -> bytes:
        """Run a process that reads to its end; give what it prints.

        Raises:
            OSError: it failed; the text is what it said.
            StuckError: it did not end within its time.
        """
        process = self.start(command)
        output, errors = self.finish(process, timeout=timeout)
        if process.returncode:
            raise OSError(errors.decode(errors="replace") or f"status {process.returncode}")
        return output

    def finish(
        self, process: subprocess.Popen[bytes], *, timeout: float = READING
    ) -> tuple[bytes, bytes]:
        """Wait for a process of `start`; give what it printed, and what it said of failures.

        Raises:
            StuckError: it did not end within its time.
        """
        try:
            return process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise StuckError(f"{process.args!r} did not end within {timeout:g} s") from error

    def call(self, function: Callable[..., T], *arguments: object, timeout: float = READING) -> T:
        """Run a module's function in a process of its own; give what it gives.

        Raises:
            Exception: what it raised.
            StuckError: it did not end within its time.
        """
        process = self.start([sys.executable, "-c", _CALL], cwd=PROJECT)
        try:
            output, errors = process.communicate(
                pickle.dumps((function, arguments)), timeout=timeout
            )
        except subprocess.TimeoutExpired as error:
            raise StuckError(f"{function.__name__} did not end within {timeout:g} s") from error
        assert process.returncode == 0, errors.decode(errors="replace")
        result: T
        result, failure = pickle.loads(output)  # noqa: S301 - our own
        if failure is not None:
            raise failure
        return result

    @contextmanager
    def reading(
        self, mount: Path, reference: Path, *, processes: int, **options: Any
    ) -> Iterator[Readers]:
        """Run readers that compare, see `tests.real.readers`."""
        self.watch()
        with running_readers(mount, reference, processes=processes, **options) as readers:
            self._readers += readers.processes
            yield readers

    def watch(self) -> None:
        """Tell the guard of the FUSE connections that there are now."""
        connections = freeing.connections_at(str(self.directory))
        self._connections |= connections  # which mounts that are detached keep
        for number in connections:
            self._guard.tell_connection(number)

    def close(self) -> None:
        """Kill the readers that are left, and prove that none is.

        Raises:
            StuckError: one did not end: not before everything was freed, or not at all.
        """
        stuck = kill_readers(self._readers)
        if not stuck:
            return
        names = [f"{process.args!r} ({process.pid})" for process in stuck]
        done = freeing.free(str(self.directory), self._connections)
        left = kill_readers(stuck)
        raise StuckError(
            f"readers that could not be killed: {', '.join(names)}; {'; '.join(done)};"
            f" then {len(left)} were left"
        )


def kill_readers(readers: list[subprocess.Popen[Any]]) -> list[subprocess.Popen[Any]]:
    """Kill processes, and give those that do not end within ENDING."""
    for process in readers:
        if process.poll() is None:
            process.kill()
    end = time.monotonic() + ENDING
    while any(process.poll() is None for process in readers) and time.monotonic() < end:
        time.sleep(0.02)
    left = [process for process in readers if process.poll() is None]
    for process in readers:
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None and process not in left:
                stream.close()
    return left


@contextmanager
def safety_net(guard: Guard, directory: Path, *, kept: Path | None = None) -> Iterator[SafetyNet]:
    """Give a net for one test; `kept` stays mounted.

    Raises:
        StuckError: readers or mounts were left.
    """
    guard.limit(LIMIT)
    net = SafetyNet(guard, directory)
    with ExitStack() as ending:
        ending.callback(guard.limit, 0)
        ending.callback(_take_away, directory, kept)
        ending.callback(net.close)
        yield net


def _take_away(directory: Path, kept: Path | None) -> None:
    """Detach what is left below a directory, and say so."""
    left = [
        mount.point
        for mount in freeing.mounts_at(str(directory))
        if kept is None or Path(mount.point) != kept
    ]
    if left:
        freeing.kill(freeing.daemons_at(str(directory)))
        for point in reversed(left):
            subprocess.run(["umount", "-l", point], check=False, timeout=ENDING)
        raise StuckError(f"left mounted: {', '.join(left)}")


@contextmanager
def loop_disk(directory: Path, *, size: int, kind: str = "ext4") -> Iterator[Path]:
    """Give a new file system of `size` bytes, mounted below a directory, until the block ends.

    Kinds: ext4, xfs, btrfs.
    """
    image, top = directory / f"{kind}.img", directory / kind
    top.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    options = {"ext4": ["-F", "-m", "0", "-E", "lazy_itable_init=1"], "xfs": ["-f"]}
    subprocess.run(
        [f"mkfs.{kind}", "-q", *options.get(kind, ["-f"]), image], check=True, timeout=120
    )
    subprocess.run(["mount", "-o", "loop", image, top], check=True, timeout=60)
    try:
        yield top
    finally:
        subprocess.run(["umount", top], check=True, timeout=60)
        image.unlink()
        top.rmdir()
