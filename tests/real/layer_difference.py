"""Make a layer that is the difference between two root file systems, each in a tar."""

from __future__ import annotations

import hashlib
import posixpath
import tarfile
from collections import defaultdict
from typing import IO, TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

WHITEOUT: Final = ".wh."


class Fact(NamedTuple):
    """What makes two members of tars the same."""

    kind: bytes
    mode: int
    owner: tuple[int, int]
    mtime: float
    link: str
    device: tuple[int, int]
    pax: tuple[tuple[str, str], ...]
    sha256: str


def write_difference(lower: Path, upper: Path, target: Path) -> None:
    """Write the layer that turns the root in the tar `lower` into that in the tar `upper`.

    All names of an inode are in it when one of them is new or changed, so no hard link reaches
    into the layer below. So is every directory above something in it.
    """
    old, new = read_facts(lower), read_facts(upper)
    changed = {name for name, fact in new.items() if old.get(name) != fact}
    groups: dict[str, set[str]] = defaultdict(set)
    for name, fact in new.items():
        if fact.kind == tarfile.LNKTYPE:
            groups[fact.link] |= {name, fact.link}
    for names in groups.values():
        if names & changed:
            changed |= names
    removed = topmost(old.keys() - new.keys())
    changed |= {parent for name in changed | removed for parent in parents(name)}
    with tarfile.open(upper) as source, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for member in source:
            if clean(member.name) in changed:
                tar.addfile(member, source.extractfile(member) if member.isreg() else None)
        for name in sorted(removed):
            directory, base = posixpath.split(name)
            tar.addfile(tarfile.TarInfo(posixpath.join(directory, WHITEOUT + base)))


def read_facts(path: Path) -> dict[str, Fact]:
    """Return what a tar says about each name."""
    facts = {}
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            facts[clean(member.name)] = Fact(
                kind=member.type,
                mode=member.mode,
                owner=(member.uid, member.gid),
                mtime=member.mtime,
                link=clean(member.linkname) if member.islnk() else member.linkname,
                device=(member.devmajor, member.devminor),
                pax=tuple(sorted(member.pax_headers.items())),
                sha256=digest_of(content) if content else "",
            )
    return facts


def digest_of(content: IO[bytes]) -> str:
    """Return the SHA-256 of what is left to read."""
    digest = hashlib.sha256()
    while piece := content.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def clean(name: str) -> str:
    """Return a path as it is below the root: "./a/" is "a"."""
    return posixpath.normpath(name)


def parents(name: str) -> list[str]:
    """Return the directories above a path, without the root."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]


def topmost(names: Iterable[str]) -> set[str]:
    """Return the names that lie below no other one of them."""
    names = set(names)
    return {name for name in names if not names.intersection(parents(name))}
