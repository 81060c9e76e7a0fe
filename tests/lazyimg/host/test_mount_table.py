"""Text of /proc/self/mountinfo, as Linux 6.1 and 6.18 write it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg.errors import KernelError
from lazyimg.host.mount_table import (
    MountEntry,
    find_mount,
    mount_at,
    parse_mount_table,
    parse_mounts_on,
)

TEXT = rb"""22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
40 22 0:35 / /mnt/a\040b rw,relatime shared:7 master:2 - erofs none ro,fsid=abc,domain_id=lazyimg
41 22 0:36 /sub /mnt/c rw - overlay overlay rw,lowerdir=/mnt/a\040b:/x,upperdir=/u\134\072
42 41 0:36 /sub /mnt/c ro,nosuid - tmpfs tmp\134fs rw
"""


def test_entries() -> None:
    entries = parse_mount_table(TEXT)
    assert entries[0] == MountEntry(
        22, 1, (254, 1), "/", "/", ("rw", "relatime"), "ext4", "/dev/root", ("rw",)
    )
    assert [entry.mount_point for entry in entries] == ["/", "/mnt/a b", "/mnt/c", "/mnt/c"]
    assert entries[2].root == "/sub"
    assert entries[3].source == "tmp\\fs"


@pytest.mark.parametrize("point", ["/", "/mnt/a b", "/mnt/c", "/sub", "/x", "none"])
def test_mounts_on_one_path(point: str) -> None:
    expected = [entry for entry in parse_mount_table(TEXT) if entry.mount_point == point]
    assert parse_mounts_on(TEXT, point) == expected


def test_lines_about_others_need_not_be_understood() -> None:
    assert len(parse_mounts_on(b"nonsense\n" + TEXT, "/mnt/c")) == 2
    with pytest.raises(KernelError, match="line 1 is not understood: b'non /mnt/c sense'"):
        parse_mounts_on(b"non /mnt/c sense\n" + TEXT, "/mnt/c")


def test_options() -> None:
    entry = parse_mount_table(TEXT)[1]
    assert entry.super_option("fsid") == "abc"
    assert entry.super_option("domain_id") == "lazyimg"
    assert entry.super_option("device") is None


def test_names_that_are_no_text() -> None:
    (entry,) = parse_mount_table(b"1 0 0:1 / /\xff\\012 rw - tmpfs \xfe rw\n")
    assert entry.mount_point == "/\udcff\n"
    assert entry.source == "\udcfe"


def test_empty_source() -> None:
    (entry,) = parse_mount_table(b"1 0 0:1 / /a rw - tmpfs  rw\n")
    assert entry.source == ""


@pytest.mark.parametrize(
    "line",
    [
        b"x",
        b"1 0 0:1 / /a rw",
        b"1 0 0:1 / /a rw - tmpfs",
        b"1 0 0 / /a rw - tmpfs a rw",
        b"1 0 a:b / /a rw - tmpfs a rw",
        b"1 - 0:1 / /a rw shared:1",
    ],
)
def test_line_that_is_not_understood(line: bytes) -> None:
    with pytest.raises(KernelError) as raised:
        parse_mount_table(TEXT + line)
    assert str(raised.value) == f"/proc/self/mountinfo: line 5 is not understood: {line!r}"


@given(st.binary(max_size=200))
def test_any_bytes_give_entries_or_an_error(text: bytes) -> None:
    try:
        entries = parse_mount_table(text)
    except KernelError:
        return
    assert all(isinstance(entry, MountEntry) for entry in entries)


def test_find_mount() -> None:
    entries = parse_mount_table(TEXT)
    for path, mount_id in (
        ("/", 22),
        ("/mnt", 22),
        ("/mnt/a b", 40),
        ("/mnt/a b/c", 40),
        ("/mnt/a bc", 22),
        ("/mnt/c/d", 42),  # what was mounted over it last
    ):
        found = find_mount(entries, path)
        assert found is not None
        assert found.mount_id == mount_id
    assert find_mount(entries[1:], "/other") is None


def test_mount_at() -> None:
    entries = parse_mount_table(TEXT)
    found = mount_at(entries, "/mnt/c")
    assert found is not None
    assert found.mount_id == 42
    assert mount_at(entries, "/mnt") is None


def test_this_machine() -> None:
    entries = parse_mount_table(Path("/proc/self/mountinfo").read_bytes())
    assert find_mount(entries, "/proc/self") == mount_at(entries, "/proc")
