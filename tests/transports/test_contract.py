"""The contract of transports, over those that this machine's own kernel has."""

from __future__ import annotations

import pytest

from tests.contracts.transports import TransportContract, UpsetsContract


class TestFuse(TransportContract):
    """The suite over FUSE."""

    @pytest.fixture
    def transport(self) -> str:
        return "fuse"


class TestFuseByLoops(UpsetsContract):
    """What may differ over FUSE when it is mounted by loop devices; see test_loops.py."""

    @pytest.fixture
    def transport(self) -> str:
        return "fuse"

    @pytest.fixture
    def settings(self, transport: str) -> dict[str, str]:
        return {"LAZYIMG_TRANSPORT": transport, "LAZYIMG_FUSE_MOUNT": "loop"}


class TestFanotify(TransportContract):
    """The suite over fanotify."""

    @pytest.fixture
    def transport(self) -> str:
        return "fanotify"
