"""A process for mount(2), umount2(2), loop devices and reads: `python -I -S mount_child.py`.

It is run by its path, imports the standard library only, and holds no fds but its own three and a
lock; it makes one call at a time. A request is a line of JSON on standard input: {"call": name,
arguments by name}. To each it writes one on standard output: {} when done, or {"errno": number,
"call": system call, "log": the kernel's own words, if any}. It ends when its input does.

Source: mount(2), umount2(2), fsopen(2), fsconfig(2), fsmount(2), move_mount(2),
open_tree(2), mount_setattr(2), user_namespaces(7), loop(4);
include/uapi/linux/mount.h, include/uapi/linux/loop.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import stat
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

# The same numbers on every architecture that Python runs on but alpha.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_MOUNT_SETATTR = 442
_OPEN_TREE_CLONE = 1
_AT_EMPTY_PATH = 0x1000
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_IDMAP = 0x100000
_MS_PRIVATE = 1 << 18
_CLONE_NEWUSER = 0x10000000
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_AT_FDCWD = -100

_LOOP_CONTROL = "/dev/loop-control"
_LOOP_NODE = "/dev/loop"  # and its number
_LOOP_CHANGE_FD = 0x4C06
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_LO_FLAGS = 1 | 4 | 16  # READ_ONLY, AUTOCLEAR, DIRECT_IO
_LOOP_BLOCK = 4096  # bytes; of a disk whose blocks are that long, others are not read directly
_LOOP_ATTEMPTS = 64  # others take free ones too
_SYS_BLOCK = "/sys/block"

_OPTIONS_LIMIT = 4095  # bytes: mount(2) copies one page, with its NUL

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.syscall.restype = ctypes.c_long


class CallError(Exception):
    """A system call that failed: its name, its errno, and what the kernel says."""

    def __init__(self, call: str, number: int, log: str = "") -> None:
        super().__init__(call, number, log)
        self.call = call
        self.number = number
        self.log = log


def _mount(source: str, target: str, fs_type: str | None, flags: int, options: str) -> None:
    if _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        None if fs_type is None else os.fsencode(fs_type),
        flags,
        os.fsencode(options),
    ):
        raise CallError("mount", ctypes.get_errno())


def mount_file_system(
    *,
    source: str,
    target: str,
    fs_type: str,
    flags: int,
    options: list[list[str]],
    parts: bool = False,
) -> None:
    """Mount a new file system; `options` are [name, value] or [name].

    Values may hold no comma (escape it as the file system wants it), unless they are given one by
    one: by fsconfig(2), if `parts` says so, or if they do not fit in mount(2)'s page.
    """
    text = ",".join("=".join(option) for option in options)
    if not parts and len(os.fsencode(text)) <= _OPTIONS_LIMIT:
        _mount(source, target, fs_type, flags, text)
    else:
        _mount_by_parts(source, target, fs_type, flags, options)


def _mount_by_parts(
    source: str, target: str, fs_type: str, flags: int, options: list[list[str]]
) -> None:
    context = _syscall("fsopen", _SYS_FSOPEN, os.fsencode(fs_type), 1)
    try:
        mount = _make_mount(context, source, flags, options)
    finally:
        os.close(context)
    try:
        _syscall(
            "move_mount",
            _SYS_MOVE_MOUNT,
            mount,
            b"",
            _AT_FDCWD,
            os.fsencode(target),
            _MOVE_MOUNT_F_EMPTY_PATH,
        )
    finally:
        os.close(mount)


def _make_mount(context: int, source: str, flags: int, options: list[list[str]]) -> int:
    """Give the fd of a mount that is nowhere yet."""
    try:
        _configure(context, ["source", source])
        if flags & MS_RDONLY:
            _configure(context, ["ro"])
        for option in options:
            _configure(context, option)
        _syscall("fsconfig", _SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
    except CallError as error:
        raise CallError(error.call, error.number, _kernel_log(context)) from error
    attributes = flags & (MS_RDONLY | MS_NOSUID | MS_NODEV)  # MOUNT_ATTR_* have the same bits
    return _syscall("fsmount", _SYS_FSMOUNT, context, 1, attributes)


def _configure(context: int, option: list[str]) -> None:
    name = os.fsencode(option[0])
    if len(option) == 1:
        _syscall("fsconfig", _SYS_FSCONFIG, context, _FSCONFIG_SET_FLAG, name, None, 0)
    else:
        value = os.fsencode(option[1])
        _syscall("fsconfig", _SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, name, value, 0)


def _syscall(name: str, number: int, *arguments: int | bytes | None) -> int:
    result: int = _libc.syscall(
        ctypes.c_long(number),
        *(ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments),
    )
    if result < 0:
        raise CallError(name, ctypes.get_errno())
    return result


def _kernel_log(context: int) -> str:
    """What the kernel wrote to a file system context: one message per read(2)."""
    lines: list[str] = []
    try:
        while len(lines) < 20:
            lines.append(os.read(context, 4096).decode(errors="replace").strip())
    except OSError:  # ENODATA: that was all
        pass
    return "; ".join(lines)


def mount_loops(
    *, name: str, source: str, target: str, fs_type: str, flags: int, devices: list[str]
) -> None:
    """Mount files as block devices: read-only loop devices, which are gone with the mount.

    `name` is a path for the mount table: the first one's name, while this goes on.
    """
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(_loop_over(path)) for path in (source, *devices)]
        first, *others = [f"{_LOOP_NODE}{number}" for number in opened]
        try:
            os.makedirs(os.path.dirname(name), 0o700, exist_ok=True)  # noqa: PTH103, PTH120  small
            with contextlib.suppress(FileNotFoundError):  # of a process that was killed
                os.unlink(name)  # noqa: PTH108
            os.symlink(first, name)  # noqa: PTH211
        except OSError as error:
            raise CallError("symlink", error.errno or 0) from error
        stack.callback(os.unlink, name)
        options = [["device", device] for device in others]
        _mount_by_parts(name, target, fs_type, flags, options)


@contextlib.contextmanager
def _loop_over(path: str) -> Iterator[int]:
    """Make a read-only loop device over a file; it is gone with the last who has it open."""
    with _opened(path) as file, _opened(_LOOP_CONTROL, call="loop-control") as control:
        for _ in range(_LOOP_ATTEMPTS):
            number = _ioctl("LOOP_CTL_GET_FREE", control, _LOOP_CTL_GET_FREE)
            with _opened(_loop_node(number)) as loop:
                try:
                    _ioctl("LOOP_CONFIGURE", loop, _LOOP_CONFIGURE, _loop_config(file))
                except CallError as error:
                    if error.number == errno.EBUSY:
                        continue
                    raise
                yield number
                return
    raise CallError("LOOP_CONFIGURE", errno.EBUSY)


def _ioctl(name: str, fd: int, number: int, argument: int | bytes = 0) -> int:
    try:
        return fcntl.ioctl(fd, number, argument)  # type: ignore[return-value]  # no buffer
    except OSError as error:
        raise CallError(name, error.errno or 0) from error


def _loop_config(file: int) -> bytes:
    """Give a struct loop_config."""
    info = struct.pack("=40x2I4xI176x", 0, 0, _LO_FLAGS)
    return struct.pack("=2I", file, _LOOP_BLOCK) + info + bytes(64)


def _loop_node(number: int) -> str:
    """Give the path of a loop device's node; a container's /dev lacks those that are new."""
    node = f"{_LOOP_NODE}{number}"
    try:
        if not os.path.exists(node):  # noqa: PTH110
            with open(f"{_SYS_BLOCK}/loop{number}/dev") as file:  # noqa: PTH123
                major, minor = map(int, file.read().split(":"))
            with contextlib.suppress(FileExistsError):
                os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(major, minor))
    except OSError as error:
        raise CallError(f"mknod of {node}", error.errno or 0) from error
    return node


@contextlib.contextmanager
def _opened(path: str, call: str = "open") -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CallError(call, error.errno or 0) from error
    try:
        yield fd
    finally:
        os.close(fd)


def switch_loops(*, numbers: list[int], source: str, target: str) -> None:
    """Have loop devices over the file `source` read `target` from now on, of the same bytes.

    Waits for what is being read from them.
    """
    with _opened(target) as file:
        for number in numbers:
            with _opened(_loop_node(number)) as loop:  # while it is open it stays what it is
                if _backing_file(number) == source:
                    _ioctl("LOOP_CHANGE_FD", loop, _LOOP_CHANGE_FD, file)


def _backing_file(number: int) -> str:
    try:
        with open(f"{_SYS_BLOCK}/loop{number}/loop/backing_file") as file:  # noqa: PTH123
            return file.read().rstrip("\n")
    except OSError:  # it is free
        return ""


def mount_bind(*, source: str, target: str, read_only: bool) -> None:
    """Show a mounted directory at a second place."""
    _mount(source, target, None, MS_BIND, "")
    if read_only:
        try:
            _mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY, "")
        except CallError:
            unmount(target=target, lazy=True)
            raise


def mount_mapped(*, source: str, target: str, uids: list[list[int]], gids: list[list[int]]) -> None:
    """Show a directory at a second place, read-only, with other owners.

    `uids` and `gids` are [owner on the file system, owner that is shown, how many].
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    tree = _syscall("open_tree", _SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags)
    try:
        namespace = _open_user_namespace(uids, gids)
        try:
            wanted = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_IDMAP
            attributes = struct.pack("4Q", wanted, 0, _MS_PRIVATE, namespace)
            _syscall(
                "mount_setattr", _SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes,
                len(attributes),
            )  # fmt: skip
        finally:
            os.close(namespace)
        place = os.fsencode(target)
        _syscall(
            "move_mount", _SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, place, _MOVE_MOUNT_F_EMPTY_PATH
        )
    finally:
        os.close(tree)


