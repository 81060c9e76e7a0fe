"""What users write for images, and their credentials."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lazyimg.api.messages import Access
from lazyimg.cli.reference import (
    absolute_reference,
    daemon_access,
    read_location,
    registry_access,
)
from lazyimg.errors import BadReferenceError
from lazyimg.registry.ports import Access as RegistryAccess
from lazyimg_formats.oci.reference import LayoutLocation


def test_reference_with_defaults() -> None:
    assert str(read_location("docker://debian")) == "docker.io/library/debian:latest"
    assert read_location("oci:dir:tag") == LayoutLocation("dir", "tag")


def test_daemon_gets_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_reference("debian") == "debian"
    assert absolute_reference("docker://debian") == "docker://debian"
    assert absolute_reference("oci:dir:tag") == f"oci:{tmp_path}/dir:tag"
    assert absolute_reference("oci-archive:a.tar") == f"oci-archive:{tmp_path}/a.tar"


def test_no_text() -> None:
    with pytest.raises(BadReferenceError, match=r"^'': '' cannot be part of a repository's name; "):
        read_location("")


def test_bad_reference() -> None:
    with pytest.raises(BadReferenceError) as caught:
        read_location("a/B")
    assert str(caught.value) == (
        "a/B: 'B' cannot be part of a repository's name, must be lower case; "
        "write it as [REGISTRY/]NAME[:TAG][@DIGEST] or oci:PATH[:TAG]"
    )


def test_access_for_the_registry_client() -> None:
    access = Access(
        authfile="/a",
        username="u",
        password="p",
        plain_http=True,
        insecure=True,
        ca_file="/c",
        hosts_dir="/h",
    )
    assert registry_access(access) == RegistryAccess(
        authfile=Path("/a"),
        username="u",
        password="p",
        plain_http=True,
        insecure=True,
        ca_file=Path("/c"),
        hosts_dir=Path("/h"),
    )
    assert registry_access(Access()) == RegistryAccess()


def test_file_of_this_user_goes_to_the_daemon(home: Path) -> None:
    (home / ".docker").mkdir()
    file = home / ".docker" / "config.json"
    file.write_text(json.dumps({"auths": {"registry.test": {"auth": "dTpw"}}}))
    access = Access(plain_http=True)
    assert daemon_access(access, "registry.test/app") == Access(authfile=str(file), plain_http=True)
    assert daemon_access(access, "other.test/app") == access


def test_name_and_password_need_no_file() -> None:
    access = Access(username="u", password="p")
    assert daemon_access(access, "registry.test/app") == access


def test_layout_needs_no_credentials() -> None:
    assert daemon_access(Access(), "oci:dir") == Access()
