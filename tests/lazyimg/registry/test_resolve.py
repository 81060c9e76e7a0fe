"""From text to one image: places, platforms, and what is no image."""

from __future__ import annotations

import platform as machine
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from lazyimg.errors import (
    BadReferenceError,
    CorruptError,
    LazyimgError,
    NoPlatformError,
    NotFoundError,
    NotLazyError,
    UsageError,
)
from lazyimg.registry.client import RegistryClient
from lazyimg.registry.oci_layout import OciLayout, create_layout
from lazyimg.registry.ports import Access
from lazyimg.registry.repository import Repository
from lazyimg.registry.resolve import (
    choose_manifest,
    local_platform,
    open_source,
    open_target,
    parse_location,
    parse_platform,
    resolve_image,
)
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    MAX_CONFIG,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    serialize_document,
)
from lazyimg_formats.oci.platform import Platform

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")
ATTESTATION = Platform("unknown", "unknown")
LAYER = b"compressed"


def entry(platform: Platform | None, name: str = "", media_type: str = OCI_MANIFEST) -> Descriptor:
    digest = Digest.of(f"{name}{platform}".encode())
    return Descriptor(media_type=media_type, digest=digest, size=1, platform=platform)


def choose(wanted: str, *entries: Descriptor) -> Descriptor:
    return choose_manifest("it", Index(manifests=entries), Platform(*wanted.split("/")))  # type: ignore[arg-type]


class TestChoice:
    def test_best_variant_wherever_it_stands(self) -> None:
        v6, v7, v8 = (entry(Platform("linux", "arm", v)) for v in ("v6", "v7", "v8"))
        assert choose("linux/arm/v7", v6, v8, v7) == v7
        assert choose("linux/arm/v8", v6, v7) == v7
        assert choose("linux/arm/v6", v8, v7, v6) == v6

    def test_first_of_equals(self) -> None:
        one, two = entry(AMD64, "one"), entry(AMD64, "two")
        assert choose("linux/amd64", entry(ARM64), one, two) == one

    def test_nydus_twin_only_if_there_is_nothing_else(self) -> None:
        plain = entry(AMD64)
        featured = replace(AMD64, extra={"os.features": ["nydus.remoteimage.v1"]})
        twins = [
            entry(featured, "older"),
            replace(
                entry(AMD64, "newer"), artifact_type="application/vnd.nydus.image.manifest.v1+json"
            ),
        ]
        for twin in twins:
            assert choose("linux/amd64", twin, plain) == plain
            assert choose("linux/amd64", plain, twin) == plain
            assert choose("linux/amd64", twin, entry(ARM64)) == twin
        assert choose("linux/amd64", *twins) == twins[0]
        other = entry(replace(AMD64, extra={"os.features": "nydus.remoteimage.v1"}), "text")
        assert choose("linux/amd64", other, plain) == other

    def test_platform_that_is_not_said(self) -> None:
        silent, right = entry(None), entry(AMD64)
        assert choose("linux/amd64", silent, right) == right
        assert choose("linux/amd64", silent, entry(ARM64)) == silent

    def test_none(self) -> None:
        with pytest.raises(NoPlatformError) as caught:
            choose(
                "linux/s390x",
                entry(ARM64),
                entry(ATTESTATION),
                entry(ARM64, "again"),
                entry(Platform("linux", "arm", "v7")),
                entry(AMD64, media_type="text/plain"),
            )
        assert str(caught.value) == (
            "it: there is no image for linux/s390x;"
            " choose one that is there: linux/arm64, linux/arm/v7"
        )

    def test_nothing_at_all(self) -> None:
        with pytest.raises(NoPlatformError, match="choose one that is there: none"):
            choose("linux/amd64", entry(ATTESTATION))


class Images:
    """A layout, filled by tests."""

    def __init__(self, layout: OciLayout) -> None:
        self.layout = layout

    async def push(self, data: bytes, media_type: str) -> Descriptor:
        async def chunks() -> AsyncIterator[bytes]:
            yield data

        await self.layout.push_blob(chunks(), lambda: Digest.of(data))
        return describe(data, media_type)

    async def add_manifest(
        self, platform: Platform, tag: str | None = None, **config: Any
    ) -> Descriptor:
        value = {
            "os": platform.os,
            "architecture": platform.architecture,
            "rootfs": {"diff_ids": [str(Digest.of(b"tar"))]},
        } | config
        document = Manifest(
            config=await self.push(msgspec.json.encode(value), OCI_CONFIG),
            layers=(await self.push(LAYER, OCI_LAYER),),
        )
        return await self.add(document, tag)

    async def add(self, document: Manifest | Index, tag: str | None = None) -> Descriptor:
        return await self.layout.push_manifest(
            serialize_document(document), document.media_type, tag
        )

    async def add_index(self, *entries: Descriptor, tag: str | None = None) -> Descriptor:
        return await self.add(Index(manifests=entries), tag)