def _open_user_namespace(uids: list[list[int]], gids: list[list[int]]) -> int:
    """Give an fd of a new user namespace with these ids; it lives as long as the fd, or a mount."""
    answers, tell = os.pipe()
    waits, hold = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(hold)
        failed = _libc.unshare(_CLONE_NEWUSER)
        os.write(tell, bytes([ctypes.get_errno() if failed else 0]))
        os.read(waits, 1)  # until the other side is closed
        os._exit(0)
    os.close(tell)
    try:
        said = os.read(answers, 1)
        if said != b"\0":
            raise CallError("unshare", said[0] if said else errno.EIO)
        _write(f"/proc/{process}/uid_map", uids)
        _write(f"/proc/{process}/gid_map", gids)
        return os.open(f"/proc/{process}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CallError("user_namespaces", error.errno or 0) from error
    finally:
        for fd in (answers, waits, hold):
            os.close(fd)
        os.waitpid(process, 0)


def _write(path: str, ids: list[list[int]]) -> None:
    """Write ids as user_namespaces(7) has them, all at once."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, "".join(f"{first} {shown} {count}\n" for first, shown, count in ids).encode())
    finally:
        os.close(fd)


def unmount(*, target: str, lazy: bool) -> None:
    """Take the topmost mount off a directory; `lazy` even if it is in use."""
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
    if _libc.umount2(os.fsencode(target), flags):
        raise CallError("umount2", ctypes.get_errno())


def read_byte(*, path: str, offset: int) -> None:
    """Read a byte of a file, for what the kernel does then."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise CallError("open", error.errno or 0) from error
    try:
        os.pread(fd, 1, offset)
    except OSError as error:
        raise CallError("pread", error.errno or 0) from error
    finally:
        os.close(fd)


_CALLS: dict[str, Callable[..., None]] = {
    "mount": mount_file_system,
    "mount_loops": mount_loops,
    "switch_loops": switch_loops,
    "bind": mount_bind,
    "map": mount_mapped,
    "unmount": unmount,
    "read": read_byte,
}


def answer(line: bytes) -> bytes:
    """Do what a request says; gives the answer."""
    request = json.loads(line)
    call = _CALLS[request.pop("call")]
    try:
        call(**request)
    except CallError as error:
        reply = {"errno": error.number, "call": error.call, "log": error.log}
    else:
        reply = {}
    return json.dumps(reply).encode() + b"\n"


def main(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until there are no more."""
    for line in requests:
        replies.write(answer(line))
        replies.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
