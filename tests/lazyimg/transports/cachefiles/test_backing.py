"""The cache's files, found by name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lazyimg.transports.cachefiles.backing import (
    find_backing_file,
    find_linked,
    find_strays,
    move_strays,
    other_domains,
    present_on_disk,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    for number in range(256):
        (tmp_path / "cache" / "Ierofs,domain" / f"@{number:02x}").mkdir(parents=True)
    return tmp_path


def test_found(cache: Path) -> None:
    file = cache / "cache" / "Ierofs,domain" / "@7f" / "Dcookie"
    file.touch()
    assert find_backing_file(cache, "domain", "cookie") == file


def test_other_name_other_domain_no_cache(cache: Path, tmp_path: Path) -> None:
    (cache / "cache" / "Ierofs,domain" / "@7f" / "Dcookie").touch()
    assert find_backing_file(cache, "domain", "cooki") is None
    assert find_backing_file(cache, "other", "cookie") is None
    assert find_backing_file(tmp_path / "missing", "domain", "cookie") is None


def test_linked(cache: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two", "three")):
        (cache / "cache" / "Ierofs,domain" / f"@{number:02x}" / f"D{name}").touch()
    (cache / "cache" / "Ierofs,domain" / "odd").touch()
    assert find_linked(cache, "domain", ["one", "three", "four"]) == {"one", "three"}
    assert find_linked(cache, "other", ["one"]) == set()
    assert find_linked(tmp_path / "missing", "domain", ["one"]) == set()


def test_strays(cache: Path, tmp_path: Path) -> None:
    for domain, names in (
        ("domain-2", ["one", "two"]),
        ("domain-x", ["three"]),
        ("other", ["four"]),
    ):
        place = cache / "cache" / f"Ierofs,{domain}" / "@01"
        place.mkdir(parents=True)
        for name in names:
            (place / f"D{name}").write_text(name)
    assert other_domains(cache, "domain", "domain") == ["domain-2"]
    assert other_domains(cache, "domain-3", "domain") == ["domain", "domain-2"]
    assert other_domains(tmp_path / "missing", "domain", "domain") == []
    assert find_strays(cache, "domain", "domain", ["one", "two", "three", "four"]) == {"one", "two"}
    place = cache / "cache" / "Ierofs,domain" / "@02" / "Done"
    place.touch()
    move_strays(cache, "domain", "domain", ["one", "two", "three"])
    assert place.read_text() == "one"
    assert find_strays(cache, "domain", "domain", ["one", "two"]) == {"two"}  # it has no place


def test_present(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as stream:
        stream.truncate(1 << 20)
        os.pwrite(stream.fileno(), b"x" * 8192, 65536)
    assert present_on_disk(file) == [range(65536, 73728)]


def test_link_is_not_followed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        present_on_disk(link)
