"""Credentials that came with somebody's pull: in memory, never on disk, for a limited time.

The kubelet shows containerd a credential with each pull (`lazyimg.imageservice`). What is loaded
lazily is read long after the pull, so the credential is kept, for its repository, from the pull on.
It is needed during the pull already, and proves itself by it: containerd has read the manifest
with it. One that did not lead to an image is forgotten again; what had worked before counts then.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from lazyimg.host.memory_lines import MemoryLines
from lazyimg.registry.auth import Credential

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_REPOSITORIES: Final = 1024
"""Repositories whose credentials are kept; beyond that, those that are longest known are not."""

_log = logging.getLogger(__name__)


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    repository: str
    end: float
    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """A credential on trial.

    Attributes:
        number: of the pull that it came with.
        repository: registry and name.
        credential: what is shown to it.
    """

    number: int
    repository: str
    credential: Credential


class GivenCredentials:
    """The credential of the latest pull from each repository.

    Args:
        lifetime: seconds for which one is kept after its pull.
        fd: of the file that a process before this one has kept; owned from now on. None: a new one.
        clock: seconds since the machine has started, the same for each process.

    Attributes:
        fd: of the file.

    Raises:
        StorageError: there is no memory.
    """

    def __init__(
        self,
        lifetime: float,
        fd: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lifetime = lifetime
        self._clock = clock
        self._numbers = itertools.count(1)
        self._offers: dict[int, Offer] = {}
        self._kept: dict[str, tuple[Credential, float]] = {}
        self._lines = MemoryLines("lazyimg-given", fd)
        self.fd = self._lines.fd
        for text in self._lines.read():
            self._read(text)

    def _read(self, text: bytes) -> None:
        try:
            line = msgspec.json.decode(text, type=_Line)
        except ValueError:  # also of what is no UTF-8
            return
        credential = Credential(
            line.username, line.password, line.identity_token, line.registry_token
        )
        self._set(line.repository, credential, line.end)

    def _set(self, repository: str, credential: Credential, end: float) -> None:
        self._kept.pop(repository, None)
        self._kept[repository] = credential, end
        while len(self._kept) > MAX_REPOSITORIES:
            self._kept.pop(next(iter(self._kept)))

    def find(self, repository: str) -> Credential | None:
        """Give what to show a repository: what a pull under way came with, or what is kept."""
        for offer in reversed(self._offers.values()):
            if offer.repository == repository:
                return offer.credential
        credential, end = self._kept.get(repository, (None, 0.0))
        if credential is not None and self._clock() >= end:
            del self._kept[repository]
            _log.info("the credentials given for %s have expired", repository)
            return None
        return credential

    def begin(self, repository: str, credential: Credential) -> Offer:
        """Use a credential while the pull that it came with is under way; `end` it."""
        offer = Offer(next(self._numbers), repository, credential)
        self._offers[offer.number] = offer
        return offer

    def end(self, offer: Offer, *, pulled: bool) -> None:
        """Keep a credential if it has led to an image; otherwise forget it.

        Raises:
            StorageError: there is no memory; it is kept for this process only.
        """
        del self._offers[offer.number]
        if not pulled:
            return
        self._set(offer.repository, offer.credential, self._clock() + self._lifetime)
        *_, line = self._serialize()
        if self._lines.has_room(line):
            self._lines.add(line)
        else:
            self._lines.replace(self._serialize())

    def _serialize(self) -> Iterator[bytes]:
        now = self._clock()
        for repository, (one, end) in self._kept.items():
            if now < end:
                line = _Line(
                    repository, end, one.username, one.password, one.identity_token,
                    one.registry_token,
                )  # fmt: skip
                yield msgspec.json.encode(line)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