def on(descriptor: Descriptor, platform: Platform | None) -> Descriptor:
    return replace(descriptor, platform=platform)


@pytest.fixture
async def images(tmp_path: Path) -> Images:
    return Images(await create_layout(tmp_path / "layout"))


class TestImages:
    async def test_manifest(self, images: Images) -> None:
        made = await images.add_manifest(AMD64, "v1")
        for reference in ("v1", made.digest):
            image = await resolve_image(images.layout, reference, AMD64)
            assert image.top == image.descriptor == made
            assert Digest.of(image.manifest_bytes) == made.digest
            assert image.manifest.layers == (describe(LAYER, OCI_LAYER),)
            assert Digest.of(image.config_bytes) == image.manifest.config.digest
            assert image.config.diff_ids == (Digest.of(b"tar"),)
            assert image.indexes == ()

    async def test_index(self, images: Images) -> None:
        arm = await images.add_manifest(ARM64)
        amd = await images.add_manifest(AMD64)
        top = await images.add_index(on(arm, ARM64), on(amd, AMD64), tag="v1")
        image = await resolve_image(images.layout, "v1", AMD64)
        assert (image.top, image.descriptor) == (top, amd)
        ((descriptor, data),) = image.indexes
        assert (descriptor, Digest.of(data)) == (top, top.digest)
        assert image.config.platform == AMD64

    async def test_indexes_inside_each_other(self, images: Images) -> None:
        descriptor = await images.add_manifest(AMD64)
        outer: list[Descriptor] = []
        for _ in range(4):
            descriptor = await images.add_index(on(descriptor, None))
            outer.insert(0, descriptor)
        image = await resolve_image(images.layout, descriptor.digest, AMD64)
        assert [index for index, _ in image.indexes] == outer
        descriptor = await images.add_index(on(descriptor, None))
        with pytest.raises(CorruptError, match="over 4 indexes inside each other"):
            await resolve_image(images.layout, descriptor.digest, AMD64)

    async def test_another_platform(self, images: Images) -> None:
        await images.add_manifest(Platform("linux", "aarch64"), "v1")
        with pytest.raises(NoPlatformError) as caught:
            await resolve_image(images.layout, "v1", AMD64)
        assert str(caught.value).endswith(
            ": there is no image for linux/amd64; choose one that is there: linux/arm64"
        )

    async def test_config_that_says_nothing_of_its_platform(self, images: Images) -> None:
        await images.add_manifest(Platform("", ""), "v1")
        assert (await resolve_image(images.layout, "v1", AMD64)).config.platform.os == ""

    async def test_missing(self, images: Images) -> None:
        with pytest.raises(NotFoundError, match="no image named 'v1' in it"):
            await resolve_image(images.layout, "v1", AMD64)

    async def test_no_container_image(self, images: Images) -> None:
        config = await images.push(b"{}", "application/vnd.example.chart")
        await images.add(Manifest(config=config, layers=()), "chart")
        await images.add(Manifest(config=config, layers=(), artifact_type="sbom"), "artifact")
        for tag, kind in (("chart", "application/vnd.example.chart"), ("artifact", "sbom")):
            with pytest.raises(NotLazyError, match=f"is '{kind}', no container image"):
                await resolve_image(images.layout, tag, AMD64)

    @pytest.mark.parametrize(
        ("config", "problem"),
        [
            ({"rootfs": {"diff_ids": []}}, "1 layers, but 0 in its config"),
            ({"rootfs": None}, "image config: rootfs is missing"),
        ],
    )
    async def test_bad_config(self, images: Images, config: dict[str, Any], problem: str) -> None:
        await images.add_manifest(AMD64, "v1", **config)
        with pytest.raises(CorruptError, match=problem):
            await resolve_image(images.layout, "v1", AMD64)

    async def test_config_over_the_limit(self, images: Images) -> None:
        config = Descriptor(media_type=OCI_CONFIG, digest=Digest.of(b""), size=MAX_CONFIG + 1)
        await images.add(Manifest(config=config, layers=()), "v1")
        with pytest.raises(CorruptError, match="its config has 8388609 bytes, at most 8388608"):
            await resolve_image(images.layout, "v1", AMD64)

    async def test_config_with_another_digest(self, images: Images, tmp_path: Path) -> None:
        await images.add_manifest(AMD64, "v1")
        image = await resolve_image(images.layout, "v1", AMD64)
        path = tmp_path / "layout/blobs/sha256" / image.manifest.config.digest.hex
        path.write_bytes(path.read_bytes().replace(b"linux", b"linuz"))
        with pytest.raises(CorruptError, match="its bytes have digest"):
            await resolve_image(images.layout, "v1", AMD64)

    async def test_index_sent_as_a_manifest(self) -> None:
        class Liar:
            name = "liar"

            async def fetch_manifest(self, _: Digest | str) -> tuple[Descriptor, bytes]:
                data = serialize_document(Index(manifests=()))
                return describe(data, OCI_MANIFEST), data

        with pytest.raises(CorruptError, match=r"^liar@sha256:.*sent as"):
            await resolve_image(Liar(), "v1", AMD64)  # type: ignore[arg-type]


