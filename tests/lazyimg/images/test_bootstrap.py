"""Files of bootstraps: whole ones, others, and none."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from lazyimg.errors import CorruptError, StorageError
from lazyimg.images.bootstrap import read_devices, verify_bootstrap
from lazyimg_formats.erofs.tree import Device
from lazyimg_formats.erofs.writer import serialize_image
from tests.fakes.image_mounts import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def add(directory: Path, data: bytes) -> Path:
    path = directory / hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    return path


def test_devices_in_the_order_of_their_slots(tmp_path: Path) -> None:
    devices = [Device("b" * 64, 3), Device("a" * 64, 0), Device("c" * 64, 1)]
    path = add(tmp_path, serialize_image(ROOT, devices))
    verify_bootstrap(path)
    assert read_devices(path) == [("b" * 64, 12288), ("c" * 64, 4096)]


def test_bootstrap_without_devices(tmp_path: Path) -> None:
    assert read_devices(add(tmp_path, serialize_image(ROOT))) == []


def test_other_bytes(tmp_path: Path) -> None:
    path = add(tmp_path, serialize_image(ROOT))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CorruptError) as caught:
        verify_bootstrap(path)
    assert str(caught.value) == f"{path}: its bytes are not those of its name; remove it"


def test_other_file(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="remove it"):
        read_devices(add(tmp_path, bytes(8192)))


def test_file_that_is_gone(tmp_path: Path) -> None:
    for function in (verify_bootstrap, read_devices):
        with pytest.raises(StorageError) as caught:
            function(tmp_path / "none")
        assert str(caught.value) == (
            f"{tmp_path}/none: cannot be read: No such file or directory; mount the image again"
        )
