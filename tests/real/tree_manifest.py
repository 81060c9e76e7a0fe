"""Everything that a file system says about a tree, as a value that can be kept and compared.

`read_tree` looks at a tree, `differences` says in lines how one differs from what was expected,
`dump_tree` and `load_tree` write and read JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Tree: TypeAlias = "dict[str, File]"
"""Path below the root ("." is the root itself) -> what is there."""

KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


@dataclass(frozen=True, slots=True)
class File:
    """One name in a tree. What a kind of file does not have is None."""

    kind: str
    mode: str
    """Permission bits, octal."""
    uid: int
    gid: int
    mtime_ns: int
    xattrs: dict[str, str]
    """Values in hexadecimal."""
    links: int
    same_as: str | None
    """The first path, in order, of those that name the same inode, where there are several."""
    rdev: tuple[int, int] | None = None
    target: str | None = None
    size: int | None = None
    sha256: str | None = None


def read_tree(root: Path) -> Tree:
    """Read a tree, with all content. Names that are not UTF-8 keep their bytes as surrogates.

    The links of directories are counted here where the file system does not and says 1.
    """
    tree: Tree = {}
    first_names: dict[tuple[int, int], str] = {}
    for path in walk(root):
        name = str(path.relative_to(root))
        status = path.lstat()
        first = None
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            first = first_names.setdefault((status.st_dev, status.st_ino), name)
        tree[name] = read_file(path, status, first)
    return tree


def walk(directory: Path) -> Iterator[Path]:
    """Yield a directory and all below it, in the order of the paths' parts."""
    yield directory
    with os.scandir(directory) as entries:
        names = sorted(entries, key=lambda entry: entry.name)
    for entry in names:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(directory / entry.name)
        else:
            yield directory / entry.name


def read_file(path: Path, status: os.stat_result, same_as: str | None) -> File:
    """Describe one file."""
    kind = stat.S_IFMT(status.st_mode)
    is_device = kind in {stat.S_IFCHR, stat.S_IFBLK}
    return File(
        kind=KINDS[kind],
        mode=f"{stat.S_IMODE(status.st_mode):04o}",
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        xattrs={
            name: os.getxattr(path, name, follow_symlinks=False).hex()
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        },
        links=status.st_nlink if kind != stat.S_IFDIR else count_links(path, status),
        same_as=same_as,
        rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else None,
        target=str(path.readlink()) if kind == stat.S_IFLNK else None,
        size=status.st_size if kind in {stat.S_IFREG, stat.S_IFLNK} else None,
        sha256=digest_of(path) if kind == stat.S_IFREG else None,
    )


def count_links(directory: Path, status: os.stat_result) -> int:
    """Return a directory's link count: its name, its own dot, and each subdirectory's dots."""
    if status.st_nlink > 1:
        return status.st_nlink
    with os.scandir(directory) as entries:
        return 2 + sum(entry.is_dir(follow_symlinks=False) for entry in entries)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(expected: Tree, found: Tree, *, limit: int = 40) -> list[str]:
    """Return a line for each path that differs, at most `limit` of them and one that counts."""
    lines = []
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            lines.append(f"{path}: missing, expected a {expected[path].kind}")
        elif path not in expected:
            lines.append(f"{path}: unexpected {found[path].kind}")
        elif expected[path] != found[path]:
            lines.append(f"{path}: {describe_change(expected[path], found[path])}")
    if len(lines) > limit:
        lines[limit:] = [f"and {len(lines) - limit} more"]
    return lines


def describe_change(expected: File, found: File) -> str:
    """Name the fields in which two files differ."""
    if expected.kind != found.kind:
        return f"expected a {expected.kind}, found a {found.kind}"
    return "; ".join(
        f"{field.name}: expected {getattr(expected, field.name)},"
        f" found {getattr(found, field.name)}"
        for field in dataclasses.fields(File)
        if getattr(expected, field.name) != getattr(found, field.name)
    )


def dump_tree(tree: Tree, path: Path) -> None:
    """Write a tree as JSON, without the fields that are None."""
    rows = {
        name: {key: value for key, value in dataclasses.asdict(file).items() if value is not None}
        for name, file in tree.items()
    }
    path.write_text(json.dumps(rows, indent=0))


def load_tree(path: Path) -> Tree:
    """Read what `dump_tree` has written."""
    tree: Tree = {}
    for name, row in json.loads(path.read_text()).items():
        rdev = tuple(row.pop("rdev")) if "rdev" in row else None
        tree[name] = File(**{"same_as": None, "rdev": rdev} | row)
    return tree
