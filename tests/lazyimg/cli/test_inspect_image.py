"""Images described without a daemon, with the configuration's settings for registries."""

from __future__ import annotations

import pytest

from lazyimg.api.messages import Access
from lazyimg.cli.inspect_image import fetch_description, fetch_raw
from lazyimg.config import RegistrySettings
from lazyimg.errors import NoPlatformError, NotFoundError
from lazyimg_formats.oci.reference import parse_location
from tests.fakes.gzip_layer import make_layer
from tests.fakes.registry import run_registry

SETTINGS = RegistrySettings(retries=0)


async def test_description_and_raw() -> None:
    async with run_registry() as registry:
        image = registry.add_image("app", "1", make_layer(), "arm64")
        location = parse_location(f"{registry.host}/app:1")
        reply = await fetch_description(location, "linux/arm64", Access(), SETTINGS)
        raw = await fetch_raw(location, Access(), SETTINGS)
    assert (reply.digest, reply.platform) == (str(image.digest), "linux/arm64")
    assert [layer.format for layer in reply.layers] == ["tar"]
    assert raw == registry.manifests["app"]["1"][1]


async def test_failures() -> None:
    async with run_registry() as registry:
        registry.add_image("app", "1", make_layer(), "arm64")
        with pytest.raises(NoPlatformError):
            await fetch_description(
                parse_location(f"{registry.host}/app:1"), "linux/386", Access(), SETTINGS
            )
        with pytest.raises(NotFoundError):
            await fetch_raw(parse_location(f"{registry.host}/app:2"), Access(), SETTINGS)


async def test_credentials_of_the_request() -> None:
    async with run_registry() as registry:
        registry.add_image("app", "1", make_layer())
        registry.auth = "basic"
        registry.users = {"user": "pass"}
        access = Access(username="user", password="pass")
        location = parse_location(f"{registry.host}/app:1")
        assert await fetch_raw(location, access, SETTINGS)
