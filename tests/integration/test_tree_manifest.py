"""The comparison of trees on which the equality tests rest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.real.tree_manifest import differences, dump_tree, load_tree, read_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a small tree."""
    root = tmp_path / "root"
    (root / "directory").mkdir(parents=True)
    (root / "file").write_bytes(b"content")
    (root / "other").write_bytes(b"content")
    (root / "directory/link").hardlink_to(root / "file")
    (root / "symlink").symlink_to("file")
    os.mkfifo(root / "fifo")
    (root / os.fsdecode(b"\xff")).touch()
    return root


def test_survives_json(root: Path, tmp_path: Path) -> None:
    tree = read_tree(root)
    dump_tree(tree, tmp_path / "tree.json")
    assert load_tree(tmp_path / "tree.json") == tree
    assert {name: file.same_as for name, file in tree.items() if file.same_as} == {
        "directory/link": "directory/link",
        "file": "directory/link",
    }
    assert tree["."].links == 3


def chmod(root: Path) -> None:
    (root / "file").chmod(0o600)


def rewrite(root: Path) -> None:
    times = (root / "other").stat()
    (root / "other").write_bytes(b"Content")
    os.utime(root / "other", ns=(times.st_atime_ns, times.st_mtime_ns))


def touch(root: Path) -> None:
    os.utime(root / "other", ns=(0, 1_000_000_001))


def relink(root: Path) -> None:
    times = root.stat()
    (root / "symlink").unlink()
    (root / "symlink").symlink_to("elif")
    os.utime(root / "symlink", ns=(0, 0), follow_symlinks=False)
    os.utime(root, ns=(times.st_atime_ns, times.st_mtime_ns))


def annotate(root: Path) -> None:
    os.setxattr(root / "other", "user.note", b"text")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            chmod,
            [
                "directory/link: mode: expected 0644, found 0600",
                "file: mode: expected 0644, found 0600",
            ],
        ),
        (rewrite, ["other: sha256: expected {old.sha256}, found {new.sha256}"]),
        (touch, ["other: mtime_ns: expected {old.mtime_ns}, found 1000000001"]),
        (annotate, ["other: xattrs: expected {{}}, found {{'user.note': '74657874'}}"]),
    ],
)
def test_names_what_changed(
    root: Path, change: Callable[[Path], None], expected: list[str]
) -> None:
    old = read_tree(root)
    change(root)
    new = read_tree(root)
    texts = [text.format(old=old["other"], new=new["other"]) for text in expected]
    assert differences(old, new) == texts
    assert differences(new, new) == []


def test_names_another_target(root: Path) -> None:
    old = read_tree(root)
    relink(root)
    (line,) = differences(old, read_tree(root))
    assert line.startswith("symlink: mtime_ns: ")
    assert line.endswith("; target: expected file, found elif")


def test_names_what_is_missing_unexpected_or_of_another_kind(root: Path) -> None:
    old = read_tree(root)
    new = {"new" if name == "fifo" else name: file for name, file in old.items()}
    new["other"] = old["directory"]
    assert differences(old, new) == [
        "fifo: missing, expected a fifo",
        "new: unexpected fifo",
        "other: expected a file, found a directory",
    ]
    assert differences(old, {}, limit=1) == [
        ".: missing, expected a directory",
        "and 7 more",
    ]
