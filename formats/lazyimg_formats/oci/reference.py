"""What users type to name an image. Source: the distribution project's reference grammar.

    reference  := name [":" tag] ["@" digest]
    name       := [registry "/"] repository
    registry   := (domain | IPv4 | "[" IPv6 "]") [":" port]
    repository := component ("/" component)*           lower case

Defaults are Docker's: without a registry (a first part with ``.``, ``:`` or an upper-case letter,
or ``localhost``) it is docker.io, where a name of one part lies in ``library/``; without tag and
digest the tag is ``latest``. A location is a reference with the place in front: see
`parse_location`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Final

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest

MAX_REPOSITORY: Final = 255
"""Characters of a repository's name."""

MAX_HOST: Final = 253
"""Characters of a host's name, as DNS has it; 63 for each of its parts."""

MAX_PORT: Final = 65_535

MAX_TEXT: Final = 4096 + 256
"""Characters of anything that names an image: a path and a tag."""

DOCKER_HUB: Final = "docker.io"
"""How references call Docker Hub."""

_DOCKER_HUB_HOST: Final = "registry-1.docker.io"
_DOCKER_HUB_NAMES: Final = frozenset({DOCKER_HUB, "index.docker.io", _DOCKER_HUB_HOST})

_LABEL: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_REGISTRY: Final = re.compile(
    rf"({_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::([0-9]{{1,5}}))?", re.ASCII
)
_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*", re.ASCII)
_TAG: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_IDENTIFIER: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry, or with an empty tag and no digest just its repository.

    Attributes:
        registry: host with optional port, as messages and credentials name it.
        repository: path in the registry.
        tag: may be empty.
        digest: goes before the tag where both are there.

    Raises:
        FormatError: by the constructor, for a part that the grammar does not allow.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: Digest | None = None

    def __post_init__(self) -> None:
        if not _is_registry(self.registry):
            raise FormatError("reference", f"{self.registry[:80]!r} is no registry's host")
        if not 0 < len(self.repository) <= MAX_REPOSITORY:
            raise FormatError(
                "reference",
                f"a repository has 1 to {MAX_REPOSITORY} characters, got {len(self.repository)}",
            )
        for component in self.repository.split("/"):
            if _COMPONENT.fullmatch(component) is None:
                hint = ", must be lower case" if component != component.lower() else ""
                raise FormatError(
                    "reference", f"{component!r} cannot be part of a repository's name{hint}"
                )
        if self.tag and _TAG.fullmatch(self.tag) is None:
            raise FormatError("reference", f"{self.tag[:140]!r} is no tag")

    @property
    def host(self) -> str:
        """The host, with optional port, that requests go to."""
        return _DOCKER_HUB_HOST if self.registry == DOCKER_HUB else self.registry

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def target(self) -> Digest | str:
        """What to ask the registry for: the digest, else the tag."""
        return self.tag if self.digest is None else self.digest

    def with_digest(self, digest: Digest) -> Reference:
        """Give the reference that names exactly one manifest."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" if self.digest is None else f"{self.name}{tag}@{self.digest}"


def _is_registry(text: str) -> bool:
    match = _REGISTRY.fullmatch(text)
    if match is None or len(match[1]) > MAX_HOST or not 0 < int(match[2] or 1) <= MAX_PORT:
        return False
    if match[1].startswith("["):
        try:
            ipaddress.IPv6Address(match[1][1:-1])
        except ValueError:
            return False
    return True


def parse_reference(text: str) -> Reference:
    """Give the reference in `text`, with Docker's defaults.

    Raises:
        FormatError: not a reference.
    """
    if len(text) > MAX_TEXT:
        raise FormatError("reference", f"{len(text)} characters, at most {MAX_TEXT} allowed")
    if _IDENTIFIER.fullmatch(text) is not None:
        raise FormatError("reference", "64 hex characters are an image's ID, not a name")
    rest, at, digest_text = text.partition("@")
    digest = Digest.parse(digest_text) if at else None
    slash, colon = rest.rfind("/"), rest.rfind(":")
    tag = ""
    if colon > slash:
        rest, tag = rest[:colon], rest[colon + 1 :]
        if not tag:
            raise FormatError("reference", f"{text!r} ends in an empty tag")
    registry, repository = _split_registry(rest)
    return Reference(registry, repository, tag or ("" if at else "latest"), digest)


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        registry, repository = first, rest
    else:
        registry, repository = DOCKER_HUB, name
    if registry not in _DOCKER_HUB_NAMES:
        return registry, repository
    return DOCKER_HUB, repository if "/" in repository else f"library/{repository}"


@dataclass(frozen=True, slots=True)
class RegistryLocation:
    """An image in a registry."""

    reference: Reference

    def __str__(self) -> str:
        return str(self.reference)


@dataclass(frozen=True, slots=True)
class LayoutLocation:
    """An image in an OCI image layout directory.

    Attributes:
        path: the directory.
        tag: the name in its index; "" for the only one.
        digest: of a manifest in it.
    """

    path: str
    tag: str = ""
    digest: Digest | None = None

    def __str__(self) -> str:
        return f"oci:{_join(self.path, self.tag, self.digest)}"


@dataclass(frozen=True, slots=True)
class ArchiveLocation:
    """An image in a tar file of an OCI image layout; attributes as in `LayoutLocation`."""

    path: str
    tag: str = ""
    digest: Digest | None = None

    def __str__(self) -> str:
        return f"oci-archive:{_join(self.path, self.tag, self.digest)}"


@dataclass(frozen=True, slots=True)
class ContainerdLocation:
    """An image in a local containerd."""

    reference: Reference

    def __str__(self) -> str:
        return f"containerd:{self.reference}"


Location = RegistryLocation | LayoutLocation | ArchiveLocation | ContainerdLocation


def parse_location(text: str) -> Location:
    """Give the place and image in `text`.

    ``REF`` and ``docker://REF`` are in a registry; ``oci:PATH[:TAG][@DIGEST]`` in a directory,
    ``oci-archive:PATH[:TAG][@DIGEST]`` in a tar file (a path has no colon); ``containerd:REF`` in
    a local containerd.

    Raises:
        FormatError: none of them.
    """
    if len(text) > MAX_TEXT:
        raise FormatError("reference", f"{len(text)} characters, at most {MAX_TEXT} allowed")
    if text.startswith("docker://"):
        return RegistryLocation(parse_reference(text.removeprefix("docker://")))
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "containerd":
        return ContainerdLocation(parse_reference(rest))
    if colon and scheme == "oci":
        return LayoutLocation(*_split_path(rest))
    if colon and scheme == "oci-archive":
        return ArchiveLocation(*_split_path(rest))
    if "://" in text:
        raise FormatError(
            "reference", f"{scheme + '://'!r} is not known; write REF or docker://REF"
        )
    return RegistryLocation(parse_reference(text))


def _split_path(text: str) -> tuple[str, str, Digest | None]:
    body, at, digest_text = text.rpartition("@")
    digest = None
    if at and digest_text.startswith(("sha256:", "sha512:")):
        digest = Digest.parse(digest_text)
    else:
        body = text
    path, colon, tag = body.partition(":")
    if not path or "\0" in path:
        raise FormatError("reference", f"{text[:80]!r} names no file")
    if colon and not tag:
        raise FormatError("reference", f"{text[:80]!r} ends in an empty tag")
    if not tag.isprintable():
        raise FormatError("reference", f"{tag[:80]!r} is no tag")
    return path, tag, digest


def _join(path: str, tag: str, digest: Digest | None) -> str:
    return path + (f":{tag}" if tag else "") + ("" if digest is None else f"@{digest}")
