"""Whether this process would wait for itself."""

from __future__ import annotations

import sys
from contextlib import chdir
from pathlib import Path

import pytest

from lazyimg.errors import ConfigurationError, UsageError
from lazyimg.host import own_mounts
from lazyimg.host.mount_table import MountEntry
from lazyimg.host.own_mounts import (
    OwnMounts,
    find_served,
    own_paths,
    parse_mapped_files,
    refuse_covering,
    refuse_own_mounts,
)


def entry(mount_point: str, fs_type: str, *options: str, source: str = "none") -> MountEntry:
    return MountEntry(1, 0, (0, 1), "/", mount_point, ("ro",), fs_type, source, options)


OWN = OwnMounts(Path("/state"), "ours")


TABLE = [
    entry("/", "ext4"),
    entry("/served", "erofs", "ro", "fsid=a", "domain_id=ours"),
    entry("/other", "erofs", "ro", "fsid=a", "domain_id=theirs"),
    entry("/file", "erofs", "ro"),
    entry("/image", "erofs", "ro", source="/state/bootstraps/a"),
    entry("/by-loops", "erofs", "ro", source="/state/loops/a"),
    entry("/image-of-others", "erofs", "ro", source="/other/bootstraps/a"),
    entry("/image-elsewhere", "erofs", "ro", source="/state/a"),
    entry("/no-image", "ext4", "ro", source="/state/bootstraps/a"),
    entry("/state/fuse", "fuse", "ro"),
    entry("/over-image", "overlay", "lowerdir=/x:/image", "upperdir=/u"),
    entry("/over", "overlay", "lowerdir=/served:/x", "upperdir=/u"),
    entry("/plain", "overlay", "lowerdir=/x:/other", "upperdir=/u"),
    entry("/strange", "overlay", "ro"),
    entry("/served/inner", "tmpfs"),
]


@pytest.mark.parametrize(
    "path",
    [
        "/served",
        "/served/usr/bin/python3",
        "/over/lib",
        "/image",
        "/image/a",
        "/by-loops/a",
        "/over-image/a",
        "/state/fuse/a",
    ],
)
def test_path_that_is_served(path: str) -> None:
    found = find_served(TABLE, OWN, ["/usr", path])
    assert found is not None
    assert found[0] == path


@pytest.mark.parametrize(
    "path",
    [
        "/usr",
        "/servedx",
        "/other/a",
        "/file/a",
        "/plain/a",
        "/strange",
        "/served/inner/a",
        "/image-of-others/a",
        "/image-elsewhere/a",
        "/no-image/a",
        "/state/bootstraps",
    ],
)
def test_path_that_is_not_served(path: str) -> None:
    assert find_served(TABLE, OWN, [path]) is None


def test_path_on_no_mount() -> None:
    assert find_served(TABLE[1:], OWN, ["/usr"]) is None
    assert find_served([entry("/over", "overlay", "lowerdir=/a")], OWN, ["/over/b"]) is None


def test_own_paths() -> None:
    paths = own_paths()
    assert sys.executable in paths
    assert str(Path.cwd()) in paths
    assert any("/libc.so" in path or "/libc-" in path for path in paths)
    assert all(path.startswith("/") for path in paths)


def test_own_paths_without_a_working_directory(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with chdir(gone):
        gone.rmdir()
        assert f"{gone} (deleted)" in own_paths()


def test_mapped_files() -> None:
    text = (
        b"55d4-55d5 r--p 00000000 fe:01 123                      /usr/bin/python 3\n"
        b"7f00-7f01 rw-p 00000000 00:00 0 \n"
        b"7f02-7f03 r-xp 00000000 fe:01 124                      /lib/old.so (deleted)\n"
        b"7ffd-7ffe rw-p 00000000 00:00 0                        [stack]\n"
    )
    assert parse_mapped_files(text) == {"/usr/bin/python 3", "/lib/old.so"}


def test_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_mounts, "parse_mount_table", lambda _text: TABLE)
    refuse_own_mounts(OWN, [Path("/var/lib/lazyimg")])
    with pytest.raises(ConfigurationError) as raised:
        refuse_own_mounts(OWN, [Path("/var/lib/lazyimg"), Path("/served/../served/state")])
    assert str(raised.value) == (
        "/served/state: it lies on /served, which this process would serve itself; run lazyimg"
        " from, and keep its state on, a file system of the host"
    )


def test_refusal_of_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_mounts, "parse_mount_table", lambda _text: TABLE)
    monkeypatch.setattr(own_mounts, "working_directory", lambda: "/over/work")
    with pytest.raises(ConfigurationError, match=r"^/over/work: it lies on /over, "):
        refuse_own_mounts(OWN, [])


@pytest.mark.parametrize(
    "directory", ["/", "/etc", "/proc", sys.prefix, str(Path(sys.executable).parent)]
)
def test_mount_that_would_hide_what_this_process_runs_from(directory: str) -> None:
    with pytest.raises(UsageError, match="which the daemon needs itself, is refused; choose"):
        refuse_covering(directory, [])


def test_mount_that_would_hide_the_state(tmp_path: Path) -> None:
    state, link = tmp_path / "state", tmp_path / "link"
    (state / "root").mkdir(parents=True)
    link.symlink_to(state)
    for directory in (tmp_path, state, state / "root", link):
        with pytest.raises(UsageError) as raised:
            refuse_covering(str(directory), [link / "root"])
        assert str(raised.value).startswith(f"{directory}: a mount that hides {tmp_path}/")
    for directory in (state / "root/mnt", link / "root/mnt/one"):
        with pytest.raises(UsageError) as raised:
            refuse_covering(str(directory), [link / "root"])
        assert str(raised.value) == (
            f"{directory}: a mount inside {directory.parents[directory.name == 'one']}, which the"
            " daemon needs itself, is refused; choose another directory"
        )
    for beside in ("other", "state/roo", "state/root2"):
        refuse_covering(str(tmp_path / beside), [link / "root"])
