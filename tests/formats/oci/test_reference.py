"""What users type, against Docker's grammar and defaults."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyimg_formats.errors import FormatError
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.reference import (
    ArchiveLocation,
    ContainerdLocation,
    LayoutLocation,
    Reference,
    RegistryLocation,
    parse_location,
    parse_reference,
)

DIGEST = Digest.of(b"x")


@pytest.mark.parametrize(
    ("text", "whole", "host"),
    [
        ("debian", "docker.io/library/debian:latest", "registry-1.docker.io"),
        ("debian:12", "docker.io/library/debian:12", "registry-1.docker.io"),
        ("team/app", "docker.io/team/app:latest", "registry-1.docker.io"),
        ("docker.io/debian", "docker.io/library/debian:latest", "registry-1.docker.io"),
        ("index.docker.io/debian", "docker.io/library/debian:latest", "registry-1.docker.io"),
        ("registry-1.docker.io/a/b", "docker.io/a/b:latest", "registry-1.docker.io"),
        (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}", "registry-1.docker.io"),
        (
            f"debian:12@{DIGEST}",
            f"docker.io/library/debian:12@{DIGEST}",
            "registry-1.docker.io",
        ),
        ("localhost/app", "localhost/app:latest", "localhost"),
        ("localhost:5000/app:1", "localhost:5000/app:1", "localhost:5000"),
        ("quay.io/a/b/c", "quay.io/a/b/c:latest", "quay.io"),
        ("Quay/app", "Quay/app:latest", "Quay"),
        ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000"),
        ("[::1]/app", "[::1]/app:latest", "[::1]"),
        ("a" * 63 + ".io:65535/app", "a" * 63 + ".io:65535/app:latest", "a" * 63 + ".io:65535"),
        ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest", "127.0.0.1:5000"),
        ("a.b/c-d__e.f---g/h_i:T_a.g-", "a.b/c-d__e.f---g/h_i:T_a.g-", "a.b"),
    ],
)
def test_defaults(text: str, whole: str, host: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == whole
    assert reference.host == host
    assert parse_reference(whole) == reference


def test_parts() -> None:
    reference = parse_reference(f"quay.io/a/b:1@{DIGEST}")
    assert reference == Reference("quay.io", "a/b", "1", DIGEST)
    assert reference.name == "quay.io/a/b"
    assert reference.target == DIGEST
    assert parse_reference("quay.io/a/b:1").target == "1"
    assert parse_reference("quay.io/a/b:1").with_digest(DIGEST) == reference


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' cannot be part of a repository's name"),
        ("Debian", "'Debian' cannot be part of a repository's name, must be lower case"),
        ("a//b", "'' cannot be part of a repository's name"),
        ("a/", "'' cannot be part of a repository's name"),
        ("/a", "'' cannot be part of a repository's name"),
        ("a..b", "'a..b' cannot be part of a repository's name"),
        ("a___b", "'a___b' cannot be part of a repository's name"),
        ("-a", "'-a' cannot be part of a repository's name"),
        ("a b", "'a b' cannot be part of a repository's name"),
        ("a\n", "'a\\n' cannot be part of a repository's name"),
        ("\u0661", "'\u0661' cannot be part of a repository's name"),
        ("a:", "'a:' ends in an empty tag"),
        ("a:.b", "'.b' is no tag"),
        ("a:" + "b" * 129, "'" + "b" * 129 + "' is no tag"),
        ("a:b:c", "'a:b' cannot be part of a repository's name"),
        ("quay.io/" + "a" * 256, "a repository has 1 to 255 characters, got 256"),
        ("quay.io/", "a repository has 1 to 255 characters, got 0"),
        ("-quay.io/a", "'-quay.io' is no registry's host"),
        ("quay.io:/a", "'quay.io:' is no registry's host"),
        ("quay.io:123456/a", "'quay.io:123456' is no registry's host"),
        ("quay.io:65536/a", "'quay.io:65536' is no registry's host"),
        ("quay.io:0/a", "'quay.io:0' is no registry's host"),
        ("a" * 64 + ".io/a", ".io' is no registry's host"),
        ("a." * 126 + "io/a", "is no registry's host"),
        ("[1:2]/a", "'[1:2]' is no registry's host"),
        ("[::::]:80/a", "'[::::]:80' is no registry's host"),
        ("[::g]/a", "'[::g]' is no registry's host"),
        ("0" * 64, "64 hex characters are an image's ID, not a name"),
        ("a" * 5000, "5000 characters, at most 4352 allowed"),
    ],
)
def test_bad_references(text: str, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_reference(text)
    assert problem in str(caught.value)


@pytest.mark.parametrize("text", ["a@", "a@sha256:0", "a@md5:0", "a@b@c", "user@quay.io/a"])
def test_bad_digests(text: str) -> None:
    with pytest.raises(FormatError, match=r"^digest: "):
        parse_reference(text)


@given(st.text() | st.from_regex(r"[a-zA-Z0-9.:/@_\[\]-]{0,40}"))
def test_any_text_is_a_reference_or_format_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except FormatError:
        return
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("debian", RegistryLocation(parse_reference("debian"))),
        ("docker://debian:12", RegistryLocation(parse_reference("debian:12"))),
        ("quay.io/a/b", RegistryLocation(parse_reference("quay.io/a/b"))),
        ("oci:dir", LayoutLocation("dir")),
        ("oci:/a b/dir:v1", LayoutLocation("/a b/dir", "v1")),
        ("oci:dir:quay.io/a:1", LayoutLocation("dir", "quay.io/a:1")),
        (f"oci:dir@{DIGEST}", LayoutLocation("dir", "", DIGEST)),
        (f"oci:dir:v1@{DIGEST}", LayoutLocation("dir", "v1", DIGEST)),
        ("oci:me@home:v1", LayoutLocation("me@home", "v1")),
        ("oci-archive:x.tar:v1", ArchiveLocation("x.tar", "v1")),
        (f"oci-archive:x.tar@{DIGEST}", ArchiveLocation("x.tar", "", DIGEST)),
        ("containerd:debian", ContainerdLocation(parse_reference("debian"))),
    ],
)
def test_locations(text: str, expected: object) -> None:
    location = parse_location(text)
    assert location == expected
    assert parse_location(str(location)) == location


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("oci:", "reference: '' names no file"),
        ("oci::v1", "reference: ':v1' names no file"),
        ("oci:a\0b", "reference: 'a\\x00b' names no file"),
        ("oci:dir:", "reference: 'dir:' ends in an empty tag"),
        ("oci:dir:a\nb", "reference: 'a\\nb' is no tag"),
        ("oci:dir@sha256:0", "digest: sha256 has 64 lower-case hex characters, got '0'"),
        ("https://quay.io/a", "reference: 'https://' is not known; write REF or docker://REF"),
        ("docker://", "reference: '' cannot be part of a repository's name"),
        ("containerd:", "reference: '' cannot be part of a repository's name"),
        ("oci:" + "a" * 5000, "reference: 5004 characters, at most 4352 allowed"),
    ],
)
def test_bad_locations(text: str, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_location(text)
    assert str(caught.value) == problem


@given(
    st.sampled_from(["", "oci:", "oci-archive:", "docker://", "containerd:"]),
    st.text() | st.from_regex(r"[a-z0-9.:/@_-]{0,40}"),
)
def test_any_text_is_a_location_or_format_error(prefix: str, text: str) -> None:
    try:
        location = parse_location(prefix + text)
    except FormatError:
        return
    assert parse_location(str(location)) == location
