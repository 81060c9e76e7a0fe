"""What refers to a manifest: listed by the registry, or under a tag where it lists nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CorruptError, NotFoundError, RegistryError
from lazyimg.registry import referrers as module
from lazyimg.registry.ports import ReferrerSource, ReferrerTarget
from lazyimg_formats.index_artifact import ARTIFACT, EMPTY, StoredIndex, make_artifact
from lazyimg_formats.oci.digest import Digest
from lazyimg_formats.oci.documents import (
    OCI_EMPTY,
    OCI_MANIFEST,
    Index,
    parse_document,
    serialize_document,
)
from lazyimg_formats.oci.referrers import referrers_tag

if TYPE_CHECKING:
    from lazyimg.registry.repository import Repository
    from lazyimg_formats.oci.documents import Descriptor
    from tests.fakes.registry import FakeRegistry


@pytest.fixture
def image(registry: FakeRegistry) -> Descriptor:
    registry.add_blob("team/app", EMPTY, OCI_EMPTY)
    return registry.add_image("team/app", "1", {b"z": b"tar"})


def artifact(image: Descriptor, number: int) -> bytes:
    indexes = {Digest.of(b"z"): StoredIndex(Digest.of(bytes([number])), 1000)}
    return serialize_document(make_artifact(image, indexes))


@pytest.mark.parametrize("page", [0, 2, 100])
async def test_listed_wherever_the_list_is(
    registry: FakeRegistry, repository: Repository, image: Descriptor, page: int
) -> None:
    registry.referrers = page
    assert isinstance(repository, ReferrerSource)
    assert isinstance(repository, ReferrerTarget)
    assert await repository.referrers(image.digest) == ()
    made = [
        await repository.push_referrer(artifact(image, number), OCI_MANIFEST) for number in range(5)
    ]
    found = await repository.referrers(image.digest)
    assert {one.digest for one in found} == {one.digest for one in made}
    assert len(found) == 5
    assert {one.artifact_type for one in found} == {ARTIFACT}
    tag = referrers_tag(image.digest)
    assert (tag in registry.manifests["team/app"]) == (page == 0)
    assert await repository.remove_referrer(image.digest, made[2].digest) == ""
    left = await repository.referrers(image.digest)
    assert {one.digest for one in left} == {one.digest for one in made if one != made[2]}
    with pytest.raises(NotFoundError):
        await repository.fetch_manifest(made[2].digest)


async def test_same_one_twice(
    registry: FakeRegistry, repository: Repository, image: Descriptor
) -> None:
    for _ in range(2):
        await repository.push_referrer(artifact(image, 1), OCI_MANIFEST)
    assert len(await repository.referrers(image.digest)) == 1
    assert registry.count(path="/referrers/") == 1


async def test_registry_that_removes_nothing(
    registry: FakeRegistry, repository: Repository, image: Descriptor
) -> None:
    made = await repository.push_referrer(artifact(image, 1), OCI_MANIFEST)
    registry.deletes = False
    said = await repository.remove_referrer(image.digest, made.digest)
    assert said == "the registry answers 405 (UNSUPPORTED The operation is unsupported.)"
    assert await repository.referrers(image.digest) == ()
    with pytest.raises(RegistryError, match="answers 405"):  # neither listed under a tag
        await repository.remove_referrer(image.digest, made.digest)


async def test_what_is_gone_already(
    registry: FakeRegistry, repository: Repository, image: Descriptor
) -> None:
    registry.referrers = 10
    made = await repository.push_referrer(artifact(image, 1), OCI_MANIFEST)
    for _ in range(2):
        assert await repository.remove_referrer(image.digest, made.digest) == ""


@pytest.mark.parametrize("status", [400, 404, 405, 501])
async def test_registry_that_knows_no_referrers(
    registry: FakeRegistry, repository: Repository, image: Descriptor, status: int
) -> None:
    await repository.push_referrer(artifact(image, 1), OCI_MANIFEST)
    registry.referrers = 10
    registry.fail("status", path="/referrers/", status=status)
    assert len(await repository.referrers(image.digest)) == 1


async def test_answer_that_is_a_page_of_something_else(
    registry: FakeRegistry, repository: Repository, image: Descriptor
) -> None:
    registry.referrers = 10
    registry.fail("status", path="/referrers/", status=200, body=b"<html>welcome</html>")
    assert await repository.referrers(image.digest) == ()


async def test_list_that_is_none(
    registry: FakeRegistry, repository: Repository, image: Descriptor
) -> None:
    registry.referrers = 10
    registry.fail("wrong", path="/referrers/")
    with pytest.raises(CorruptError, match=f"what refers to {image.digest}: manifest: no JSON"):
        await repository.referrers(image.digest)
    registry.referrers = 0
    registry.manifests["team/app"][referrers_tag(image.digest)] = registry.manifests["team/app"][
        "1"
    ]
    with pytest.raises(CorruptError, match="list of referrers: is a manifest"):
        await repository.referrers(image.digest)


async def test_list_without_an_end(
    registry: FakeRegistry,
    repository: Repository,
    image: Descriptor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.referrers = 1
    for number in range(4):
        await repository.push_referrer(artifact(image, number), OCI_MANIFEST)
    monkeypatch.setattr(module, "MAX_PAGES", 3)
    assert len(await repository.referrers(image.digest)) == 3
    monkeypatch.setattr(module, "MAX_REFERRERS", 2)
    assert len(await repository.referrers(image.digest)) == 2


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ('<http://127.0.0.1:1/v2/x>; rel="next"', "goes on at another host"),
        ('<http://[::/>; rel="next"', "goes on at an impossible place"),
    ],
)
async def test_list_that_goes_on_elsewhere(
    registry: FakeRegistry, repository: Repository, image: Descriptor, link: str, problem: str
) -> None:
    registry.referrers = 10
    registry.fail("headers", path="/referrers/", headers={"Link": link}, times=9)
    with pytest.raises(RegistryError, match=problem):
        await repository.referrers(image.digest)


async def test_tokens_for_removing(
    registry: FakeRegistry, repository: Repository, image: Descriptor
) -> None:
    registry.auth = "token"
    made = await repository.push_referrer(artifact(image, 1), OCI_MANIFEST)
    assert await repository.remove_referrer(image.digest, made.digest) == ""
    assert await repository.referrers(image.digest) == ()


async def test_list_under_the_tag_is_an_ordinary_index(
    registry: FakeRegistry, repository: Repository, image: Descriptor
) -> None:
    await repository.push_referrer(artifact(image, 1), OCI_MANIFEST)
    media_type, data = registry.manifests["team/app"][referrers_tag(image.digest)]
    listed = parse_document(data, media_type)
    assert isinstance(listed, Index)
    assert [entry.artifact_type for entry in listed.manifests] == [ARTIFACT]
