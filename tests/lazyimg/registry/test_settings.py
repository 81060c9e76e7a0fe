"""The configuration's settings in the registry client's terms."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazyimg.config import RegistrySettings
from lazyimg.errors import ConfigurationError, RegistryError
from lazyimg.registry.ports import Access
from lazyimg.registry.retry import RetryPolicy
from lazyimg.registry.settings import (
    apply_settings,
    make_client,
    retry_policy,
    transport_limits,
)
from lazyimg_formats.oci.reference import RegistryLocation, parse_location


def test_limits_and_policy() -> None:
    settings = RegistrySettings(connections=3, connect_timeout=4.0, read_timeout=5.0, retries=0)
    limits = transport_limits(settings)
    assert (limits.reads_per_host, limits.connect_timeout, limits.read_timeout) == (3, 4, 5)
    assert retry_policy(settings).attempts == 1
    assert retry_policy(settings) == RetryPolicy(attempts=1)
    assert retry_policy(settings, 300.0) == RetryPolicy(attempts=1, max_retry_after=300.0)


async def test_client_uses_the_proxy() -> None:
    settings = RegistrySettings(proxy="http://127.0.0.1:1", retries=0, plain_http=["registry.test"])
    location = parse_location("registry.test/app")
    assert isinstance(location, RegistryLocation)
    async with make_client(settings, {}) as client:
        repository = client.repository(
            location.reference, apply_settings(Access(), location, settings)
        )
        with pytest.raises(RegistryError, match=r"the proxy 127\.0\.0\.1 cannot be reached"):
            await repository.fetch_manifest("1")


def test_proxy_that_is_none() -> None:
    with pytest.raises(ConfigurationError, match="expected the URL of an HTTP proxy"):
        make_client(RegistrySettings(proxy="socks5://secret"), {})


def test_files_of_the_settings_unless_given() -> None:
    settings = RegistrySettings(authfile="/auth", ca_file="/ca", hosts_dir="/hosts")
    reference = parse_location("registry.test/app")
    assert apply_settings(Access(), reference, settings) == Access(
        authfile=Path("/auth"), ca_file=Path("/ca"), hosts_dir=Path("/hosts")
    )
    given = Access(authfile=Path("/mine"), ca_file=Path("/own"), hosts_dir=Path("/theirs"))
    assert apply_settings(given, reference, settings) == given
    assert apply_settings(Access(), reference, RegistrySettings(hosts_dir="")) == Access()
    assert apply_settings(Access(), reference, RegistrySettings()) == Access(
        hosts_dir=Path("/etc/containerd/certs.d")
    )
    assert apply_settings(Access(), parse_location("oci:dir"), settings) == Access()


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("registry.test:5000/app", "registry.test:5000"),
        ("registry.test:5000/app", "registry.test"),
        ("registry.test/app", "registry.test"),
        ("debian", "docker.io"),
        ("debian", "registry-1.docker.io"),
    ],
)
def test_hosts(text: str, host: str) -> None:
    settings = RegistrySettings(plain_http=[host], insecure=[host])
    access = apply_settings(Access(), parse_location(text), settings)
    assert access.plain_http
    assert access.insecure


def test_other_hosts_are_left_alone() -> None:
    settings = RegistrySettings(plain_http=["registry.test:5000", ""], insecure=["other"])
    access = apply_settings(Access(), parse_location("registry.test/app"), settings)
    assert not access.plain_http
    assert not access.insecure