class TestText:
    def test_location(self) -> None:
        assert str(parse_location("debian")) == "docker.io/library/debian:latest"
        with pytest.raises(BadReferenceError) as caught:
            parse_location("Debian")
        assert str(caught.value) == (
            "Debian: 'Debian' cannot be part of a repository's name, must be lower case"
        )

    def test_platform(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "system", lambda: "Linux")
        monkeypatch.setattr(machine, "machine", lambda: "aarch64")
        assert local_platform() == ARM64
        assert parse_platform("") == ARM64
        assert parse_platform("amd64") == AMD64
        with pytest.raises(UsageError) as caught:
            parse_platform("a b")
        assert str(caught.value) == "a b: expected os/arch[/variant], got 'a b'"


class TestPlaces:
    async def test_sources(self, images: Images, tmp_path: Path) -> None:
        digest = (await images.add_manifest(AMD64, "v1")).digest
        async with RegistryClient() as client:
            for text, kind, wanted in (
                ("quay.io/a/b:1", Repository, "1"),
                (f"quay.io/a/b:1@{digest}", Repository, digest),
                (f"oci:{tmp_path}/layout:v1", OciLayout, "v1"),
                (f"oci:{tmp_path}/layout@{digest}", OciLayout, digest),
                (f"oci:{tmp_path}/layout", OciLayout, ""),
            ):
                source, reference = await open_source(parse_location(text), client, Access())
                assert isinstance(source, kind)
                assert reference == wanted

    async def test_archive(self, images: Images, tmp_path: Path) -> None:
        await images.add_manifest(AMD64, "v1")
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            archive.add(tmp_path / "layout", arcname=".")
        async with RegistryClient() as client:
            location = parse_location(f"oci-archive:{tmp_path}/x.tar:v1")
            source, reference = await open_source(location, client, Access())
            assert (await resolve_image(source, reference, AMD64)).config.platform == AMD64

    async def test_targets(self, tmp_path: Path) -> None:
        async with RegistryClient() as client:
            for text, kind, wanted in (
                ("quay.io/a/b", Repository, "latest"),
                (f"oci:{tmp_path}/new:v1", OciLayout, "v1"),
                (f"oci:{tmp_path}/new", OciLayout, ""),
            ):
                target, tag = await open_target(parse_location(text), client, Access())
                assert isinstance(target, kind)
                assert tag == wanted

    @pytest.mark.parametrize(
        ("text", "error", "problem"),
        [
            ("oci:/nonexistent/x", NotFoundError, "is no OCI image layout: does not exist"),
            ("oci-archive:/nonexistent/x", NotFoundError, "cannot be read: No such file"),
            ("containerd:debian", UsageError, "images cannot be read from containerd"),
        ],
    )
    async def test_no_source(self, text: str, error: type[LazyimgError], problem: str) -> None:
        async with RegistryClient() as client:
            with pytest.raises(error, match=problem):
                await open_source(parse_location(text), client, Access())

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            (f"quay.io/a@{Digest.of(b'')}", "a digest cannot be chosen; name a tag instead"),
            (f"oci:x@{Digest.of(b'')}", "a digest cannot be chosen; name a tag instead"),
            ("oci-archive:x.tar", "cannot be written to; name a registry or oci:DIRECTORY"),
            ("containerd:x", "cannot be written to; name a registry or oci:DIRECTORY"),
        ],
    )
    async def test_no_target(self, text: str, problem: str) -> None:
        async with RegistryClient() as client:
            with pytest.raises(UsageError, match=problem):
                await open_target(parse_location(text), client, Access())
