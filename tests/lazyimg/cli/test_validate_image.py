"""Images validated without a daemon, with the configuration's settings for registries."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import pytest

from lazyimg.api.messages import Access
from lazyimg.cli.validate_image import validate_image
from lazyimg.config import RegistrySettings
from lazyimg.errors import NotFoundError
from lazyimg.limits import BuildLimits
from lazyimg_formats.oci.reference import parse_location
from tests.fakes.lazy_image import add_lazy_image, lying_layer, make_lazy_layer
from tests.fakes.registry import FakeRegistry, run_registry

if TYPE_CHECKING:
    from pathlib import Path

    from lazyimg.api.messages import ValidateReply

ACCESS = Access(username="user", password="pass")


async def validate(registry: FakeRegistry, tag: str) -> ValidateReply:
    location = parse_location(f"{registry.host}/app:{tag}")
    seen: list[tuple[int, int]] = []
    reply = await validate_image(
        location, "", ACCESS, RegistrySettings(retries=0), BuildLimits(),
        lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[0][0] == 0
    assert len(set(seen[-1])) == 1
    return reply


async def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    honest, planted = [await make_lazy_layer({"name": text}) for text in (b"one", b"two")]
    async with run_registry() as registry:
        registry.auth = "basic"
        registry.users = {"user": "pass"}
        image = add_lazy_image(registry, "app", "1", [honest])
        add_lazy_image(registry, "app", "2", [honest, lying_layer(honest, planted)])
        reply = await validate(registry, "1")
        assert (reply.digest, [layer.problem for layer in reply.layers]) == (
            str(image.digest),
            [""],
        )
        assert reply.layers[0].index == str(honest.toc.digest)
        assert [layer.problem for layer in (await validate(registry, "2")).layers] == [
            "",
            "index: b'name', before byte 3: not the bytes of its tar",
        ]
        with pytest.raises(NotFoundError):
            await validate(registry, "3")
    assert list(directory.iterdir()) == []
