"""Who may use which layer: what is asked, what is remembered, what counts without a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import AccessDeniedError, RegistryError
from lazyimg.images import proofs as module
from lazyimg.images.library import Library
from lazyimg.images.proofs import PROOF_LIFETIME, Proofs
from lazyimg_formats.oci.documents import OCI_LAYER, Descriptor, describe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from lazyimg_formats.oci.digest import Digest

LAYERS = [describe(data, OCI_LAYER) for data in (b"one", b"two", b"one")]
BLOBS = {str(layer.digest) for layer in LAYERS}
AWAY = RegistryError("reg.test/app", "away", retryable=True)


class Source:
    """A repository of which `allowed` may be read; answers as `failure` says."""

    name = "reg.test/app"

    def __init__(self) -> None:
        self.who = "me"
        self.allowed = set(BLOBS)
        self.failure: LazyError = None
        self.asked: list[str] = []
        self.configured = ["mirror.test:5000", "reg.test"]
        self.answers = "reg.test"

    async def hosts(self) -> frozenset[str]:
        return frozenset(self.configured)

    async def user(self) -> str:
        return self.who

    async def prove_blob(self, descriptor: Descriptor) -> str:
        self.asked.append(str(descriptor.digest))
        if self.failure is not None:
            raise self.failure
        if str(descriptor.digest) not in self.allowed:
            raise AccessDeniedError(self.name, "no")
        return self.answers

    async def fetch_manifest(self, reference: Digest | str) -> tuple[Descriptor, bytes]:
        raise AssertionError

    async def read_blob(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        raise AssertionError

    def distrust(self, descriptor: Descriptor, offset: int, length: int) -> bool:
        raise AssertionError

    async def stream_blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""


LazyError = RegistryError | None


class Setup:
    def __init__(self, library: Library) -> None:
        self.now = 1e9
        self.source = Source()
        self.proofs = Proofs(library, lambda: self.now)

    async def prove(self) -> int:
        """Give how many blobs were asked for."""
        self.source.asked.clear()
        await self.proofs.prove(self.source, LAYERS)
        return len(self.source.asked)


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    library = Library(tmp_path / "library.sqlite")
    yield Setup(library)
    library.close()


async def test_each_blob_is_asked_for_once_until_the_proof_is_old(setup: Setup) -> None:
    assert not await setup.proofs.are_fresh(setup.source, BLOBS)
    assert await setup.prove() == 2
    assert await setup.proofs.are_fresh(setup.source, BLOBS)
    setup.now += PROOF_LIFETIME - 1
    assert await setup.prove() == 0
    setup.now += 1
    assert not await setup.proofs.are_fresh(setup.source, BLOBS)
    assert await setup.prove() == 2


async def test_clock_that_was_set_back_makes_no_proof_last(setup: Setup) -> None:
    await setup.prove()
    setup.now -= 1
    assert not await setup.proofs.are_fresh(setup.source, BLOBS)
    assert await setup.prove() == 2


async def test_another_user_and_another_repository_prove_for_themselves(setup: Setup) -> None:
    await setup.prove()
    setup.source.who = ""
    assert await setup.prove() == 2
    setup.source.name = "reg.test/other"
    assert await setup.prove() == 2


async def test_blob_that_may_not_be_read(setup: Setup) -> None:
    setup.source.allowed.remove(str(LAYERS[1].digest))
    with pytest.raises(AccessDeniedError, match="no"):
        await setup.prove()
    assert not await setup.proofs.are_fresh(setup.source, [str(LAYERS[0].digest)])


async def test_right_that_was_taken_away(setup: Setup) -> None:
    await setup.prove()
    setup.now += PROOF_LIFETIME
    setup.source.allowed.clear()
    with pytest.raises(AccessDeniedError):
        await setup.prove()


async def test_older_proof_counts_while_the_registry_is_away(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    setup.source.failure = AWAY
    with pytest.raises(RegistryError, match="away"):
        await setup.prove()
    setup.source.failure = None
    await setup.prove()
    setup.now += 10 * PROOF_LIFETIME
    setup.source.failure = AWAY
    assert await setup.prove() > 0
    assert "an older proof counts" in caplog.text
    await setup.proofs.require(setup.source, BLOBS)


async def test_registry_that_says_nothing(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    await setup.prove()
    setup.now += 10 * PROOF_LIFETIME
    monkeypatch.setattr(module, "PROVE_DEADLINE", 0.0)
    assert await setup.prove() >= 0


async def test_word_of_a_mirror_counts_as_long_as_it_is_configured(setup: Setup) -> None:
    setup.source.answers = "mirror.test:5000"
    assert await setup.prove() == 2
    assert await setup.prove() == 0
    setup.source.configured.remove("mirror.test:5000")
    assert not await setup.proofs.are_fresh(setup.source, BLOBS)
    with pytest.raises(AccessDeniedError, match="has not been seen to read the image"):
        await setup.proofs.require(setup.source, BLOBS)
    setup.source.answers = "reg.test"
    assert await setup.prove() == 2
    setup.source.configured.append("mirror.test:5000")
    assert await setup.prove() == 0


async def test_nothing_counts_that_was_never_proven(setup: Setup) -> None:
    with pytest.raises(AccessDeniedError) as caught:
        await setup.proofs.require(setup.source, BLOBS)
    assert str(caught.value) == (
        "reg.test/app: the registry does not answer, and this user has not been seen to read the"
        " image; try again when the registry answers"
    )
