"""Images, converted from one OCI layout into another."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lazyimg.convert.image import convert_image
from lazyimg.convert.ports import Outcome
from lazyimg.convert.transfer import PARAMETERS, SOURCE_DIGEST, Options
from lazyimg.errors import (
    AccessDeniedError,
    CorruptError,
    LazyimgError,
    NoPlatformError,
    NotFoundError,
    NotLazyError,
    RegistryError,
)
from lazyimg.registry.oci_layout import OciLayout, create_layout
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    parse_document,
    serialize_document,
)
from lazyimg_formats.oci.platform import Platform
from lazyimg_formats.zstd_chunked.location import POSITION
from tests.fakes.layout_image import add_blob, add_image, add_layer
from tests.lazyimg.convert.test_transfer import Told, read, source, target, told

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["source", "target", "told"]  # fixtures

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
BASE, TOP = {"etc/name": b"base\n"}, {"bin/tool": bytes(range(256)) * 2000}


async def fetch(layout: OciLayout, reference: Digest | str) -> Any:
    descriptor, data = await layout.fetch_manifest(reference)
    return parse_document(data, descriptor.media_type)


async def add_index(
    layout: OciLayout, tag: str, *entries: Descriptor, **changes: Any
) -> Descriptor:
    document = replace(Index(manifests=entries), **changes)
    return await layout.push_manifest(serialize_document(document), document.media_type, tag)


async def test_manifest(source: OciLayout, target: OciLayout, told: Told) -> None:
    base, top = await add_layer(source, BASE), await add_layer(source, TOP)
    await add_image(source, "1", [base, top], annotations={"author": "me"}, extra={"later": 1})
    before = await fetch(source, "1")
    made = await convert_image(source, "1", target, "new", progress=told)
    after = await fetch(target, "new")
    assert made.media_type == OCI_MANIFEST
    assert after == replace(before, layers=after.layers)
    assert [layer.media_type for layer in after.layers] == [OCI_LAYER_ZSTD] * 2
    assert [layer.annotations[SOURCE_DIGEST] for layer in after.layers] == [
        str(base[0].digest),
        str(top[0].digest),
    ]
    for layer in after.layers:
        assert len(await read(target, layer)) == layer.size
    assert await read(target, after.config) == await read(source, before.config)
    assert told.ended == [Outcome.CONVERTED] * 2


async def test_converted_twice_gives_the_same_and_moves_nothing(
    source: OciLayout, target: OciLayout, told: Told
) -> None:
    await add_image(source, "1", [await add_layer(source, BASE), await add_layer(source, TOP)])
    first = await convert_image(source, "1", target, "new")
    second = await convert_image(source, "1", target, "new", progress=told)
    assert second == first
    assert told.ended == [Outcome.PRESENT] * 2
    assert (told.read, told.written) == (0, 0)


async def test_two_at_once_into_a_new_layout(source: OciLayout, tmp_path: Path) -> None:
    await add_image(source, "1", [await add_layer(source, BASE), await add_layer(source, TOP)])
    broken = replace((await add_layer(source, {"etc/other": b"x"}))[0], size=3)
    await add_image(source, "broken", [(broken, Digest.of(b""))])

    async def convert(path: Path, reference: str, tag: str) -> Descriptor | None:
        layout = await create_layout(path)
        try:
            return await convert_image(source, reference, layout, tag)
        except LazyimgError:
            await layout.take_back()
            return None

    for turn in range(4):
        path = tmp_path / "new" / str(turn)
        jobs = [("1", "a"), ("broken", "b"), ("1", "c")]
        made = await asyncio.gather(*(convert(path, *job) for job in jobs))
        assert [one is not None for one in made] == [True, False, True]
        layout = await create_layout(path)
        for tag in ("a", "c"):
            for layer in (await fetch(layout, tag)).layers:
                assert len(await read(layout, layer)) == layer.size


async def test_converted_again_at_another_level(
    source: OciLayout, target: OciLayout, told: Told
) -> None:
    await add_image(source, "1", [await add_layer(source, TOP)])
    await convert_image(source, "1", target, "new")
    await convert_image(source, "1", target, "new", options=Options(level=9), progress=told)
    assert told.ended == [Outcome.CONVERTED]
    assert (await fetch(target, "new")).layers[0].annotations[PARAMETERS] == "cutting=3,level=9"


async def test_only_the_new_layer_of_a_new_version_is_converted(
    source: OciLayout, target: OciLayout, told: Told
) -> None:
    base = await add_layer(source, BASE)
    await add_image(source, "1", [base])
    await add_image(source, "2", [base, await add_layer(source, TOP)])
    await convert_image(source, "1", target, "latest")
    await convert_image(source, "2", target, "latest", progress=told)
    assert sorted(told.ended) == [Outcome.CONVERTED, Outcome.PRESENT]


async def test_a_converted_image_is_copied(
    source: OciLayout, target: OciLayout, tmp_path: Path, told: Told
) -> None:
    await add_image(source, "1", [await add_layer(source, TOP)])
    first = await convert_image(source, "1", target, "1")
    third = await create_layout(tmp_path / "third")
    assert await convert_image(target, "1", third, "1", progress=told) == first
    assert told.ended == [Outcome.COPIED]


async def test_docker_image_becomes_an_oci_image(source: OciLayout, target: OciLayout) -> None:
    layer = await add_layer(source, BASE, media_type=DOCKER_LAYER_GZIP)
    image = await add_image(
        source, None, [layer], config_type=DOCKER_CONFIG, media_type=DOCKER_MANIFEST
    )
    await add_index(source, "1", replace(image, platform=AMD64), media_type=DOCKER_INDEX)
    made = await convert_image(source, "1", target, "1")
    assert made.media_type == OCI_INDEX
    index = await fetch(target, "1")
    assert index.media_type == OCI_INDEX
    assert index.manifests[0].media_type == OCI_MANIFEST
    manifest = await fetch(target, index.manifests[0].digest)
    assert (manifest.media_type, manifest.config.media_type) == (OCI_MANIFEST, OCI_CONFIG)
    assert manifest.layers[0].media_type == OCI_LAYER_ZSTD


async def add_two_platforms(source: OciLayout) -> tuple[Descriptor, Descriptor]:
    base = await add_layer(source, BASE)
    top = await add_layer(source, TOP)
    amd64 = await add_image(source, None, [base])
    arm64 = await add_image(source, None, [base, top], architecture="arm64")
    attestation = await add_image(source, None, [await add_layer(source, {"a": b"in-toto"})])
    await add_index(
        source,
        "1",
        replace(
            amd64, platform=AMD64, annotations={"name": "first"}, extra={"data": "YQ==", "b": 1}
        ),
        replace(arm64, platform=ARM64),
        replace(attestation, platform=Platform("unknown", "unknown")),
        replace(attestation, annotations={"vnd.docker.reference.type": "attestation-manifest"}),
        replace(attestation, artifact_type="application/spdx+json"),
        replace(attestation, media_type="application/octet-stream"),
        annotations={"author": "me"},
    )
    return amd64, arm64


async def test_index(source: OciLayout, target: OciLayout, told: Told) -> None:
    await add_two_platforms(source)
    made = await convert_image(source, "1", target, "1", progress=told)
    assert made.media_type == OCI_INDEX
    index = await fetch(target, "1")
    assert index.annotations == {"author": "me"}
    assert [entry.platform for entry in index.manifests] == [AMD64, ARM64]
    assert (index.manifests[0].annotations, index.manifests[0].extra) == (
        {"name": "first"},
        {"b": 1},
    )
    for entry in index.manifests:
        descriptor, data = await target.fetch_manifest(entry.digest)
        assert (descriptor.digest, len(data)) == (entry.digest, entry.size)
    assert told.ended == [Outcome.CONVERTED] * 2  # the base is shared
    assert await convert_image(source, "1", target, "1") == made


async def test_one_platform(source: OciLayout, target: OciLayout) -> None:
    _, arm64 = await add_two_platforms(source)
    made = await convert_image(source, "1", target, "1", platforms=[ARM64])
    assert made.media_type == OCI_MANIFEST
    before, after = await fetch(source, arm64.digest), await fetch(target, "1")
    assert isinstance(after, Manifest)
    assert after.config == before.config


async def test_some_platforms(source: OciLayout, target: OciLayout) -> None:
    await add_two_platforms(source)
    made = await convert_image(source, "1", target, "1", platforms=[ARM64, AMD64, ARM64])
    assert made.media_type == OCI_INDEX
    index = await fetch(target, "1")
    assert [str(entry.platform) for entry in index.manifests] == ["linux/arm64", "linux/amd64"]


async def test_a_platform_that_is_not_there(source: OciLayout, target: OciLayout) -> None:
    await add_two_platforms(source)
    with pytest.raises(NoPlatformError):
        await convert_image(source, "1", target, "1", platforms=[Platform("linux", "s390x")])
    with pytest.raises(NotFoundError):
        await target.fetch_manifest("1")


async def test_without_a_name(source: OciLayout, target: OciLayout) -> None:
    await add_image(source, "1", [await add_layer(source, BASE)])
    made = await convert_image(source, "1", target, "")
    assert (await fetch(target, made.digest)).layers


async def test_an_index_without_images(source: OciLayout, target: OciLayout) -> None:
    image = await add_image(source, None, [])
    await add_index(source, "1", replace(image, platform=Platform("unknown", "unknown")))
    with pytest.raises(NotLazyError, match="an index without a container image"):
        await convert_image(source, "1", target, "1")


async def test_indexes_too_deep(source: OciLayout, target: OciLayout) -> None:
    entry = await add_image(source, None, [])
    for number in range(6):
        entry = await add_index(source, f"{number}", entry)
    assert (await convert_image(source, "3", target, "1")).media_type == OCI_INDEX
    with pytest.raises(CorruptError, match="over 4 indexes inside each other"):
        await convert_image(source, "5", target, "1")


async def test_an_artifact(source: OciLayout, target: OciLayout) -> None:
    await add_image(source, "1", [], config_type="application/vnd.cncf.helm.config.v1+json")
    with pytest.raises(NotLazyError, match=r"is 'application/vnd.cncf.helm.*', no container image"):
        await convert_image(source, "1", target, "1")


async def test_other_numbers_of_layers(source: OciLayout, target: OciLayout) -> None:
    layer, diff_id = await add_layer(source, BASE)
    manifest = await fetch(source, (await add_image(source, "1", [(layer, diff_id)])).digest)
    document = serialize_document(replace(manifest, layers=(layer, layer)))
    await source.push_manifest(document, OCI_MANIFEST, "1")
    with pytest.raises(CorruptError, match="2 layers, but 1 in its config"):
        await convert_image(source, "1", target, "1")


async def test_a_config_that_is_none(source: OciLayout, target: OciLayout) -> None:
    await add_image(source, "1", [], config=await add_blob(source, b"[]", OCI_CONFIG))
    with pytest.raises(CorruptError, match=r"image config: expected an object, got an array$"):
        await convert_image(source, "1", target, "1")


async def test_a_config_that_is_too_large(source: OciLayout, target: OciLayout) -> None:
    config = replace(await add_blob(source, b"{}", OCI_CONFIG), size=1 << 30)
    await add_image(source, "1", [], config=config)
    with pytest.raises(CorruptError, match="its config has 1073741824 bytes, at most"):
        await convert_image(source, "1", target, "1")


async def test_a_document_that_is_none(
    source: OciLayout, target: OciLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetch_manifest(reference: str) -> tuple[Descriptor, bytes]:
        return Descriptor(media_type=OCI_MANIFEST, digest=Digest.of(b"{}"), size=2), b"{}"

    monkeypatch.setattr(source, "fetch_manifest", fetch_manifest)
    with pytest.raises(CorruptError, match=r"@sha256:\w+: manifest: "):
        await convert_image(source, "1", target, "1")


async def test_a_failure_tags_nothing(source: OciLayout, target: OciLayout) -> None:
    layer, _ = await add_layer(source, TOP)
    good = await add_layer(source, BASE)
    await add_image(source, "1", [good, (layer, Digest.of(b"another tar"))])
    with pytest.raises(CorruptError, match="its tar has"):
        await convert_image(source, "1", target, "1")
    with pytest.raises(NotFoundError):
        await target.fetch_manifest("1")


def refuse(error: LazyimgError) -> Callable[..., Any]:
    async def fetch_manifest(reference: str) -> tuple[Descriptor, bytes]:
        raise error

    return fetch_manifest


@pytest.mark.parametrize("error", [AccessDeniedError("r", "no"), CorruptError("r", "bad")])
async def test_a_target_whose_old_image_cannot_be_read(
    source: OciLayout, target: OciLayout, monkeypatch: pytest.MonkeyPatch, error: LazyimgError
) -> None:
    await add_image(source, "1", [await add_layer(source, BASE)])
    monkeypatch.setattr(target, "fetch_manifest", refuse(error))
    assert (await convert_image(source, "1", target, "1")).media_type == OCI_MANIFEST


async def test_a_target_that_is_gone(
    source: OciLayout, target: OciLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "fetch_manifest", refuse(RegistryError("r", "is gone")))
    with pytest.raises(RegistryError, match="is gone"):
        await convert_image(source, "1", target, "1")


@pytest.mark.parametrize(
    "change",
    [{SOURCE_DIGEST: None}, {PARAMETERS: "cutting=0,level=3"}, {POSITION: "1"}, {"type": "gzip"}],
)
async def test_layers_in_the_target_that_were_made_in_another_way(
    source: OciLayout, target: OciLayout, told: Told, change: dict[str, str | None]
) -> None:
    await add_image(source, "1", [await add_layer(source, BASE)])
    await convert_image(source, "1", target, "1")
    document = await fetch(target, "1")
    (layer,) = document.layers
    annotations = {**layer.annotations, **change}
    layer = replace(
        layer,
        annotations={name: text for name, text in annotations.items() if text is not None},
        media_type=DOCKER_LAYER_GZIP if "type" in change else layer.media_type,
    )
    document = replace(document, layers=(layer,))
    await target.push_manifest(serialize_document(document), OCI_MANIFEST, "1")
    await convert_image(source, "1", target, "1", progress=told)
    assert told.ended == [Outcome.CONVERTED]


async def test_a_target_that_cannot_be_read(source: OciLayout, target: OciLayout) -> None:
    class OnlyTarget:
        name = "target"
        has_blob = target.has_blob
        mount_blob_from = target.mount_blob_from
        push_blob = target.push_blob
        push_manifest = target.push_manifest

    await add_image(source, "1", [await add_layer(source, BASE)])
    made = await convert_image(source, "1", OnlyTarget(), "1")
    assert (await fetch(target, "1")).layers
    assert made.media_type == OCI_MANIFEST


async def test_an_index_in_the_target_with_too_many_manifests_is_read_in_part(
    source: OciLayout, target: OciLayout, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    monkeypatch.setattr("lazyimg.convert.image._MAX_KNOWN_MANIFESTS", 1)
    await add_two_platforms(source)
    made = await convert_image(source, "1", target, "1")
    assert await convert_image(source, "1", target, "1", progress=told) == made
    assert told.ended == [Outcome.CONVERTED] * 2
