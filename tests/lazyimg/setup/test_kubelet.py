"""What is said of the image service."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from lazyimg.setup.kubelet import check_image_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def listening(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield


def check(directory: Path, *files: Path) -> tuple[bool, str, str]:
    """Give what is said of two sockets, with its directory left out."""
    found = check_image_service(
        address=f"{directory}/images", containerd=f"{directory}/containerd", files=files
    )
    assert (found.name, found.needed) == ("image service", False)
    detail, remedy = (text.replace(str(directory), "") for text in (found.detail, found.remedy))
    return found.ok, detail, remedy


def test_sockets_that_do_not_answer(tmp_path: Path) -> None:
    assert check(tmp_path) == (
        False,
        "containerd does not answer at /containerd",
        "start it, or name its socket in image_service.containerd",
    )
    with listening(tmp_path / "containerd"):
        assert check(tmp_path) == (False, "nobody answers at /images", "run lazyimg serve")


@pytest.mark.parametrize("text", ["", "imageServiceEndpoint: unix:///run/other.sock\n"])
def test_kubelet_that_calls_another(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with listening(tmp_path / "containerd"), listening(tmp_path / "images"):
        assert check(tmp_path, tmp_path / "none", file, tmp_path) == (
            False,
            "the kubelet does not call it: /config.yaml, ",
            (
                "there: imageServiceEndpoint: unix:///images, or"
                " --image-service-endpoint=unix:///images"
            ),
        )


def test_kubelet_that_calls_it(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    with listening(tmp_path / "containerd"), listening(tmp_path / "images"):
        expected = (True, "/images, before /containerd", "")
        assert check(tmp_path, file) == expected  # its configuration is elsewhere
        file.write_text(f"imageServiceEndpoint: unix://{tmp_path}/images\n")
        assert check(tmp_path, tmp_path / "none", file) == expected
