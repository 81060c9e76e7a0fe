"""A process that outlives the others: `main` with a group's fd and the cache's directory.

It holds the group's fd, and waits for the end of its standard input, which is
a socket that the worker and the supervisor have open. When both are gone nobody will fill anything
any more, and closing the group would let every read pass: a hole would read as zeros. So it first
seals what is left: each marked file of the cache that somebody has open is cut to nothing, so
that reads give EIO, and what waits is denied. Then it ends.

It imports little, for its memory is what this costs every node: no `lazyimg_formats`.

Source: include/uapi/linux/fanotify.h; proc_pid_fdinfo(5).
"""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
from threading import Thread

from lazyimg.host.leases import is_open_elsewhere

EIO = 5
ALLOW = 1
DENY = 2 | EIO << 24
MAX_FDS = 1 << 16  # as `device.MAX_FDS`

_EVENT = struct.Struct("=IBBHQii")
_RANGE = struct.Struct("=BBHIQQ")
_RESPONSE = struct.Struct("=iI")


def find_marked(fdinfo: str) -> set[int]:
    """Give the inode numbers of the marks in a group's /proc/self/fdinfo/<fd>."""
    words = [line.split() for line in fdinfo.splitlines() if line.startswith("fanotify ino:")]
    return {int(found[1].removeprefix("ino:"), 16) for found in words}


def find_files(directory: str, nodes: set[int]) -> list[str]:
    """Give the files <directory>/<name>/data that have these inode numbers."""
    found = []
    try:
        names = os.listdir(directory)  # noqa: PTH208 - pathlib is large
    except FileNotFoundError:
        names = []  # then nothing of it is mounted
    for name in names:
        path = f"{directory}/{name}/data"
        try:
            if os.stat(path).st_ino in nodes:  # noqa: PTH116
                found.append(path)
        except OSError:
            continue  # it is no device's
    return found


def answers_to(data: bytes, process: int) -> list[tuple[int, int]]:
    """Give (fd, response) for the events in the bytes of a read(2): what `process` cuts may be."""
    answers = []
    while len(data) >= _EVENT.size:
        length, _, _, metadata, _, fd, reader = _EVENT.unpack_from(data)
        cuts = False
        if length >= metadata + _RANGE.size:
            cuts = reader == process and _RANGE.unpack_from(data, metadata)[5] == 0
        if fd >= 0:
            answers.append((fd, ALLOW if cuts else DENY))
        data = data[max(length, _EVENT.size) :]
    return answers


def deny_everything(group: int) -> None:
    """Deny what others have read and not answered; before anything is read here."""
    for number in range(MAX_FDS):
        _answer(group, number, DENY)


def _answer(group: int, fd: int, response: int) -> None:
    try:
        os.write(group, _RESPONSE.pack(fd, response))
    except OSError:
        return  # there is no such event


class Denying:
    """A thread that denies every event while it is used as a context."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._end, self._wake = os.pipe()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        """Begin."""
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        """Deny what has come until now, and end."""
        os.close(self._wake)
        self._thread.join()
        os.close(self._end)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._group, select.POLLIN)
        poll.register(self._end, 0)  # POLLHUP is always reported
        ending = False
        while not ending:
            ending = self._end in dict(poll.poll())
            while data := self._read():
                for fd, response in answers_to(data, os.getpid()):
                    _answer(self._group, fd, response)
                    os.close(fd)

    def _read(self) -> bytes:
        try:
            return os.read(self._group, 8192)
        except BlockingIOError:
            return b""


def seal(group: int, directory: str) -> list[str]:
    """Cut the marked files to nothing that somebody has open; gives them.

    It is for the end: what was read by others must have been denied before.
    """
    with open(f"/proc/self/fdinfo/{group}") as file:  # noqa: PTH123
        nodes = find_marked(file.read())
    sealed = []
    with Denying(group):
        for path in find_files(directory, nodes):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if is_open_elsewhere(fd):
                os.ftruncate(fd, 0)
                sealed.append(path)
            os.close(fd)
    return sealed


def _stay() -> None:
    """Be the last that the kernel kills when memory is short, where that may be asked for."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
            file.write("-1000")
    except OSError:
        return


def _wait_for_end() -> None:
    """Say that the guard is ready; return when nobody has the other end."""
    try:
        os.write(0, b"r")
        while os.read(0, 4096):
            pass
    except OSError:
        return  # it was gone before this was said


def main(arguments: list[str]) -> int:
    """Wait for the end of standard input, then seal; `arguments`: see the module's text."""
    group, directory = int(arguments[0]), arguments[1]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with those whom it guards
    _stay()
    _wait_for_end()
    deny_everything(group)
    for path in seal(group, directory):
        sys.stderr.write(f"lazyimg: {path}: incomplete, mounted, and not served: given up\n")
    return 0
