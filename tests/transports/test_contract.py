"""The contract of transports, over those that this machine's own kernel has."""

from __future__ import annotations

import pytest

from tests.contracts.transports import TransportContract


class TestFuse(TransportContract):
    """The suite over FUSE."""

    @pytest.fixture
    def transport(self) -> str:
        return "fuse"


class TestFanotify(TransportContract):
    """The suite over fanotify."""

    @pytest.fixture
    def transport(self) -> str:
        return "fanotify"
